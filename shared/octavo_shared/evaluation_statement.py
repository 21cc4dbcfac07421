"""What is said of how good a revision is: an in-toto Statement (v1) with a predicate of our own. Pure.

Its subject is the pack that was evaluated, as in statements of provenance.
"""

from collections.abc import Iterator
from typing import Annotated

import msgspec

from octavo_shared import dsse, intoto
from octavo_shared.errors import ProvenanceRefused
from octavo_shared.intoto import Count, DigestSet, Moment, Resource, Strict, Text, moment
from octavo_shared.messages.evaluation import SCORES_MAX, Evaluation, Metric

PREDICATE_TYPE = "urn:octavo:adapter-evaluation:1"


class Suite(Strict, frozen=True):
    """``digest`` is that of its file."""

    name: Text
    digest: DigestSet


class SignedScore(Strict, frozen=True):
    """``value`` over ``n`` items of the suite."""

    metric: Metric
    value: float
    n: Count


class Predicate(Strict, frozen=True, rename="camel"):
    """``base`` is the one that the answers came from."""

    evaluated_by: Text
    at: Moment
    base: Resource
    suite: Suite
    scores: Annotated[tuple[SignedScore, ...], msgspec.Meta(min_length=1, max_length=SCORES_MAX)]


Statement = intoto.Statement[Predicate]


def build(adapter: str, made: Evaluation) -> bytes:
    """Return the payload that says what ``made`` says of a revision of ``adapter``."""
    predicate = Predicate(
        evaluated_by=made.evaluator,
        at=moment(made.at_ms),
        base=Resource(DigestSet.of(made.base)),
        suite=Suite(made.suite, DigestSet.of(made.suite_digest)),
        scores=tuple(SignedScore(score.metric, score.value, score.num_items) for score in made.scores),
    )
    statement = intoto.statement_of(adapter, made.digest, PREDICATE_TYPE, predicate)
    return dsse.encode_json(statement)


def parse(payload: bytes) -> Statement:
    """Return the statement that ``payload`` is; raises ``InvalidRequest`` that names what is wrong with it."""
    return intoto.parse_statement(payload, Statement, PREDICATE_TYPE)


def check_made(statement: Statement, adapter: str, made: Evaluation) -> None:
    """Hold a statement to the evaluation that it came with, all but the time, which is of the signer's clock.

    Raises ``ProvenanceRefused`` with the field that says otherwise.
    """
    true = parse(build(adapter, made))
    for (field, said), (_, wanted) in zip(_fields(statement), _fields(true), strict=True):
        if said != wanted:
            raise ProvenanceRefused(field, said, wanted)


def _fields(statement: Statement) -> Iterator[tuple[str, str]]:
    (subject,) = statement.subject
    predicate = statement.predicate
    yield "subject.name", subject.name
    yield "subject.digest", str(subject.digest)
    yield "predicate.evaluatedBy", predicate.evaluated_by
    yield "predicate.base", str(predicate.base.digest)
    yield "predicate.suite", f"{predicate.suite.name} {predicate.suite.digest}"
    scores = sorted((score.metric, repr(score.value), score.n) for score in predicate.scores)
    yield "predicate.scores", ", ".join(f"{metric} {value} of {n}" for metric, value, n in scores)
