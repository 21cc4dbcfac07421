"""The pages of keys and values: what sequences hold, what outlives them, what is given back when pages run short."""

import itertools
from collections.abc import Iterable, Iterator

from octavo_worker.adapters.pages import Arena, PageUse
from octavo_worker.engine.page_run import PageRun
from octavo_worker.engine.prefix_cache import PrefixCache, extend, root_of
from octavo_worker.engine.sequence import Sequence
from octavo_worker.model.kv_shape import KvShape, LayerGroup


class KvPages:
    """Belongs to the engine's thread. A sequence has a run of pages in each layer group.

    Between steps, each run holds what the next token reads: in a group with a window, no page that it has passed.
    All its full pages are the prefix cache's, so passed ones may still be found while they are not needed.
    ``arena`` is told to take idle pages back before it says that it has none, for sequences and adapters alike.
    """

    def __init__(self, arena: Arena, shape: KvShape) -> None:
        self._arena = arena
        self._shape = shape
        self._prefixes = PrefixCache(arena)
        arena.reclaim = self._prefixes.reclaim

    @property
    def num_available(self) -> int:
        """Pages that are free, or would be if they were asked for."""
        return self._arena.num_free + self._prefixes.num_reclaimable

    def attach(self, sequence: Sequence) -> None:
        """Give a sequence that has no pages those that hold its beginning already.

        One token is always left to compute: its logits choose the next one. A prompt that is scored is computed whole.
        """
        assert not sequence.num_reserved_tokens, "only a sequence without pages can begin with somebody else's"
        num_tokens_max = 0 if sequence.is_scored else len(sequence.tokens) - 1
        self._extend_chains(sequence, num_tokens_max)
        num_tokens = self._num_found(sequence, num_tokens_max)
        digests = self._digests_read(sequence, num_tokens)
        pages = self._prefixes.attach(list(itertools.chain(*digests)))
        if pages is None:
            # Meanwhile some were taken back for an adapter; who wins that race is worth no second search.
            num_tokens, pages, digests = 0, [], self._digests_read(sequence, 0)
        source = iter(pages)
        for (group, run), wanted in zip(self._runs(sequence), digests, strict=True):
            mine = list(itertools.islice(source, len(wanted)))
            run.begin_at(group.first_page(num_tokens), mine, self._arena.page_elements)
        sequence.num_cached_tokens = sequence.num_reserved_tokens = num_tokens
        if not sequence.is_started:
            sequence.num_reused_tokens = min(num_tokens, len(sequence.request.prompt))

    def reserve(self, sequence: Sequence, num_tokens: int) -> None:
        """Make room for ``num_tokens`` tokens in all; raises ``OutOfPages`` and changes nothing when there is none."""
        num_new = self._shape.num_new_pages(num_tokens, sequence.num_reserved_tokens)
        if num_new > 0:
            source = iter(self._arena.alloc(num_new, PageUse.KV))
            for group, run in self._runs(sequence):
                mine = list(itertools.islice(source, max(0, group.page_end(num_tokens) - run.end)))
                run.append(mine, self._arena.page_elements)
        sequence.num_reserved_tokens = max(sequence.num_reserved_tokens, num_tokens)

    def computed(self, sequence: Sequence, num_tokens: int) -> None:
        """``num_tokens`` more tokens have their keys and values: keep full pages, let go of those behind a window."""
        sequence.num_cached_tokens += num_tokens
        self._extend_chains(sequence, sequence.num_cached_tokens)
        for group, run in self._runs(sequence):
            for index in range(run.kept_end, sequence.num_cached_tokens // group.page_tokens):
                own = run.pages[index - run.first]
                page = self._prefixes.keep(run.chain[index + 1], own)
                run.keep(page, self._arena.page_elements)
                if page != own:
                    # Somebody computed the same at the same time: one copy is enough, and the bits are equal.
                    self._arena.free([own], PageUse.KV)
            self._prefixes.release(run.pass_by(group.first_page(sequence.num_cached_tokens)))

    def release(self, sequence: Sequence) -> None:
        """Take all pages from a sequence; what it had computed may still be found."""
        for run in sequence.runs:
            self._prefixes.release(run.kept_digests)
            if run.own_pages:
                self._arena.free(run.own_pages, PageUse.KV)
            run.clear()
        sequence.num_cached_tokens = sequence.num_reserved_tokens = 0

    def check_integrity(self, sequences: Iterable[Sequence]) -> None:
        """Assert that the arena's KV pages are those of ``sequences``, all there are, and of the prefix cache."""
        num_own = 0
        for sequence in sequences:
            for group, run in self._runs(sequence):
                assert run.first == group.first_page(sequence.num_cached_tokens), "a page is held behind its window"
                assert run.end == group.page_end(sequence.num_reserved_tokens), "a run of pages has another end"
                num_own += run.num_own
        num_pages = num_own + self._prefixes.num_pages
        assert num_pages == self._arena.num_used(PageUse.KV), "pages of keys and values were lost"

    def _runs(self, sequence: Sequence) -> Iterator[tuple[LayerGroup, PageRun]]:
        """Return each group with the sequence's run in it; nothing for one that has none yet."""
        return zip(self._shape.groups, sequence.runs, strict=False)

    def _extend_chains(self, sequence: Sequence, num_tokens: int) -> None:
        """Let each run know its pages that ``num_tokens`` tokens fill."""
        if not sequence.runs:
            tenant_id, key = sequence.request.tenant_id, sequence.request.adapter_key
            sequence.runs = [PageRun([root_of(tenant_id, key, group)]) for group in range(len(self._shape.groups))]
        for group, run in self._runs(sequence):
            extend(run.chain, sequence.tokens, num_tokens // group.page_tokens, group.page_tokens)

    def _num_found(self, sequence: Sequence, num_tokens_max: int) -> int:
        """Return the most tokens, at most ``num_tokens_max``, behind which every group has all that is read next."""
        unit = self._shape.shared_tokens
        founds = [(group, self._prefixes.num_found(run.chain[1:])) for group, run in self._runs(sequence)]
        for num_tokens in range(num_tokens_max // unit * unit, 0, -unit):
            ends = [(group, group.page_end(num_tokens), found) for group, found in founds]
            if all(found[end - 1] >= end - group.first_page(num_tokens) for group, end, found in ends):
                return num_tokens
        return 0

    def _digests_read(self, sequence: Sequence, num_tokens: int) -> list[list[bytes]]:
        """Return what the pages of each group are known by that are read behind ``num_tokens`` tokens in full pages."""
        return [
            run.chain[group.first_page(num_tokens) + 1 : group.page_end(num_tokens) + 1]
            for group, run in self._runs(sequence)
        ]
