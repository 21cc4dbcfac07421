"""The history checker: good histories pass, and each way in which a registry could be wrong is found."""

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos import history as h
from chaos.checker import Kind, check
from support.bad_histories import MUTATIONS
from support.histories import STALE_MAX_S, Simulator

_SEEDS_PER_MUTATION = 25

KINDS = {
    "an_acknowledged_revision_is_gone": Kind.LOST,
    "an_acknowledged_alias_move_is_gone": Kind.LOST,
    "a_write_happens_twice": Kind.DUPLICATE,
    "a_tag_is_set_twice_and_nobody_can_see_it": Kind.DUPLICATE,
    "an_unknown_write_happens_twice": Kind.DUPLICATE,
    "a_refused_write_happens": Kind.PHANTOM,
    "a_write_of_nobody_happens": Kind.PHANTOM,
    "two_writes_change_places": Kind.ORDER,
    "two_clients_get_one_revision_number": Kind.FORKED,
    "a_revision_number_is_used_again": Kind.FORKED,
    "two_heads_follow_the_same_one": Kind.FORKED,
    "an_alias_move_is_lost": Kind.STATE,
    "a_removed_alias_comes_back": Kind.STATE,
    "a_retired_revision_comes_back": Kind.STATE,
    "a_revoked_grant_stays": Kind.STATE,
    "an_answer_shows_another_head": Kind.ANSWER,
    "a_repeated_write_gets_another_answer": Kind.ANSWER,
    "a_read_shows_a_revision_that_never_was": Kind.READ,
    "a_read_shows_what_comes_later": Kind.READ,
    "a_read_is_stale_beyond_the_bound": Kind.STALE,
    "a_revoked_reader_still_reads_beyond_the_bound": Kind.STALE,
    "reads_go_back_in_time": Kind.STALE,
    "an_erased_adapter_still_answers_beyond_the_bound": Kind.STALE,
    "an_erased_adapter_comes_back": Kind.STATE,
    "an_import_is_told_another_revision": Kind.ANSWER,
    "an_import_happens_twice": Kind.DUPLICATE,
    "an_acknowledged_evaluation_is_gone": Kind.LOST,
    "an_evaluation_happens_twice": Kind.DUPLICATE,
    "an_evaluation_is_recorded_with_another_score": Kind.STATE,
    "a_head_forgets_an_evaluation": Kind.STATE,
    "an_evaluator_is_told_another_score": Kind.ANSWER,
}
"""How each of these is called among others that it may also be."""


@given(st.integers(0, 2**32), st.integers(1, 120), st.integers(1, 4), st.integers(1, 8))
@settings(max_examples=150, deadline=None)
def test_a_history_of_a_right_registry_is_never_found_wrong(
    seed: int, num_operations: int, num_adapters: int, num_clients: int
) -> None:
    history = Simulator(seed).run(num_operations, num_adapters, num_clients)
    assert check(history, STALE_MAX_S).violations == ()


@pytest.mark.parametrize("name", MUTATIONS)
def test_every_wrong_history_is_found(name: str) -> None:
    num_found = 0
    for seed in range(_SEEDS_PER_MUTATION):
        history = MUTATIONS[name](Simulator(seed).run(150), Random(seed))
        if history is None:
            continue
        num_found += 1
        verdict = check(history, STALE_MAX_S)
        assert verdict.violations, f"seed {seed}"
        assert name not in KINDS or verdict.count(KINDS[name]), f"seed {seed}: {verdict.violations[:3]}"
    assert num_found >= _SEEDS_PER_MUTATION // 5, "too few histories have a place for it"


def test_reads_within_the_bound_are_counted_as_stale_and_without_a_bound_are_wrong() -> None:
    histories = [Simulator(seed).run(150) for seed in range(20)]
    stale = [check(history, STALE_MAX_S) for history in histories]
    assert sum(len(verdict.stale) for verdict in stale) > 10
    assert all(0 < one.late_s <= STALE_MAX_S for verdict in stale for one in verdict.stale)
    strict = [check(history, 0.0) for history in histories]
    assert [verdict.count(Kind.STALE) for verdict in strict] == [len(verdict.stale) for verdict in stale]


def snapshot(number: int, **aliases: int) -> h.Snapshot:
    return h.Snapshot(number, f"d{number}", aliases, (), (), ())


def push(number: int, invoked_s: float, completed_s: float | None) -> h.Operation:
    outcome = h.Outcome.UNKNOWN if completed_s is None else h.Outcome.OK
    seen = () if completed_s is None else (snapshot(number, serving=number),)
    call = h.Push(f"d{number}", "serving")
    return h.Operation("alice", "home/a", call, invoked_s, completed_s, outcome, seen, f"w{number}")


def read(number: int, invoked_s: float, completed_s: float) -> h.Operation:
    seen = (h.Resolved(number, f"d{number}"),)
    call = h.Resolve("serving")
    return h.Operation("bob", "home/a", call, invoked_s, completed_s, h.Outcome.OK, seen)


def entry(number: int) -> h.LedgerEntry:
    return h.LedgerEntry(number, number - 1, f"w{number}", snapshot(number, serving=number))


def judged(*operations: h.Operation, num_entries: int, stale_max_s: float = 0.0) -> list[Kind]:
    history = h.History(operations, {"home/a": [entry(number) for number in range(1, num_entries + 1)]})
    return [violation.kind for violation in check(history, stale_max_s).violations]


def test_an_unknown_write_may_have_happened_or_not_and_may_be_seen_late() -> None:
    assert judged(push(1, 0, 1), push(2, 2, None), num_entries=2) == []
    assert judged(push(1, 0, 1), push(2, 2, None), num_entries=1) == []
    assert judged(push(1, 0, 1), push(2, 2, None), read(1, 5, 6), read(2, 90, 91), num_entries=2) == []
    assert judged(push(1, 0, 1), push(2, 2, None), read(2, 0, 1.5), num_entries=2) == [Kind.READ]


def test_a_read_beside_a_write_may_see_either_but_no_later_read_goes_back() -> None:
    writes = push(1, 0, 1), push(2, 2, 9)
    assert judged(*writes, read(1, 3, 4), read(2, 5, 6), num_entries=2) == []
    assert judged(*writes, read(2, 3, 6), read(1, 5, 7), num_entries=2) == []
    assert judged(*writes, read(2, 3, 4), read(1, 5, 6), num_entries=2) == [Kind.STALE]
    assert judged(*writes, read(2, 3, 4), read(1, 5, 6), num_entries=2, stale_max_s=1.0) == []


def test_a_stale_read_is_measured_from_when_its_replacement_was_known() -> None:
    writes = push(1, 0, 1), push(2, 2, 3)
    assert judged(*writes, read(1, 7.5, 8), num_entries=2, stale_max_s=4.5) == []
    assert judged(*writes, read(1, 7.5, 8), num_entries=2, stale_max_s=4.4) == [Kind.STALE]


def test_a_swap_that_was_accepted_against_its_expectation_is_found() -> None:
    swap = h.Operation("alice", "home/a", h.Promote("serving", 1, 5), 2, 3, h.Outcome.OK, (), "w2")
    moved = replace(entry(1), sequence=2, previous_sequence=1, write="w2")
    history = h.History((push(1, 0, 1), swap), {"home/a": [entry(1), moved]})
    assert [violation.kind for violation in check(history, 0.0).violations] == [Kind.STATE]
