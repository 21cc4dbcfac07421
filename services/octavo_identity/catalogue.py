"""The SQLite file behind the projection and the ledger. Its methods block: one thread writes, one reads."""

import sqlite3
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from octavo_identity import sittings
from octavo_identity.event_form import Forgotten
from octavo_identity.records import (
    WRITES_IN_HEAD_MAX,
    AdapterHead,
    ErasedHead,
    KeyHead,
    RegistryEvent,
    TenantHead,
    parse_object_key,
)
from octavo_identity.search import Search, latest_of
from octavo_identity.usage_tables import USAGE_SCHEMA, Counts, forget_adapter, set_token_quota
from octavo_shared.messages.usage import day_of
from octavo_shared.references import AdapterId, Digest, Fingerprint, TenantId
from octavo_shared.telemetry import log

T = TypeVar("T")

_VERSION = 13
_CACHE_KIB = 64 * 1024
"""Of the writer: adapters come in the order of their making, and what they are found by is in another one, so that each
of a million new rows wants a page of its own."""
_LOG_PAGES = 16_384
"""How long the write-ahead log gets before it is written back, 64 MiB: pages that many rows changed go only once."""
_NAMES_MAX = 10_000
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS adapters (
    name TEXT PRIMARY KEY, owner TEXT NOT NULL, base TEXT NOT NULL, state TEXT NOT NULL, head BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS tags (name TEXT, tag TEXT, PRIMARY KEY (name, tag)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS users (principal TEXT, name TEXT, PRIMARY KEY (principal, name)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS users_by_name ON users (name);
CREATE TABLE IF NOT EXISTS revisions (
    adapter_id TEXT, number INTEGER, digest TEXT NOT NULL, object_key TEXT NOT NULL, sequence INTEGER NOT NULL,
    name TEXT NOT NULL, pack_bytes INTEGER NOT NULL, day INTEGER NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS revisions_by_number ON revisions (adapter_id, number);
CREATE TABLE IF NOT EXISTS keys (principal TEXT, key_id TEXT, PRIMARY KEY (principal, key_id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS erasures (adapter_id TEXT PRIMARY KEY, tenant_id TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS writes (
    adapter_id TEXT, mark TEXT, sequence INTEGER NOT NULL, PRIMARY KEY (adapter_id, mark)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS leaves (sequence INTEGER PRIMARY KEY, hash BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS kept (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS position (
    id INTEGER PRIMARY KEY CHECK (id = 0), created TEXT, sequence INTEGER NOT NULL, begun_ms INTEGER NOT NULL);
{sittings.SCHEMA}
{USAGE_SCHEMA}
PRAGMA user_version = {_VERSION};
"""
# Rows of revisions lie in the order of their making and their index is small: both stay cheap at millions. A digest is
# looked for among the revisions of its adapter, the newest first.
_POSITION = "SELECT created, sequence, begun_ms FROM position"
# Names come first, from ranges of an index, so that a page costs what it holds and not what its reader may use. Where
# names do not say what matches, so many of them are looked at and no more.
_USABLE = """
WITH own AS (SELECT name FROM users WHERE principal = :principal AND name > :after AND name >= :low AND name < :high
    ORDER BY name LIMIT :num_names),
shared AS (SELECT name FROM users WHERE principal = :everyone AND name > :after AND name >= :low AND name < :high
    ORDER BY name LIMIT :num_names),
page AS MATERIALIZED (SELECT name FROM own UNION SELECT name FROM shared ORDER BY name LIMIT :num_names)
"""
_ALL = """
WITH page AS MATERIALIZED (SELECT name FROM adapters WHERE name > :after AND name >= :low AND name < :high
    ORDER BY name LIMIT :num_names)
"""
_MATCHING = f"""
SELECT adapters.head FROM page CROSS JOIN adapters ON adapters.name = page.name
WHERE (:owner = '' OR owner = :owner) AND (:base = '' OR base = :base) AND (:state = '' OR state = :state)
    AND (:tag = '' OR EXISTS (SELECT 1 FROM tags WHERE tags.name = page.name AND tags.tag = :tag))
    AND (:named_on = '[]' OR {sittings.NAMED_ON})
ORDER BY page.name LIMIT :num_max
"""
_LAST_NAME = "SELECT COUNT(*), MAX(name) FROM page"
_ABSENT = "SELECT NOT EXISTS (SELECT 1 FROM revisions WHERE adapter_id = ? AND number = ? AND object_key = ?)"
_BY_NUMBER = "SELECT sequence FROM revisions WHERE adapter_id = ? AND number = ?"
_BY_DIGEST = "SELECT sequence FROM revisions WHERE adapter_id = ? AND digest = ? ORDER BY number DESC LIMIT 1"
_KEYS = "SELECT key_id FROM keys WHERE principal = ? AND key_id > ? ORDER BY key_id LIMIT ?"
_WRITE = "SELECT sequence FROM writes WHERE adapter_id = ? AND mark = ?"
_LEAVES = "SELECT hash FROM leaves WHERE sequence > ? ORDER BY sequence LIMIT ?"
_NAME_OF = "SELECT DISTINCT name FROM revisions WHERE adapter_id = ?"
_OPEN_ERASURES = "SELECT tenant_id, adapter_id FROM erasures ORDER BY adapter_id LIMIT ?"
_KEPT = "SELECT value FROM kept WHERE name = ?"
_NEWEST = "SELECT MAX(number) FROM revisions WHERE adapter_id = ?"


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
            self._writer, self._reader = _connect(path)
        except sqlite3.DatabaseError as error:
            log.warning("projection_deleted", reason=str(error))
            _delete(path)
            self._writer, self._reader = _connect(path)

    def begin_again(self, position: Position) -> None:
        """Go on with an empty file, at ``position``."""
        with self._lock:
            self._writer.close()
            self._reader.close()
            _delete(self._path)
            self._writer, self._reader = _connect(self._path)
        self.apply((), position)

    def position(self) -> Position:
        row = self._writer.execute(_POSITION).fetchone()
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
        with self._writer:
            self._writer.executemany("INSERT OR REPLACE INTO leaves VALUES (?, ?)", leaves)
            for event, sequence in events:
                if isinstance(event.head, AdapterHead):
                    self._apply(event, event.head, sequence)
                    if sequence > counted:
                        counts.push(event, event.head)
                elif isinstance(event.head, ErasedHead):
                    has_erased = True
                    if sequence > counted:
                        counts.erase(self._writer, event.head)
                    self._erase(event.head)
                elif isinstance(event.head, TenantHead):
                    set_token_quota(self._writer, event.head)
                elif isinstance(event.head, KeyHead):
                    rows = [(who, event.head.key_id) for who in (event.head.principal, f"*@{event.head.tenant}")]
                    self._writer.executemany("INSERT OR REPLACE INTO keys VALUES (?, ?)", rows)
            for one in forgotten:
                if one.sequence > counted:
                    counts.push_of_erased(one)
            counts.write(self._writer)
            row = (position.created, position.sequence, position.begun_ms)
            self._writer.execute("INSERT OR REPLACE INTO position VALUES (0, ?, ?, ?)", row)
        if has_erased:
            # What was deleted is overwritten, but not in the log in front of the file.
            with self._lock:
                self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    def _erase(self, head: ErasedHead) -> None:
        run = self._writer.execute
        for (name,) in run(_NAME_OF, (head.adapter_id,)).fetchall():
            for table in ("adapters", "tags", "users"):
                run(f"DELETE FROM {table} WHERE name = ?", (name,))
            sittings.put(self._writer, name, head.tenant_id, set())
        for table in ("revisions", "writes", "erasures"):
            run(f"DELETE FROM {table} WHERE adapter_id = ?", (head.adapter_id,))
        forget_adapter(self._writer, head.adapter_id)
        if not head.receipt:
            run("INSERT INTO erasures VALUES (?, ?)", (head.adapter_id, head.tenant_id))

    def _apply(self, event: RegistryEvent, head: AdapterHead, sequence: int) -> None:
        run = self._writer.execute
        row = (head.name, head.owner, *latest_of(head), msgspec.msgpack.encode(head))
        run("INSERT OR REPLACE INTO adapters VALUES (?, ?, ?, ?, ?)", row)
        sittings.put(self._writer, head.name, head.tenant_id, sittings.rows_of(head))
        run("DELETE FROM tags WHERE name = ?", (head.name,))
        self._writer.executemany("INSERT INTO tags VALUES (?, ?)", [(head.name, tag) for tag in head.tags])
        run("DELETE FROM users WHERE name = ?", (head.name,))
        users = {(who, head.name) for who in (head.owner, *head.grants, *head.auditors)}
        self._writer.executemany("INSERT INTO users VALUES (?, ?)", users)
        if len(head.writes) == WRITES_IN_HEAD_MAX:
            # The next head forgets the oldest. Most adapters never come to this, and cost nothing here.
            run("INSERT OR REPLACE INTO writes VALUES (?, ?, ?)", (head.adapter_id, head.writes[0], sequence))
        if (stored := event.revision) is not None:
            revision = stored.revision
            found = (
                head.adapter_id, revision.number, revision.digest, stored.object_key, sequence, head.name,
                revision.pack_bytes, day_of(event.at_ms),
            )  # fmt: skip
            run("INSERT OR REPLACE INTO revisions VALUES (?, ?, ?, ?, ?, ?, ?, ?)", found)

    def find(self, search: Search, reader: tuple[str, str] | None, after: str, num_max: int) -> Page:
        """Return heads of adapters that match, by name, after ``after``.

        For a ``reader`` (principal and tenant) they are those that it or its whole tenant has a role on, else all.
        """
        num_names = _NAMES_MAX if search.is_narrow else num_max
        principal, tenant = reader or ("", "")
        asked = {
            "principal": principal, "everyone": f"*@{tenant}", "after": after, "low": search.low, "high": search.high,
            "owner": search.owner, "base": search.base, "state": search.state or "", "tag": search.tag,
            "named_on": msgspec.json.encode(search.named_on).decode(), "num_names": num_names, "num_max": num_max,
        }  # fmt: skip
        page = _USABLE if reader else _ALL
        with self._lock:
            blobs = self._reader.execute(page + _MATCHING, asked).fetchall()
            num_seen, last_seen = 0, ""
            if search.is_narrow and len(blobs) < num_max:
                num_seen, last_seen = self._reader.execute(page + _LAST_NAME, asked).fetchone()
        heads = [msgspec.msgpack.decode(blob, type=AdapterHead) for (blob,) in blobs]
        if len(heads) == num_max:
            return Page(heads, heads[-1].name)
        return Page(heads, last_seen if num_seen == num_names else None)

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
            by = (_BY_NUMBER, number) if number is not None else (_BY_DIGEST, digest)
            found = self._reader.execute(by[0], (adapter_id, by[1])).fetchone()
            (newest,) = self._reader.execute(_NEWEST, (adapter_id,)).fetchone()
        return Hint(found[0] if found else None, newest or 0)

    def open_erasures(self, num_max: int) -> list[tuple[TenantId, AdapterId]]:
        """Return tenant and id of adapters whose erasure was begun and not finished."""
        with self._lock:
            return self._reader.execute(_OPEN_ERASURES, (num_max,)).fetchall()

    def find_write(self, adapter_id: AdapterId, mark: str) -> int | None:
        """Return the sequence of the last event whose head remembered the write, if a later one may have not."""
        with self._lock:
            found = self._reader.execute(_WRITE, (adapter_id, mark)).fetchone()
        return found[0] if found else None

    def unnamed_packs(self, object_keys: Iterable[str]) -> list[str]:
        """Return those of ``object_keys`` that have the form of a pack's and that no known revision names."""
        parsed = [(object_key, parse_object_key(object_key)) for object_key in object_keys]
        with self._lock:
            return [
                object_key
                for object_key, parts in parsed
                if parts is not None and self._reader.execute(_ABSENT, (*parts, object_key)).fetchone()[0]
            ]

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


def _connect(path: Path) -> tuple[sqlite3.Connection, sqlite3.Connection]:
    writer = sqlite3.connect(path, check_same_thread=False)
    reader = sqlite3.connect(path, check_same_thread=False)
    try:
        writer.execute("PRAGMA journal_mode = WAL")
        # A crash of the machine may lose the last events, which are read again; with OFF it may damage the file.
        writer.execute("PRAGMA synchronous = NORMAL")
        # What is deleted was erased.
        writer.execute("PRAGMA secure_delete = ON")
        writer.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        writer.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
        (version,) = writer.execute("PRAGMA user_version").fetchone()
        (num_tables,) = writer.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
        if num_tables and version != _VERSION:
            raise sqlite3.DatabaseError(f"its form is {version}, not {_VERSION}")
        writer.executescript(_SCHEMA)
        writer.execute(_POSITION).fetchone()
        reader.execute("PRAGMA query_only = ON")
    except sqlite3.DatabaseError:
        writer.close()
        reader.close()
        raise
    return writer, reader


def _delete(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
