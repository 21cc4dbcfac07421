"""The scheduler: decode first, chunked prefill within a budget, fair admission, preemption of the youngest."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo_shared.references import TenantId
from octavo_worker.engine.scheduler import Candidate, StepLimits, StepPlan, schedule
from octavo_worker.model.kv_shape import KvShape

SHAPE = KvShape((None,), 2, 16)
LIMITS = StepLimits(num_running_max=4, num_step_tokens_max=32, kv_shape=SHAPE)


def _candidate(
    order: int,
    num_tokens: int,
    num_cached: int = 0,
    tenant: str = "t",
    served: float = 0.0,
    *,
    is_overdue: bool = False,
) -> Candidate:
    num_pages = -(-num_cached // 16)
    return Candidate(order, TenantId(tenant), num_tokens, num_cached, num_cached, num_pages, served, is_overdue)


def _tokens(plan: StepPlan) -> dict[int, int]:
    return {chunk.order: chunk.num_tokens for chunk in plan.chunks}


def test_decodes_come_before_prefill_and_the_budget_bounds_the_step() -> None:
    plan = schedule([_candidate(1, 100, 20), _candidate(2, 8, 7), _candidate(3, 5, 4)], [_candidate(4, 10)], 99, LIMITS)
    assert _tokens(plan) == {2: 1, 3: 1, 1: 30}


def test_a_long_prompt_is_cut_into_chunks_and_pages_come_chunk_by_chunk() -> None:
    plan = schedule([], [_candidate(1, 100)], 99, LIMITS)
    assert plan.chunks[0].num_tokens == 32
    assert plan.chunks[0].num_new_pages == 2
    plan = schedule([_candidate(1, 100, 32)], [], 99, LIMITS)
    assert (plan.chunks[0].num_tokens, plan.chunks[0].num_new_pages) == (32, 2)


def test_no_more_sequences_run_than_allowed() -> None:
    running = [_candidate(i, 5, 4) for i in range(3)]
    plan = schedule(running, [_candidate(8, 2), _candidate(9, 2)], 99, LIMITS)
    assert set(_tokens(plan)) == {0, 1, 2, 8}


def test_newcomers_of_the_tenant_that_was_served_least_enter_first() -> None:
    running = [_candidate(1, 5, 4, "busy"), _candidate(2, 5, 4, "busy")]
    waiting = [
        _candidate(3, 2, tenant="busy", served=90.0),
        _candidate(4, 2, tenant="calm", served=10.0),
        _candidate(5, 2, tenant="calm", served=10.0),
    ]
    assert set(_tokens(schedule(running, waiting, 99, LIMITS))) == {1, 2, 4, 5}


def test_what_is_let_in_counts_at_once_so_that_nobody_fills_all_places() -> None:
    waiting = [_candidate(order, 6, tenant="many") for order in range(9)]
    waiting += [_candidate(20, 6, tenant="few"), _candidate(21, 6, tenant="few")]
    assert set(_tokens(schedule([], waiting, 99, LIMITS))) == {0, 1, 20, 21}


def test_an_overdue_one_comes_before_all_shares() -> None:
    running = [_candidate(order, 5, 4, "calm") for order in (1, 2, 3)]
    waiting = [_candidate(4, 2, tenant="calm"), _candidate(5, 2, tenant="busy", served=1e6, is_overdue=True)]
    assert 5 in _tokens(schedule(running, waiting, 99, LIMITS))


def test_an_overdue_one_takes_a_place_of_whoever_holds_most() -> None:
    running = [_candidate(order, 5, 4, "busy") for order in (1, 2, 3)] + [_candidate(4, 5, 4, "other")]
    waiting = [_candidate(7, 2, tenant="late", is_overdue=True)]
    plan = schedule(running, waiting, 99, LIMITS)
    assert plan.preempted == (3,)
    assert set(_tokens(plan)) == {1, 2, 4, 7}
    on_time = schedule(running, [_candidate(7, 2, tenant="late")], 99, LIMITS)
    assert on_time.preempted == ()


@pytest.mark.parametrize(
    ("waiting", "num_pages_free"),
    [
        (_candidate(7, 2, tenant="busy", is_overdue=True), 99),  # it holds most itself
        (_candidate(7, 500, tenant="late", is_overdue=True), 5),  # the place alone would not help it
    ],
)
def test_nobody_gives_up_a_place_for_nothing(waiting: Candidate, num_pages_free: int) -> None:
    running = [_candidate(order, 5, 4, "busy") for order in (1, 2, 3, 4)]
    plan = schedule(running, [waiting], num_pages_free, LIMITS)
    assert plan.preempted == ()
    assert 7 not in _tokens(plan)


def test_a_newcomer_waits_until_all_its_tokens_fit_rather_than_preempt() -> None:
    plan = schedule([_candidate(1, 5, 4)], [_candidate(2, 40)], 2, LIMITS)
    assert _tokens(plan) == {1: 1}
    assert plan.preempted == ()


def test_the_youngest_gives_way_when_pages_run_out() -> None:
    plan = schedule([_candidate(1, 17, 16), _candidate(2, 17, 16), _candidate(3, 17, 16)], [], 1, LIMITS)
    assert plan.preempted == (3,)
    assert _tokens(plan) == {1: 1, 2: 1}


def test_the_oldest_advances_even_while_it_prefills_among_decodes() -> None:
    plan = schedule([_candidate(1, 64, 32), _candidate(2, 17, 16), _candidate(3, 17, 16)], [], 0, LIMITS)
    assert 1 in _tokens(plan)
    assert 1 not in plan.preempted


WINDOWED = StepLimits(num_running_max=4, num_step_tokens_max=32, kv_shape=KvShape((20, 20, None), 2, 16))
"""Pages of 16 tokens behind a window, and of 32 in the other group."""


def test_new_pages_are_those_of_all_groups() -> None:
    inside = Candidate(1, TenantId("t"), 33, 32, num_reserved_tokens=32, num_pages=3)
    plan = schedule([inside], [], 2, WINDOWED)
    assert [chunk.num_new_pages for chunk in plan.chunks] == [2]
    assert schedule([inside], [], 1, WINDOWED).chunks == ()


def test_pages_that_an_abandoned_plan_left_are_not_asked_for_again() -> None:
    inside = Candidate(1, TenantId("t"), 64, 32, num_reserved_tokens=64, num_pages=5)
    assert [chunk.num_new_pages for chunk in schedule([inside], [], 0, WINDOWED).chunks] == [0]


def test_a_sequence_takes_what_fits_all_groups() -> None:
    # 16 tokens take a page of each group; 32 take another one behind the window.
    inside = Candidate(1, TenantId("t"), 100, 32, num_reserved_tokens=32, num_pages=4)
    assert _tokens(schedule([inside], [], 2, WINDOWED)) == {1: 16}
    assert _tokens(schedule([inside], [], 3, WINDOWED)) == {1: 32}


def test_a_newcomer_enters_when_its_worst_moment_fits_rather_than_all_its_tokens() -> None:
    running, newcomer = [_candidate(1, 5, 4)], _candidate(2, 159)
    # 20 - 1 + 32 consecutive tokens lie in five pages at worst; 160 tokens fill five of the other group's.
    assert _tokens(schedule(running, [newcomer], 10, WINDOWED)) == {1: 1, 2: 31}
    assert _tokens(schedule(running, [newcomer], 9, WINDOWED)) == {1: 1}


def test_a_step_that_cannot_hold_every_running_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot hold"):
        StepLimits(num_running_max=9, num_step_tokens_max=8, kv_shape=SHAPE)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 90), st.integers(0, 90)), min_size=0, max_size=4),
    st.lists(st.integers(1, 90), max_size=5),
    st.integers(0, 12),
)
def test_no_plan_breaks_a_bound(running: list[tuple[int, int]], waiting: list[int], num_free: int) -> None:
    inside = [_candidate(i, max(t, c + 1), c, f"t{i % 2}") for i, (t, c) in enumerate(running)]
    outside = [_candidate(100 + i, t, tenant=f"t{i % 3}") for i, t in enumerate(waiting)]
    plan = schedule(inside, outside, num_free, LIMITS)
    known = {c.order: c for c in (*inside, *outside)}
    given_back = sum(known[order].num_pages for order in plan.preempted)
    assert sum(chunk.num_new_pages for chunk in plan.chunks) <= num_free + given_back
    assert sum(chunk.num_tokens for chunk in plan.chunks) <= LIMITS.num_step_tokens_max
    assert len({c.order for c in inside} - set(plan.preempted) | set(_tokens(plan))) <= LIMITS.num_running_max
    assert not set(plan.preempted) & set(_tokens(plan))
    for chunk in plan.chunks:
        candidate = known[chunk.order]
        assert 1 <= chunk.num_tokens <= candidate.num_missing
        assert (candidate.num_pages + chunk.num_new_pages) * 16 >= candidate.num_cached_tokens + chunk.num_tokens
    if inside:
        oldest = min(inside, key=lambda c: c.order)
        assert oldest.order not in plan.preempted
