"""In-toto Statements (v1): the parts that those of ours have in common, all bounded. Pure.

Whatever is wrong in one is refused by the name of its field.
"""

import json
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, TypeVar

import msgspec

from octavo_shared import dsse
from octavo_shared.errors import InvalidRequest
from octavo_shared.references import Digest

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
FIELD = "statement"
_FIELD_CHARS_MAX = 80

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Moment = Annotated[datetime, msgspec.Meta(tz=True)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Something unknown in a statement is something that nobody here has checked."""


class DigestSet(Strict, frozen=True):
    """In-toto's form of a digest."""

    sha256: Sha256

    @classmethod
    def of(cls, digest: str) -> "DigestSet":
        return cls(digest.removeprefix("sha256:"))

    def __str__(self) -> str:
        return f"sha256:{self.sha256}"


class Resource(Strict, frozen=True):
    digest: DigestSet


class Subject(Strict, frozen=True):
    name: Text
    digest: DigestSet


def moment(at_ms: int) -> datetime:
    """Return a time in the form of our statements: whole seconds, in UTC."""
    return datetime.fromtimestamp(at_ms // 1000, UTC)


P = TypeVar("P", bound=Strict)


class Statement(Strict, Generic[P], frozen=True, rename={"type": "_type", "predicate_type": "predicateType"}):
    """``predicate`` is what is said of the subject, in the form that ``predicate_type`` names."""

    type: str
    subject: tuple[Subject, ...]
    predicate_type: str
    predicate: P


def statement_of(adapter: str, digest: Digest, predicate_type: str, predicate: P) -> Statement[P]:
    """Return a statement whose one subject is the pack: ``tenant/adapter`` and the digest of its bytes."""
    return Statement(STATEMENT_TYPE, (Subject(adapter, DigestSet.of(digest)),), predicate_type, predicate)


def parse_statement(payload: bytes, kind: type[Statement[P]], predicate_type: str) -> Statement[P]:
    """Return the statement that ``payload`` is; raises ``InvalidRequest`` that names what is wrong with it."""
    statement = dsse.parse_json(payload, kind, FIELD)
    for field, said, wanted in (
        ("_type", statement.type, STATEMENT_TYPE),
        ("predicateType", statement.predicate_type, predicate_type),
    ):
        if said != wanted:
            raise InvalidRequest(f"{FIELD}.{field}", f"must be {wanted!r}")
    if len(statement.subject) != 1:
        raise InvalidRequest(f"{FIELD}.subject", "must be one: the pack")
    try:
        # Readers differ in which of two members of one name they take.
        json.loads(payload, object_pairs_hook=_unique)
    except _Repeated as repeated:
        raise InvalidRequest(f"{FIELD}.{repeated}"[:_FIELD_CHARS_MAX], "is there more than once") from None
    return statement


class _Repeated(Exception):
    """Its text is the name of a member that an object has twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _Repeated(name)
        found[name] = value
    return found
