"""What is said of a revision's making: an in-toto Statement (v1) with a predicate of our own. Pure.

Its one subject is the pack: ``tenant/adapter`` and the digest of the bytes that are served. All its parts are bounded,
and whatever is wrong in one is refused by the name of its field.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated

import msgspec

from octavo_shared import dsse, intoto
from octavo_shared.errors import InvalidRequest, ParentMoved, ProvenanceRefused
from octavo_shared.intoto import FIELD, Count, DigestSet, Moment, Resource, Strict, Text, moment
from octavo_shared.lora_config import LoraConfig
from octavo_shared.references import Digest, Fingerprint

PREDICATE_TYPE = "urn:octavo:adapter-provenance:1"
FACTS_BYTES_MAX = 16 * 1024
_PARAMETERS_MAX = 48
_RATE_MAX = 1e6
LORA_RULE = "alpha / rank"
RSLORA_RULE = "alpha / sqrt(rank)"

_Digest = Annotated[str, msgspec.Meta(pattern=r"^sha256:[0-9a-f]{64}\Z")]
_Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_]{0,63}\Z")]
_Value = (
    Annotated[str, msgspec.Meta(max_length=256)] | bool | Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)] | float
)
Parameters = Annotated[dict[_Name, _Value], msgspec.Meta(max_length=_PARAMETERS_MAX)]


class Trainer(Strict, frozen=True):
    """The program that trained it."""

    name: Text
    version: Text


class Code(Strict, frozen=True):
    """Which code ran, as ``revision`` (a commit) of what lies at ``uri``."""

    uri: Text
    revision: Text


class GivenData(Strict, frozen=True):
    digest: _Digest
    rows: Count


class Facts(Strict, frozen=True):
    """What only the pusher knows, as it stands in the file of ``octavo push --provenance``."""

    data: GivenData | None = None
    trainer: Trainer | None = None
    hyperparameters: Parameters = msgspec.field(default_factory=dict)
    code: Code | None = None


_NOTHING = Facts()


class Data(Strict, frozen=True):
    digest: DigestSet
    rows: Count


class Making(StrEnum):
    PUSH = "push"
    BRANCH = "branch"
    """Nothing was trained: it is its parent, under another name."""


class Predicate(Strict, frozen=True, rename="camel"):
    """``parent`` is what was served when it was pushed, or what it was branched from.

    ``hyperparameters`` always hold ``rank``, ``alpha`` and ``alpha_rule`` of a push: those of the pack itself.
    """

    making: Making
    pushed_by: Text
    at: Moment
    base: Resource
    parent: Resource | None = None
    data: Data | None = None
    trainer: Trainer | None = None
    hyperparameters: Parameters = msgspec.field(default_factory=dict)
    code: Code | None = None


Statement = intoto.Statement[Predicate]


class Made(msgspec.Struct, frozen=True):
    """What was made, as somebody knows it for certain: what a statement must agree with. ``config`` None: a branch."""

    adapter: str
    digest: Digest
    base: Fingerprint
    parent: Digest | None
    pushed_by: str
    config: LoraConfig | None


def build(made: Made, at_ms: int, facts: Facts = _NOTHING) -> bytes:
    """Return the payload that says how ``made`` came to be; raises ``ProvenanceRefused`` where ``facts`` deny it."""
    data = facts.data
    predicate = Predicate(
        making=Making.PUSH if made.config is not None else Making.BRANCH,
        pushed_by=made.pushed_by,
        at=moment(at_ms),
        base=Resource(DigestSet.of(made.base)),
        parent=_resource(made.parent),
        data=Data(DigestSet.of(data.digest), data.rows) if data else None,
        trainer=facts.trainer,
        hyperparameters=_parameters_of(made.config) | facts.hyperparameters,
        code=facts.code,
    )
    statement = intoto.statement_of(made.adapter, made.digest, PREDICATE_TYPE, predicate)
    if facts is not _NOTHING:
        check_made(statement, made)
    return dsse.encode_json(statement)


def parse(payload: bytes) -> Statement:
    """Return the statement that ``payload`` is; raises ``InvalidRequest`` that names what is wrong with it."""
    statement = intoto.parse_statement(payload, Statement, PREDICATE_TYPE)
    _check_hyperparameters(statement.predicate.hyperparameters)
    return statement


def parse_facts(data: bytes) -> Facts:
    """Return what a file of ``--provenance`` says; raises ``InvalidRequest`` that names what is wrong with it."""
    if len(data) > FACTS_BYTES_MAX:
        raise InvalidRequest("provenance", f"exceeds the limit of {FACTS_BYTES_MAX} bytes")
    facts = dsse.parse_json(data, Facts, "provenance")
    _check_hyperparameters(facts.hyperparameters, "provenance")
    return facts


def check_made(statement: Statement, made: Made) -> None:
    """Hold a statement to what was really made.

    Raises ``ProvenanceRefused`` with the field that says otherwise, and ``ParentMoved`` when that is the parent alone:
    then another revision came between, and the pusher may sign again.
    """
    (subject,) = statement.subject
    predicate = statement.predicate
    for field, said, true in (
        ("subject.name", subject.name, made.adapter),
        ("subject.digest", str(subject.digest), made.digest),
        ("predicate.base", str(predicate.base.digest), made.base),
        ("predicate.pushedBy", predicate.pushed_by, made.pushed_by),
        ("predicate.making", predicate.making, Making.PUSH if made.config is not None else Making.BRANCH),
    ):
        if said != true:
            raise ProvenanceRefused(field, said, true)
    given = predicate.hyperparameters
    for name, value in _parameters_of(made.config).items():
        if name not in given or isinstance(given[name], bool) or given[name] != value:
            raise ProvenanceRefused(f"predicate.hyperparameters.{name}", str(given.get(name)), str(value))
    said_parent = str(predicate.parent.digest) if predicate.parent else ""
    if said_parent != (made.parent or ""):
        raise ParentMoved(stated=said_parent, actual=made.parent or "")


def _parameters_of(config: LoraConfig | None) -> dict[str, _Value]:
    if config is None:
        return {}
    rule = RSLORA_RULE if config.use_rslora else LORA_RULE
    return {"rank": config.r, "alpha": config.lora_alpha, "alpha_rule": rule}


def _resource(digest: Digest | None) -> Resource | None:
    return Resource(DigestSet.of(digest)) if digest else None


def _check_hyperparameters(given: Mapping[str, _Value], where: str = f"{FIELD}.predicate") -> None:
    rate, steps = given.get("learning_rate"), given.get("steps")
    if rate is not None and (isinstance(rate, bool | str) or not 0 <= rate < _RATE_MAX):
        raise InvalidRequest(f"{where}.hyperparameters.learning_rate", f"must be a number from 0 to {_RATE_MAX:.0f}")
    if steps is not None and (not isinstance(steps, int) or isinstance(steps, bool) or steps < 0):
        raise InvalidRequest(f"{where}.hyperparameters.steps", "must be a whole number from 0 on")
