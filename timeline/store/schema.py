"""The tables of the log itself, as SQLAlchemy Core knows them, and the triggers that keep it append-only.

Read models are not here: they belong to their projections and can be thrown away. This
schema is public: people read it with `sqlite3` and Datasette, so columns are only ever added.
"""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy import Column, Connection, Integer, MetaData, Table, Text, UniqueConstraint, types

__all__ = [
    "APPLICATION_ID",
    "HEAD",
    "changed_trigger",
    "contents",
    "create",
    "events",
    "forgotten_digest",
    "metadata",
    "projections",
    "stamp",
    "tombstone",
]

APPLICATION_ID = 0x544C4E31
"""SQLite's `application_id` of our files: "TLN1"."""

HEAD = "0001"
"""The newest migration under `migrations/versions`; a file at this revision needs no alembic."""


class AnyType(types.UserDefinedType[Any]):
    """`ANY` of a STRICT table: text stays text (and readable), bytes stay bytes."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "ANY"


metadata = MetaData()

events = Table(
    "events",
    metadata,
    Column("position", Integer, primary_key=True),
    Column("event_id", Text, nullable=False),
    Column("session_id", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("type", Text, nullable=False),
    Column("v", Integer, nullable=False),
    Column("recorded_at", Integer, nullable=False),
    Column("turn_id", Text),
    Column("step_id", Text),
    Column("call_id", Text),
    Column("data", Text, nullable=False),
    Column("digest", Text, nullable=False),
    UniqueConstraint("event_id"),
    UniqueConstraint("session_id", "version"),
    sqlite_strict=True,
)

contents = Table(
    "contents",
    metadata,
    Column("digest", Text, primary_key=True, nullable=False),
    Column("body", AnyType, nullable=False),
    sqlite_strict=True,
)

projections = Table(
    "projections",
    metadata,
    Column("name", Text, primary_key=True, nullable=False),
    Column("version", Integer, nullable=False),
    Column("position", Integer, nullable=False),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

_TOMBSTONE_GLOB = '{"forgotten":"' + "[0-9a-f]" * 32 + '"}'
_TOMBSTONE = re.compile(rb'\{"forgotten":"([0-9a-f]{32})"\}')
_KEPT = [column.name for column in events.columns if column.name != "data"]

TRIGGERS = (
    # REPLACE deletes the old row without firing DELETE triggers, so an insert is checked by itself.
    """
    CREATE TRIGGER events_only_append BEFORE INSERT ON events
    BEGIN
      SELECT RAISE(ABORT, 'events is append-only: position must be the next one')
       WHERE NEW.position IS NOT (SELECT coalesce(max(position), 0) + 1 FROM events);
      SELECT RAISE(ABORT, 'events is append-only: version must be the session''s next one')
       WHERE NEW.version IS NOT
             (SELECT coalesce(max(version), 0) + 1 FROM events WHERE session_id = NEW.session_id);
      SELECT RAISE(ABORT, 'events is append-only: this event_id exists')
       WHERE EXISTS (SELECT 1 FROM events WHERE event_id = NEW.event_id);
    END
    """,
    """
    CREATE TRIGGER events_no_delete BEFORE DELETE ON events
    BEGIN
      SELECT RAISE(ABORT, 'events is append-only: nothing is deleted');
    END
    """,
    f"""
    CREATE TRIGGER events_no_update BEFORE UPDATE ON events
    WHEN NOT (NEW.data GLOB '{_TOMBSTONE_GLOB}' AND OLD.data NOT GLOB '{_TOMBSTONE_GLOB}'
              AND {" AND ".join(f"NEW.{c} IS OLD.{c}" for c in _KEPT)})
    BEGIN
      SELECT RAISE(ABORT, 'events is append-only: only data may become a tombstone');
    END
    """,
    """
    CREATE TRIGGER contents_no_update BEFORE UPDATE ON contents
    BEGIN
      SELECT RAISE(ABORT, 'contents are addressed by their digest: nothing is changed');
    END
    """,
    """
    CREATE TRIGGER contents_no_replace BEFORE INSERT ON contents
    WHEN EXISTS (SELECT 1 FROM contents WHERE digest = NEW.digest AND CAST(body AS BLOB) IS NOT CAST(NEW.body AS BLOB))
    BEGIN
      SELECT RAISE(ABORT, 'contents are addressed by their digest: nothing is changed');
    END
    """,
)


def create(conn: Connection) -> None:
    """Write tables and triggers into an empty file; what every migration together leads to."""
    metadata.create_all(conn)
    for statement in TRIGGERS:
        conn.exec_driver_sql(statement)


def tombstone(digest: bytes) -> str:
    """What stands in `data` once a body of that digest was forgotten."""
    return f'{{"forgotten":"{digest.hex()}"}}'


def forgotten_digest(data: bytes) -> bytes | None:
    """The digest that a tombstone keeps; None for a body that is still there."""
    found = _TOMBSTONE.fullmatch(data)
    return bytes.fromhex(found[1].decode()) if found else None


def changed_trigger(conn: Connection) -> str | None:
    """The first trigger of ours that is gone from the file, or says something else there."""
    found = conn.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
    present = {name: sql.split() for name, sql in found}
    names = ((statement.split()[2], statement.split()) for statement in TRIGGERS)
    return next((name for name, words in names if present.get(name) != words), None)


def stamp(conn: Connection) -> None:
    """Mark a file made by `create` as being at `HEAD`, in alembic's own table."""
    conn.exec_driver_sql(
        "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL, "
        "CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))"
    )
    conn.exec_driver_sql("INSERT INTO alembic_version VALUES (?)", (HEAD,))
    conn.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")
