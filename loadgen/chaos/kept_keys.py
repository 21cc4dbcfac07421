"""The data keys of a run, kept from before they are destroyed: what was erased says nothing, and is checked too."""

import asyncio
import contextlib
from collections.abc import Sequence

from octavo_identity.data_keys import DataKeys
from octavo_shared import subjects
from octavo_shared.errors import AdapterErased, DependencyUnavailable
from octavo_shared.references import AdapterId

_POLL_S = 0.02
_KEPT_S = 20.0


class KeptKeys(DataKeys):
    """Data keys as the operator of a run has them, who looks at the stream all the time."""

    _kept: dict[AdapterId, bytes]
    _after = 0
    _num_begun = 0
    _num_whole = 0

    async def follow(self) -> None:
        """Keep for ever what comes."""
        self._kept = {}
        while True:
            self._num_begun += 1
            try:
                while await self._keep_next():
                    pass
                self._num_whole = self._num_begun
            except DependencyUnavailable:
                # Nor can anybody else make a key, or destroy one.
                pass
            await asyncio.sleep(_POLL_S)

    async def has_all(self) -> bool:
        """Tell, once it is so, that all keys are kept that were there when this was called; False: not in time."""
        num_begun = self._num_begun
        try:
            async with asyncio.timeout(_KEPT_S):
                while self._num_whole <= num_begun:  # noqa: ASYNC110 - passes have no event to wait for
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            return False
        return True

    async def _keep_next(self) -> bool:
        found = await self._stream.get_next(self._after + 1, subjects.data_key("*"))
        if found is None:
            return False
        self._after = found.sequence
        with contextlib.suppress(AdapterErased):
            self._kept[AdapterId(found.subject.rpartition(".")[2])] = await self._open(found)
        return True

    async def copy(self, adapter_ids: Sequence[AdapterId]) -> dict[AdapterId, bytes | None]:
        """Return what the stream has, and what it once had."""
        kept = {adapter_id: self._kept[adapter_id] for adapter_id in adapter_ids if adapter_id in self._kept}
        return await super().copy(adapter_ids) | kept
