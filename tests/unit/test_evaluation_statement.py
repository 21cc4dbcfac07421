"""Statements of evaluations: what they say is what was found, all their parts are bounded, other tools read them."""

import json
from typing import Any

import msgspec
import pytest
from google.protobuf.json_format import ParseDict
from in_toto_attestation.v1.statement import Statement as TheirStatement
from in_toto_attestation.v1.statement_pb2 import Statement as TheirMessage

from octavo_shared import evaluation_statement
from octavo_shared.errors import InvalidRequest, ProvenanceRefused
from octavo_shared.messages.evaluation import Evaluation, Metric, Score
from octavo_shared.references import Digest, Fingerprint

NAME = "alice/diary"
FOUND = Evaluation(
    12, Digest("sha256:" + "1" * 64), Fingerprint("sha256:" + "2" * 64), "facts", Digest("sha256:" + "3" * 64),
    (Score(Metric.EXACT, 0.1 + 0.2, 10), Score(Metric.PERPLEXITY, 12.5, 3)), "ci@home", 1_700_000_000_999,
)  # fmt: skip


def payload(**changed: Any) -> bytes:
    """A good statement with members of its predicate changed."""
    said = json.loads(evaluation_statement.build(NAME, FOUND))
    said["predicate"] |= changed
    return json.dumps(said).encode()


def test_a_statement_says_what_was_found_to_the_last_digit() -> None:
    statement = evaluation_statement.parse(evaluation_statement.build(NAME, FOUND))
    evaluation_statement.check_made(statement, NAME, FOUND)
    predicate = statement.predicate
    assert (statement.subject[0].name, str(statement.subject[0].digest)) == (NAME, FOUND.digest)
    assert [(score.metric, score.value, score.n) for score in predicate.scores] == [
        (score.metric, score.value, score.num_items) for score in FOUND.scores
    ]
    assert (predicate.suite.name, str(predicate.suite.digest)) == ("facts", FOUND.suite_digest)
    assert (predicate.evaluated_by, predicate.at.isoformat()) == ("ci@home", "2023-11-14T22:13:20+00:00")


def test_in_totos_own_library_takes_it_for_a_statement() -> None:
    theirs = TheirStatement.copy_from_pb(ParseDict(json.loads(payload()), TheirMessage()))
    theirs.validate()
    assert theirs.pb.subject[0].digest["sha256"] == FOUND.digest.removeprefix("sha256:")


def test_the_order_of_scores_and_the_evaluators_clock_count_for_nothing() -> None:
    other = msgspec.structs.replace(FOUND, scores=FOUND.scores[::-1], at_ms=1, number=3)
    evaluation_statement.check_made(evaluation_statement.parse(payload()), NAME, other)


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"digest": Digest("sha256:" + "9" * 64)}, "subject.digest"),
        ({"base": Fingerprint("sha256:" + "9" * 64)}, "predicate.base"),
        ({"suite": "other"}, "predicate.suite"),
        ({"suite_digest": Digest("sha256:" + "9" * 64)}, "predicate.suite"),
        ({"evaluator": "bob@home"}, "predicate.evaluatedBy"),
        ({"scores": FOUND.scores[:1]}, "predicate.scores"),
        ({"scores": (Score(Metric.EXACT, 0.3, 10), FOUND.scores[1])}, "predicate.scores"),
        ({"scores": (Score(Metric.EXACT, 0.1 + 0.2, 11), FOUND.scores[1])}, "predicate.scores"),
    ],
)
def test_a_statement_of_another_finding_is_refused_by_field(changed: dict[str, Any], field: str) -> None:
    with pytest.raises(ProvenanceRefused) as caught:
        evaluation_statement.check_made(
            evaluation_statement.parse(payload()), NAME, msgspec.structs.replace(FOUND, **changed)
        )
    assert caught.value.fields["field"] == field


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"scores": []}, "statement.predicate.scores"),
        ({"scores": [{"metric": "exact", "value": 1, "n": 1}] * 9}, "statement.predicate.scores"),
        ({"scores": [{"metric": "charm", "value": 1, "n": 1}]}, "statement.predicate.scores[0].metric"),
        ({"scores": [{"metric": "exact", "value": 1, "n": -1}]}, "statement.predicate.scores[0].n"),
        ({"scores": [{"metric": "exact", "value": 1, "n": 1, "more": 1}]}, "statement.predicate.scores[0]"),
        ({"at": "2026-01-01T00:00:00"}, "statement.predicate.at"),
        ({"suite": {"name": "", "digest": {"sha256": "3" * 64}}}, "statement.predicate.suite.name"),
        ({"more": 1}, "statement.predicate"),
    ],
)
def test_what_is_wrong_in_a_statement_is_refused_by_field(changed: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        evaluation_statement.parse(payload(**changed))
    assert caught.value.fields["field"] == field


def test_a_statement_of_provenance_is_none_of_an_evaluation() -> None:
    with pytest.raises(InvalidRequest, match="predicateType"):
        evaluation_statement.parse(payload().replace(b"adapter-evaluation", b"adapter-provenance"))
