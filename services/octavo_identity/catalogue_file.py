"""The SQLite file of the projection: its form, how it is opened, and how it is begun anew."""

import sqlite3
from pathlib import Path

from octavo_identity import adapter_tables, sittings
from octavo_identity.usage_tables import USAGE_SCHEMA

_VERSION = 13
_CACHE_KIB = 64 * 1024
"""Of the writer: adapters come in the order of their making, and what they are found by is in another one, so that each
of a million new rows wants a page of its own."""
_LOG_PAGES = 16_384
"""How long the write-ahead log gets before it is written back, 64 MiB: pages that many rows changed go only once."""
_SCHEMA = f"""
{adapter_tables.SCHEMA}
CREATE TABLE IF NOT EXISTS keys (principal TEXT, key_id TEXT, PRIMARY KEY (principal, key_id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS leaves (sequence INTEGER PRIMARY KEY, hash BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS kept (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS position (
    id INTEGER PRIMARY KEY CHECK (id = 0), created TEXT, sequence INTEGER NOT NULL, begun_ms INTEGER NOT NULL);
{sittings.SCHEMA}
{USAGE_SCHEMA}
PRAGMA user_version = {_VERSION};
"""
POSITION = "SELECT created, sequence, begun_ms FROM position"


def connect(path: Path) -> tuple[sqlite3.Connection, sqlite3.Connection]:
    """Return the file's writer and reader; raises ``sqlite3.DatabaseError`` for one that cannot be used."""
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
        writer.execute(POSITION).fetchone()
        reader.execute("PRAGMA query_only = ON")
    except sqlite3.DatabaseError:
        writer.close()
        reader.close()
        raise
    return writer, reader


def delete(path: Path) -> None:
    """Remove the file and what SQLite keeps beside it."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
