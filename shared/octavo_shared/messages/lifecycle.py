"""What becomes of an adapter between its pushes: which revisions are named, branched, tagged and retired."""

from octavo_shared.envelopes import Envelope
from octavo_shared.messages.requests import Write


class Promote(Write, frozen=True, kw_only=True):
    """Let ``alias`` name the revision that ``reference`` names (``…@12``, ``…@sha256:…`` or ``…:alias``).

    ``share_percent`` is for the alias ``canary`` only (None: as it was): the share of principals whose requests without
    a revision get it. ``expected`` is the number that the alias must name now, 0 for none; else ``AliasMoved``.
    """

    reference: str
    alias: str = "serving"
    share_percent: int | None = None
    expected: int | None = None


class Rollback(Write, frozen=True, kw_only=True):
    """Move ``alias`` to revision ``number``, 1 to 999,999,999 (None: to what it named before)."""

    adapter: str
    number: int | None = None
    alias: str = "serving"


class Unalias(Write, frozen=True, kw_only=True):
    """Remove an alias, but for ``serving``. Its revisions stay."""

    adapter: str
    alias: str


class Retire(Write, frozen=True, kw_only=True):
    """Never serve revision ``number`` again. There is no way back; refused while an alias names it."""

    adapter: str
    number: int


class Branch(Write, frozen=True, kw_only=True):
    """Make the new adapter ``adapter`` whose first revision is the one that ``source`` names, with a pack of its own.

    Needs the right to use the source and to push the new adapter. ``alias`` as in ``Commit``.
    """

    source: str
    adapter: str
    alias: str | None = "serving"
    statement: Envelope | None = None
    """As in ``Commit``."""


class Tag(Write, frozen=True, kw_only=True):
    """Add and remove tags of an adapter."""

    adapter: str
    add: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
