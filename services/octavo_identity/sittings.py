"""Which adapters sit on which base, in the projection's file: rows to find them by, and counts kept as they change."""

import sqlite3
from collections import Counter
from dataclasses import dataclass

from octavo_identity.records import AdapterHead
from octavo_shared.references import Fingerprint, TenantId

SCHEMA = """
CREATE TABLE IF NOT EXISTS bases (id INTEGER PRIMARY KEY, fingerprint TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS sittings (
    name TEXT, number INTEGER, base INTEGER NOT NULL, is_named INTEGER NOT NULL, is_latest INTEGER NOT NULL,
    PRIMARY KEY (name, number)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS base_counts (
    tenant_id TEXT, base INTEGER, num_adapters INTEGER NOT NULL, num_serving INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, base)) WITHOUT ROWID;
"""
NAMED_ON = """EXISTS (SELECT 1 FROM sittings WHERE sittings.name = page.name AND is_named AND sittings.base IN (
    SELECT bases.id FROM json_each(:named_on) JOIN bases ON bases.fingerprint = value))"""
"""That an alias of the adapter ``page.name`` names a revision on a base of a list in JSON."""
_ROWS = """SELECT number, fingerprint, is_named, is_latest FROM sittings JOIN bases ON bases.id = sittings.base
WHERE name = ?"""
_ADD_BASE = "INSERT OR IGNORE INTO bases (fingerprint) VALUES (?)"
_BASE = "SELECT id FROM bases WHERE fingerprint = ?"
_ADD = "INSERT INTO sittings (name, number, base, is_named, is_latest) VALUES (?, ?, ?, ?, ?)"
_REMOVE = "DELETE FROM sittings WHERE name = ? AND number = ?"
_COUNT = """INSERT INTO base_counts (base, tenant_id, num_adapters, num_serving) VALUES (?, ?, ?, ?)
ON CONFLICT DO UPDATE SET num_adapters = num_adapters + excluded.num_adapters,
    num_serving = num_serving + excluded.num_serving"""
_COUNTS = """SELECT fingerprint, SUM(num_adapters), SUM(num_serving) FROM base_counts
JOIN bases ON bases.id = base_counts.base WHERE ? IS NULL OR tenant_id = ? GROUP BY fingerprint"""

Row = tuple[int, str, int, int]
"""(number, fingerprint, whether an alias names it, whether it is the latest)"""


@dataclass(frozen=True)
class Counts:
    """Adapters whose latest revision is on a base, and revisions on it that an alias names."""

    num_adapters: int = 0
    num_serving: int = 0


def rows_of(head: AdapterHead) -> set[Row]:
    """Return the latest revision of ``head`` and those that aliases name, which a head never forgets."""
    named = set(head.aliases.values())
    latest = max((stored.revision.number for stored in head.revisions), default=0)
    return {
        (one.number, one.base, int(one.number in named), int(one.number == latest))
        for one in (stored.revision for stored in head.revisions)
        if one.number in named or one.number == latest
    }


class Sittings:
    """What a batch of events changes, one row at a time; ``write`` adds what all of them change of the counts."""

    def __init__(self, writer: sqlite3.Connection) -> None:
        self._writer = writer
        self._bases: dict[str, int] = {}
        self._num_adapters: Counter[tuple[int, TenantId]] = Counter()
        self._num_serving: Counter[tuple[int, TenantId]] = Counter()

    def put(self, name: str, tenant_id: TenantId, rows: set[Row]) -> None:
        """Let ``rows`` be all that there is of the adapter; most events change none of them."""
        before: set[Row] = set(self._writer.execute(_ROWS, (name,)))
        if before == rows:
            return
        for number, *_ in before - rows:
            self._writer.execute(_REMOVE, (name, number))
        self._count(tenant_id, before - rows, -1)
        self.add(name, tenant_id, rows - before)

    def add(self, name: str, tenant_id: TenantId, rows: set[Row]) -> None:
        """Take in ``rows`` of the adapter, none of which is there."""
        for number, base, is_named, is_latest in rows:
            self._writer.execute(_ADD, (name, number, self._base(base), is_named, is_latest))
        self._count(tenant_id, rows, 1)

    def _count(self, tenant_id: TenantId, rows: set[Row], times: int) -> None:
        for _, base, is_named, is_latest in rows:
            place = self._base(base), tenant_id
            self._num_adapters[place] += times * is_latest
            self._num_serving[place] += times * is_named

    def _base(self, fingerprint: str) -> int:
        known = self._bases.get(fingerprint)
        if known is None:
            self._writer.execute(_ADD_BASE, (fingerprint,))
            (known,) = self._writer.execute(_BASE, (fingerprint,)).fetchone()
            self._bases[fingerprint] = known
        return known

    def write(self) -> None:
        """Write the counts; the batch is complete."""
        rows = [(*place, num, self._num_serving[place]) for place, num in self._num_adapters.items()]
        self._writer.executemany(_COUNT, rows)


def counts(reader: sqlite3.Connection, tenant_id: TenantId | None) -> dict[Fingerprint, Counts]:
    """Return what sits on each base in a tenant (None: in all)."""
    found = reader.execute(_COUNTS, (tenant_id, tenant_id))
    return {Fingerprint(base): Counts(num_adapters, num_serving) for base, num_adapters, num_serving in found}
