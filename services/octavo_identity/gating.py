"""What a gate says of a revision. Pure: gates, revisions and evaluations in, objections out."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from octavo_identity import ranges
from octavo_identity.records import AdapterHead
from octavo_shared.messages.adapters import Revision
from octavo_shared.messages.evaluation import Evaluation, Gate, Metric, Rule, Score
from octavo_shared.references import CANARY, SERVING

STABLE = "stable"
RELEASED_BY = (SERVING, STABLE)
"""The aliases behind the gate."""
CANARY_PERCENT_FREE = 50
"""Up to this share a canary is a trial; beyond, it is served to most, and behind the gate like the others."""
_ROUNDING = 1e-9
_SHORT_DIGEST = slice(0, len("sha256:") + 12)


@dataclass(frozen=True)
class Objection:
    """Why ``rule`` of the gate of ``whose`` does not hold; ``score`` None: there is none that counts."""

    whose: str
    rule: Rule
    problem: str
    score: float | None = None

    def __str__(self) -> str:
        suite = f"{self.rule.metric} of suite {self.rule.suite} ({self.rule.suite_digest[_SHORT_DIGEST]}…)"
        return f"the gate of {self.whose} wants {suite}: {self.problem}"

    @property
    def fields(self) -> dict[str, str | float]:
        """The parts, for programs."""
        rule = self.rule
        told: dict[str, str | float | None] = {
            "gate": self.whose, "metric": rule.metric.value, "suite": rule.suite, "suite_digest": rule.suite_digest,
            "threshold": rule.threshold, "regression_max": rule.regression_max, "score": self.score,
        }  # fmt: skip
        return {name: value for name, value in told.items() if value is not None}


def is_gated(alias: str, canary_percent: int) -> bool:
    """Tell whether what ``alias`` names is served to people who asked for no revision, beyond a trial."""
    return alias in RELEASED_BY or (alias == CANARY and canary_percent > CANARY_PERCENT_FREE)


def was_released(head: AdapterHead, number: int) -> bool:
    """Tell whether an alias behind the gate has named revision ``number``, as far as the head remembers."""
    if ranges.contains(head.released, number):
        return True
    # Heads from before there were gates have only what each alias named last.
    return any(number == head.aliases.get(alias) or number in head.trails.get(alias, ()) for alias in RELEASED_BY)


def objections(
    whose: str, gate: Gate, candidate: Revision, serving: Revision | None, evaluations: Sequence[Evaluation]
) -> list[Objection]:
    """Return what ``gate`` has against serving ``candidate`` instead of ``serving``; ``evaluations``: oldest first.

    An evaluation counts when it is of this very revision on its own base, of the suite file with the rule's digest, and
    by one of the gate's evaluators; the newest one that does. What is served now is not worse than itself, and with
    nothing served there is nothing to be worse than.
    """
    counted = [one for one in evaluations if not gate.evaluators or one.evaluator in gate.evaluators]
    found: list[Objection] = []
    for rule in gate.rules:
        score = _newest(counted, candidate, rule)
        if score is None:
            if rule.threshold is not None or not _is_vacuous(candidate, serving):
                found.append(Objection(whose, rule, _what_is_missing(evaluations, candidate, rule, gate)))
            continue
        if rule.threshold is not None and _is_worse(rule.metric, score.value, rule.threshold):
            bound = "at most" if rule.metric.is_lower_better else "at least"
            problem = f"revision {candidate.number} has {score.value:g}, wanted is {bound} {rule.threshold:g}"
            found.append(Objection(whose, rule, problem, score.value))
        if rule.regression_max is not None and serving is not None and serving.number != candidate.number:
            problem = _regression(rule, rule.regression_max, candidate, score, serving, _newest(counted, serving, rule))
            if problem:
                found.append(Objection(whose, rule, problem, score.value))
    return found


def _is_vacuous(candidate: Revision, serving: Revision | None) -> bool:
    return serving is None or serving.number == candidate.number


def _regression(
    rule: Rule, allowed: float, candidate: Revision, score: Score, serving: Revision, before: Score | None
) -> str:
    """Return what is wrong with ``score`` beside that of what is served, or an empty text."""
    if before is None:
        return f"what is served, revision {serving.number}, has no such score to compare with; evaluate it too"
    if rule.metric is Metric.PERPLEXITY and candidate.base != serving.base:
        return f"revision {serving.number}, which is served, has another base, with whose tokens none is compared"
    limit = before.value + allowed if rule.metric.is_lower_better else before.value - allowed
    if not _is_worse(rule.metric, score.value, limit):
        return ""
    return (
        f"revision {candidate.number} has {score.value:g} and revision {serving.number}, which is served, "
        f"has {before.value:g}; it may be worse by {allowed:g}"
    )


def _newest(evaluations: Iterable[Evaluation], revision: Revision, rule: Rule) -> Score | None:
    fitting = [one for one in evaluations if _is_of(one, revision) and one.suite_digest == rule.suite_digest]
    return fitting[-1].score(rule.metric) if fitting else None


def _is_of(evaluation: Evaluation, revision: Revision) -> bool:
    return (evaluation.number, evaluation.digest, evaluation.base) == (revision.number, revision.digest, revision.base)


def _what_is_missing(evaluations: Sequence[Evaluation], revision: Revision, rule: Rule, gate: Gate) -> str:
    problem = f"revision {revision.number} has no such score"
    own = [one for one in evaluations if one.number == revision.number]
    if any(one.suite_digest == rule.suite_digest and one.score(rule.metric) for one in own):
        return f"{problem} by {' or '.join(gate.evaluators)}" if gate.evaluators else problem
    others = {one.suite_digest[_SHORT_DIGEST] for one in own if one.suite == rule.suite} - {
        rule.suite_digest[_SHORT_DIGEST]
    }
    return problem + (f"; there is one of another file of that name, {sorted(others)[0]}…" if others else "")


def _is_worse(metric: Metric, value: float, limit: float) -> bool:
    # Differences of shares are rarely exact: 0.8 - 0.1 is more than 0.7.
    return value > limit + _ROUNDING if metric.is_lower_better else value < limit - _ROUNDING
