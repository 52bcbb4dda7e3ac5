"""How the log is checked, copied and made to forget; and how a process that died is told from one that lives."""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from msgspec import Struct
from sqlalchemy import Connection, LargeBinary, Text, cast, delete, func, select, update

from timeline.errors import StoreError, TimelineError
from timeline.events import (
    CallFailed,
    CallRerouted,
    CallRetryScheduled,
    ChunkReceived,
    EventData,
    FailedAttempt,
    Owner,
    RequestSent,
    ResponseAnnotated,
    SessionRedacted,
    SessionRenamed,
    SessionStarted,
    StepCompleted,
    StepFailed,
    ToolCalled,
    ToolFailed,
    ToolReturned,
    TurnFailed,
    TurnStarted,
    decode,
)
from timeline.store import schema
from timeline.store.sqlite import mapped_errors, plain
from timeline.store.writer import Header, body_digest, chain_digest, content_digest

__all__ = [
    "Check",
    "Verification",
    "copy",
    "is_alive",
    "page",
    "redact",
    "references",
    "this_process",
]

PAGE = 2000

BODIES = ("turn.started", "request.sent", "tool.called", "tool.returned")
"""Types whose events refer to bodies in `contents`; see `references`."""


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
        self._bodies: dict[str, list[tuple[str, int, int]]] = {}
        self._private: set[str | None] = set()

    def follow(self, rows: Sequence[Row]) -> Verification | None:
        """Check the next events; the result if something is wrong, else None."""
        for row in rows:
            self._count += 1
            problem = self._problem(row)
            if problem:
                return self.result(problem, self._count)
        return None

    def result(self, problem: str | None = None, position: int | None = None) -> Verification:
        """What was found so far."""
        return Verification(self._count, len(self._heads), problem, position)

    def surroundings(self, conn: Connection) -> Verification:
        """After the last event: check the file, the triggers, the contents, and that the log has not lost its end."""
        if damage := _damage(conn.exec_driver_sql("PRAGMA integrity_check(2)").scalars()):
            return self.result(f"SQLite finds the file damaged: {damage}")
        if gone := schema.changed_trigger(conn):
            return self.result(f"the trigger {gone} is gone or changed: the log was open to changes")
        folded = conn.execute(select(func.max(schema.projections.c.position))).scalar() or 0
        head = conn.execute(select(func.max(schema.events.c.position))).scalar() or 0
        if folded > head:
            return self.result(
                f"the log ends at {head}, but events up to {folded} were recorded: its end is gone", head + 1
            )
        return self._contents(conn)

    def _problem(self, row: Row) -> str | None:
        position, _, session_id, version, type_, v, _, turn_id, *_ = row.header
        if position != self._count:
            return f"position {self._count} is missing"
        last, previous = self._heads.get(session_id, (0, ""))
        if version != last + 1:
            return f"session {session_id} goes from version {last} to {version}"
        kept = schema.forgotten_digest(row.data)
        if chain_digest(previous, row.header, kept or body_digest(row.data)) != row.digest:
            return "the event is not what was recorded: its digest doesn't match"
        if kept is None:
            try:
                data = decode(type_, v, row.data.decode())
            except TimelineError as exc:
                return str(exc)
            if isinstance(data, TurnStarted) and data.private:
                self._private.add(turn_id)
            if turn_id not in self._private:
                for digest in references(data):
                    self._bodies.setdefault(digest, []).append((session_id, version, position))
        self._heads[session_id] = (version, row.digest)
        return None

    def _contents(self, conn: Connection) -> Verification:
        table = schema.contents
        for digest, body in conn.execute(select(table.c.digest, cast(table.c.body, LargeBinary))):
            if body is None or content_digest(body) != digest:
                return self.result(f"the body {digest} in contents is not what was recorded")
            self._bodies.pop(digest, None)
        redacted = _redactions(conn)
        for digest, users in self._bodies.items():
            for session_id, version, position in users:
                if version > redacted.get(session_id, 0):
                    return self.result(f"the body {digest} that the event refers to is gone from contents", position)
        return self.result()


def _damage(answers: Iterable[str]) -> str | None:
    """The first thing that `PRAGMA integrity_check` found."""
    # Of the index of words SQLite 3.44.0 says so whenever the connection may only read.
    unable = "unable to validate the inverted index"
    return next((answer for answer in answers if answer != "ok" and not answer.startswith(unable)), None)


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
        # A damaged row can lack what the table says is never null.
        rows.append(Row(readable, data or b"", (digest or b"").decode("utf-8", "replace")))
    return rows


# ------------------------------------------------------------------ forget


def references(data: EventData) -> Iterator[str]:
    """Digests of the bodies in `contents` that an event refers to."""
    refs: tuple[str | None, ...] = ()
    match data:
        case TurnStarted():
            refs = (data.prompt, data.system, *(item.ref for item in data.attachments))
        case RequestSent():
            refs = (data.tools, *(ref for message in data.messages for ref in (message.ref, *message.attachments)))
        case ToolCalled():
            refs = (data.arguments,)
        case ToolReturned():
            refs = (data.result,)
    return (ref for ref in refs if ref is not None)


def _tells(data: EventData) -> bool:
    """Whether the body says what was said, by people, models or tools; errors may quote it."""
    match data:
        case SessionStarted(title=None) | StepCompleted(decision=None, reason=None):
            return False
        case (
            SessionStarted()
            | SessionRenamed()
            | TurnStarted()
            | TurnFailed()
            | StepCompleted()
            | StepFailed()
            | ChunkReceived()
            | ResponseAnnotated()
            | CallFailed()
            | CallRetryScheduled()
            | CallRerouted()
            | ToolCalled()
            | ToolReturned()
            | ToolFailed()
        ):
            return True
    return False


def _redactions(conn: Connection) -> dict[str, int]:
    """Sessions of which something was forgotten, and the last version at which: what they referred to before is void."""
    log = schema.events.c
    query = (
        select(log.session_id, func.max(log.version).label("version"))
        .where(log.type == "session.redacted")
        .group_by(log.session_id)
    )
    return {row.session_id: row.version for row in conn.execute(query)}


def redact(conn: Connection, session_id: str) -> SessionRedacted:
    """Turn a session's bodies into tombstones and drop contents that no other session refers to."""
    table = schema.events
    columns = (table.c.position, table.c.type, table.c.v, table.c.data, table.c.call_id)
    rows = conn.execute(select(*columns).where(table.c.session_id == session_id)).all()
    forgotten = 0
    failed = []
    unused: set[str] = set()
    for row in rows:
        text = row.data.encode()
        if schema.forgotten_digest(text) is not None:
            continue
        data = decode(row.type, row.v, row.data)
        unused.update(references(data))
        if _tells(data):
            tombstone = schema.tombstone(body_digest(text))
            conn.execute(update(table).where(table.c.position == row.position).values(data=tombstone))
            forgotten += 1
        if isinstance(data, CallFailed):
            totals = (data.error.kind, data.duration_us, data.usage, data.usage_source, data.cost)
            failed.append(FailedAttempt(row.call_id or "", data.attempt, *totals))
    redacted = _redactions(conn)
    others = select(table).where(table.c.session_id != session_id, table.c.type.in_(BODIES))
    for row in conn.execute(others):
        kept = row.version > redacted.get(row.session_id, 0)
        if kept and schema.forgotten_digest(row.data.encode()) is None:
            unused.difference_update(references(decode(row.type, row.v, row.data)))
    for digest in unused:
        conn.execute(delete(schema.contents).where(schema.contents.c.digest == digest))
    return SessionRedacted(forgotten, tuple(failed))


# ------------------------------------------------------------------ backup


def copy(source: Path, target: Path, *, read_only: bool = False) -> None:
    """Copy the store while others write to it, by SQLite's backup API (https://sqlite.org/backup.html).

    Args:
        source: The store.
        target: The file to make.
        read_only: The source stands where nothing can be written.

    Raises:
        StoreError: The target exists or can't be written; what was written of it is removed.
    """
    try:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except OSError as exc:
        msg = f"the backup {target} can't be written ({exc.strerror}): choose another path"
        raise StoreError(msg) from exc
    whole = False
    try:
        with mapped_errors(target), plain(source, read_only=read_only) as reading, plain(target) as writing:
            reading.backup(writing)
        whole = True
    finally:
        if not whole:
            target.unlink(missing_ok=True)


# ------------------------------------------------------------------ who lives


def this_process() -> Owner:
    """Who we are, in the form that `is_alive` understands."""
    return _owner(os.getpid())


@functools.cache
def _owner(pid: int) -> Owner:
    return Owner(host=_host(), pid=pid, started=_started(pid) or 0.0)


def is_alive(owner: Owner) -> bool:
    """Whether the process that began something may still end it.

    A process on another host, or in another container, can't be asked and counts as alive. The start
    time tells a reused pid apart.
    """
    here = _host()
    if owner.host != here:
        # The same place before it was started anew: nothing of then is alive.
        return owner.host.rpartition("/")[0] != here.rpartition("/")[0] or "/" not in here
    started = _started(owner.pid)
    return started is not None and abs(started - owner.started) < 1


def _started(pid: int) -> float | None:
    """When a process started, seconds, as `Owner.started` has it; None if none of that id runs."""
    try:
        # https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html: after the name in parentheses come the
        # state and, as field 22, the start in clock ticks since the boot. Unlike the time since the epoch
        # that is derived of it, it stays the same when somebody sets the clock.
        state, *fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        return None if state in "ZX" else int(fields[18]) / os.sysconf("SC_CLK_TCK")
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            return None
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None


@functools.cache
def _host() -> str:
    """The host's name and, on Linux, its PID namespace and boot: a pid means something only within them."""
    try:
        namespace = Path("/proc/self/ns/pid").stat().st_ino
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    except OSError:
        return socket.gethostname()
    return f"{socket.gethostname()}/{namespace}/{boot}"
