"""Where in the registry stream an adapter of a name is: erasing it moves the name on to another place."""

from functools import lru_cache

import msgspec

from octavo_identity.heads import HeadStore
from octavo_identity.ids import Ids
from octavo_identity.records import ErasedHead, RegistryEvent
from octavo_shared import subjects
from octavo_shared.errors import DependencyUnavailable
from octavo_shared.references import AdapterId, Reference, TenantId

_INCARNATIONS_MAX = 1_000
_REMEMBERED_MAX = 4_096


class Place(msgspec.Struct, frozen=True):
    """The ids of an adapter and of its tenant, and the registry subject of the adapter."""

    tenant_id: TenantId
    adapter_id: AdapterId
    subject: str


class Places:
    """The id of an adapter comes from its name and from how often the name was erased, which its places themselves say.

    That is remembered here for names that were erased. It only ever grows, so a memory that is behind costs reads and
    nothing else.
    """

    def __init__(self, heads: HeadStore, ids: Ids) -> None:
        self._heads = heads
        self._ids = ids
        self._incarnations: dict[str, int] = {}
        # A push asks for its place a dozen times. Bounded: anybody may name what does not exist.
        self._place = lru_cache(_REMEMBERED_MAX)(self._derive)

    async def read(self, reference: Reference) -> tuple[RegistryEvent, int] | None:
        """Return the last event of the adapter that has the name now, with its sequence, as the leader has it."""
        for _ in range(_INCARNATIONS_MAX):
            found = await self._heads.read(self.now(reference).subject)
            if found is None or not isinstance(found[0].head, ErasedHead):
                return found
            self._incarnations[reference.name] = found[0].head.next_incarnation
        raise DependencyUnavailable("a name that was erased this often")

    async def read_erased(self, reference: Reference) -> tuple[ErasedHead, int] | None:
        """Return what is left of the adapter that had the name before, with its sequence; ``read`` comes first."""
        incarnation = self._incarnations.get(reference.name, 0) - 1
        if incarnation < 0:
            return None
        found = await self._heads.read(self._place(reference.tenant, reference.adapter, incarnation).subject)
        assert found is not None, "the name has moved on from there"
        assert isinstance(found[0].head, ErasedHead), "an adapter that was erased stays so"
        return found[0].head, found[1]

    def incarnation(self, reference: Reference) -> int:
        """Return how often the name was erased, as far as ``read`` has seen."""
        return self._incarnations.get(reference.name, 0) if self._incarnations else 0

    def now(self, reference: Reference) -> Place:
        """Return the place of the adapter that has, or would get, the name, as far as ``read`` has seen."""
        return self._place(reference.tenant, reference.adapter, self.incarnation(reference))

    def _derive(self, tenant: str, adapter: str, incarnation: int) -> Place:
        tenant_id, adapter_id = self._ids.tenant(tenant), self._ids.adapter(tenant, adapter, incarnation)
        return Place(tenant_id, adapter_id, subjects.adapter_head(self._ids.shard(tenant_id), tenant_id, adapter_id))
