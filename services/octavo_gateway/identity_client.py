"""The gateway's way to identity: one typed call per verb."""

from typing import TypeVar

import msgspec

from octavo_shared import subjects
from octavo_shared.bus import Bus
from octavo_shared.messages.identity import VERBS, Credential, Resolution, Resolve

T = TypeVar("T")

_TIMEOUT_S = 5.0
_COMMIT_TIMEOUT_S = 120.0
_VERB_OF = {request: verb for verb, (request, _) in VERBS.items()}


class IdentityClient:
    """Raises what identity refuses with, and ``DependencyUnavailable`` when it does not answer in time."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def resolve(self, credential: Credential, reference: str | None) -> Resolution:
        """Return who holds the key and what ``reference`` names for them; None only checks the key."""
        return await self.call(Resolve(credential=credential, reference=reference), Resolution)

    async def call(self, request: msgspec.Struct, reply: type[T]) -> T:
        """Send ``request`` to the verb of its type. A commit validates and stores a pack, so it may take longer."""
        verb = _VERB_OF[type(request)]
        timeout_s = _COMMIT_TIMEOUT_S if verb == "commit" else _TIMEOUT_S
        return await self._bus.request(subjects.identity(verb), request, reply, timeout_s, "identity")
