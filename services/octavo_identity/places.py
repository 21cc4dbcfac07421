"""Where in the registry stream an adapter of a name is: erasing it moves the name on to another place."""

from functools import lru_cache

from octavo_identity.heads import HeadStore
from octavo_identity.ids import Ids
from octavo_identity.records import ErasedHead, RegistryEvent
from octavo_shared import subjects
from octavo_shared.errors import DependencyUnavailable
from octavo_shared.references import AdapterId, Reference

_INCARNATIONS_MAX = 1_000
_REMEMBERED_MAX = 4_096


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
            found = await self._heads.read(self.subject(reference))
            if found is None or not isinstance(found[0].head, ErasedHead):
                return found
            self._incarnations[reference.name] = found[0].head.next_incarnation
        raise DependencyUnavailable("a name that was erased this often")

    async def read_erased(self, reference: Reference) -> tuple[ErasedHead, int] | None:
        """Return what is left of the adapter that had the name before, with its sequence; ``read`` comes first."""
        incarnation = self._incarnations.get(reference.name, 0) - 1
        if incarnation < 0:
            return None
        found = await self._heads.read(self._subject_of(reference, incarnation))
        assert found is not None, "the name has moved on from there"
        assert isinstance(found[0].head, ErasedHead), "an adapter that was erased stays so"
        return found[0].head, found[1]

    def incarnation(self, reference: Reference) -> int:
        """Return how often the name was erased, as far as ``read`` has seen."""
        return self._incarnations.get(reference.name, 0) if self._incarnations else 0

    def adapter_id(self, reference: Reference) -> AdapterId:
        """Return the id of the adapter that has, or would get, the name, as far as ``read`` has seen."""
        return self._place(reference.tenant, reference.adapter, self.incarnation(reference))[0]

    def subject(self, reference: Reference) -> str:
        """Return the registry subject of ``adapter_id``."""
        return self._subject_of(reference, self.incarnation(reference))

    def _subject_of(self, reference: Reference, incarnation: int) -> str:
        return self._place(reference.tenant, reference.adapter, incarnation)[1]

    def _derive(self, tenant: str, adapter: str, incarnation: int) -> tuple[AdapterId, str]:
        """Return an adapter's id and the registry subject of it."""
        tenant_id, adapter_id = self._ids.tenant(tenant), self._ids.adapter(tenant, adapter, incarnation)
        return adapter_id, subjects.adapter_head(self._ids.shard(tenant_id), tenant_id, adapter_id)
