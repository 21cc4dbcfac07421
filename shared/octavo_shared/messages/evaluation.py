"""How good a revision was found to be, and what it must be found to be before it is served."""

from enum import StrEnum
from typing import Annotated

import msgspec

from octavo_shared.envelopes import Envelope
from octavo_shared.messages.adapters import Revision, RevisionState
from octavo_shared.messages.provenance import StatementSigner
from octavo_shared.messages.requests import Request, Write
from octavo_shared.references import Digest, Fingerprint

SCORES_MAX = 8
RULES_MAX = 16
EVALUATORS_MAX = 16
EVALUATIONS_MAX = 200
"""Of one revision in one answer."""
SIGNED_EVALUATIONS_MAX = 50
"""The same, with their statements."""


class Metric(StrEnum):
    """All but ``PERPLEXITY`` are shares of items, 0 to 1, and better when higher."""

    PASSED = "passed"
    """Of all items that pass or fail, whatever their check."""
    EXACT = "exact"
    CONTAINS = "contains"
    REGEX = "regex"
    PERPLEXITY = "perplexity"
    """Of the expected texts, by token: 1 or more, and better when lower."""

    @property
    def is_lower_better(self) -> bool:
        return self is Metric.PERPLEXITY


class Score(msgspec.Struct, frozen=True):
    """``value`` over ``num_items`` items of the suite."""

    metric: Metric
    value: float
    num_items: Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class Evaluation(msgspec.Struct, frozen=True):
    """What ``evaluator`` found when it ran a suite on revision ``number``; ``suite_digest`` is that of its file.

    ``is_signed``: by the evaluator's own key, and not by the registry alone.
    """

    number: int
    digest: Digest
    base: Fingerprint
    suite: str
    suite_digest: Digest
    scores: tuple[Score, ...]
    evaluator: str
    at_ms: int
    is_signed: bool = False

    def score(self, metric: Metric) -> Score | None:
        return next((score for score in self.scores if score.metric is metric), None)


class Rule(msgspec.Struct, frozen=True):
    """What a gate wants of one metric of one suite. ``threshold``: at least so much (perplexity: at most).

    ``regression_max``: worse by at most so much than the revision that is served. At least one of the two is given.
    """

    metric: Metric
    suite: str
    suite_digest: Digest
    threshold: float | None = None
    regression_max: float | None = None


class Gate(msgspec.Struct, frozen=True):
    """All ``rules`` hold for what is to be served. Only evaluations by ``evaluators`` count; empty: by anybody."""

    rules: tuple[Rule, ...]
    evaluators: tuple[str, ...] = ()


class Evaluate(Write, frozen=True, kw_only=True):
    """Record what a suite's run gave. ``base`` is the base that the answers came from; another one is refused.

    The same finding again is no event, unless it is signed now and was not before. ``statement`` is the finding as the
    evaluator signed it; without one the registry makes one and signs alone.
    """

    reference: str
    suite: str
    suite_digest: Digest
    scores: tuple[Score, ...]
    base: Fingerprint
    statement: Envelope | None = None


class ListEvaluations(Request, frozen=True, kw_only=True):
    """Ask for the evaluations of the revision that ``reference`` names, newest first.

    ``with_statements``: as they were signed, with the keys that signed them; then at most ``SIGNED_EVALUATIONS_MAX``.
    """

    reference: str
    num_max: int = 100
    with_statements: bool = False


class EvaluationEntry(msgspec.Struct, frozen=True):
    """``sequence`` is that of its event. ``envelope`` and ``signers`` are as in ``Provenance``, if they were wanted."""

    evaluation: Evaluation
    sequence: int
    envelope: Envelope | None = None
    signers: tuple[StatementSigner, ...] = ()


class EvaluationList(msgspec.Struct, frozen=True):
    """A revision and its evaluations, newest first; ``is_whole`` unless there are more of them."""

    name: str
    revision: Revision
    state: RevisionState
    evaluations: tuple[EvaluationEntry, ...]
    is_whole: bool = True


class GetGate(Request, frozen=True, kw_only=True):
    """``target`` is ``tenant/adapter``, or ``tenant`` for the gate of all its adapters."""

    target: str


class SetGate(Write, frozen=True, kw_only=True):
    """Replace the gate of ``target`` (see ``GetGate``); None removes it."""

    target: str
    gate: Gate | None


class Gates(msgspec.Struct, frozen=True):
    """The gates that apply to ``target``, all of them at the same time."""

    target: str
    adapter: Gate | None = None
    tenant: Gate | None = None


def gate_summary(gate: Gate | None) -> str:
    """Return a gate in one line, for people."""
    if gate is None:
        return ""
    told = "; ".join(rule_summary(rule) for rule in gate.rules)
    return f"{told}; by {', '.join(gate.evaluators)}" if gate.evaluators else told


def rule_summary(rule: Rule) -> str:
    """Return what a rule wants, for people."""
    bound = "<=" if rule.metric.is_lower_better else ">="
    wanted = [] if rule.threshold is None else [f"{bound} {rule.threshold:g}"]
    if rule.regression_max is not None:
        wanted.append(f"no more than {rule.regression_max:g} worse than what is served")
    return f"{rule.metric} of {rule.suite} {' and '.join(wanted)}"
