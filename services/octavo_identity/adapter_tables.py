"""The part of the projection's file that finds adapters: by name, tag and who may use them, and their revisions."""

import sqlite3
from collections.abc import Iterable

import msgspec

from octavo_identity import sittings
from octavo_identity.records import WRITES_IN_HEAD_MAX, AdapterHead, ErasedHead, RegistryEvent, parse_object_key
from octavo_identity.search import Search, latest_of
from octavo_identity.sittings import Sittings
from octavo_identity.usage_tables import forget_adapter
from octavo_shared import decoding
from octavo_shared.messages.usage import day_of
from octavo_shared.references import AdapterId, Digest, TenantId

_NAMES_MAX = 10_000
SCHEMA = """
CREATE TABLE IF NOT EXISTS adapters (
    name TEXT PRIMARY KEY, owner TEXT NOT NULL, base TEXT NOT NULL, state TEXT NOT NULL, head BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS tags (name TEXT, tag TEXT, PRIMARY KEY (name, tag)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS users (principal TEXT, name TEXT, PRIMARY KEY (principal, name)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS users_by_name ON users (name);
CREATE TABLE IF NOT EXISTS revisions (
    adapter_id TEXT, number INTEGER, digest TEXT NOT NULL, object_key TEXT NOT NULL, sequence INTEGER NOT NULL,
    name TEXT NOT NULL, pack_bytes INTEGER NOT NULL, day INTEGER NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS revisions_by_number ON revisions (adapter_id, number);
CREATE TABLE IF NOT EXISTS erasures (adapter_id TEXT PRIMARY KEY, tenant_id TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS writes (
    adapter_id TEXT, mark TEXT, sequence INTEGER NOT NULL, PRIMARY KEY (adapter_id, mark)) WITHOUT ROWID;
"""
# Rows of revisions lie in the order of their making and their index is small: both stay cheap at millions. A digest is
# looked for among the revisions of its adapter, the newest first.

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
_WRITE = "SELECT sequence FROM writes WHERE adapter_id = ? AND mark = ?"
_NAME_OF = "SELECT DISTINCT name FROM revisions WHERE adapter_id = ?"
_OPEN_ERASURES = "SELECT tenant_id, adapter_id FROM erasures ORDER BY adapter_id LIMIT ?"
_NEWEST = "SELECT MAX(number) FROM revisions WHERE adapter_id = ?"


def put(writer: sqlite3.Connection, sitting: Sittings, event: RegistryEvent, head: AdapterHead, sequence: int) -> None:
    """Take over an event of an adapter, whose head is ``head`` from then on."""
    run = writer.execute
    row = (head.name, head.owner, *latest_of(head), msgspec.msgpack.encode(head))
    rows = sittings.rows_of(head)
    if run("INSERT OR IGNORE INTO adapters VALUES (?, ?, ?, ?, ?)", row).rowcount:
        # Most events of an import are the first of their adapter: nothing of its name is in any table.
        sitting.add(head.name, head.tenant_id, rows)
    else:
        run("REPLACE INTO adapters VALUES (?, ?, ?, ?, ?)", row)
        sitting.put(head.name, head.tenant_id, rows)
        run("DELETE FROM tags WHERE name = ?", (head.name,))
        run("DELETE FROM users WHERE name = ?", (head.name,))
    for tag in head.tags:
        run("INSERT INTO tags VALUES (?, ?)", (head.name, tag))
    for who in {head.owner, *head.grants, *head.auditors}:
        run("INSERT INTO users VALUES (?, ?)", (who, head.name))
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


def erase(writer: sqlite3.Connection, sitting: Sittings, head: ErasedHead) -> None:
    """Delete all rows of an adapter; while its erasure is not finished, it is one of ``open_erasures``."""
    run = writer.execute
    for (name,) in run(_NAME_OF, (head.adapter_id,)).fetchall():
        for table in ("adapters", "tags", "users"):
            run(f"DELETE FROM {table} WHERE name = ?", (name,))
        sitting.put(name, head.tenant_id, set())
    for table in ("revisions", "writes", "erasures"):
        run(f"DELETE FROM {table} WHERE adapter_id = ?", (head.adapter_id,))
    forget_adapter(writer, head.adapter_id)
    if not head.receipt:
        run("INSERT INTO erasures VALUES (?, ?)", (head.adapter_id, head.tenant_id))


def find(
    reader: sqlite3.Connection, search: Search, whose: tuple[str, str] | None, after: str, num_max: int
) -> tuple[list[AdapterHead], str | None]:
    """Return heads of adapters that match, by name, after ``after``, and what the next page comes after; see ``Page``.

    For ``whose`` (principal and tenant) they are those that it or its whole tenant has a role on, else all.
    """
    num_names = _NAMES_MAX if search.is_narrow else num_max
    principal, tenant = whose or ("", "")
    asked = {
        "principal": principal, "everyone": f"*@{tenant}", "after": after, "low": search.low, "high": search.high,
        "owner": search.owner, "base": search.base, "state": search.state or "", "tag": search.tag,
        "named_on": msgspec.json.encode(search.named_on).decode(), "num_names": num_names, "num_max": num_max,
    }  # fmt: skip
    page = _USABLE if whose else _ALL
    blobs = reader.execute(page + _MATCHING, asked).fetchall()
    num_seen, last_seen = 0, ""
    if search.is_narrow and len(blobs) < num_max:
        num_seen, last_seen = reader.execute(page + _LAST_NAME, asked).fetchone()
    heads = [decoding.from_msgpack(blob, AdapterHead) for (blob,) in blobs]
    if len(heads) == num_max:
        return heads, heads[-1].name
    return heads, last_seen if num_seen == num_names else None


def find_revision(
    reader: sqlite3.Connection, adapter_id: AdapterId, number: int | None, digest: Digest | None
) -> tuple[int | None, int]:
    """Return where the revision of this number, or else the newest of this digest, was added, and the newest number."""
    by = (_BY_NUMBER, number) if number is not None else (_BY_DIGEST, digest)
    found = reader.execute(by[0], (adapter_id, by[1])).fetchone()
    (newest,) = reader.execute(_NEWEST, (adapter_id,)).fetchone()
    return found[0] if found else None, newest or 0


def find_write(reader: sqlite3.Connection, adapter_id: AdapterId, mark: str) -> int | None:
    """Return the sequence of the last event whose head remembered the write, if a later one may have not."""
    found = reader.execute(_WRITE, (adapter_id, mark)).fetchone()
    return found[0] if found else None


def unnamed_packs(reader: sqlite3.Connection, object_keys: Iterable[str]) -> list[str]:
    """Return those of ``object_keys`` that have the form of a pack's and that no known revision names."""
    parsed = [(object_key, parse_object_key(object_key)) for object_key in object_keys]
    return [
        object_key
        for object_key, parts in parsed
        if parts is not None and reader.execute(_ABSENT, (*parts, object_key)).fetchone()[0]
    ]


def open_erasures(reader: sqlite3.Connection, num_max: int) -> list[tuple[TenantId, AdapterId]]:
    """Return tenant and id of adapters whose erasure was begun and not finished."""
    return reader.execute(_OPEN_ERASURES, (num_max,)).fetchall()
