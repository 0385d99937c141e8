"""Is this file a store of ours? Opens it, makes it where there is none, and refuses whatever else it is.

A file that is damaged, foreign, of another version or in use is left exactly as it is.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Final

from hopwatch.collector.store import StoreError

APPLICATION: Final = 0x686F7077
"""`hopw`, in the file's header: a file without it is not ours."""
SCHEMA: Final = 2
"""Format 1 did not keep how agents ended; such a file is brought up to date when it is opened."""
CHECKED_BYTES: Final = 256 * 1024 * 1024
"""A file up to this size is read through when it is opened; a larger one would keep its owner waiting."""

_TABLES: Final = """
CREATE TABLE cascades(
  number INTEGER PRIMARY KEY, cascade TEXT NOT NULL UNIQUE, version INTEGER NOT NULL, started INTEGER, ended INTEGER,
  active INTEGER NOT NULL, hops INTEGER NOT NULL, open INTEGER NOT NULL, rejected INTEGER NOT NULL,
  agents TEXT NOT NULL, verdict TEXT, reason TEXT);
CREATE INDEX cascades_active ON cascades(active);
CREATE TABLE hops(
  number INTEGER PRIMARY KEY, started INTEGER NOT NULL, ended INTEGER, instance TEXT NOT NULL, record BLOB NOT NULL);
CREATE INDEX hops_open ON hops(started, instance) WHERE ended IS NULL;
CREATE TABLE tasks(
  agent TEXT NOT NULL, task TEXT NOT NULL, cascade INTEGER NOT NULL, state TEXT NOT NULL, at INTEGER NOT NULL,
  PRIMARY KEY(agent, task, cascade)) WITHOUT ROWID;
CREATE INDEX tasks_cascade ON tasks(cascade);
CREATE TABLE agents(
  instance TEXT PRIMARY KEY, name TEXT NOT NULL, sender TEXT, pid INTEGER NOT NULL, heard INTEGER NOT NULL,
  open INTEGER NOT NULL, dropped INTEGER NOT NULL, sampled INTEGER NOT NULL, beat INTEGER NOT NULL,
  offsets TEXT NOT NULL, ended TEXT) WITHOUT ROWID;
"""


def open_file(location: str) -> sqlite3.Connection:
    """Open the store's file, or a store in memory for `:memory:`.

    Raises:
        StoreError: it is not a store of ours, or cannot be used.
    """
    if location != ":memory:":
        _make_room(Path(location))
        _refuse_foreign(Path(location))
    try:
        db = sqlite3.connect(
            location, isolation_level=None, check_same_thread=False, timeout=1.0, cached_statements=256
        )
    except sqlite3.Error as error:
        raise StoreError(f"the store {location} cannot be opened: {error}") from None
    try:
        # One process at a time: two caches over one file would each miss what the other writes.
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        if location != ":memory:" and Path(location).stat().st_size <= CHECKED_BYTES:
            found = db.execute("PRAGMA quick_check(1)").fetchone()
            if found != ("ok",):
                raise sqlite3.DatabaseError(found[0] if found else "no answer")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            db.execute(
                "PRAGMA page_size = 8192"
            )  # a quarter less work than with 4096, for rows of 500 bytes and more
            marks = f"PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {SCHEMA};"
            db.executescript(f"BEGIN IMMEDIATE; {_TABLES} {marks} COMMIT;")
        elif version == 1:
            db.executescript(
                f"BEGIN IMMEDIATE; ALTER TABLE agents ADD COLUMN ended TEXT; PRAGMA user_version = {SCHEMA}; COMMIT;"
            )
        # From here on, for the header above has to be in the file itself and not in its log.
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA wal_autocheckpoint = 4000")
        db.execute("PRAGMA temp_store = MEMORY")
        db.execute("PRAGMA cache_size = -16384")
        db.execute("PRAGMA journal_size_limit = 67108864")
        db.execute("BEGIN IMMEDIATE")
        db.execute("SELECT count(*) FROM agents").fetchone()
        db.execute("COMMIT")
    except sqlite3.Error as error:
        db.close()
        if "locked" in str(error):
            raise StoreError(
                f"the store {location} is in use by another collector; stop that one, or choose another file with --store"
            ) from None
        raise StoreError(_kept(location, f"is damaged ({error})")) from None
    return db


def _make_room(path: Path) -> None:
    try:
        if not path.parent.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise StoreError(
            f"the store {path} cannot be made: {error.strerror}; choose another file with --store"
        ) from None


def _refuse_foreign(path: Path) -> None:
    # From the header alone: SQLite itself may already change a file that it opens.
    try:
        with path.open("rb") as file:
            header = file.read(100)
    except OSError as error:
        raise StoreError(
            f"the store {path} cannot be read: {error.strerror}; choose another file with --store"
        ) from None
    if not header:
        return
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        raise StoreError(_kept(path, "is not a SQLite database"))
    application = int.from_bytes(header[68:72], "big")
    version = int.from_bytes(header[60:64], "big")
    if application != APPLICATION:
        raise StoreError(_kept(path, "is a database of another program"))
    if not 1 <= version <= SCHEMA:
        raise StoreError(
            _kept(
                path,
                f"was written by another version of hopwatch (format {version}; this one reads 1 to {SCHEMA})",
            )
        )


def _kept(path: str | Path, what: str) -> str:
    return f"the store {path} {what}; it was left as it is: move it away, or choose another file with --store"
