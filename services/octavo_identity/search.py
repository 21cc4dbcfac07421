"""What a listing is narrowed to. Pure: SQLite is asked for it, and a head from the leader is held against it."""

from dataclasses import dataclass
from typing import Self

from octavo_identity.records import AdapterHead
from octavo_identity.states import state_of
from octavo_shared.errors import InvalidRequest
from octavo_shared.messages.adapters import ListAdapters, RevisionState
from octavo_shared.references import Fingerprint

_TEXT_LENGTH_MAX = 200
_HIGHEST = "\x7f"
"""Comes after every character that a name may hold."""


@dataclass(frozen=True)
class Search:
    """Empty fields match everything. ``base`` and ``state`` are those of the latest revision.

    ``named_on``: an alias names a revision on one of these bases.
    """

    tenant: str = ""
    owner: str = ""
    base: str = ""
    state: RevisionState | None = None
    tag: str = ""
    prefix: str = ""
    named_on: tuple[Fingerprint, ...] = ()

    @classmethod
    def of(cls, request: ListAdapters) -> Self:
        """Return what ``request`` asks for; raises ``InvalidRequest`` for what nothing can be called."""
        for field in ("after", "tenant", "owner", "base", "tag", "prefix"):
            check_length(field, getattr(request, field))
        return cls(request.tenant, request.owner, request.base, request.state, request.tag, request.prefix)

    @property
    def is_narrow(self) -> bool:
        """Tell whether names alone do not say what matches."""
        return bool(self.owner or self.base or self.state or self.tag or self.named_on)

    @property
    def low(self) -> str:
        """Names that match are not before this one."""
        return max(self.prefix, f"{self.tenant}/" if self.tenant else "")

    @property
    def high(self) -> str:
        """Names that match are before this one."""
        return min(self.prefix + _HIGHEST, f"{self.tenant}/{_HIGHEST}" if self.tenant else _HIGHEST)

    def matches(self, head: AdapterHead) -> bool:
        """Tell whether the adapter is one that is looked for."""
        base, state = latest_of(head)
        return (
            self.low <= head.name < self.high
            and self.owner in ("", head.owner)
            and self.base in ("", base)
            and self.state in (None, state)
            and (not self.tag or self.tag in head.tags)
            and (not self.named_on or any(base in self.named_on for base in named_bases(head)))
        )


def check_length(field: str, text: str) -> None:
    if len(text) > _TEXT_LENGTH_MAX or not (text.isascii() and text.isprintable()):
        raise InvalidRequest(field, f"must hold printable ASCII characters, {_TEXT_LENGTH_MAX} at most")


def named_bases(head: AdapterHead) -> set[Fingerprint]:
    """Return the bases of the revisions that aliases name, which a head never forgets."""
    named = set(head.aliases.values())
    return {stored.revision.base for stored in head.revisions if stored.revision.number in named}


def latest_of(head: AdapterHead) -> tuple[str, RevisionState]:
    """Return base and state of the latest revision, which a head never forgets."""
    latest = max((stored.revision for stored in head.revisions), key=lambda revision: revision.number, default=None)
    if latest is None:
        return "", RevisionState.DRAFT
    return latest.base, state_of(head, latest.number)
