"""The adapters whose rows are in the arena now, and who uses them."""

import threading
from collections import Counter

from octavo_shared.errors import AdapterRefused, BaseMismatch
from octavo_shared.manifest import BaseManifest
from octavo_shared.pack import PackHeader
from octavo_shared.references import PackKey
from octavo_worker.adapters.pages import Arena, PageUse
from octavo_worker.adapters.placement import Layouts, Placement, install


class Residents:
    """Installs and evicts adapters; any thread. The lock is never held while bytes are copied.

    A pin belongs to a key and may be taken before its adapter is here, so that an adapter cannot be evicted
    between its arrival and its first use. ``num_pages_max`` bounds the pages of all adapters together: what is
    left is enough for keys and values of one sequence, so that work always goes on.
    """

    def __init__(self, manifest: BaseManifest, arena: Arena, num_pages_max: int) -> None:
        self._manifest = manifest
        self._layouts = Layouts(manifest.modules, arena.page_elements, arena.memory.device)
        self._arena = arena
        self._num_pages_max = num_pages_max
        self._lock = threading.Lock()
        self._placed: dict[PackKey, Placement] = {}
        self._pins: Counter[PackKey] = Counter()

    def install(self, key: PackKey, pack: memoryview, header: PackHeader) -> None:
        """Copy a verified pack's rows into pages, cast once; it is visible when this returns. Idempotent.

        Raises ``OutOfPages`` when something has to be evicted first, ``BaseMismatch`` or ``AdapterRefused``
        when this base cannot serve it.
        """
        if self.get(key) is not None:
            return
        if header.base != self._manifest.fingerprint:
            raise BaseMismatch(adapter_base=header.base, served_base=self._manifest.fingerprint)
        arena = self._arena
        layout = self._layouts.layout_of(header.modules)
        if layout.num_pages > self._num_pages_max:
            raise AdapterRefused(
                "too_large", f"the adapter needs {layout.num_pages} pages; this worker lends {self._num_pages_max}"
            )
        pages = arena.alloc(layout.num_pages, PageUse.ADAPTER, self._num_pages_max)
        try:
            placement = install(layout, pack, pages, arena)
            with self._lock:
                is_first = self._placed.setdefault(key, placement) is placement
        except BaseException:
            arena.free(pages, PageUse.ADAPTER)
            raise
        if not is_first:
            arena.free(pages, PageUse.ADAPTER)

    def evict(self, key: PackKey) -> bool:
        """Free an adapter's pages, zeroed; False while it is pinned. True also when it was not here."""
        with self._lock:
            if self._pins[key] > 0:
                return False
            placement = self._placed.pop(key, None)
        if placement is not None:
            self._arena.free(placement.pages, PageUse.ADAPTER)
        return True

    def get(self, key: PackKey) -> Placement | None:
        """Return where an adapter lies, or None when it is not resident."""
        with self._lock:
            return self._placed.get(key)

    def pin(self, key: PackKey) -> None:
        """Forbid evicting ``key`` until ``unpin`` was called as often."""
        with self._lock:
            self._pins[key] += 1

    def unpin(self, key: PackKey) -> None:
        """Take one pin back."""
        with self._lock:
            assert self._pins[key] > 0, "unpinned more often than pinned"
            self._pins[key] -= 1
            if not self._pins[key]:
                del self._pins[key]

    def residency(self) -> list[tuple[PackKey, int, int]]:
        """Return key, size in bytes and number of pins of what is resident, in the order of arrival.

        Pins are the sequences that use an adapter or wait to.
        """
        with self._lock:
            return [(key, placed.size_bytes, self._pins[key]) for key, placed in self._placed.items()]

    def check_integrity(self) -> None:
        """Assert that the arena's adapter pages are those of the residents; while nothing is being installed."""
        with self._lock:
            num_pages = sum(len(placed.pages) for placed in self._placed.values())
        assert num_pages == self._arena.num_used(PageUse.ADAPTER), "pages of adapters were lost"
