"""Adapters and their revisions, as people see them, and the lists of those that they may see."""

from enum import StrEnum

import msgspec

from octavo_shared.messages.requests import Request
from octavo_shared.references import AdapterId, Digest, Fingerprint


class RevisionState(StrEnum):
    DRAFT = "draft"
    """No alias names it: not yet, or not any more."""
    EVALUATED = "evaluated"
    """A draft that has been evaluated, however well."""
    SERVING = "serving"
    """Some alias names it."""
    RETIRED = "retired"
    """It is never resolved and never named again. Its pack stays."""


class Revision(msgspec.Struct, frozen=True):
    """One immutable version, as people see it."""

    number: int
    digest: Digest
    base: Fingerprint
    pack_bytes: int
    rank_max: int
    num_modules: int
    dtype: str
    created_by: str
    created_at_ms: int
    parent: Digest | None = None
    note: str = ""


class AdapterInfo(msgspec.Struct, frozen=True):
    """An adapter's head, as people see it."""

    name: str
    adapter_id: AdapterId
    owner: str
    aliases: dict[str, int]
    latest: Revision
    grants: tuple[str, ...] = ()
    num_revisions: int = 0
    state: RevisionState = RevisionState.DRAFT
    """Of ``latest``."""
    canary_percent: int = 0
    tags: tuple[str, ...] = ()
    retired: tuple[tuple[int, int], ...] = ()
    """Ranges of retired revisions, both ends included."""
    editors: tuple[str, ...] = ()
    """Those of ``grants`` who may also change it."""
    auditors: tuple[str, ...] = ()
    """Those who see its history and proofs, and may not use it unless they are in ``grants`` too."""
    warnings: tuple[str, ...] = ()
    """In answers to writes: what the writer should know though it was done, a sentence each."""


class ListAdapters(Request, frozen=True, kw_only=True):
    """Adapters that the caller owns or has a role on, ordered by name, after ``after``: all those that match.

    To an admin who names a ``tenant``, and to an auditor who names its own, all its adapters are shown, which gives no
    right to use them. ``base`` (as ``messages.bases`` says) and ``state`` are those of the latest revision; ``prefix``
    is what ``tenant/adapter`` begins with.
    """

    after: str = ""
    num_max: int = 100
    tenant: str = ""
    owner: str = ""
    base: str = ""
    state: RevisionState | None = None
    tag: str = ""
    prefix: str = ""


class AdapterList(msgspec.Struct, frozen=True):
    """A page, which may be short. ``next_after`` is what the next one comes after; empty: there is no more."""

    adapters: tuple[AdapterInfo, ...]
    next_after: str = ""
