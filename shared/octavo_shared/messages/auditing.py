"""What the background audit of the ledger says of itself: how far it is, and what it found."""

from enum import StrEnum

import msgspec

from octavo_shared.messages.requests import Request


class FindingKind(StrEnum):
    """Those of events count sequences of the registry stream, those of checkpoints sequences of theirs."""

    EVENT_CHANGED = "event_changed"
    EVENT_MOVED = "event_moved"
    EVENT_LOST = "event_lost"
    ROOT_CONTRADICTED = "root_contradicted"
    """Some event of the range is not what was signed, and nothing is left that says which."""
    CHECKPOINT_CHANGED = "checkpoint_changed"
    CHECKPOINT_LOST = "checkpoint_lost"
    STATEMENT_BAD = "statement_bad"
    """The event is what was signed as a leaf, and the statement in it does not verify."""


class AuditFinding(msgspec.Struct, frozen=True):
    """What is wrong from sequence ``first`` to ``last``, both included; ``detail`` is one sentence."""

    kind: FindingKind
    first: int
    last: int
    detail: str


class AuditState(msgspec.Struct, frozen=True):
    """What the audit of one identity replica says, which holds its own tree against the stream, for ever, in rounds.

    ``position`` events of the ``size`` of the round that runs are done. ``findings`` are those of this round and of the
    last one that finished, as far as they are kept; ``num_findings`` counts all of them. ``finished_ms`` is wall-clock
    time (0: no round has finished), ``finished_size`` how many events that round had.
    """

    replica: str
    events_per_s: int
    position: int = 0
    size: int = 0
    num_rounds: int = 0
    finished_ms: int = 0
    finished_size: int = 0
    findings: tuple[AuditFinding, ...] = ()
    num_findings: int = 0


class GetAuditState(Request, frozen=True, kw_only=True):
    """Ask how far the background audit of the ledger is, and what it has found."""


class AuditReport(msgspec.Struct, frozen=True):
    """The state of every replica that was heard of lately, by name; none where the audit is switched off."""

    replicas: tuple[AuditState, ...]
