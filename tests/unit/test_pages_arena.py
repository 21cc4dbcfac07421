"""The arena: pages are conserved whatever happens, and an adapter's pages are blank when they come back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo_worker.adapters.pages import Arena, OutOfPages, PageUse

USES = [PageUse.KV, PageUse.ADAPTER]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.sampled_from(USES), st.integers(0, 9)), max_size=60))
def test_pages_are_conserved_under_random_operations(operations: list[tuple[bool, PageUse, int]]) -> None:
    arena = Arena(page_elements=4, num_pages=20, dtype=torch.float32)
    held: list[tuple[PageUse, list[int]]] = []
    for is_alloc, use, number in operations:
        if is_alloc:
            num_free = arena.num_free
            try:
                held.append((use, arena.alloc(number, use)))
            except OutOfPages:
                assert number > num_free
                assert arena.num_free == num_free
        elif held:
            use, pages = held.pop(number % len(held))
            arena.free(pages, use)
        arena.check_integrity()
        for use in USES:
            assert arena.num_used(use) == sum(len(pages) for u, pages in held if u is use)
        in_use = [page for _, pages in held for page in pages]
        assert len(set(in_use)) == len(in_use)
        assert arena.num_free + len(in_use) == 20


def test_pages_of_an_evicted_adapter_are_zero_when_allocated_again() -> None:
    arena = Arena(page_elements=8, num_pages=3, dtype=torch.bfloat16)
    pages = arena.alloc(3, PageUse.ADAPTER)
    arena.write(pages, torch.full((3, 8), 7.0, dtype=torch.bfloat16))
    arena.free(pages, PageUse.ADAPTER)
    assert not arena.memory.any()


def test_a_use_cannot_take_more_than_it_is_lent() -> None:
    arena = Arena(page_elements=8, num_pages=10, dtype=torch.float32)
    arena.alloc(4, PageUse.ADAPTER, num_use_max=6)
    with pytest.raises(OutOfPages) as refused:
        arena.alloc(3, PageUse.ADAPTER, num_use_max=6)
    assert (refused.value.num_wanted, refused.value.num_free) == (3, 2)
    assert len(arena.alloc(6, PageUse.KV)) == 6


def test_freeing_a_page_twice_or_for_another_use_is_noticed() -> None:
    arena = Arena(page_elements=8, num_pages=2, dtype=torch.float32)
    pages = arena.alloc(1, PageUse.KV)
    with pytest.raises(AssertionError, match="not adapter"):
        arena.free(pages, PageUse.ADAPTER)
    arena.free(pages, PageUse.KV)
    with pytest.raises(AssertionError, match="is free"):
        arena.free(pages, PageUse.KV)
