"""The keys that open and seal adapters' events, one or many at a time; they come from data keys."""

from collections.abc import Collection, Sequence

from octavo_identity.data_keys import DataKeys
from octavo_shared.errors import AdapterErased, DependencyUnavailable
from octavo_shared.references import AdapterId, TenantId
from octavo_shared.sealed_event import field_key


class FieldKeys:
    """Field keys out of the cache, or else of their data keys. Raises what ``DataKeys`` does.

    A key is forgotten when its adapter's erasure is seen, and all of them when the registry is out of reach for long.
    """

    def __init__(self, keys: DataKeys) -> None:
        self._keys = keys
        self.cache = keys.fields

    async def read(self, adapter_id: AdapterId) -> bytes:
        """Return the adapter's field key, as lately known here or else as its leader has it."""
        return self.cache.get(adapter_id) or field_key(await self._keys.read(adapter_id))

    async def to_write(
        self, begun: Sequence[tuple[TenantId, AdapterId]], known: Collection[AdapterId]
    ) -> dict[AdapterId, bytes]:
        """Return the field keys of adapters that begin, which get their data keys now, and of others.

        Raises ``AdapterErased`` when one of them is.
        """
        found = {one: key for _, one in begun if (key := self.cache.get(one)) is not None}
        found |= await self._keys.make_all([owner for owner in begun if owner[1] not in found])
        # A key never changes, so a copy of it will do.
        for adapter_id, copied in (await self.copy(known)).items():
            if copied is None:
                raise AdapterErased
            found[adapter_id] = copied
        if not found.keys() >= {*known}:
            raise DependencyUnavailable("the stream of data keys")
        return found

    async def copy(self, adapter_ids: Collection[AdapterId]) -> dict[AdapterId, bytes | None]:
        """Return the field keys of many adapters, None for one that was destroyed; what has none is left out.

        For copies: see ``DataKeys.copy``.
        """
        cached = {one: key for one in adapter_ids if (key := self.cache.get(one)) is not None}
        copied = await self._keys.copy([one for one in adapter_ids if one not in cached])
        return cached | {adapter_id: key and field_key(key) for adapter_id, key in copied.items()}
