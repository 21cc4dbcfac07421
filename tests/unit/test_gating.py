"""What a gate says, on any evaluations: only those of this revision, base, suite file and evaluator, newest first."""

import itertools
from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_identity import ranges
from octavo_identity.evaluations import is_known, with_evaluation
from octavo_identity.gating import is_gated, objections, was_released
from octavo_identity.records import EVALUATIONS_IN_HEAD_MAX, AdapterHead
from octavo_shared.messages.adapters import Revision
from octavo_shared.messages.evaluation import Evaluation, Gate, Metric, Rule, Score
from octavo_shared.references import AdapterId, Digest, Fingerprint, TenantId

SUITES = tuple(Digest(f"sha256:{suite:064x}") for suite in range(3))
BASES = tuple(Fingerprint(f"sha256:{base:064x}") for base in (10, 11))
PEOPLE = ("alice@home", "ci@home")


def revision(number: int, base: int = 0) -> Revision:
    return Revision(number, Digest(f"sha256:{number + 100:064x}"), BASES[base], 1, 1, 1, "F32", "alice@home", 1)


def evaluation(
    number: int, value: float, suite: int = 0, base: int = 0, who: str = PEOPLE[0], metric: Metric = Metric.EXACT
) -> Evaluation:
    made = revision(number, base)
    scores = (Score(metric, value, 10),)
    return Evaluation(made.number, made.digest, made.base, f"suite{suite}", SUITES[suite], scores, who, 1)


def rule(least: float | None = None, delta: float | None = None, suite: int = 0, metric: Metric = Metric.EXACT) -> Rule:
    return Rule(metric, f"suite{suite}", SUITES[suite], least, delta)


def head(**fields: object) -> AdapterHead:
    plain = AdapterHead(AdapterId("a"), TenantId("t"), "home/diary", "alice@home", 9, (), {})
    return msgspec.structs.replace(plain, **fields)


def problems(gate: Gate, made: list[Evaluation], serving: Revision | None = None, base: int = 0) -> list[str]:
    return [str(one) for one in objections("home/diary", gate, revision(2, base), serving, made)]


@dataclass(frozen=True)
class Case:
    name: str
    wanted: Rule
    made: list[Evaluation]
    serving: int | None
    is_let_through: bool


PERPLEXITY = Metric.PERPLEXITY
CASES = [
    Case("as good as wanted", rule(0.8), [evaluation(2, 0.8)], None, True),
    Case("not as good", rule(0.8), [evaluation(2, 0.79)], None, False),
    Case("none", rule(0.8), [], None, False),
    Case("of another revision", rule(0.8), [evaluation(1, 1.0), evaluation(3, 1.0)], 1, False),
    Case("on another base", rule(0.8), [evaluation(2, 1.0, base=1)], None, False),
    Case("of another file of the suite", rule(0.8), [evaluation(2, 1.0, suite=1)], None, False),
    Case("of another metric", rule(0.8), [evaluation(2, 1.0, metric=Metric.CONTAINS)], None, False),
    Case("the newest is good", rule(0.8), [evaluation(2, 0.1), evaluation(2, 0.9)], None, True),
    Case("the newest is bad", rule(0.8), [evaluation(2, 0.9), evaluation(2, 0.1)], None, False),
    Case("a low perplexity", rule(5.0, metric=PERPLEXITY), [evaluation(2, 4.9, metric=PERPLEXITY)], None, True),
    Case("a high perplexity", rule(5.0, metric=PERPLEXITY), [evaluation(2, 5.1, metric=PERPLEXITY)], None, False),
    Case("worse by as much as allowed", rule(delta=0.1), [evaluation(1, 0.8), evaluation(2, 0.7)], 1, True),
    Case("worse by more", rule(delta=0.02), [evaluation(1, 0.8), evaluation(2, 0.77)], 1, False),
    Case("better", rule(delta=0.0), [evaluation(2, 0.9), evaluation(1, 0.8)], 1, True),
    Case("nothing is served", rule(delta=0.0), [], None, True),
    Case("it is what is served", rule(delta=0.0), [], 2, True),
    Case("what is served was not evaluated", rule(delta=1.0), [evaluation(2, 1.0)], 1, False),
    Case("only what is served was evaluated", rule(delta=1.0), [evaluation(1, 1.0)], 1, False),
    Case("worse, and good enough", rule(0.5, 0.0), [evaluation(1, 0.9), evaluation(2, 0.8)], 1, False),
    Case("no worse, and not good enough", rule(0.9, 0.0), [evaluation(1, 0.8), evaluation(2, 0.8)], 1, False),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_rule_lets_through_what_it_wants_and_nothing_else(case: Case) -> None:
    serving = revision(case.serving) if case.serving else None
    found = problems(Gate((case.wanted,)), case.made, serving)
    assert (not found) is case.is_let_through, found


def test_only_evaluators_of_the_gate_count_also_for_what_is_served() -> None:
    gate = Gate((rule(0.8),), (PEOPLE[1],))
    assert problems(gate, [evaluation(2, 0.9)])
    assert not problems(gate, [evaluation(2, 0.9, who=PEOPLE[1]), evaluation(2, 0.1)])
    gate = Gate((rule(delta=0.0),), (PEOPLE[1],))
    made = [evaluation(1, 0.1), evaluation(2, 0.9, who=PEOPLE[1])]
    assert problems(gate, made, revision(1))
    assert not problems(gate, [*made, evaluation(1, 0.9, who=PEOPLE[1])], revision(1))


def test_shares_are_compared_across_bases_and_perplexities_are_not() -> None:
    made = [evaluation(1, 0.8), evaluation(2, 0.8, base=1)]
    assert not problems(Gate((rule(delta=0.0),)), made, revision(1), base=1)
    made = [evaluation(1, 2.0, metric=PERPLEXITY), evaluation(2, 2.0, base=1, metric=PERPLEXITY)]
    [problem] = problems(Gate((rule(delta=9.0, metric=PERPLEXITY),)), made, revision(1), base=1)
    assert "another base" in problem


def test_every_rule_that_does_not_hold_is_named_with_its_suite_file() -> None:
    found = objections("home", Gate((rule(0.8), rule(0.9, suite=1), rule(0.1, suite=2))), revision(2), None,
                       [evaluation(2, 0.7), evaluation(2, 0.5, suite=2)])  # fmt: skip
    assert [(one.rule.suite, one.score) for one in found] == [("suite0", 0.7), ("suite1", None)]
    assert found[0].fields == {
        "gate": "home", "metric": "exact", "suite": "suite0", "suite_digest": SUITES[0], "threshold": 0.8, "score": 0.7,
    }  # fmt: skip
    assert "0.7" in str(found[0])
    assert SUITES[0][:15] in str(found[0])


evaluations_made = st.builds(
    evaluation, st.integers(1, 3), st.floats(0, 1), st.integers(0, 2), st.integers(0, 1), st.sampled_from(PEOPLE)
)
gates = st.builds(
    Gate,
    st.lists(
        st.builds(rule, st.none() | st.floats(0, 1), st.none() | st.floats(0, 1), st.integers(0, 2)).filter(
            lambda one: (one.threshold, one.regression_max) != (None, None)
        ),
        min_size=1, max_size=3,
    ).map(tuple),
    st.sampled_from([(), PEOPLE[:1], PEOPLE]),
)  # fmt: skip


@given(gates, st.lists(evaluations_made, max_size=8), st.sampled_from([None, 1, 2]))
def test_what_does_not_count_changes_nothing(gate: Gate, made: list[Evaluation], served: int | None) -> None:
    serving = revision(served) if served else None
    wanted = {one.suite_digest for one in gate.rules}
    counted = [
        one
        for one in made
        if one.base == BASES[0]
        and one.suite_digest in wanted
        and one.number in (2, served)
        and (not gate.evaluators or one.evaluator in gate.evaluators)
    ]
    found, alone = (objections("x", gate, revision(2), serving, some) for some in (made, counted))
    assert [(one.rule, one.score) for one in found] == [(one.rule, one.score) for one in alone]


@given(gates, st.lists(evaluations_made, max_size=8), st.floats(0, 1))
def test_a_higher_score_is_never_an_objection_more(gate: Gate, made: list[Evaluation], more: float) -> None:
    better = [
        msgspec.structs.replace(one, scores=(Score(Metric.EXACT, min(1.0, one.scores[0].value + more), 10),))
        if one.number == 2
        else one
        for one in made
    ]
    found, fewer = (objections("x", gate, revision(2), revision(1), some) for some in (made, better))
    assert {one.rule for one in fewer} <= {one.rule for one in found}


@given(st.lists(evaluations_made, max_size=40))
def test_a_head_keeps_the_newest_finding_of_each_evaluator_with_each_suite(made: list[Evaluation]) -> None:
    now = head()
    for one in made:
        now = with_evaluation(now, one)
        assert is_known(now, one)
    newest = {(one.number, one.suite_digest, one.evaluator): one for one in made}
    assert set(now.evaluations) == set(newest.values())
    assert now.num_evaluations == len(made)
    assert {number for number in range(5) if ranges.contains(now.evaluated, number)} == {one.number for one in made}


@given(st.lists(st.integers(1, 99), min_size=EVALUATIONS_IN_HEAD_MAX + 1, max_size=90, unique=True), st.data())
def test_a_full_head_forgets_what_no_alias_names_first(numbers: list[int], data: st.DataObject) -> None:
    named = data.draw(st.sampled_from(numbers[:-1]))
    now = head(aliases={"serving": named})
    for number in numbers:
        now = with_evaluation(now, evaluation(number, 0.5))
        assert len(now.evaluations) <= EVALUATIONS_IN_HEAD_MAX
        assert now.evaluations[-1].number == number
    assert named in {one.number for one in now.evaluations}


@given(st.lists(st.integers(1, 30)))
def test_ranges_hold_what_was_added_and_never_touch(numbers: list[int]) -> None:
    held: ranges.Ranges = ()
    for number in numbers:
        held = ranges.added(held, number)
    assert {number for number in range(32) if ranges.contains(held, number)} == set(numbers)
    assert all(before[1] + 1 < after[0] for before, after in itertools.pairwise(held))


def test_a_canary_is_behind_the_gate_when_most_get_it() -> None:
    assert [is_gated("canary", percent) for percent in (0, 50, 51, 100)] == [False, False, True, True]
    assert [is_gated(alias, 100) for alias in ("serving", "stable", "mine")] == [True, True, False]


def test_what_was_released_is_known_also_from_heads_that_did_not_note_it() -> None:
    old = head(aliases={"serving": 4, "stable": 2, "mine": 7}, trails={"serving": (1, 3), "mine": (8,)})
    assert [number for number in range(10) if was_released(old, number)] == [1, 2, 3, 4]
    assert was_released(head(released=((5, 6),)), 6)
