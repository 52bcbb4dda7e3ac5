"""How the log is checked, copied and made to forget; and how a process that died is told from one that lives."""

from __future__ import annotations

import functools
import os
import socket
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from msgspec import Struct
from sqlalchemy import Connection, LargeBinary, Text, cast, delete, select, update

from timeline.errors import StoreError, TimelineError
from timeline.events import CallFailed, Owner, decode
from timeline.store import schema
from timeline.store.sqlite import mapped_errors
from timeline.store.writer import Header, body_digest, chain_digest, content_digest

__all__ = [
    "Check",
    "Verification",
    "copy",
    "damaged_content",
    "damaged_file",
    "forgotten_digest",
    "is_alive",
    "page",
    "redact",
    "this_process",
]

PAGE = 2000
_TOMBSTONE = b'{"forgotten":"'

BODY_TYPES = ("session.started", "session.renamed", "turn.started", "chunk.received", "tool.called", "tool.returned")
"""Events whose data says what was said. Totals stand in others, and stay."""


# ------------------------------------------------------------------ verify


class Verification(Struct, frozen=True):
    """What a verification found.

    Args:
        events: Events read.
        sessions: Sessions they belong to.
        problem: The first thing that is wrong, in a sentence; None if all is well.
        position: Position of the event it was found at, where it belongs to one.
    """

    events: int
    sessions: int
    problem: str | None = None
    position: int | None = None


class Row(NamedTuple):
    """An event as it stands in the file; text that is no UTF-8 any more is readable all the same."""

    header: Header
    data: bytes
    digest: str


class Check:
    """The state of a verification between pages: what the next event has to fit to."""

    def __init__(self) -> None:
        self._count = 0
        self._heads: dict[str, tuple[int, str]] = {}

    def follow(self, rows: Sequence[Row]) -> Verification | None:
        """Check the next events; the result if something is wrong, else None."""
        for row in rows:
            self._count += 1
            problem = self._problem(row)
            if problem:
                return self.result(problem, row.header[0])
        return None

    def result(self, problem: str | None = None, position: int | None = None) -> Verification:
        """What was found so far."""
        return Verification(self._count, len(self._heads), problem, position)

    def _problem(self, row: Row) -> str | None:
        position, _, session_id, version, type_, v, *_ = row.header
        if position != self._count:
            return f"position {self._count} is missing"
        last, previous = self._heads.get(session_id, (0, ""))
        if version != last + 1:
            return f"session {session_id} goes from version {last} to {version}"
        kept = forgotten_digest(row.data)
        if chain_digest(previous, row.header, kept or body_digest(row.data)) != row.digest:
            return "the event is not what was recorded: its digest doesn't match"
        if kept is None:
            try:
                decode(type_, v, row.data.decode())
            except TimelineError as exc:
                return str(exc)
        self._heads[session_id] = (version, row.digest)
        return None


def page(conn: Connection, after: int) -> list[Row]:
    """The next events after a position; empty at the end."""
    table = schema.events
    columns = [cast(column, LargeBinary) if isinstance(column.type, Text) else column for column in table.columns]
    found = conn.execute(select(*columns).where(table.c.position > after).order_by(table.c.position).limit(PAGE))
    rows = []
    for *header, data, digest in found:
        readable: Any = tuple(
            value.decode("utf-8", "replace") if isinstance(value, bytes) else value for value in header
        )
        rows.append(Row(readable, data, digest.decode("utf-8", "replace")))
    return rows


def damaged_content(conn: Connection) -> str | None:
    """The digest of the first body in `contents` that isn't what its digest says."""
    table = schema.contents
    for row in conn.execute(select(table.c.digest, cast(table.c.body, LargeBinary).label("body"))):
        if content_digest(row.body) != row.digest:
            return str(row.digest)
    return None


def damaged_file(conn: Connection) -> str | None:
    """What SQLite's own check finds first, or a trigger of ours that is gone."""
    answer = conn.exec_driver_sql("PRAGMA integrity_check(1)").scalar()
    if answer != "ok":
        return f"SQLite finds the file damaged: {answer}"
    present = set(conn.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'trigger'").scalars())
    missing = {statement.split()[2] for statement in schema.TRIGGERS} - present
    return f"the trigger {min(missing)} is gone: the log was open to changes" if missing else None


# ------------------------------------------------------------------ forget


def forgotten_digest(data: bytes) -> bytes | None:
    """The digest that a tombstone keeps; None for a body that is still there."""
    if not (data.startswith(_TOMBSTONE) and len(data) == len(_TOMBSTONE) + 34):
        return None
    try:
        return bytes.fromhex(data[len(_TOMBSTONE) : -2].decode())
    except ValueError:
        return None


def redact(conn: Connection, session_id: str) -> int:
    """Turn a session's bodies into tombstones and drop contents that no other session refers to.

    Returns:
        How many events lost their data.
    """
    table = schema.events
    rows = conn.execute(
        select(table.c.position, table.c.type, table.c.v, table.c.data).where(table.c.session_id == session_id)
    ).all()
    forgotten = 0
    references: set[str] = set()
    for row in rows:
        if forgotten_digest(row.data.encode()) is not None:
            continue
        data = decode(row.type, row.v, row.data)
        references |= set(_digests(row.data))
        # A failed call's message may quote the prompt; where it also carries tokens, totals come first.
        if row.type in BODY_TYPES or (isinstance(data, CallFailed) and data.usage is None):
            tombstone = f'{{"forgotten":"{body_digest(row.data.encode()).hex()}"}}'
            conn.execute(update(table).where(table.c.position == row.position).values(data=tombstone))
            forgotten += 1
    for digest in references:
        used = conn.execute(
            select(table.c.position).where(table.c.session_id != session_id, table.c.data.contains(digest)).limit(1)
        ).first()
        if used is None:
            conn.execute(delete(schema.contents).where(schema.contents.c.digest == digest))
    return forgotten


def _digests(data: str) -> Iterator[str]:
    """Every word of 32 hex digits that stands as a JSON string."""
    return (part for part in data.split('"') if len(part) == 32 and set(part) <= set("0123456789abcdef"))  # noqa: PLR2004


# ------------------------------------------------------------------ backup


def copy(source: Path, target: Path) -> None:
    """Copy the store while others write to it, by SQLite's backup API (https://sqlite.org/backup.html).

    Raises:
        StoreError: The target exists or can't be written.
    """
    try:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except OSError as exc:
        msg = f"the backup {target} can't be written ({exc.strerror}): choose another path"
        raise StoreError(msg) from exc
    with mapped_errors(target):
        reading, writing = sqlite3.connect(source), sqlite3.connect(target)
        try:
            reading.execute("PRAGMA wal_autocheckpoint=0")
            reading.backup(writing)
        finally:
            writing.close()
            reading.close()


# ------------------------------------------------------------------ who lives


def this_process() -> Owner:
    """Who we are, in the form that `is_alive` understands."""
    return _owner(os.getpid())


@functools.cache
def _owner(pid: int) -> Owner:
    import psutil

    return Owner(host=_host(), pid=pid, started=round(psutil.Process(pid).create_time(), 2))


def is_alive(owner: Owner) -> bool:
    """Whether the process that began something may still end it.

    A process on another host can't be asked and counts as alive. The start time tells a
    reused pid apart; it may differ by clock adjustments, never by seconds.
    """
    if owner.host != _host():
        return True
    import psutil

    try:
        process = psutil.Process(owner.pid)
        same = abs(process.create_time() - owner.started) < 2  # noqa: PLR2004
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


@functools.cache
def _host() -> str:
    """The host's name and, where there is one, its PID namespace: a pid means something only within it."""
    try:
        namespace = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return socket.gethostname()
    return f"{socket.gethostname()}/{namespace}"
