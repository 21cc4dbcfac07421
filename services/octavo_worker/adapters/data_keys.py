"""Data keys in this worker's memory: asked of identity once, kept for a while, never on a disk."""

import asyncio
from collections import OrderedDict

from octavo_shared import subjects
from octavo_shared.bus import Bus
from octavo_shared.errors import AdapterErased, AdapterUnavailable, OctavoError
from octavo_shared.messages.generation import AdapterHandle
from octavo_shared.messages.privacy import DataKey, Unwrap
from octavo_shared.references import AdapterId

_UNWRAP_TIMEOUT_S = 5.0
_KEPT_MAX = 65_536


class DataKeys:
    """Belongs to the event loop. While identity is away, keys that are known go on opening what is here.

    They are kept until they are forgotten: when their adapter is erased, or all of them when this worker has not heard
    for too long what was erased (``erasing.py``).
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._known: OrderedDict[AdapterId, bytes] = OrderedDict()
        self._asked: dict[AdapterId, asyncio.Task[bytes]] = {}

    def __len__(self) -> int:
        return len(self._known)

    async def key_of(self, handle: AdapterHandle) -> bytes:
        """Return the data key of a handle's adapter; raises ``AdapterErased`` or ``AdapterUnavailable``."""
        adapter_id = handle.adapter_id
        if (key := self._known.get(adapter_id)) is not None:
            self._known.move_to_end(adapter_id)
            return key
        asked = self._asked.get(adapter_id)
        if asked is None:
            asked = self._asked[adapter_id] = asyncio.create_task(self._ask(handle), name="unwrap data key")
            asked.add_done_callback(lambda task: self._answered(adapter_id, task))
        # Somebody who gives up must not take the answer from the others.
        return await asyncio.shield(asked)

    def forget(self, adapter_id: AdapterId) -> None:
        """Forget one adapter's key, also one that is on its way."""
        self._known.pop(adapter_id, None)
        self._asked.pop(adapter_id, None)

    def forget_all(self) -> None:
        """Forget every key."""
        self._known.clear()
        self._asked.clear()

    async def _ask(self, handle: AdapterHandle) -> bytes:
        subject = subjects.identity("unwrap")
        try:
            answer = await self._bus.request(subject, Unwrap(handle), DataKey, _UNWRAP_TIMEOUT_S, who="identity")
        except AdapterErased:
            raise
        except OctavoError as error:
            raise AdapterUnavailable(f"identity gives no data key for it ({error.code})") from error
        return answer.key

    def _answered(self, adapter_id: AdapterId, task: asyncio.Task[bytes]) -> None:
        if self._asked.get(adapter_id) is not task:
            # It was forgotten meanwhile.
            if not task.cancelled():
                task.exception()
            return
        del self._asked[adapter_id]
        if task.cancelled() or task.exception() is not None:
            return
        self._known[adapter_id] = task.result()
        if len(self._known) > _KEPT_MAX:
            self._known.popitem(last=False)
