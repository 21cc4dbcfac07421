"""Statements: what they say is what was made, all their parts are bounded, and other tools read them."""

import json
from typing import Any

import msgspec
import pytest
from google.protobuf.json_format import ParseDict
from in_toto_attestation.v1.statement import Statement as TheirStatement
from in_toto_attestation.v1.statement_pb2 import Statement as TheirMessage

from octavo_shared import provenance
from octavo_shared.errors import InvalidRequest, ParentMoved, ProvenanceRefused
from octavo_shared.lora_config import LoraConfig
from octavo_shared.provenance import Facts, Made
from octavo_shared.references import Digest, Fingerprint

MADE = Made(
    "alice/diary", Digest("sha256:" + "1" * 64), Fingerprint("sha256:" + "2" * 64), Digest("sha256:" + "3" * 64),
    "alice@home", LoraConfig(r=16, lora_alpha=32.0),
)  # fmt: skip
FACTS = {
    "data": {"digest": "sha256:" + "4" * 64, "rows": 1200},
    "trainer": {"name": "peft", "version": "0.18.0"},
    "hyperparameters": {"learning_rate": 2e-4, "steps": 300, "optimizer": "adamw", "packing": True},
    "code": {"uri": "git+https://example.com/train", "revision": "c0ffee"},
}


def facts(**changed: Any) -> Facts:
    return provenance.parse_facts(json.dumps(FACTS | changed).encode())


def payload(**changed: Any) -> bytes:
    """A good statement with members of its JSON changed, by their dotted paths."""
    said = json.loads(provenance.build(MADE, 1_700_000_000_000, facts()))
    for path, value in changed.items():
        *way, last = path.replace("__", ".").split(".")
        place = said
        for step in way:
            place = place[int(step)] if isinstance(place, list) else place[step]
        place[last] = value
    return json.dumps(said).encode()


def test_a_statement_says_what_was_made_and_how() -> None:
    statement = provenance.parse(provenance.build(MADE, 1_700_000_000_999, facts()))
    provenance.check_made(statement, MADE)
    predicate = statement.predicate
    assert (statement.subject[0].name, str(statement.subject[0].digest)) == ("alice/diary", MADE.digest)
    assert predicate.parent is not None
    assert (str(predicate.base.digest), str(predicate.parent.digest)) == (MADE.base, MADE.parent)
    assert predicate.hyperparameters == FACTS["hyperparameters"] | {
        "rank": 16, "alpha": 32.0, "alpha_rule": "alpha / rank",
    }  # fmt: skip
    assert predicate.data is not None
    assert (str(predicate.data.digest), predicate.data.rows) == ("sha256:" + "4" * 64, 1200)
    assert predicate.at.isoformat() == "2023-11-14T22:13:20+00:00"


def test_the_alpha_rule_is_that_of_the_pack() -> None:
    made = msgspec.structs.replace(MADE, config=LoraConfig(use_rslora=True))
    said = provenance.parse(provenance.build(made, 0)).predicate.hyperparameters
    assert said["alpha_rule"] == "alpha / sqrt(rank)"


def test_a_branch_says_nothing_of_training() -> None:
    predicate = provenance.parse(provenance.build(msgspec.structs.replace(MADE, config=None), 0)).predicate
    assert (predicate.making, predicate.hyperparameters, predicate.data) == ("branch", {}, None)


def test_in_totos_own_library_takes_it_for_a_statement() -> None:
    message = ParseDict(json.loads(provenance.build(MADE, 0, facts())), TheirMessage())
    theirs = TheirStatement.copy_from_pb(message)
    theirs.validate()
    assert theirs.pb.subject[0].digest["sha256"] == MADE.digest.removeprefix("sha256:")


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"adapter": "alice/other"}, "subject.name"),
        ({"digest": Digest("sha256:" + "9" * 64)}, "subject.digest"),
        ({"base": Fingerprint("sha256:" + "9" * 64)}, "predicate.base"),
        ({"pushed_by": "bob@home"}, "predicate.pushedBy"),
        ({"config": None}, "predicate.making"),
        ({"config": LoraConfig(r=8, lora_alpha=32.0)}, "predicate.hyperparameters.rank"),
        ({"config": LoraConfig(r=16, lora_alpha=8.0)}, "predicate.hyperparameters.alpha"),
        ({"config": LoraConfig(r=16, lora_alpha=32.0, use_rslora=True)}, "predicate.hyperparameters.alpha_rule"),
    ],
)
def test_a_statement_about_something_else_is_refused_by_field(changed: dict[str, Any], field: str) -> None:
    statement = provenance.parse(payload())
    with pytest.raises(ProvenanceRefused) as caught:
        provenance.check_made(statement, msgspec.structs.replace(MADE, **changed))
    assert caught.value.fields["field"] == field


@pytest.mark.parametrize("parent", [None, Digest("sha256:" + "9" * 64)])
def test_another_parent_is_told_to_the_pusher_who_may_sign_again(parent: Digest | None) -> None:
    with pytest.raises(ParentMoved) as caught:
        provenance.check_made(provenance.parse(payload()), msgspec.structs.replace(MADE, parent=parent))
    assert caught.value.fields["parent"] == (parent or "")


def test_facts_cannot_deny_what_the_pack_says() -> None:
    with pytest.raises(ProvenanceRefused, match="rank"):
        provenance.build(MADE, 0, facts(hyperparameters={"rank": 8}))


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"_type": "https://in-toto.io/Statement/v0.1"}, "statement._type"),
        ({"predicateType": "https://slsa.dev/provenance/v1"}, "statement.predicateType"),
        ({"subject": []}, "statement.subject"),
        ({"subject__0__digest__sha256": "F" * 64}, "statement.subject[0].digest.sha256"),
        ({"subject__0__digest__sha256": "f" * 64 + "\n"}, "statement.subject[0].digest.sha256"),
        ({"subject__0__name": "a" * 257}, "statement.subject[0].name"),
        ({"predicate__at": "yesterday"}, "statement.predicate.at"),
        ({"predicate__at": "2026-01-01T00:00:00"}, "statement.predicate.at"),
        ({"predicate__data__rows": -1}, "statement.predicate.data.rows"),
        ({"predicate__data__rows": 2**60}, "statement.predicate.data.rows"),
        ({"predicate__hyperparameters__learning_rate": -1}, "statement.predicate.hyperparameters.learning_rate"),
        ({"predicate__hyperparameters__learning_rate": "0.1"}, "statement.predicate.hyperparameters.learning_rate"),
        ({"predicate__hyperparameters__steps": 1.5}, "statement.predicate.hyperparameters.steps"),
        ({"predicate__hyperparameters__steps": True}, "statement.predicate.hyperparameters.steps"),
        ({"predicate__hyperparameters__A": 1}, "statement.predicate.hyperparameters"),
        ({"predicate__hyperparameters__a": "x" * 257}, "statement.predicate.hyperparameters[...]"),
        ({"predicate__hyperparameters__a": None}, "statement.predicate.hyperparameters[...]"),
        ({"predicate__hyperparameters": {f"a{n}": n for n in range(49)}}, "statement.predicate.hyperparameters"),
        ({"predicate__trainer__more": 1}, "statement.predicate.trainer"),
        ({"more": 1}, "statement"),
    ],
)
def test_what_is_wrong_in_a_statement_is_refused_by_field(changed: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        provenance.parse(payload(**changed))
    assert caught.value.fields["field"] == field


def test_a_member_that_is_there_twice_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="more than once"):
        provenance.parse(payload().replace(b'"making"', b'"making": "branch", "making"'))


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"data": 1}', b'{"rank": 1}', b"\xff", b" " * 20_000,
                                  b'{"hyperparameters": {"learning_rate": 1e999}}'])  # fmt: skip
def test_a_file_of_facts_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest, match="'provenance"):
        provenance.parse_facts(data)
