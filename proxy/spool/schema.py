"""
The tables of the embedded store, and how an older file becomes a newer one.

``user_version`` of the file counts the steps that were taken. A step is never changed once it was released: a new need
is a new step.
"""

import sqlite3
from collections.abc import Iterator

from proxy.spool.store import StoreError

_STEPS = (
    """
    CREATE TABLE message (
        id TEXT PRIMARY KEY,
        received_at REAL NOT NULL,
        reverse_path TEXT NOT NULL,
        grp TEXT,
        login TEXT NOT NULL,
        provider TEXT NOT NULL,
        subject TEXT NOT NULL,
        size_octets INTEGER NOT NULL,
        eight_bit INTEGER NOT NULL,
        smtputf8 INTEGER NOT NULL,
        not_before REAL NOT NULL,
        notice INTEGER NOT NULL,
        layout TEXT NOT NULL,
        failed_steps TEXT NOT NULL,
        in_file INTEGER NOT NULL, -- the content is a file; else it is a row below
        digest BLOB NOT NULL,     -- SHA-256 of the content: what is read must be what was kept
        final_at REAL,            -- when the last recipient became final
        set_aside TEXT            -- why, where the message is damaged
    ) WITHOUT ROWID;
    CREATE INDEX message_final ON message (final_at) WHERE final_at IS NOT NULL;
    CREATE INDEX message_open ON message (received_at) WHERE final_at IS NULL;
    CREATE INDEX message_aside ON message (id) WHERE set_aside IS NOT NULL;

    -- Apart, because SQLite writes a whole row anew whenever any of its values changes.
    CREATE TABLE content (message_id TEXT PRIMARY KEY, octets BLOB NOT NULL);

    CREATE TABLE recipient (
        message_id TEXT NOT NULL,
        number INTEGER NOT NULL,
        address TEXT NOT NULL,
        destination TEXT NOT NULL,
        state TEXT NOT NULL,
        attempts INTEGER NOT NULL,
        next_attempt_at REAL NOT NULL,
        reply TEXT NOT NULL,
        remote_host TEXT NOT NULL,
        opened INTEGER NOT NULL DEFAULT 0,
        clicked INTEGER NOT NULL DEFAULT 0,
        owner TEXT NOT NULL DEFAULT '',  -- who leased it; next_attempt_at is the end of that lease then
        PRIMARY KEY (message_id, number)
    ) WITHOUT ROWID;
    CREATE INDEX recipient_due ON recipient (destination, next_attempt_at) WHERE state = 'pending';
    CREATE INDEX recipient_leased ON recipient (owner) WHERE owner <> '';

    -- When each destination has something due: the queue can be asked without reading past those that are left alone.
    CREATE TABLE destination (name TEXT PRIMARY KEY, due_at REAL NOT NULL) WITHOUT ROWID;
    CREATE INDEX destination_due ON destination (due_at);

    CREATE TABLE event (
        message_id TEXT NOT NULL,
        at REAL NOT NULL,
        kind TEXT NOT NULL,
        recipient INTEGER,
        detail TEXT NOT NULL
    );
    CREATE INDEX event_message ON event (message_id);

    CREATE TABLE figures (
        day TEXT NOT NULL,
        grp TEXT NOT NULL,
        kind TEXT NOT NULL,
        n INTEGER NOT NULL,
        PRIMARY KEY (day, grp, kind)
    ) WITHOUT ROWID;

    CREATE TABLE suppression (
        address TEXT PRIMARY KEY,  -- in lower case
        since REAL NOT NULL,
        reason TEXT NOT NULL
    ) WITHOUT ROWID;
    """,
    """
    -- What was removed while it was leased: who has the lease asks for it every second.
    CREATE INDEX recipient_withdrawn ON recipient (owner) WHERE state = 'removed' AND owner <> '';
    -- What was to be sent later, so that the age of the queue can be told without reading all of it.
    CREATE INDEX message_later ON message (not_before) WHERE final_at IS NULL AND not_before > 0;
    """,
)
VERSION = len(_STEPS)


def prepare(connection: sqlite3.Connection) -> None:
    """
    Bring the tables up to date.

    Raises:
        StoreError: The file was written by a later version of the program.
    """
    while (version := _version(connection)) < VERSION:
        connection.execute("BEGIN IMMEDIATE")
        if _version(connection) == version:  # else another process was first: a command beside a start, say
            for statement in _statements(f"{_STEPS[version]} PRAGMA user_version = {version + 1};"):
                connection.execute(statement)
        connection.execute("COMMIT")
    if version > VERSION:
        raise StoreError(f"the store has format {version}, and this program knows formats up to {VERSION}: update it")


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def _statements(script: str) -> Iterator[str]:
    """Give its statements; ``executescript`` would run them outside of the transaction."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
