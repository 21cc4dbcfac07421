"""Deletes what nobody committed: abandoned uploads, and packs that no revision names."""

import asyncio

from octavo_identity.heads import HeadStore
from octavo_identity.projection import Projection
from octavo_shared.errors import DependencyUnavailable
from octavo_shared.objects import ObjectStore
from octavo_shared.telemetry import log

ABANDONED_AFTER_S = 3600.0
"""Longer than an upload may be committed (``pushing.UPLOAD_AGE_MS_MAX``), so what is swept can never be named again."""
_SWEEP_EVERY_S = 600.0
_KEYS_MAX = 10_000


class Sweeper:
    """Looks at a bounded number of objects at a time and goes on there the next time."""

    def __init__(self, store: ObjectStore, heads: HeadStore, projection: Projection) -> None:
        self._store = store
        self._heads = heads
        self._projection = projection
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
        doomed = await self._store.keys("staging/", min_age_s, _KEYS_MAX)
        packs = await self._store.keys("packs/", min_age_s, _KEYS_MAX, self._after)
        self._after = packs[-1] if len(packs) == _KEYS_MAX else ""
        _, last = await self._heads.state()
        # A pack is an orphan only if a view that is at least as new as the listing does not know it.
        if self._projection.sequence >= last:
            doomed += [key for key in packs if not self._projection.names_pack(key)]
        for key in doomed:
            await self._store.delete(key)
        return len(doomed)
