"""The append-only event store: one file, many processes, nothing lost.

`EventStore` is all that others use; what lies behind it (tables, pragmas, the writer, the
hash chain) stays in this package.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
from msgspec import Struct
from sqlalchemy import ColumnElement, Connection, Engine, func, select
from sqlalchemy.util import greenlet_spawn

from timeline.errors import NotATimelineStore, NotFound, StoreDamaged, StoreReadOnly, StoreTooNew
from timeline.events import Event, NewEvent, SessionRedacted, decode
from timeline.store import integrity, schema, sqlite
from timeline.store.integrity import Verification, is_alive, this_process
from timeline.store.sqlite import Synchronous, mapped_errors
from timeline.store.writer import Decide, Writer, content_digest, recorded

__all__ = [
    "Decide",
    "EventStore",
    "ReadModels",
    "Stats",
    "Synchronous",
    "Verification",
    "content_digest",
    "is_alive",
    "this_process",
]

T = TypeVar("T")
PAGE = 1000


class ReadModels(Protocol):
    """The projections as the store is handed them."""

    def is_current(self, conn: Connection) -> bool:
        """Whether every table is there, of this release, and folded up to the log's end."""

    def prepare(self, conn: Connection, read: Callable[[int, int], Sequence[Event]]) -> None:
        """Make tables that are missing or outdated, and fold what they have not seen."""

    def apply(self, conn: Connection, events: Sequence[Event]) -> None:
        """Fold events just inserted, in the same transaction."""

    def rebuild(
        self,
        conn: Connection,
        read: Callable[[Connection, int, int], Sequence[Event]],
        names: Iterable[str] | None,
    ) -> list[str]:
        """Fold the whole log anew beside the old tables, then swap; the names of what was rebuilt."""


class Stats(Struct, frozen=True):
    """Sizes and versions of a store, for people and bug reports."""

    path: str
    events: int
    sessions: int
    contents: int
    file_bytes: int
    wal_bytes: int
    schema: str
    sqlite_version: str
    synchronous: str
    checkpoint_safe: bool


class EventStore:
    """Opened by `EventStore.open`; every method may be used by any number of tasks at once."""

    def __init__(self, path: Path, models: ReadModels, reader: Engine, synchronous: Synchronous) -> None:
        self.path = path
        self._models = models
        self._reader = reader
        self._synchronous = synchronous
        self.read_only = False
        self._writer: Writer | None = None

    # -------------------------------------------------------------- opening and closing

    @classmethod
    @asynccontextmanager
    async def open(
        cls, path: Path, models: ReadModels, *, synchronous: Synchronous = "full", read_only: bool = False
    ) -> AsyncIterator[EventStore]:
        """Open the store, making or migrating the file first where that is needed.

        Args:
            path: The database file.
            models: The projections to bring along with every append.
            synchronous: When a commit is durable: `full` survives a power cut, `normal` a crash of the process.
            read_only: Never write, not even what a reader of a live file writes; for a folder that can't be
                written.

        Raises:
            NotATimelineStore: The file is something else.
            StoreTooNew: A newer release wrote it.
            StoreReadOnly: It can't be written, and `read_only` is False or it would have to be brought up to date.
            StoreDamaged: SQLite can't make sense of it.
            NotFound: There is no file, and `read_only` is True.
        """
        with mapped_errors(path):
            revision = _look(path, read_only=read_only)
            if read_only and revision != schema.HEAD:
                msg = f"there is no store of this version at {path}: run 'timeline ask' where it can be written"
                raise NotFound(msg)
            if revision != schema.HEAD:
                await _in_a_thread(partial(_make_ready, path, models, synchronous))
        store = cls(path, models, sqlite.reader(path, read_only=read_only), synchronous)
        try:
            current = await store.query(models.is_current)
            if read_only:
                store.read_only = True
                if not current:
                    msg = f"the read models of {path} are of another version: run timeline once where it can be written"
                    raise StoreReadOnly(msg)
            else:
                if not current:
                    await _in_a_thread(partial(_make_ready, path, models, synchronous))
                store._writer = Writer(path, sqlite.writer(path, synchronous=synchronous), models)
            yield store
        finally:
            # Whoever is cancelled here, once or again, has been promised that what it enqueued is written.
            await _to_the_end(store._close())

    async def _close(self) -> None:
        try:
            await greenlet_spawn(self._reader.dispose)
        finally:
            if self._writer is not None:
                await self._writer.close()

    # -------------------------------------------------------------- writing

    async def append(
        self, events: Sequence[NewEvent], *, contents: Sequence[str | bytes] = (), expected_version: int | None = None
    ) -> list[Event]:
        """Append a batch, all or nothing; returns after COMMIT.

        Args:
            events: New facts. If all their ids are recorded with the same bodies, nothing is written.
            contents: Bodies the events refer to by `content_digest`.
            expected_version: The version each of their sessions must be at before.

        Returns:
            The events as recorded.

        Raises:
            VersionConflict: Someone else appended first.
            IdempotencyConflict: An id is recorded with another body, or only a part of the batch is recorded.
            StoreError: The file can't be written (full, read-only, busy, damaged).
        """
        return await asyncio.shield(self.enqueue(events, contents=contents, expected_version=expected_version))

    def enqueue(
        self, events: Sequence[NewEvent], *, contents: Sequence[str | bytes] = (), expected_version: int | None = None
    ) -> asyncio.Future[list[Event]]:
        """As `append`, without waiting: what is enqueued first is committed first."""
        return self._require_writer().enqueue(lambda _conn: events, contents, expected_version)

    async def append_when(self, decide: Decide, *, contents: Sequence[str | bytes] = ()) -> list[Event]:
        """Decide what to append inside the write transaction, so that no other process comes in between.

        Args:
            decide: Reads the read models through the connection and returns the events; what it raises is raised
                here, and nothing is written. It runs in the writer's thread, and again if the transaction failed.
            contents: As for `append`.
        """
        return await asyncio.shield(self.enqueue_when(decide, contents=contents))

    def enqueue_when(self, decide: Decide, *, contents: Sequence[str | bytes] = ()) -> asyncio.Future[list[Event]]:
        """As `append_when`, without waiting: what is enqueued first is decided and committed first."""
        return self._require_writer().enqueue(decide, contents)

    def _require_writer(self) -> Writer:
        if self._writer is None:
            msg = f"the store {self.path} can't be written: choose another place with TIMELINE_HOME"
            raise StoreReadOnly(msg)
        return self._writer

    # -------------------------------------------------------------- reading

    async def query(self, read: Callable[[Connection], T]) -> T:
        """Run one short read transaction.

        Args:
            read: Gets a connection that can't write; waits for nothing but the file.
        """
        with mapped_errors(self.path):
            conn = await greenlet_spawn(self._reader.connect)
            try:
                return await greenlet_spawn(read, conn)
            finally:
                await _to_the_end(greenlet_spawn(conn.close))

    async def read(
        self, *, session_id: str | None = None, call_id: str | None = None, after: int = 0, until: int | None = None
    ) -> AsyncIterator[Event]:
        """Events in the order of the log, in pages, each its own short transaction.

        Args:
            session_id: Only this session's.
            call_id: Only this call's; give `session_id` or `after` and `until` too, there is no index on calls.
            after: Only those of a higher position.
            until: Only those up to this position.

        Raises:
            StoreDamaged: What comes next can't be read; all before it was yielded.
        """
        limit = PAGE
        which = _which(session_id=session_id, call_id=call_id, until=until)
        page = partial(_read, which=which)
        while True:
            try:
                events = await self.query(partial(page, after=after, limit=limit))
            except StoreDamaged as exc:
                if limit == 1:
                    raise await self._placed(exc, after, which) from exc
                # Nearer to what can't be read, in smaller steps.
                limit = max(limit // 10, 1)
                continue
            for event in events:
                yield event
            if len(events) < limit:
                return
            after = events[-1].position

    async def _placed(self, exc: StoreDamaged, after: int, which: Sequence[ColumnElement[bool]]) -> StoreDamaged:
        """The damage that was found behind a position, among those of which events, with its place as `verify` names it."""
        log = schema.events.c
        place = select(func.min(log.position)).where(log.position > after, *which)
        try:
            position = await self.query(lambda conn: conn.execute(place).scalar())
        except StoreDamaged:
            position = None
        return StoreDamaged(f"position {position}: {exc}" if position else f"after position {after}: {exc}")

    async def head(self) -> int:
        """The position of the last event in the log; 0 of an empty one."""
        last = select(func.max(schema.events.c.position))
        return await self.query(lambda conn: conn.execute(last).scalar() or 0)

    async def contents(self, digests: Iterable[str]) -> dict[str, str | bytes]:
        """Bodies by digest; what was forgotten or never recorded is left out."""
        table = schema.contents
        wanted = func.json_each(msgspec.json.encode(sorted(set(digests))).decode()).table_valued("value")
        query = select(table).where(table.c.digest.in_(select(wanted.c.value)))
        return await self.query(lambda conn: {row.digest: row.body for row in conn.execute(query)})

    # -------------------------------------------------------------- care

    async def verify(self) -> Verification:
        """Check every event's position, version and digest, the file, the triggers and the contents."""
        check, after = integrity.Check(), 0
        try:
            while rows := await self.query(partial(integrity.page, after=after)):
                if (found := check.follow(rows)) is not None:
                    return found
                after = rows[-1].header[0]
            return await self.query(check.surroundings)
        except StoreDamaged as exc:
            # Its advice is to verify, which is being done.
            return check.result(f"after position {after}: {str(exc).rpartition(': run ')[0] or exc}")

    async def rebuild(self, names: Iterable[str] | None = None) -> list[str]:
        """Fold projections anew from the log while others append, then swap them in.

        Args:
            names: Which; all by default.
        """
        self._require_writer()
        return await asyncio.to_thread(self._rebuild, names)

    def _rebuild(self, names: Iterable[str] | None) -> list[str]:
        rebuilding = sqlite.writer(self.path, synchronous=self._synchronous)
        try:
            with mapped_errors(self.path), rebuilding.connect() as conn:
                return self._models.rebuild(conn, _read, names)
        finally:
            rebuilding.dispose()

    async def forget(
        self,
        session_id: str,
        closing: Callable[[SessionRedacted], NewEvent],
        *,
        wait_seconds: float = sqlite.BUSY_TIMEOUT_SECONDS,
    ) -> int:
        """Remove a session's bodies from every page of the file; digests, totals and the chain stay.

        Args:
            session_id: Whose.
            closing: Makes the event to append of its body.
            wait_seconds: How long to wait, at the end, for readers to make way.

        Returns:
            How many events became tombstones.

        Raises:
            StoreBusy: Someone went on reading what is to be forgotten; nothing shows it any more, but the file's
                write-ahead log may hold it until this is done again.
        """
        redacted = []

        def decide(conn: Connection) -> Sequence[NewEvent]:
            redacted.append(integrity.redact(conn, session_id))
            return [closing(redacted[-1])]

        await self.append_when(decide)
        await self.rebuild()
        await self._require_writer().compact(wait_seconds=wait_seconds)
        return redacted[-1].events

    async def backup(self, target: Path) -> None:
        """Copy the store to a new file while others write."""
        await asyncio.to_thread(integrity.copy, self.path, target, read_only=self.read_only)

    async def stats(self) -> Stats:
        """Sizes and versions."""

        def count(conn: Connection) -> tuple[int, int, int]:
            table = schema.events
            events = conn.execute(select(func.max(table.c.position))).scalar() or 0
            sessions = conn.execute(select(func.count(func.distinct(table.c.session_id)))).scalar() or 0
            bodies = conn.execute(select(func.count()).select_from(schema.contents)).scalar() or 0
            return events, sessions, bodies

        events, sessions, bodies = await self.query(count)
        return Stats(
            path=str(self.path),
            events=events,
            sessions=sessions,
            contents=bodies,
            file_bytes=self.path.stat().st_size,
            wal_bytes=sqlite.wal_size(self.path),
            schema=schema.HEAD,
            sqlite_version=sqlite3.sqlite_version,
            synchronous=self._synchronous,
            checkpoint_safe=sqlite.checkpoints_are_safe(sqlite3.sqlite_version_info),
        )


async def _to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Wait for work to end, however often the waiting is cancelled; the cancellation goes on then."""
    task = asyncio.ensure_future(work)
    cancelled = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as exc:
            cancelled = exc
    task.result()
    if cancelled is not None:
        raise cancelled


# ------------------------------------------------------------------ reading rows


def _which(*, session_id: str | None, call_id: str | None, until: int | None) -> list[ColumnElement[bool]]:
    log = schema.events.c
    which: list[ColumnElement[bool]] = []
    if session_id is not None:
        which.append(log.session_id == session_id)
    if call_id is not None:
        which.append(log.call_id == call_id)
    if until is not None:
        which.append(log.position <= until)
    return which


def _read(conn: Connection, after: int, limit: int, *, which: Sequence[ColumnElement[bool]] = ()) -> list[Event]:
    table = schema.events
    query = select(table).where(table.c.position > after, *which).order_by(table.c.position).limit(limit)
    # A damaged row can lack what the table says is never null.
    rows = ((row, row.data or "") for row in conn.execute(query))
    return [
        recorded(row, None if schema.forgotten_digest(data.encode()) else decode(row.type, row.v, data))
        for row, data in rows
    ]


# ------------------------------------------------------------------ making the file ready


def _look(path: Path, *, read_only: bool = False) -> str | None:
    """The file's schema revision; None for an empty or missing file.

    Raises:
        NotATimelineStore, StoreTooNew, StoreReadOnly, StoreDamaged: As `EventStore.open`.
    """
    try:
        if not path.exists():
            return None
        ours = path.is_file()
        if ours and path.stat().st_size == 0:
            return None
    except OSError as exc:
        raise sqlite.unreachable(path, exc) from exc
    revision = None
    if ours:
        with sqlite.plain(path, read_only=read_only) as conn:
            # One look: between two, somebody else's first start may have made the file a store.
            conn.execute("BEGIN")
            (application_id,) = conn.execute("PRAGMA application_id").fetchone()
            tables = {name for (name,) in conn.execute("SELECT name FROM sqlite_master")}
            if not tables:
                return None
            ours = application_id == schema.APPLICATION_ID
            if ours and "alembic_version" in tables:
                (revision,) = conn.execute("SELECT max(version_num) FROM alembic_version").fetchone()
    if not ours:
        msg = f"{path} is not a timeline store: move it away, or choose another with TIMELINE_HOME"
        raise NotATimelineStore(msg)
    if revision is None:
        raise _unversioned(path)
    if revision > schema.HEAD:
        msg = f"{path} was written by a newer version of timeline (schema {revision}, this one knows {schema.HEAD}): update timeline"
        raise StoreTooNew(msg)
    return str(revision)


def _unversioned(path: Path) -> StoreDamaged:
    return StoreDamaged(f"{path} doesn't say which version of timeline wrote it: restore a backup")


async def _in_a_thread(work: Callable[[Callable[[], bool]], None]) -> None:
    """Run work in a thread, which is told whether anybody still waits for it."""
    given_up = threading.Event()
    try:
        await asyncio.to_thread(work, given_up.is_set)
    finally:
        given_up.set()


def _make_ready(path: Path, models: ReadModels, synchronous: Synchronous, given_up: Callable[[], bool]) -> None:
    """Bring file and projections to this release, whoever else starts at the same moment."""
    sqlite.make_folder(path)
    with mapped_errors(path), sqlite.start_lock(path, given_up):
        revision = _look(path)
        if revision is not None and revision != schema.HEAD:
            _migrate(path)
        if revision is None:
            sqlite.make_private(path)
        with sqlite.connect(path, synchronous=synchronous) as conn:
            if revision is None:
                schema.create(conn)
                schema.stamp(conn)
            models.prepare(conn, lambda after, limit: _read(conn, after, limit))


def _migrate(path: Path) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", "timeline_migrations:")
    config.set_main_option("path_separator", "os")
    config.attributes["path"] = path
    try:
        command.upgrade(config, "head")
    except CommandError as exc:
        # No release ever wrote this revision.
        raise _unversioned(path) from exc
