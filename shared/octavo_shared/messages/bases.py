"""Bases as the registry has them: which there are, what became of them, and what sits on which.

A base is registered when it is first seen, in a worker's heartbeat or in a push; nobody asks for that. ``base`` in a
request is a label (``smollm2-135m@0123456789ab``), a name that one base alone has, or a whole fingerprint.
"""

from enum import StrEnum

import msgspec

from octavo_shared.messages.requests import Request, Write
from octavo_shared.references import Fingerprint

BASES_MAX = 256
"""Of one registry, the retired ones included."""
OUTDATED_PAGE_MAX = 1_000


class BaseState(StrEnum):
    CURRENT = "current"
    SUPERSEDED = "superseded"
    """Another base is to be trained for. It is served and pushed to as before, and the answer says so."""
    RETIRED = "retired"
    """Nothing new is put on it: no push, no branch, no alias. What is served ends with the last worker that has it."""


class BaseInfo(msgspec.Struct, frozen=True):
    """A base. ``label`` is what people call it.

    ``superseded_by`` is the fingerprint of what superseded it, ``successor`` the label at the end of that chain; both
    are empty for one that nothing superseded. ``is_served``: some worker was heard that has it (None: no worker was).
    ``num_adapters`` counts the adapters whose latest revision is on it, ``num_serving`` the revisions on it that an
    alias names; None to keys for some adapters only, and while the view of the registry is not whole.
    """

    fingerprint: Fingerprint
    label: str
    state: BaseState
    registered_at_ms: int
    superseded_by: str = ""
    successor: str = ""
    retired_at_ms: int = 0
    is_served: bool | None = None
    num_adapters: int | None = None
    num_serving: int | None = None


class ListBases(Request, frozen=True, kw_only=True):
    """Ask for all bases. Counts are those of the caller's tenant; to admins of all, or of ``tenant``."""

    tenant: str = ""


class BaseList(msgspec.Struct, frozen=True):
    """All of them, the oldest first."""

    bases: tuple[BaseInfo, ...]


class SupersedeBase(Write, frozen=True, kw_only=True):
    """Say that adapters on ``base`` are to be trained for ``by`` from now on, which is a current base (admin)."""

    base: str
    by: str


class RetireBase(Write, frozen=True, kw_only=True):
    """Let nothing new be put on ``base`` (admin)."""

    base: str


class RestoreBase(Write, frozen=True, kw_only=True):
    """Make ``base`` current again, whatever became of it (admin)."""

    base: str


class ListOutdated(Request, frozen=True, kw_only=True):
    """Ask for revisions that an alias names and whose base is superseded or retired, by adapter, after ``after``.

    Of ``base`` alone, if it is given. Shown are those of adapters that the caller has a role on; to an admin those of
    all tenants, or of ``tenant``; to a tenant's auditor those of its own. A page holds ``num_max`` adapters or fewer.
    """

    base: str = ""
    tenant: str = ""
    after: str = ""
    num_max: int = 100


class OutdatedRevision(msgspec.Struct, frozen=True):
    """Revision ``number`` of ``adapter``, named by ``aliases``, which must be trained again for ``successor``.

    ``base``, ``successor`` and ``latest_base`` are labels, ``successor`` is empty where nothing superseded the base.
    ``is_retrained``: the adapter's ``latest`` revision is on a current base, and waits to be promoted.
    """

    adapter: str
    owner: str
    number: int
    aliases: tuple[str, ...]
    base: str
    state: BaseState
    successor: str
    latest: int
    latest_base: str
    is_retrained: bool


class OutdatedList(msgspec.Struct, frozen=True):
    """A page, which may be short. ``next_after`` is what the next one comes after; empty: there is no more."""

    revisions: tuple[OutdatedRevision, ...]
    next_after: str = ""
