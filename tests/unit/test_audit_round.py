"""What one round of the background audit makes of a ledger, sound and otherwise."""

import pytest

from octavo_identity.audit_round import AuditRound, Passed
from octavo_shared.checkpoint import Signer
from octavo_shared.merkle import Tree
from octavo_shared.messages.auditing import AuditFinding, FindingKind
from octavo_shared.messages.ledger import LedgerEvent
from support.ledgers import SIGNER, audit, notes_of, pushed, small_ledger, tree_of

EVENTS = small_ledger(40)
SIZES = [1, 4, 9, 16, 25, 40]
NOTES = notes_of(EVENTS, SIZES)
TREE = tree_of(EVENTS)


def told(passed: Passed) -> list[tuple[str, int, int]]:
    return [(one.kind, one.first, one.last) for one in passed.findings]


def replaced(index: int, event: LedgerEvent | None) -> list[LedgerEvent | None]:
    return [*EVENTS[:index], event, *EVENTS[index + 1 :]]


@pytest.mark.parametrize("remembered", [TREE, None])
def test_a_sound_ledger_is_gone_over_without_a_finding(remembered: Tree | None) -> None:
    passed = audit(EVENTS, NOTES, remembered)
    assert (told(passed), passed.position, passed.agreed_size, passed.checkpoint) == ([], 40, 40, 6)


def test_a_changed_event_is_named_and_what_comes_behind_it_is_judged_by_itself() -> None:
    bad = replaced(10, pushed(11, "home/evil", 1))
    bad[20] = pushed(21, "home/evil", 2)
    assert told(audit(bad, NOTES, TREE)) == [("event_changed", 11, 11), ("event_changed", 21, 21)]


def test_where_nothing_is_remembered_the_first_root_that_is_not_led_to_names_the_range() -> None:
    bad = replaced(10, pushed(11, "home/evil", 1))
    passed = audit(bad, NOTES, None)
    assert told(passed) == [("root_contradicted", 10, 16)]
    assert "checkpoint 4" in passed.findings[0].detail


def test_what_a_view_of_the_changed_stream_remembers_clears_nothing() -> None:
    bad = [*EVENTS]
    bad[10] = pushed(11, "home/evil", 1)
    assert told(audit(bad, NOTES, tree_of(bad))) == [("root_contradicted", 10, 16)]


def test_events_that_changed_places_are_named_with_what_stands_there() -> None:
    bad = [*EVENTS]
    bad[4], bad[30] = EVENTS[30], EVENTS[4]
    passed = audit(bad, NOTES, TREE)
    assert told(passed) == [("event_moved", 5, 5), ("event_moved", 31, 31)]
    assert passed.findings[0].detail == "where event 5 was, event 31 stands"


@pytest.mark.parametrize("index", [0, 3, 20, 39])
def test_a_lost_event_is_named_and_the_roots_behind_it_still_hold(index: int) -> None:
    passed = audit(replaced(index, None), NOTES, TREE)
    assert told(passed) == [("event_lost", index + 1, index + 1)]
    assert passed.agreed_size == 40


def test_a_run_of_lost_events_is_one_finding() -> None:
    one = AuditRound(SIGNER.verifier)
    one.take_events(EVENTS[:10], TREE)
    assert [(new.first, new.last) for new in one.lose(30)] == [(11, 30)]
    for _ in range(4):
        assert one.take_events([None] * 5, TREE) == []
    assert one.take_events(EVENTS[30:], TREE) == []
    assert (told(one.passed), one.position) == ([("event_lost", 11, 30)], 40)


def test_after_a_loss_that_nobody_remembers_no_root_is_contradicted_for_it() -> None:
    assert told(audit(replaced(10, None), NOTES, None)) == [("event_lost", 11, 11)]


def test_an_old_checkpoint_with_another_root_is_named_although_it_is_signed() -> None:
    notes = [*NOTES]
    notes[2] = SIGNER.sign(9, bytes(32))
    passed = audit(EVENTS, notes, TREE)
    assert told(passed) == [("root_contradicted", 5, 9)]
    assert passed.agreed_size == 40


@pytest.mark.parametrize(
    "note", ["", "no note", Signer(bytes(32)).sign(9, TREE.root(9)), NOTES[1], NOTES[0], NOTES[2].replace("9", "8", 1)]
)
def test_a_checkpoint_that_is_none_or_out_of_order_is_named(note: str) -> None:
    passed = audit(EVENTS, [*NOTES[:2], note, *NOTES[3:]], TREE)
    assert told(passed) == [("checkpoint_changed", 3, 3)]


def test_a_lost_checkpoint_is_named() -> None:
    assert told(audit(EVENTS, [*NOTES[:3], None, *NOTES[4:]], TREE)) == [("checkpoint_lost", 4, 4)]


@pytest.mark.parametrize("remembered", [TREE, None])
def test_a_round_that_goes_on_after_a_restart_finds_what_one_without_it_finds(remembered: Tree | None) -> None:
    bad = replaced(10, pushed(11, "home/evil", 1))
    bad[25] = None
    notes: list[str | None] = [*NOTES]
    notes[3] = None
    whole = audit(bad, notes, remembered)
    for position in range(41):
        begun = audit(bad, notes, remembered, until=position)
        assert audit(bad, notes, remembered, begun) == whole, position


def test_what_differs_from_what_is_remembered_is_told_before_it_is_taken() -> None:
    one = AuditRound(SIGNER.verifier)
    assert not one.differ(EVENTS[:5], TREE)
    assert not one.differ(EVENTS[:5], None)
    assert one.differ([*EVENTS[:4], None], None)
    assert one.differ([*EVENTS[:4], EVENTS[0]], TREE)
    one.take_events(EVENTS[:5], TREE)
    assert not one.differ(EVENTS[5:9], TREE)
    assert one.differ(EVENTS[:4], TREE)


def test_more_findings_than_are_kept_are_counted() -> None:
    passed = audit([None] * 40 + [None] * 100, [], None)
    assert (len(passed.findings), passed.num_findings) == (100, 140)
    assert passed.findings[99] == AuditFinding(FindingKind.EVENT_LOST, 100, 100, "event 100 is missing in the stream")
