"""Deletes what nobody committed: abandoned uploads, and packs that no revision names."""

import asyncio
import time

from octavo_identity.data_keys import DataKeys
from octavo_identity.heads import HeadStore
from octavo_identity.projection import Projection
from octavo_identity.records import AdapterHead, ErasedHead, parse_object_key
from octavo_identity.registry import LEDGER_WALK_MAX, walk
from octavo_shared import subjects
from octavo_shared.errors import DependencyUnavailable
from octavo_shared.objects import ObjectStore
from octavo_shared.telemetry import log

ABANDONED_AFTER_S = 3600.0
"""Longer than an upload may be committed (``committing.UPLOAD_AGE_MS_MAX``): what is swept can never be named again."""
_SWEEP_EVERY_S = 600.0
_KEYS_MAX = 10_000
_UPLOAD_KEYS_MAX = 1_000
_CLOCKS_APART_S = 300.0
"""How far the clocks of NATS, S3 and this process may differ."""


class Sweeper:
    """Looks at a bounded number of objects at a time and goes on there the next time.

    A pack that was deleted wrongly cannot be had back, so one goes only when the projection, which has all that was in
    the stream before the look, does not know it, when it is younger than the stream, and when the stream's leader does
    not know it either.
    """

    def __init__(
        self,
        store: ObjectStore,
        heads: HeadStore,
        projection: Projection,
        keys: DataKeys,
        clocks_apart_s: float = _CLOCKS_APART_S,
    ) -> None:
        self._store = store
        self._keys = keys
        self._heads = heads
        self._projection = projection
        self._clocks_apart_s = clocks_apart_s
        self._after = ""

    async def run(self) -> None:
        """Sweep for ever; what cannot be done now is done the next time."""
        while True:
            await asyncio.sleep(_SWEEP_EVERY_S)
            try:
                num_swept = await self.sweep(ABANDONED_AFTER_S)
            except DependencyUnavailable as error:
                log.warning("sweep_postponed", detail=error.message)
                continue
            if num_swept:
                log.info("sweep_done", num_swept=num_swept)

    async def sweep(self, min_age_s: float) -> int:
        """Delete what is older than ``min_age_s`` and belongs to nothing; returns how many objects went."""
        state = await self._heads.state()
        await self._keys.destroy_old_uploads(min_age_s, _UPLOAD_KEYS_MAX)
        uploads = await self._store.keys("staging/", min_age_s, _KEYS_MAX)
        for key in uploads:
            await self._store.delete(key)
        num_packs = 0
        packs = await self._store.keys("packs/", min_age_s, _KEYS_MAX, self._after)
        self._after = packs[-1] if len(packs) == _KEYS_MAX else ""
        if self._projection.is_caught_up and self._projection.sequence >= state.last_sequence:
            begun_s = max(state.created_s, self._projection.begun_s)
            for key in await self._projection.unnamed_packs(packs):
                if await self._is_orphan(key, begun_s):
                    await self._store.delete(key)
                    num_packs += 1
        return len(uploads) + num_packs

    async def _is_orphan(self, key: str, begun_s: float) -> bool:
        """Tell whether no revision names the pack; what is unclear is none."""
        # The stream that names an older pack is not this one, or it is one that has lost what it once held.
        age_s = time.time() - begun_s - self._clocks_apart_s
        if age_s <= 0 or key in await self._store.keys(key, age_s):
            return False
        parts = parse_object_key(key)
        if parts is None:
            return False
        adapter_id, number = parts
        is_known = False
        async for event, _ in walk(self._heads, subjects.adapter_head("*", "*", adapter_id), LEDGER_WALK_MAX):
            head = event.head
            if isinstance(head, ErasedHead) and head.adapter_id == adapter_id:
                # Its packs are gone; whatever a push that was under way left behind opens for nobody.
                return True
            if not isinstance(head, AdapterHead) or head.adapter_id != adapter_id:
                return False
            if number > head.num_revisions:
                return not is_known
            is_known = True
            named = [stored for stored in head.revisions if stored.revision.number == number]
            if named:
                if named[0].object_key == key:
                    log.error("projection_lacks_revision", sequence=self._projection.sequence)
                return named[0].object_key != key
        return not is_known
