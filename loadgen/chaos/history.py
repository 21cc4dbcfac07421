"""What happened to a registry, as its clients saw it and as its ledger has it: all that the checker knows.

Times are seconds of one clock. A *write* is known by its mark, which is the same in the ledger and for every attempt of
a client that tries again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    OK = "ok"
    """Acknowledged: it happened, once, between invocation and completion."""
    FAIL = "fail"
    """Refused by every attempt: it never happened, and never will."""
    UNKNOWN = "unknown"
    """No attempt was acknowledged and one of them at least may have happened: never, or once, now or later."""


@dataclass(frozen=True)
class Push:
    """A new revision with ``digest``, which ``alias`` names from then on (None: a draft)."""

    digest: str
    alias: str | None


@dataclass(frozen=True)
class Promote:
    """``alias`` names revision ``number`` if it names ``expected`` now (0: nothing; None: whatever it names)."""

    alias: str
    number: int
    expected: int | None


@dataclass(frozen=True)
class Rollback:
    """``alias`` names revision ``number``, or what it named before (None)."""

    alias: str
    number: int | None


@dataclass(frozen=True)
class Unalias:
    alias: str


@dataclass(frozen=True)
class Retire:
    number: int


@dataclass(frozen=True)
class Tag:
    add: tuple[str, ...]
    remove: tuple[str, ...]


@dataclass(frozen=True)
class Grant:
    principal: str


@dataclass(frozen=True)
class Revoke:
    principal: str


@dataclass(frozen=True)
class Import:
    """A new revision with ``digest``, which ``alias`` names from then on, unless one of that digest is there."""

    digest: str
    alias: str


@dataclass(frozen=True)
class Erase:
    """The adapter is gone for good; whatever has its name next begins anew. One that is gone stays so."""


@dataclass(frozen=True)
class Finding:
    """How many of a suite's items revision ``number``, which has ``digest``, was found to pass: a share of them."""

    number: int
    digest: str
    suite: str
    share: float
    num_items: int


@dataclass(frozen=True)
class Evaluate:
    """``finding`` is recorded, as its evaluator signed it. No two of a run are the same."""

    finding: Finding


Write = Push | Promote | Rollback | Unalias | Retire | Tag | Grant | Revoke | Import | Erase | Evaluate


@dataclass(frozen=True)
class Resolve:
    """A read: what ``alias`` names for ``reader`` (None: the owner)."""

    alias: str
    reader: str | None = None


@dataclass(frozen=True)
class Snapshot:
    """All that an answer to the owner shows of an adapter's head."""

    num_revisions: int
    latest_digest: str
    aliases: Mapping[str, int]
    tags: tuple[str, ...]
    grants: tuple[str, ...]
    retired: tuple[tuple[int, int], ...]


GONE = Snapshot(0, "", {}, (), (), ())
"""What is left of an adapter that was erased."""


@dataclass(frozen=True)
class Imported:
    """An import was told that its content is this revision now, or was before."""

    number: int
    digest: str


@dataclass(frozen=True)
class Resolved:
    """A revision that a read was answered with."""

    number: int
    digest: str


@dataclass(frozen=True)
class NotFound:
    """A read was told that nothing is there, or nothing for its reader."""


@dataclass(frozen=True)
class AliasNamed:
    """A refused compare-and-set said what the alias named instead (0: nothing)."""

    number: int


@dataclass(frozen=True)
class Refused:
    """A later attempt of an acknowledged write was refused with ``code``: its client is told that it never happened."""

    code: str


Seen = Snapshot | Imported | Finding | Resolved | NotFound | AliasNamed | Refused


@dataclass(frozen=True)
class Operation:
    """One call of one client: from its first attempt to the first answer that settles it.

    ``seen`` holds that answer's contents, and those of later attempts with the same mark, which must be the same.
    """

    client: str
    adapter: str
    call: Write | Resolve
    invoked_s: float
    completed_s: float | None
    outcome: Outcome
    seen: tuple[Seen, ...] = ()
    write: str = ""


@dataclass(frozen=True)
class LedgerEntry:
    """One event of an adapter as the ledger has it in the end: which write made it, and the head that it left.

    ``previous_sequence`` is of the event before it, 0 for the first one and for the first one behind an erasure.
    ``recorded`` is what an evaluation's event holds, ``findings`` what the head keeps of all of them, oldest first.
    """

    sequence: int
    previous_sequence: int
    write: str
    snapshot: Snapshot
    recorded: Finding | None = None
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class History:
    operations: Sequence[Operation]
    ledger: Mapping[str, Sequence[LedgerEntry]]
    """By adapter, in the order of the stream."""
