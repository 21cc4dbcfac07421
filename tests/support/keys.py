"""Data keys that everybody in a test can work out, and an identity that gives them out."""

import hashlib
from collections.abc import Sequence

from octavo_shared import subjects
from octavo_shared.bus import Bus
from octavo_shared.errors import AdapterErased, DependencyUnavailable
from octavo_shared.messages.generation import AdapterHandle
from octavo_shared.messages.privacy import DataKey, Erasures, ErasuresSince, Unwrap
from octavo_shared.references import AdapterId, TenantId
from octavo_shared.seal import pack_context, seal


def key_for(thing_id: str) -> bytes:
    """Return the data key of an adapter or an upload."""
    return hashlib.sha256(f"data key of {thing_id}".encode()).digest()


def sealed_for(handle: AdapterHandle, pack: bytes) -> bytes:
    """Return ``pack`` as identity would store it for ``handle``."""
    context = pack_context(handle.tenant_id, handle.adapter_id, handle.revision, handle.base)
    return seal(pack, key_for(handle.adapter_id), context)


class KeyDesk:
    """Answers ``unwrap`` and ``erasures`` on the real bus; ``is_away`` makes it answer that it cannot."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.num_asked = 0
        self.erased: list[AdapterId] = []
        self.is_away = False

    async def start(self) -> None:
        for verb, kind in (("unwrap", Unwrap), ("erasures", ErasuresSince)):
            await self._bus.serve(subjects.identity(verb), kind, self.answer, subjects.IDENTITY_QUEUE)

    async def answer(self, request: Unwrap | ErasuresSince) -> object:
        if self.is_away:
            raise DependencyUnavailable("JetStream")
        if isinstance(request, Unwrap):
            self.num_asked += 1
            if request.adapter.adapter_id in self.erased:
                raise AdapterErased
            return DataKey(key_for(request.adapter.adapter_id))
        after = len(self.erased) if request.after is None else request.after
        return Erasures(tuple(self.erased[after:]), len(self.erased))


class MemoryKeys:
    """What ``Staging`` and ``Pushing`` ask of identity's data keys, without a stream."""

    def __init__(self, uploads: Sequence[str] = ()) -> None:
        self.uploads = set(uploads)

    async def make(self, tenant_id: TenantId, adapter_id: AdapterId) -> bytes:
        return key_for(adapter_id)

    async def read(self, adapter_id: AdapterId) -> bytes:
        return key_for(adapter_id)

    async def make_for_upload(self, tenant_id: TenantId, adapter_id: AdapterId, upload_id: str) -> bytes:
        self.uploads.add(upload_id)
        return key_for(upload_id)

    async def read_for_upload(self, upload_id: str) -> bytes | None:
        return key_for(upload_id) if upload_id in self.uploads else None

    async def destroy_upload(self, upload_id: str) -> None:
        self.uploads.discard(upload_id)
