"""The gateway's way to identity: one typed call per verb."""

from typing import TypeVar

import msgspec

from octavo_shared.bus import Bus
from octavo_shared.errors import AdapterUnavailable, Overloaded
from octavo_shared.identity_calls import ask_identity
from octavo_shared.key_transport import KeyNotReadable, Question
from octavo_shared.messages.generation import AdapterHandle
from octavo_shared.messages.identity import VERBS
from octavo_shared.messages.privacy import DataKey, Unwrap
from octavo_shared.messages.pushing import CheckUpload, UploadChecked
from octavo_shared.messages.requests import Credential
from octavo_shared.messages.resolving import Resolution, Resolve

T = TypeVar("T")

_CALLS_MAX = 512
"""At the same time. A key is only known to be good once identity has looked, so this bounds what made-up keys cost."""
_BUSY_RETRY_AFTER_S = 1
_VERB_OF = {request: verb for verb, (request, _) in VERBS.items()}


class IdentityClient:
    """Raises what identity refuses with, ``DependencyUnavailable`` when it does not answer in time, and ``Overloaded``
    when too many calls are on their way already.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._num_running = 0

    async def resolve(self, credential: Credential, reference: str | None) -> Resolution:
        """Return who holds the key and what ``reference`` names for them; None only checks the key."""
        return await self.call(Resolve(credential=credential, reference=reference), Resolution)

    async def data_key(self, adapter: AdapterHandle) -> bytes:
        """Return the key that a resolved adapter's packs are sealed under."""
        question = Question()
        answer = await self.call(Unwrap(adapter, question.public_key), DataKey)
        return _opened(question, answer.sealed)

    async def upload_key(self, credential: Credential, upload_id: str) -> bytes:
        """Return the key that an upload's files are sealed under; raises ``InvalidRequest`` when it is another's."""
        question = Question()
        check = CheckUpload(credential=credential, upload_id=upload_id, public_key=question.public_key)
        return _opened(question, (await self.call(check, UploadChecked)).sealed)

    async def call(self, request: msgspec.Struct, reply: type[T]) -> T:
        """Send ``request`` to the verb of its type; see ``ask_identity``."""
        if self._num_running >= _CALLS_MAX:
            raise Overloaded(retry_after_s=_BUSY_RETRY_AFTER_S)
        self._num_running += 1
        try:
            return await ask_identity(self._bus, _VERB_OF[type(request)], request, reply)
        finally:
            self._num_running -= 1


def _opened(question: Question, sealed: bytes) -> bytes:
    try:
        return question.open(sealed)
    except KeyNotReadable as error:
        raise AdapterUnavailable("identity's answer holds no data key") from error
