"""The single writer of a process: how events get their position, version and digest, and are committed in groups.

Whatever is appended while a transaction runs goes into the next one, so many appends share
one fsync; each still succeeds or fails alone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
from sqlalchemy import Connection, Engine, Row, func, insert, select
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from timeline.errors import IdempotencyConflict, StoreError, TimelineError, VersionConflict
from timeline.events import Event, EventData, NewEvent, encode
from timeline.store import schema
from timeline.store.sqlite import BUSY_TIMEOUT_SECONDS, mapped_errors, truncate_wal, vacuum, wal_size

__all__ = ["Decide", "Fold", "Writer", "body_digest", "chain_digest", "content_digest"]

T = TypeVar("T")
CHECKPOINT_BYTES = 16 * 1024 * 1024
GROUP_LIMIT = 500

Decide = Callable[[Connection], Sequence[NewEvent]]
"""Reads the read models inside the write transaction and says which events follow."""


class Fold(Protocol):
    """The read models as the store sees them: something to bring along in the same transaction."""

    def apply(self, conn: Connection, events: Sequence[Event]) -> None:
        """Fold events that were just inserted."""


class _Batch(msgspec.Struct, eq=False):
    done: asyncio.Future[list[Event]]
    decide: Decide
    contents: Sequence[str | bytes]
    expected_version: int | None


# ------------------------------------------------------------------ digests


def content_digest(body: str | bytes) -> str:
    """The address of a body in `contents`: BLAKE2b-128 of its bytes, hex."""
    return blake2b(body.encode() if isinstance(body, str) else body, digest_size=16).hexdigest()


def body_digest(data: bytes) -> bytes:
    """BLAKE2b-128 of an event's JSON text."""
    return blake2b(data, digest_size=16).digest()


_header = msgspec.json.Encoder()


Header = tuple[int, str, str, int, str, int, int, str | None, str | None, str | None]
"""position, event_id, session_id, version, type, v, recorded_at, turn_id, step_id, call_id."""


def chain_digest(
    previous: str,
    header: Header,
    data_digest: bytes,
) -> str:
    """One link of a session's chain: BLAKE2b-128(previous digest ‖ header fields ‖ digest of the data), hex.

    Args:
        previous: Digest of the session's event before, hex; empty for its first.
        header: The event's other columns, hashed as a JSON array.
        data_digest: 16 bytes; a tombstone keeps them, so the chain verifies without the data.
    """
    link = blake2b(bytes.fromhex(previous), digest_size=16)
    link.update(_header.encode(header))
    link.update(data_digest)
    return link.hexdigest()


# ------------------------------------------------------------------ the task


class Writer:
    """Owns the process's one write connection.

    Args:
        path: The database file, for messages.
        engine: What `timeline.store.sqlite.writer` made; disposed of at the end.
        fold: The read models to bring along.
    """

    def __init__(self, path: Path, engine: Engine, fold: Fold) -> None:
        self._path = path
        self._engine = engine
        self._fold = fold
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="timeline-writer")
        self._queue: deque[_Batch] = deque()
        self._wake = asyncio.Event()
        self._closing = False
        self._task = asyncio.create_task(self._run(), name="timeline-writer")

    def enqueue(
        self, decide: Decide, contents: Sequence[str | bytes] = (), expected_version: int | None = None
    ) -> asyncio.Future[list[Event]]:
        """Put a batch in line; the future is done after COMMIT. Order of calls is order in the log."""
        if self._closing:
            msg = f"the store {self._path} is closed: open it again to append"
            raise StoreError(msg)
        future: asyncio.Future[list[Event]] = asyncio.get_running_loop().create_future()
        # A caller may rely on a later batch of the same group; its error must not be reported as unseen.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._queue.append(_Batch(future, decide, contents, expected_version))
        self._wake.set()
        return future

    async def close(self) -> None:
        """Commit what is in line, then stop."""
        self._closing = True
        self._wake.set()
        await asyncio.shield(self._task)
        try:
            if wal_size(self._path):
                with mapped_errors(self._path):
                    await self._in_thread(partial(truncate_wal, self._engine, wait_seconds=0.05))
        finally:
            await self._in_thread(self._engine.dispose)
            self._thread.shutdown()

    async def compact(self) -> None:
        """Rewrite the file without its free pages, and empty the write-ahead log, between two transactions."""
        with mapped_errors(self._path):
            await self._in_thread(partial(vacuum, self._engine))
            await self._in_thread(partial(truncate_wal, self._engine, wait_seconds=BUSY_TIMEOUT_SECONDS))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                group = [self._queue.popleft() for _ in range(min(len(self._queue), GROUP_LIMIT))]
                await self._commit(group)
                if wal_size(self._path) >= CHECKPOINT_BYTES:
                    await self._in_thread(partial(truncate_wal, self._engine, wait_seconds=1))
            if self._closing:
                return

    async def _commit(self, group: list[_Batch]) -> None:
        try:
            with mapped_errors(self._path):
                results = await self._in_thread(partial(self._transaction, group))
        except Exception as exc:  # noqa: BLE001  a bug in a fold has to reach its caller, not end this task
            if len(group) > 1:
                # One batch spoils the whole transaction: find it by giving each its own.
                for batch in group:
                    await self._commit([batch])
            elif not group[0].done.done():
                group[0].done.set_exception(exc)
            return
        for batch, result in zip(group, results, strict=True):
            if batch.done.done():
                continue
            if isinstance(result, TimelineError):
                batch.done.set_exception(result)
            else:
                batch.done.set_result(result)

    def _transaction(self, group: list[_Batch]) -> list[list[Event] | TimelineError]:
        with self._engine.begin() as conn:
            return self._write(conn, group)

    def _write(self, conn: Connection, group: list[_Batch]) -> list[list[Event] | TimelineError]:
        head: int = conn.execute(select(func.max(schema.events.c.position))).scalar() or 0
        results: list[list[Event] | TimelineError] = []
        for batch in group:
            try:
                written, known = self._admit(conn, batch, head)
            except TimelineError as exc:
                results.append(exc)
                continue
            if batch.contents:
                rows = [{"digest": content_digest(body), "body": body} for body in batch.contents]
                conn.execute(sqlite_insert(schema.contents).on_conflict_do_nothing(), rows)
            if written:
                conn.execute(insert(schema.events), [row for _, row in written])
                stored = [event for event, _ in written]
                self._fold.apply(conn, stored)
                head += len(stored)
                results.append(stored)
            else:
                results.append(known)
        return results

    def _admit(
        self, conn: Connection, batch: _Batch, head: int
    ) -> tuple[list[tuple[Event, dict[str, int | str | None]]], list[Event]]:
        """Number and chain a batch's events, or say why it can't be appended; nothing is written yet."""
        new = batch.decide(conn)
        known = _known(conn, new)
        if known:
            if len(known) == len(new):
                return [], known
            msg = "a part of the batch is recorded already: append it whole, with its first ids, or not at all"
            raise IdempotencyConflict(msg)
        heads: dict[str, tuple[int, str]] = {}
        written = []
        for offset, event in enumerate(new):
            if event.session_id not in heads:
                heads[event.session_id] = self._session_head(conn, event.session_id)
                if batch.expected_version is not None and heads[event.session_id][0] != batch.expected_version:
                    msg = (
                        f"session {event.session_id} is at version {heads[event.session_id][0]}, not "
                        f"{batch.expected_version}: someone else appended first; read it again"
                    )
                    raise VersionConflict(msg)
            version, previous = heads[event.session_id]
            stored, row = _chained(event, head + 1 + offset, version + 1, previous)
            heads[event.session_id] = (stored.version, stored.digest)
            written.append((stored, row))
        return written, []

    @staticmethod
    def _session_head(conn: Connection, session_id: str) -> tuple[int, str]:
        table = schema.events
        row = conn.execute(
            select(table.c.version, table.c.digest)
            .where(table.c.session_id == session_id)
            .order_by(table.c.version.desc())
            .limit(1)
        ).first()
        return (row.version, row.digest) if row else (0, "")


def _chained(event: NewEvent, position: int, version: int, previous: str) -> tuple[Event, dict[str, int | str | None]]:
    text = encode(event.data)
    header = (
        position,
        event.event_id,
        event.session_id,
        version,
        event.data.type,
        event.data.v,
        event.recorded_at,
        event.turn_id,
        event.step_id,
        event.call_id,
    )
    digest = chain_digest(previous, header, body_digest(text.encode()))
    names = [column.name for column in schema.events.columns]
    row = dict(zip(names, (*header, text, digest), strict=True))
    return Event(*header, event.data, digest), row


def recorded(row: Row[Any], data: EventData | None) -> Event:
    """An event from its row and its decoded body."""
    columns = row._mapping  # noqa: SLF001  public API with an underscore, so as not to clash with columns
    return Event(**{name: columns[name] for name in Event.__struct_fields__ if name != "data"}, data=data)


def _known(conn: Connection, new: Sequence[NewEvent]) -> list[Event]:
    """Those of the events whose ids are recorded; an id with another body is a conflict."""
    table = schema.events
    by_id = {event.event_id: event for event in new}
    known = []
    for row in conn.execute(select(table).where(table.c.event_id.in_(by_id))):
        event = by_id[row.event_id]
        if (row.session_id, row.type, row.data) != (event.session_id, event.data.type, encode(event.data)):
            msg = f"event {event.event_id} is recorded with another body: an id stands for one fact"
            raise IdempotencyConflict(msg)
        known.append(recorded(row, event.data))
    return known
