"""The pages of one sequence in one layer group."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(eq=False)
class PageRun:
    """Pages are counted from the sequence's beginning. It holds those from ``first`` up to ``end``.

    Of them, those before ``kept_end`` are the prefix cache's, which knows page i by ``chain[i + 1]``; the others are
    the sequence's own. Those before ``first`` were given back: a window has passed them.
    """

    chain: list[bytes]
    """Begins with the root of all with this tenant, adapter and group. It outlives the pages."""
    first: int = 0
    kept_end: int = 0
    pages: list[int] = field(default_factory=list)
    """The arena's numbers of those that are held."""
    offsets: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """The arena element where each page begins, [end]; of those that were given back, anything."""

    @property
    def end(self) -> int:
        """One past the last page."""
        return self.first + len(self.pages)

    @property
    def num_own(self) -> int:
        """Pages that are the sequence's own."""
        return self.end - self.kept_end

    @property
    def kept_digests(self) -> list[bytes]:
        """What the prefix cache knows the pages by that are its own, from first to last."""
        return self.chain[self.first + 1 : self.kept_end + 1]

    @property
    def own_pages(self) -> list[int]:
        """The arena's numbers of the sequence's own."""
        return self.pages[self.kept_end - self.first :]

    def begin_at(self, first: int, pages: Sequence[int], page_elements: int) -> None:
        """Hold ``pages`` of the prefix cache, the first of which is page ``first``, instead of nothing."""
        self.first, self.kept_end, self.pages = first, first + len(pages), list(pages)
        self.offsets = np.concatenate([np.zeros(first, dtype=np.int64), np.asarray(pages, np.int64) * page_elements])

    def append(self, pages: Sequence[int], page_elements: int) -> None:
        """Hold ``pages``, which are the sequence's own, behind the others."""
        self.pages += pages
        self.offsets = np.concatenate([self.offsets, np.asarray(pages, np.int64) * page_elements])

    def keep(self, page: int, page_elements: int) -> None:
        """The first of the sequence's own pages is the prefix cache's now, and lies in ``page``."""
        self.pages[self.kept_end - self.first] = page
        self.offsets[self.kept_end] = page * page_elements
        self.kept_end += 1

    def pass_by(self, first: int) -> list[bytes]:
        """Hold nothing before page ``first`` any more; returns what the prefix cache knows those by."""
        passed = self.chain[self.first + 1 : first + 1]
        del self.pages[: len(passed)]
        self.first += len(passed)
        return passed

    def clear(self) -> None:
        """Hold nothing."""
        self.first = self.kept_end = 0
        self.pages = []
        self.offsets = self.offsets[:0]
