"""How layers are grouped and how many pages a group holds, against counting page by page."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo_worker.model.kv_shape import KvShape, LayerGroup


def test_one_group_lies_as_one_piece_of_all_layers() -> None:
    shape = KvShape((None,) * 5, 3, 64)
    assert [(group.window, group.num_layers, group.page_tokens) for group in shape.groups] == [(None, 5, 16)]
    assert shape.page_elements == 5 * 2 * 3 * 16 * 64
    assert [place.layer_offset for place in shape.places] == [layer * 2 * 3 * 16 * 64 for layer in range(5)]
    assert shape.shared_tokens == 16


def test_layers_are_grouped_by_window_and_fewer_layers_keep_more_tokens_in_a_page() -> None:
    windows = (512, 512, 512, 512, 512, None, 512, 512)
    shape = KvShape(windows, 1, 32)
    many, one = shape.groups
    assert (many, one) == (LayerGroup(512, 7, 16), LayerGroup(None, 1, 112))
    assert shape.page_elements == 7 * 16 * 2 * 32
    assert [place.group for place in shape.places] == [0, 0, 0, 0, 0, 1, 0, 0]
    assert [place.window for place in shape.places] == list(windows)
    assert shape.places[5].layer_offset == 0
    assert shape.places[6].layer_offset == 5 * 16 * 2 * 32
    assert shape.shared_tokens == 112


@given(st.lists(st.sampled_from([None, 4, 9]), min_size=1, max_size=30), st.integers(1, 3), st.sampled_from([8, 20]))
def test_layers_never_overlap_in_a_page_and_little_is_left_over(
    windows: list[int | None], num_kv_heads: int, head_dim: int
) -> None:
    shape = KvShape(windows, num_kv_heads, head_dim)
    for index, group in enumerate(shape.groups):
        layer_elements = 2 * num_kv_heads * group.page_tokens * head_dim
        places = [place for place in shape.places if place.group == index]
        assert [place.layer_offset for place in places] == [layer_elements * i for i in range(group.num_layers)]
        slack = shape.page_elements - group.num_layers * layer_elements
        assert 0 <= slack < group.num_layers * 2 * num_kv_heads * 16 * head_dim
    assert sum(group.num_layers for group in shape.groups) == len(windows)
    assert shape.token_elements == len(windows) * 2 * num_kv_heads * head_dim


@pytest.mark.parametrize("window", [1, 2, 15, 16, 17, 40, None])
def test_the_first_page_is_the_first_that_the_next_token_reads(window: int | None) -> None:
    group = LayerGroup(window, 1, 16)
    for num_tokens in range(150):
        # The next token stands at position num_tokens and reads itself too.
        read = [t for t in range(num_tokens + 1) if window is None or t > num_tokens - window]
        assert group.first_page(num_tokens) == read[0] // 16


@settings(max_examples=200)
@given(
    st.one_of(st.none(), st.integers(1, 70)),
    st.sampled_from([4, 16, 48]),
    st.integers(1, 40),
    st.lists(st.integers(1, 40), min_size=1, max_size=40),
)
def test_no_sequence_of_chunks_ever_holds_more_pages_than_the_worst_case(
    window: int | None, page_tokens: int, num_step_tokens: int, chunks: list[int]
) -> None:
    group = LayerGroup(window, 1, page_tokens)
    num_tokens, held = 0, 0
    for chunk in chunks:
        before, num_tokens = num_tokens, num_tokens + min(chunk, num_step_tokens)
        held = max(held, group.page_end(num_tokens) - group.first_page(before))
    assert held <= group.num_pages_max(num_tokens, num_step_tokens)


@pytest.mark.parametrize("window", [1, 7, 16, 20, 33])
@pytest.mark.parametrize("num_step_tokens", [1, 2, 16, 24])
def test_the_worst_case_comes_about_and_does_not_grow_with_the_sequence(window: int, num_step_tokens: int) -> None:
    group = LayerGroup(window, 1, 16)
    starts = range(500)
    held = [group.page_end(start + num_step_tokens) - group.first_page(start) for start in starts]
    assert max(held) == group.num_pages_max(524, num_step_tokens) == group.num_pages_max(10**9, num_step_tokens)
    assert max(held) <= group.page_end(window + num_step_tokens) + 1


def test_pages_are_added_up_over_groups_and_never_negative() -> None:
    shape = KvShape((20, 20, 20, None), 2, 16)
    assert [group.page_tokens for group in shape.groups] == [16, 48]
    assert shape.num_new_pages(49, 0) == 4 + 2
    assert shape.num_new_pages(49, 48) == 1 + 1
    assert shape.num_new_pages(20, 48) == 0
    assert shape.num_pages_max(480, 24) == 4 + 10
    assert shape.num_pages_max(17, 24) == 2 + 1
