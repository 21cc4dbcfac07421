"""What the projection and the ledger keep in their SQLite file. Its methods block: one thread writes, one reads."""

import sqlite3
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from octavo_identity import adapter_tables, sittings
from octavo_identity.catalogue_file import POSITION, connect, delete
from octavo_identity.event_form import Forgotten
from octavo_identity.records import AdapterHead, ErasedHead, KeyHead, RegistryEvent, TenantHead
from octavo_identity.search import Search
from octavo_identity.usage_tables import Counts, set_token_quota
from octavo_shared.references import AdapterId, Digest, Fingerprint, TenantId
from octavo_shared.telemetry import log

T = TypeVar("T")

_KEYS = "SELECT key_id FROM keys WHERE principal = ? AND key_id > ? ORDER BY key_id LIMIT ?"
_LEAVES = "SELECT hash FROM leaves WHERE sequence > ? ORDER BY sequence LIMIT ?"
_KEPT = "SELECT value FROM kept WHERE name = ?"


@dataclass(frozen=True)
class Position:
    """Up to which ``sequence`` of which stream the file goes, and when it last had to begin again (0: never)."""

    created: str | None = None
    sequence: int = 0
    begun_ms: int = 0


@dataclass(frozen=True)
class Hint:
    """Where in the stream a revision was added (None: not known), and the newest revision that the file knows."""

    sequence: int | None
    newest: int


@dataclass(frozen=True)
class Page:
    """Heads by name; the next page comes after ``next_after`` (None: there is none)."""

    heads: list[AdapterHead]
    next_after: str | None


class Catalogue:
    """Adapters, their users and revisions, and whose keys there are.

    A file that cannot be used is deleted and begun anew: it can be rebuilt.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._writer, self._reader = connect(path)
        except sqlite3.DatabaseError as error:
            log.warning("projection_deleted", reason=str(error))
            delete(path)
            self._writer, self._reader = connect(path)

    def begin_again(self, position: Position) -> None:
        """Go on with an empty file, at ``position``."""
        with self._lock:
            self._writer.close()
            self._reader.close()
            delete(self._path)
            self._writer, self._reader = connect(self._path)
        self.apply((), position)

    def position(self) -> Position:
        row = self._writer.execute(POSITION).fetchone()
        return Position(*row) if row else Position()

    def leaf_hashes(self, num_max: int, after: int) -> list[bytes]:
        """Return up to ``num_max`` leaf hashes of the ledger behind sequence ``after``, in order."""
        with self._lock:
            return [leaf for (leaf,) in self._reader.execute(_LEAVES, (after, num_max))]

    def kept(self, name: str) -> bytes | None:
        """Return what was kept last under ``name``."""
        with self._lock:
            found = self._reader.execute(_KEPT, (name,)).fetchone()
        return found[0] if found else None

    def keep(self, name: str, value: bytes) -> None:
        """Keep ``value`` for as long as the file is not begun again: for whoever works on what it is a view of."""
        with self._writer:
            self._writer.execute("INSERT OR REPLACE INTO kept VALUES (?, ?)", (name, value))

    def apply(
        self, events: Iterable[tuple[RegistryEvent, int]], position: Position, leaves: Iterable[tuple[int, bytes]] = (),
        forgotten: Iterable[Forgotten] = (),
    ) -> None:  # fmt: skip
        """Take over events and leaf hashes with their sequences, in order, up to ``position``: all or none of them.

        Of ``forgotten`` ones only the tenant's counts know.
        """
        has_erased = False
        counts, counted = Counts(), self.position().sequence
        sitting = sittings.Sittings(self._writer)
        with self._writer:
            self._writer.executemany("INSERT OR REPLACE INTO leaves VALUES (?, ?)", leaves)
            for event, sequence in events:
                if isinstance(event.head, AdapterHead):
                    adapter_tables.put(self._writer, sitting, event, event.head, sequence)
                    if sequence > counted:
                        counts.push(event, event.head)
                elif isinstance(event.head, ErasedHead):
                    has_erased = True
                    if sequence > counted:
                        counts.erase(self._writer, event.head)
                    adapter_tables.erase(self._writer, sitting, event.head)
                elif isinstance(event.head, TenantHead):
                    set_token_quota(self._writer, event.head)
                elif isinstance(event.head, KeyHead):
                    rows = [(who, event.head.key_id) for who in (event.head.principal, f"*@{event.head.tenant}")]
                    self._writer.executemany("INSERT OR REPLACE INTO keys VALUES (?, ?)", rows)
            for one in forgotten:
                if one.sequence > counted:
                    counts.push_of_erased(one)
            sitting.write()
            counts.write(self._writer)
            row = (position.created, position.sequence, position.begun_ms)
            self._writer.execute("INSERT OR REPLACE INTO position VALUES (0, ?, ?, ?)", row)
        if has_erased:
            # What was deleted is overwritten, but not in the log in front of the file.
            with self._lock:
                self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    def find(self, search: Search, reader: tuple[str, str] | None, after: str, num_max: int) -> Page:
        """Return heads of adapters that match, by name, after ``after``.

        For a ``reader`` (principal and tenant) they are those that it or its whole tenant has a role on, else all.
        """
        with self._lock:
            return Page(*adapter_tables.find(self._reader, search, reader, after, num_max))

    def count_bases(self, tenant_id: TenantId | None) -> dict[Fingerprint, sittings.Counts]:
        """Return what sits on each base in a tenant (None: in all)."""
        with self._lock:
            return sittings.counts(self._reader, tenant_id)

    def find_keys(self, principal: str, after: str, num_max: int) -> list[str]:
        """Return up to ``num_max`` ids of keys of ``principal``, which may be ``*@tenant``, after ``after``."""
        with self._lock:
            return [key_id for (key_id,) in self._reader.execute(_KEYS, (principal, after, num_max))]

    def find_revision(self, adapter_id: AdapterId, number: int | None, digest: Digest | None) -> Hint:
        """Return where the revision of this number, or else the newest of this digest, was added."""
        with self._lock:
            return Hint(*adapter_tables.find_revision(self._reader, adapter_id, number, digest))

    def open_erasures(self, num_max: int) -> list[tuple[TenantId, AdapterId]]:
        """Return tenant and id of adapters whose erasure was begun and not finished."""
        with self._lock:
            return adapter_tables.open_erasures(self._reader, num_max)

    def find_write(self, adapter_id: AdapterId, mark: str) -> int | None:
        """Return the sequence of the last event whose head remembered the write, if a later one may have not."""
        with self._lock:
            return adapter_tables.find_write(self._reader, adapter_id, mark)

    def unnamed_packs(self, object_keys: Iterable[str]) -> list[str]:
        """Return those of ``object_keys`` that have the form of a pack's and that no known revision names."""
        with self._lock:
            return adapter_tables.unnamed_packs(self._reader, object_keys)

    def change(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do ``work`` in one transaction: for what is counted beside the registry, and goes when this begins again."""
        with self._writer:
            return work(self._writer)

    def look(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Return what ``work`` reads, all of it as it was at one moment."""
        with self._lock:
            self._reader.execute("BEGIN")
            try:
                return work(self._reader)
            finally:
                self._reader.rollback()

    def close(self) -> None:
        self._writer.close()
        self._reader.close()
