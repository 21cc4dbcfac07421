"""Recovery from faults, and what a run must show."""

from dataclasses import replace

import pytest

from chaos import history as h
from chaos.aftermath import Aftermath
from chaos.checker import Kind, StaleRead, Verdict, Violation
from chaos.faults import Fault, FaultKind
from chaos.recovery import quantile_s, recoveries
from chaos.run import Plan, Result
from chaos.summary import Summary
from chaos.writer import Acknowledged, Record


def fault(begun_s: float, kind: FaultKind = FaultKind.NATS_KILLED) -> Fault:
    return Fault(kind, "nats-1", begun_s, begun_s + 1)


def test_recovery_is_until_a_write_that_was_sent_after_the_fault() -> None:
    acknowledged = [Acknowledged(9.0, 10.1, False), Acknowledged(10.2, 13.0, False), Acknowledged(10.5, 14.0, True)]
    [one] = recoveries([fault(10.0)], acknowledged)
    assert (one.any_write_s, one.push_s, one.recovery_s) == (3.0, 4.0, 3.0)


def test_what_counts_of_a_stopped_store_are_pushes() -> None:
    acknowledged = [Acknowledged(10.2, 10.3, False), Acknowledged(10.5, 14.0, True)]
    [one] = recoveries([replace(fault(10.0, FaultKind.STORE_STOPPED), stores_s=13.5)], acknowledged)
    assert (one.recovery_s, one.store_s) == (4.0, 3.5)
    line = replace(summary(), recoveries=[one]).fields()
    assert (line["store_away_max_s"], line["push_behind_store_max_s"]) == (3.5, 0.5)


def test_without_a_majority_there_is_nothing_to_recover_with_until_there_is_one_again() -> None:
    acknowledged = [Acknowledged(9.0, 10.2, False), Acknowledged(10.5, 11.5, False), Acknowledged(11.2, 12.0, False)]
    [one] = recoveries([fault(10.0, FaultKind.MAJORITY_SUSPENDED)], acknowledged)
    assert one.recovery_s == 1.0


def test_a_fault_that_no_write_follows_was_not_recovered_from() -> None:
    [one] = recoveries([fault(10.0)], [Acknowledged(9.0, 9.5, True)])
    assert one.recovery_s == float("inf")


def test_a_quantile_is_one_of_the_values_and_never_below_its_share() -> None:
    assert quantile_s(range(1, 21), 0.95) == 19
    assert quantile_s(range(1, 33), 0.95) == 31
    assert quantile_s([3.0], 0.95) == 3.0


def summary(verdict: Verdict = Verdict((), ()), wait_s: float = 1.0, problems: tuple[str, ...] = ()) -> Summary:  # noqa: B008
    plan = Plan(0, 2, ((FaultKind.NATS_KILLED,),))
    call = h.Tag(("t",), ())
    operation = h.Operation("w", "home/a", call, 0, 1, h.Outcome.OK, (), "w1")
    record = Record([operation, replace(operation, write="w2")], [Acknowledged(10.0, 10.0 + wait_s, False)])
    faults = [fault(10.0)]
    left = Aftermath({}, problems=list(problems))
    result = Result(record, faults, left, h.History(record.operations, {}), 20.0)
    return Summary(plan, result, verdict, recoveries(faults, record.acknowledged))


def missed(of: Summary) -> set[str]:
    return {target.name for target in of.targets if not target.is_ok}


def test_a_good_run_misses_nothing_and_counts_stale_reads() -> None:
    good = summary(Verdict((), (StaleRead("home/a", 1.0, 2.5),)))
    assert missed(good) == set()
    line = good.fields()
    assert (line["stale_reads"], line["stale_max_s"], line["operations_acknowledged"]) == (1, 2.5, 2)


@pytest.mark.parametrize(
    ("kind", "name"),
    [(Kind.LOST, "lost"), (Kind.FORKED, "forked"), (Kind.DUPLICATE, "duplicates"), (Kind.ORDER, "other_violations"),
     (Kind.STALE, "other_violations"), (Kind.READ, "other_violations")],
)  # fmt: skip
def test_every_violation_is_a_missed_target(kind: Kind, name: str) -> None:
    assert missed(summary(Verdict((Violation(kind, "home/a", "it is so"),), ()))) == {name}


def test_slow_recovery_and_what_is_left_wrong_are_missed_targets() -> None:
    assert missed(summary(wait_s=11.0)) == {"recovery_p95_s"}
    assert missed(summary(wait_s=26.0)) == {"recovery_p95_s", "recovery_max_s"}
    assert missed(summary(problems=("a pack is gone",))) == {"problems_left"}
    good = summary()
    assert missed(replace(good, plan=replace(good.plan, num_operations=3))) == {"operations_acknowledged"}
    assert missed(replace(good, recoveries=[])) >= {"faults", "recovery_max_s"}
