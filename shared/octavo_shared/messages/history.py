"""What happened to an adapter."""

import msgspec

from octavo_shared.messages.adapters import Revision, RevisionState
from octavo_shared.messages.evaluation import Evaluation
from octavo_shared.messages.requests import Request


class History(Request, frozen=True, kw_only=True):
    """What happened to ``adapter``, newest first."""

    adapter: str
    num_max: int = 100


class HistoryEntry(msgspec.Struct, frozen=True):
    kind: str
    actor: str
    at_ms: int
    sequence: int
    detail: str
    revision: Revision | None = None
    state: RevisionState | None = None
    """The state of ``revision`` now."""
    evaluation: Evaluation | None = None


class HistoryList(msgspec.Struct, frozen=True):
    entries: tuple[HistoryEntry, ...]
