"""How keys and values lie in pages: the layers of a base, grouped by how far back they look. Only arithmetic."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

PAGE_TOKENS_MIN = 16
"""Tokens in a page of the group that has the most layers."""


@dataclass(frozen=True)
class LayerGroup:
    """All layers with one ``window``. A page holds ``[layers][k, v][heads][page_tokens][head_dim]`` of a sequence.

    The token at position p reads positions (p - window, p], or all up to p where ``window`` is None.
    """

    window: int | None
    num_layers: int
    page_tokens: int

    def page_end(self, num_tokens: int) -> int:
        """Return how many pages reach from the first to the last of ``num_tokens`` tokens."""
        return -(-num_tokens // self.page_tokens)

    def first_page(self, num_tokens: int) -> int:
        """Return the first page that is still read once ``num_tokens`` tokens are computed."""
        if self.window is None:
            return 0
        return max(0, num_tokens - self.window + 1) // self.page_tokens

    def num_pages_max(self, num_tokens: int, num_step_tokens: int) -> int:
        """Return the most pages held at once while ``num_tokens`` tokens come, at most ``num_step_tokens`` a step."""
        num_all = self.page_end(num_tokens)
        if self.window is None:
            return num_all
        # What a chunk and the window before it span; the worst place for it begins with a page's last token.
        num_spanned = self.window - 1 + min(num_tokens, num_step_tokens)
        return min(num_all, self.page_end(num_spanned - 1) + 1)


@dataclass(frozen=True)
class LayerPlace:
    """Where one layer's part of a page begins, in elements, and in which group's pages."""

    group: int
    layer_offset: int
    window: int | None


class KvShape:
    """The groups of a base whose layer i has ``windows[i]``, in the order of their first layers.

    All pages have ``page_elements`` elements, so that one free list serves all groups. The group with the most
    layers keeps ``PAGE_TOKENS_MIN`` tokens in a page; one with fewer keeps the largest multiple of that which fits.
    What is then left over of a page is less than ``PAGE_TOKENS_MIN`` tokens of that group take.
    """

    def __init__(self, windows: Sequence[int | None], num_kv_heads: int, head_dim: int) -> None:
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self._token_layer_elements = 2 * num_kv_heads * head_dim
        counts = {window: windows.count(window) for window in windows}
        num_layers_max = max(counts.values())
        self.page_elements = num_layers_max * PAGE_TOKENS_MIN * self._token_layer_elements
        self.groups = tuple(
            LayerGroup(window, count, num_layers_max // count * PAGE_TOKENS_MIN) for window, count in counts.items()
        )
        self.places = self._places(windows)

    def _places(self, windows: Sequence[int | None]) -> tuple[LayerPlace, ...]:
        index_of = {group.window: index for index, group in enumerate(self.groups)}
        places = []
        for layer, window in enumerate(windows):
            group = index_of[window]
            layer_elements = self._token_layer_elements * self.groups[group].page_tokens
            places.append(LayerPlace(group, windows[:layer].count(window) * layer_elements, window))
        return tuple(places)

    @property
    def token_elements(self) -> int:
        """Elements that the keys and values of one token take in all layers."""
        return len(self.places) * self._token_layer_elements

    @property
    def shared_tokens(self) -> int:
        """Sequences can share beginnings of this many tokens, or a multiple: there the pages of all groups end."""
        return math.lcm(*(group.page_tokens for group in self.groups))

    def num_new_pages(self, num_tokens: int, num_reserved_tokens: int) -> int:
        """Return how many more pages ``num_tokens`` tokens take than ``num_reserved_tokens``; never negative."""
        return sum(max(0, group.page_end(num_tokens) - group.page_end(num_reserved_tokens)) for group in self.groups)

    def num_pages_max(self, num_tokens: int, num_step_tokens: int) -> int:
        """Return the most pages that a sequence of ``num_tokens`` tokens ever holds, in all groups together.

        A group with a window never holds more than window + ``num_step_tokens`` - 1 consecutive tokens can lie in.
        """
        return sum(group.num_pages_max(num_tokens, num_step_tokens) for group in self.groups)
