"""A rebuildable SQLite view of the registry for listing and sweeping; never asked for an access decision."""

import asyncio
import sqlite3
from pathlib import Path

import msgspec

from octavo_identity.heads import HeadStore
from octavo_identity.records import AdapterHead, KeyHead, RegistryEvent
from octavo_shared.errors import DependencyUnavailable
from octavo_shared.telemetry import log

_POLL_S = 0.25
_CATCH_UP_S = 1.0
_BATCH_EVENTS = 128
_REPORT_EVERY = 100 * _BATCH_EVENTS
_SCHEMA = """
CREATE TABLE IF NOT EXISTS adapters (name TEXT PRIMARY KEY, owner TEXT NOT NULL, head BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS users (principal TEXT, name TEXT, PRIMARY KEY (principal, name)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS users_by_name ON users (name);
CREATE TABLE IF NOT EXISTS packs (object_key TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS stream (id INTEGER PRIMARY KEY CHECK (id = 0), created TEXT, sequence INTEGER NOT NULL);
"""


class Projection:
    """Follows the stream event by event; ``sequence`` is the last one applied."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path)
        self._database.execute("PRAGMA journal_mode=WAL")
        # It can be rebuilt, so a crash may lose its tail.
        self._database.execute("PRAGMA synchronous=OFF")
        self._database.executescript(_SCHEMA)
        row = self._database.execute("SELECT created, sequence FROM stream").fetchone()
        self._created: str | None = row[0] if row else None
        self.sequence: int = row[1] if row else 0
        self.is_caught_up = False
        self._wanted = 0
        self._nudge = asyncio.Event()
        self._advanced = asyncio.Condition()

    async def follow(self, heads: HeadStore) -> None:
        """Apply events for ever; an absent JetStream is waited for."""
        while True:
            try:
                is_behind = await self._catch_up(heads)
            except DependencyUnavailable:
                is_behind = False
            if not is_behind:
                await self._wait()

    async def _catch_up(self, heads: HeadStore) -> bool:
        """Apply a batch of new events; tells whether there are more."""
        created, last = await heads.state()
        if created != self._created:
            self._begin_again(created)
        until = min(last, self.sequence + _BATCH_EVENTS)
        for event, sequence in await heads.read_range(self.sequence + 1, until):
            self.apply(event, sequence)
        if until > self.sequence or self._database.in_transaction:
            self.sequence = until
            self._database.execute("INSERT OR REPLACE INTO stream VALUES (0, ?, ?)", (created, until))
            self._database.commit()
            async with self._advanced:
                self._advanced.notify_all()
        if until < last and until % _REPORT_EVERY < _BATCH_EVENTS:
            log.info("projection_advanced", sequence=until, last=last)
        self.is_caught_up = self.is_caught_up or until == last
        return until < last

    def _begin_again(self, created: str) -> None:
        if self._created is not None:
            log.warning("projection_rebuilt", reason="it was made from another stream")
        for table in ("adapters", "users", "packs", "stream"):
            self._database.execute(f"DELETE FROM {table}")
        self._created, self.sequence, self._wanted, self.is_caught_up = created, 0, 0, False

    async def _wait(self) -> None:
        try:
            await asyncio.wait_for(self._nudge.wait(), _POLL_S)
        except TimeoutError:
            return
        self._nudge.clear()

    def apply(self, event: RegistryEvent, sequence: int) -> None:
        """Take over one event."""
        if isinstance(event.head, AdapterHead):
            head = event.head
            self._database.execute(
                "INSERT OR REPLACE INTO adapters VALUES (?, ?, ?)",
                (head.name, head.owner, msgspec.msgpack.encode(head)),
            )
            self._database.execute("DELETE FROM users WHERE name = ?", (head.name,))
            self._database.executemany(
                "INSERT OR IGNORE INTO users VALUES (?, ?)", [(who, head.name) for who in (head.owner, *head.grants)]
            )
        if event.revision is not None:
            self._database.execute("INSERT OR IGNORE INTO packs VALUES (?)", (event.revision.object_key,))
        self.sequence = sequence

    def expect(self, sequence: int) -> None:
        """Note that this process wrote ``sequence``, so that its next reader waits for it."""
        self._wanted = max(self._wanted, sequence)
        self._nudge.set()

    async def read_own_writes(self) -> None:
        """Wait until what this process wrote is applied, one second at most."""
        try:
            async with asyncio.timeout(_CATCH_UP_S), self._advanced:
                await self._advanced.wait_for(lambda: self.sequence >= self._wanted)
        except TimeoutError:
            log.warning("projection_behind", sequence=self.sequence, wanted=self._wanted)

    def usable_by(self, key: KeyHead, after: str, num_max: int) -> list[AdapterHead]:
        """Return heads of adapters that ``key`` owns or was granted, by name, after ``after``."""
        rows = self._database.execute(
            "SELECT DISTINCT a.name, a.head FROM users u JOIN adapters a ON a.name = u.name"
            " WHERE u.principal IN (?, ?) AND u.name > ? ORDER BY a.name LIMIT ?",
            (key.principal, f"*@{key.tenant}", after, num_max),
        )
        return [msgspec.msgpack.decode(blob, type=AdapterHead) for _, blob in rows]

    def names_pack(self, object_key: str) -> bool:
        """Tell whether a committed revision names this object."""
        row = self._database.execute("SELECT 1 FROM packs WHERE object_key = ?", (object_key,)).fetchone()
        return row is not None

    def close(self) -> None:
        self._database.rollback()
        self._database.close()
