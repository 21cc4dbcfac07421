"""The pages of keys and values: what sequences hold, what outlives them, what is given back when pages run short."""

from collections.abc import Iterable

from octavo_worker.adapters.pages import Arena, PageUse
from octavo_worker.engine.prefix_cache import PrefixCache, extend, root_of
from octavo_worker.engine.sequence import Sequence


class KvPages:
    """Belongs to the engine's thread. The first ``num_kept`` pages of a sequence are the prefix cache's, always.

    ``arena`` is told to take idle pages back before it says that it has none, for sequences and adapters alike.
    """

    def __init__(self, arena: Arena, page_tokens: int) -> None:
        self._arena = arena
        self._page_tokens = page_tokens
        self._prefixes = PrefixCache(arena)
        arena.reclaim = self._prefixes.reclaim

    @property
    def num_available(self) -> int:
        """Pages that are free, or would be if they were asked for."""
        return self._arena.num_free + self._prefixes.num_reclaimable

    def attach(self, sequence: Sequence) -> None:
        """Give a sequence that has no pages those that hold its beginning already.

        One token is always left to compute: its logits choose the next one.
        """
        assert not sequence.pages, "only a sequence without pages can begin with somebody else's"
        num_pages = (len(sequence.tokens) - 1) // self._page_tokens
        self._extend(sequence, num_pages)
        pages = self._prefixes.attach(sequence.chain[1 : num_pages + 1])
        sequence.add_pages(pages, self._arena.page_elements)
        sequence.num_kept = len(pages)
        sequence.num_cached_tokens = len(pages) * self._page_tokens
        if not sequence.is_started:
            sequence.num_reused_tokens = min(sequence.num_cached_tokens, len(sequence.request.prompt))

    def reserve(self, sequence: Sequence, num_tokens: int) -> None:
        """Make room for ``num_tokens`` tokens in all; raises ``OutOfPages`` and changes nothing when there is none."""
        num_new = -(-num_tokens // self._page_tokens) - len(sequence.pages)
        if num_new > 0:
            sequence.add_pages(self._arena.alloc(num_new, PageUse.KV), self._arena.page_elements)

    def computed(self, sequence: Sequence, num_tokens: int) -> None:
        """``num_tokens`` more tokens have their keys and values: keep the pages that are full now."""
        sequence.num_cached_tokens += num_tokens
        num_full = sequence.num_cached_tokens // self._page_tokens
        self._extend(sequence, num_full)
        for index in range(sequence.num_kept, num_full):
            digest, own = sequence.chain[index + 1], sequence.pages[index]
            if not self._prefixes.keep(digest, own):
                # Somebody computed the same at the same time: one copy is enough, and the bits are equal.
                (page,) = self._prefixes.attach([digest])
                sequence.replace_page(index, page, self._arena.page_elements)
                self._arena.free([own], PageUse.KV)
        sequence.num_kept = max(sequence.num_kept, num_full)

    def release(self, sequence: Sequence) -> None:
        """Take all pages from a sequence; what it had computed may still be found."""
        kept, own = sequence.chain[1 : sequence.num_kept + 1], sequence.pages[sequence.num_kept :]
        self._prefixes.release(kept)
        if own:
            self._arena.free(own, PageUse.KV)
        sequence.drop_pages()

    def check_integrity(self, sequences: Iterable[Sequence]) -> None:
        """Assert that the arena's KV pages are those of ``sequences``, all there are, and of the prefix cache."""
        num_own = sum(len(sequence.pages) - sequence.num_kept for sequence in sequences)
        num_pages = num_own + self._prefixes.num_pages
        assert num_pages == self._arena.num_used(PageUse.KV), "pages of keys and values were lost"

    def _extend(self, sequence: Sequence, num_pages: int) -> None:
        if not sequence.chain:
            sequence.chain.append(root_of(sequence.request.tenant_id, sequence.request.adapter_key))
        extend(sequence.chain, sequence.tokens, num_pages, self._page_tokens)
