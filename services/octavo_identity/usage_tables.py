"""The part of the projection's file that counts: tokens from the stream of usage, pushes and packs from the registry.

Both are counted in the transaction that moves the position in their stream, so each event counts once, whenever the
process is killed. What a tenant used is kept apart from what its adapters did: erasing one takes its own rows only.
"""

import sqlite3
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from octavo_identity.event_form import Forgotten
from octavo_identity.records import AdapterHead, ErasedHead, RegistryEvent, TenantHead
from octavo_shared.messages.usage import UsageRecord, day_of
from octavo_shared.references import AdapterId, TenantId

USAGE_SCHEMA = """
CREATE TABLE IF NOT EXISTS tenant_days (
    tenant_id TEXT, day INTEGER, requests INTEGER NOT NULL, prompt INTEGER NOT NULL, completion INTEGER NOT NULL,
    pushes INTEGER NOT NULL, PRIMARY KEY (tenant_id, day)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS adapter_days (
    adapter_id TEXT, day INTEGER, requests INTEGER NOT NULL, prompt INTEGER NOT NULL, completion INTEGER NOT NULL,
    PRIMARY KEY (adapter_id, day)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS holdings (
    tenant_id TEXT PRIMARY KEY, adapters INTEGER NOT NULL, bytes INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS gone (adapter_id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS token_quotas (tenant_id TEXT PRIMARY KEY, tokens INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS meters (gateway_id TEXT PRIMARY KEY, number INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS usage_position (
    id INTEGER PRIMARY KEY CHECK (id = 0), created TEXT NOT NULL, sequence INTEGER NOT NULL);
"""
_COUNT_TENANT = """
INSERT INTO tenant_days VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET requests = requests + excluded.requests,
    prompt = prompt + excluded.prompt, completion = completion + excluded.completion, pushes = pushes + excluded.pushes
"""
_COUNT_ADAPTER = """
INSERT INTO adapter_days VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET requests = requests + excluded.requests,
    prompt = prompt + excluded.prompt, completion = completion + excluded.completion
"""
_HOLD = """
INSERT INTO holdings VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET adapters = adapters + excluded.adapters,
    bytes = bytes + excluded.bytes
"""
_HELD_BY = "SELECT COUNT(*), TOTAL(pack_bytes) FROM revisions WHERE adapter_id = ?"
_IS_GONE = "SELECT 1 FROM gone WHERE adapter_id = ?"
_OF_TENANT = """
SELECT day, requests, prompt, completion, pushes FROM tenant_days WHERE tenant_id = ? AND day >= ? ORDER BY day DESC
"""
_OF_ADAPTER = """
SELECT day, SUM(requests), SUM(prompt), SUM(completion), SUM(pushes) FROM (
    SELECT day, requests, prompt, completion, 0 AS pushes FROM adapter_days WHERE adapter_id = :id AND day >= :first
    UNION ALL SELECT day, 0, 0, 0, 1 FROM revisions WHERE adapter_id = :id AND day >= :first)
GROUP BY day ORDER BY day DESC
"""


_IS_REVISION = "SELECT 1 FROM revisions WHERE adapter_id = ? AND number = ?"
_PUSHES_OF = frozenset({"revision_added", "branched"})
"""Kinds of events that add a revision."""
_PUSHES = "SELECT pushes FROM tenant_days WHERE tenant_id = ? AND day = ?"
_EXHAUSTED = """
SELECT quota.tenant_id, tokens, COALESCE(prompt + completion, 0) AS used FROM token_quotas AS quota
LEFT JOIN tenant_days AS one ON one.tenant_id = quota.tenant_id AND one.day = ? WHERE used >= tokens
"""


@dataclass(frozen=True)
class Held:
    """What a tenant has, and how many revisions it was given on a day."""

    num_adapters: int
    pack_bytes: int
    num_pushes: int


@dataclass(frozen=True)
class Counted:
    """``days`` are (day, requests, prompt tokens, completion tokens, pushes), the newest first."""

    days: list[tuple[int, int, int, int, int]]
    num_adapters: int
    pack_bytes: int


@dataclass
class Counts:
    """What a batch of registry events adds, gathered before it is written: a tenant's row is the same for many."""

    pushes: Counter[tuple[TenantId, int]] = field(default_factory=Counter)
    adapters: Counter[TenantId] = field(default_factory=Counter)
    pack_bytes: Counter[TenantId] = field(default_factory=Counter)

    def push(self, event: RegistryEvent, head: AdapterHead) -> None:
        """Count the revision that an event added, if it did."""
        if event.revision is None:
            return
        self.pushes[head.tenant_id, day_of(event.at_ms)] += 1
        self.pack_bytes[head.tenant_id] += event.revision.revision.pack_bytes
        self.adapters[head.tenant_id] += event.revision.revision.number == 1

    def push_of_erased(self, event: Forgotten) -> None:
        """Count the revision that an event of an erased adapter added, if it did: a tenant's pushes stay counted."""
        if event.kind in _PUSHES_OF:
            self.pushes[event.tenant_id, day_of(event.at_ms)] += 1

    def erase(self, database: sqlite3.Connection, head: ErasedHead) -> None:
        """Take off what the adapter held; its revisions are still in the file."""
        num_revisions, pack_bytes = database.execute(_HELD_BY, (head.adapter_id,)).fetchone()
        if num_revisions:
            self.adapters[head.tenant_id] -= 1
            self.pack_bytes[head.tenant_id] -= int(pack_bytes)

    def write(self, database: sqlite3.Connection) -> None:
        days = [(tenant_id, day, 0, 0, 0, num_pushes) for (tenant_id, day), num_pushes in self.pushes.items()]
        database.executemany(_COUNT_TENANT, days)
        # ``adapters`` has a count for each tenant that is in ``pack_bytes``, if only of 0.
        held = [(tenant_id, num, self.pack_bytes[tenant_id]) for tenant_id, num in self.adapters.items()]
        database.executemany(_HOLD, held)


def forget_adapter(database: sqlite3.Connection, adapter_id: AdapterId) -> None:
    """Delete what was counted for an erased adapter, also what is still to come."""
    database.execute("DELETE FROM adapter_days WHERE adapter_id = ?", (adapter_id,))
    database.execute("INSERT OR IGNORE INTO gone VALUES (?)", (adapter_id,))


def forget_days(database: sqlite3.Connection, before: int) -> None:
    """Delete what is older than anybody may ask for."""
    for table in ("tenant_days", "adapter_days"):
        database.execute(f"DELETE FROM {table} WHERE day < ?", (before,))


def usage_position(database: sqlite3.Connection) -> tuple[str, int]:
    """Return up to which sequence of which stream, by its date, usage is counted."""
    found = database.execute("SELECT created, sequence FROM usage_position").fetchone()
    return (found[0], found[1]) if found else ("", 0)


def begin_usage(database: sqlite3.Connection, created: str) -> None:
    """Begin to count the stream of that date; what was counted of another one is deleted."""
    database.execute("UPDATE tenant_days SET requests = 0, prompt = 0, completion = 0")
    for table in ("adapter_days", "meters"):
        database.execute(f"DELETE FROM {table}")
    database.execute("INSERT OR REPLACE INTO usage_position VALUES (0, ?, 0)", (created,))


def count_usage(database: sqlite3.Connection, records: Iterable[tuple[int, UsageRecord]], until: int) -> None:
    """Count records with their sequences, in order, and move the position to ``until``.

    A record that is counted already, in whichever message it came, counts no more.
    """
    _, after = usage_position(database)
    for sequence, record in records:
        if sequence <= after:
            continue
        meter = database.execute("SELECT number FROM meters WHERE gateway_id = ?", (record.gateway_id,)).fetchone()
        if meter is not None and record.number <= meter[0]:
            continue
        database.execute("INSERT OR REPLACE INTO meters VALUES (?, ?)", (record.gateway_id, record.number))
        for row in record.rows:
            used = (row.num_requests, row.num_prompt_tokens, row.num_completion_tokens)
            database.execute(_COUNT_TENANT, (row.tenant_id, row.day, *used, 0))
            if row.adapter_id and database.execute(_IS_GONE, (row.adapter_id,)).fetchone() is None:
                database.execute(_COUNT_ADAPTER, (row.adapter_id, row.day, *used))
    database.execute("UPDATE usage_position SET sequence = MAX(sequence, ?)", (until,))


def tenant_usage(database: sqlite3.Connection, tenant_id: TenantId, first_day: int) -> Counted:
    days = database.execute(_OF_TENANT, (tenant_id, first_day)).fetchall()
    held = database.execute("SELECT adapters, bytes FROM holdings WHERE tenant_id = ?", (tenant_id,)).fetchone()
    return Counted(days, *(held or (0, 0)))


def adapter_usage(database: sqlite3.Connection, adapter_id: AdapterId, first_day: int) -> Counted:
    days = database.execute(_OF_ADAPTER, {"id": adapter_id, "first": first_day}).fetchall()
    num_revisions, pack_bytes = database.execute(_HELD_BY, (adapter_id,)).fetchone()
    return Counted(days, min(1, num_revisions), int(pack_bytes))


def set_token_quota(database: sqlite3.Connection, head: TenantHead) -> None:
    """Take over how many tokens a tenant may use each day."""
    tokens = head.quotas.tokens_per_day if head.quotas else None
    database.execute("DELETE FROM token_quotas WHERE tenant_id = ?", (head.tenant_id,))
    if tokens is not None:
        database.execute("INSERT INTO token_quotas VALUES (?, ?)", (head.tenant_id, tokens))


def exhausted(database: sqlite3.Connection, day: int) -> dict[TenantId, tuple[int, int]]:
    """Return the tenants that have used what they may use on ``day``, with how much they may and how much they have."""
    return {tenant_id: (limit, used) for tenant_id, limit, used in database.execute(_EXHAUSTED, (day,))}


def held_by(database: sqlite3.Connection, tenant_id: TenantId, day: int) -> Held:
    held = database.execute("SELECT adapters, bytes FROM holdings WHERE tenant_id = ?", (tenant_id,)).fetchone()
    pushes = database.execute(_PUSHES, (tenant_id, day)).fetchone()
    return Held(*(held or (0, 0)), *(pushes or (0,)))


def is_counted(database: sqlite3.Connection, adapter_id: AdapterId, number: int) -> bool:
    """Tell whether there is a revision of that number in the file, or was and went with its adapter."""
    is_there = database.execute(_IS_REVISION, (adapter_id, number)).fetchone()
    return bool(is_there or database.execute(_IS_GONE, (adapter_id,)).fetchone())
