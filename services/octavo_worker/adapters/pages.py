"""The arena: one tensor of device memory in equal pages, for keys and values and for adapters alike."""

import ctypes
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from enum import Enum

import torch
from torch import Tensor

from octavo_kernels import huge_pages

_SCRUBBED_TOGETHER = 64


class OutOfPages(Exception):
    """Fewer pages are free than asked for. Whoever asked decides what to evict or to put off."""

    def __init__(self, num_wanted: int, num_free: int) -> None:
        super().__init__(f"{num_wanted} pages wanted, {num_free} free")
        self.num_wanted = num_wanted
        self.num_free = num_free


class PageUse(Enum):
    """What a page holds."""

    FREE = "free"
    KV = "kv"
    ADAPTER = "adapter"


class Arena:
    """``num_pages`` pages of ``page_elements`` elements each and the one free list they are drawn from.

    Every method may be called from any thread; the lock is held for list operations only, never for a copy.
    ``memory`` [num_pages · page_elements] is what the kernels read; page p begins at element p · page_elements.
    """

    def __init__(
        self, page_elements: int, num_pages: int, dtype: torch.dtype, device: str | torch.device = "cpu"
    ) -> None:
        if page_elements < 1 or num_pages < 1:
            raise ValueError(f"an arena needs pages: {num_pages} of {page_elements} elements asked for")
        self.page_elements = page_elements
        self.num_pages = num_pages
        self.memory: Tensor = huge_pages.zeros(num_pages * page_elements, dtype, device)
        self.reclaim: Callable[[int], int] = lambda num_pages: 0
        """Asked to free some pages that nobody uses when there are not enough; returns how many it freed."""
        self._lock = threading.Lock()
        # Popped from the end, so that low pages go first.
        self._free = list(range(num_pages - 1, -1, -1))
        self._use = [PageUse.FREE] * num_pages
        self._counts = Counter({PageUse.FREE: num_pages})

    @property
    def page_bytes(self) -> int:
        """Bytes of one page."""
        return self.page_elements * self.memory.element_size()

    def num_used(self, use: PageUse) -> int:
        """Return how many pages hold ``use`` now."""
        with self._lock:
            return self._counts[use]

    @property
    def num_free(self) -> int:
        """Pages that could be allocated now."""
        return self.num_used(PageUse.FREE)

    def alloc(self, num_pages: int, use: PageUse, num_use_max: int | None = None) -> list[int]:
        """Take ``num_pages`` pages, all or none, as long as ``use`` then holds no more than ``num_use_max``.

        Pages that only hold what may be found again are taken back first. Raises ``OutOfPages``.
        """
        while True:
            with self._lock:
                num_allowed = self.num_pages if num_use_max is None else num_use_max - self._counts[use]
                room = min(len(self._free), num_allowed)
                if num_pages <= room:
                    pages = [self._free.pop() for _ in range(num_pages)]
                    self._label(pages, PageUse.FREE, use)
                    return pages
                num_lacking = num_pages - len(self._free)
            # Outside the lock: what is taken back comes in through ``free``.
            if num_pages > num_allowed or not self.reclaim(num_lacking):
                raise OutOfPages(num_pages, room)

    def free(self, pages: Sequence[int], use: PageUse) -> None:
        """Give back ``pages`` that were taken for ``use``. Pages of adapters are zeroed before anyone gets them.

        Those of keys and values keep what they held until they are used again, or ``scrub`` is called.
        """
        if use is PageUse.ADAPTER:
            self._zero(pages)
        with self._lock:
            self._label(pages, use, PageUse.FREE)
            self._free.extend(reversed(pages))

    def scrub(self) -> None:
        """Zero every page that is free now, a few at a time: what they held is gone when this returns."""
        with self._lock:
            waiting = set(self._free)
        while waiting:
            with self._lock:
                # What is not free any more is overwritten by whoever took it, or waits for the next scrub.
                waiting &= set(self._free)
                pages = list(waiting)[:_SCRUBBED_TOGETHER]
                waiting -= set(pages)
                self._free = [page for page in self._free if page not in set(pages)]
                self._label(pages, PageUse.FREE, PageUse.ADAPTER)
            self.free(pages, PageUse.ADAPTER)

    def write(self, pages: Sequence[int], image: Tensor) -> None:
        """Overwrite ``pages`` whole with ``image`` [len(pages), page_elements], cast by the caller."""
        self._rows()[torch.tensor(pages, device=self.memory.device)] = image.to(self.memory.device)

    def check_integrity(self) -> None:
        """Assert that every page is in exactly one place; for idle moments and tests."""
        with self._lock:
            free = set(self._free)
            assert len(free) == len(self._free), "a page is on the free list twice"
            labelled = {page for page, use in enumerate(self._use) if use is PageUse.FREE}
            assert free == labelled, f"pages {sorted(free ^ labelled)[:8]} are free and in use"
            assert Counter(self._use) == +self._counts, "the counts of pages are wrong"
            assert sum(self._counts.values()) == self.num_pages, "pages were lost"

    def _zero(self, pages: Sequence[int]) -> None:
        if self.memory.device.type != "cpu":
            self._rows()[torch.tensor(pages, device=self.memory.device)] = 0
            return
        # On this thread alone: torch would start a second team of threads beside the one that steps the engine.
        for page in pages:
            ctypes.memset(self.memory.data_ptr() + page * self.page_bytes, 0, self.page_bytes)

    def _rows(self) -> Tensor:
        return self.memory.view(self.num_pages, self.page_elements)

    def _label(self, pages: Sequence[int], before: PageUse, after: PageUse) -> None:
        for page in pages:
            assert self._use[page] is before, f"page {page} is {self._use[page].value}, not {before.value}"
            self._use[page] = after
        self._counts[before] -= len(pages)
        self._counts[after] += len(pages)
