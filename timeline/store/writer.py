"""The single writer of a process: how events get their position, version and digest, and are committed in groups.

Whatever is appended while a transaction runs goes into the next one, so many appends share
one fsync; each, where it isn't alone in a savepoint of its own, still succeeds or fails alone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import msgspec
from sqlalchemy import Connection, Engine, bindparam, func, insert, select, text
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from timeline.errors import IdempotencyConflict, StoreBusy, StoreError, VersionConflict
from timeline.events import Event, EventData, NewEvent, encode
from timeline.statements import Statement
from timeline.store import schema
from timeline.store.sqlite import mapped_errors, truncate_wal, vacuum, wal_size

__all__ = ["Decide", "Fold", "Writer", "body_digest", "chain_digest", "content_digest"]

T = TypeVar("T")
CHECKPOINT_BYTES = 16 * 1024 * 1024
GROUP_LIMIT = 500

Decide = Callable[[Connection], Sequence[NewEvent]]
"""Reads the read models inside the write transaction and says which events follow; may be asked again."""


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


# ------------------------------------------------------------------ statements

_events = schema.events.c
_LAST_POSITION = Statement(select(func.max(_events.position)))
_SESSION_HEAD = Statement(
    select(_events.version, _events.digest)
    .where(_events.session_id == bindparam("session_id"))
    .order_by(_events.version.desc())
    .limit(1)
)
_event_ids = func.json_each(bindparam("event_ids")).table_valued("value")
_KNOWN = Statement(select(schema.events).where(_events.event_id.in_(select(_event_ids.c.value))))
_INSERT = Statement(insert(schema.events))
_KEEP = Statement(sqlite_insert(schema.contents).on_conflict_do_nothing())
_SAVEPOINT, _ROLLBACK, _RELEASE = (
    Statement(text(f"{words} batch")) for words in ("SAVEPOINT", "ROLLBACK TO", "RELEASE")
)
_COLUMNS = tuple(column.name for column in schema.events.columns)


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
        self._checkpoint_at = CHECKPOINT_BYTES
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
                await self._truncate_wal(wait_seconds=0.05)
        finally:
            await self._in_thread(self._engine.dispose)
            self._thread.shutdown()

    async def compact(self, *, wait_seconds: float) -> None:
        """Rewrite the file without its free pages, and empty the write-ahead log, between two transactions.

        Args:
            wait_seconds: How long to wait for readers to make way.

        Raises:
            StoreBusy: Someone went on reading, so that the write-ahead log still holds what the file doesn't.
        """
        with mapped_errors(self._path):
            await self._in_thread(partial(vacuum, self._engine))
            if not await self._in_thread(partial(truncate_wal, self._engine, wait_seconds=wait_seconds)):
                msg = f"someone else has read {self._path} for over {wait_seconds:g} s: end it, and do this again"
                raise StoreBusy(msg)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                await self._commit([self._queue.popleft() for _ in range(min(len(self._queue), GROUP_LIMIT))])
                size = wal_size(self._path)
                if size >= self._checkpoint_at:
                    emptied = await self._truncate_wal(wait_seconds=1)
                    # Where a reader stays in the way, the log may grow rather than every commit wait for it.
                    self._checkpoint_at = CHECKPOINT_BYTES if emptied else size + CHECKPOINT_BYTES
            if self._closing:
                return

    async def _truncate_wal(self, *, wait_seconds: float) -> bool:
        """Whether the write-ahead log could be emptied; if not (no space, say), it holds what was committed."""
        try:
            with mapped_errors(self._path):
                return await self._in_thread(partial(truncate_wal, self._engine, wait_seconds=wait_seconds))
        except StoreError:
            return False

    async def _commit(self, group: list[_Batch]) -> None:
        results: Sequence[list[Event] | Exception]
        try:
            with mapped_errors(self._path):
                results = await self._in_thread(partial(self._transaction, group))
        except StoreBusy as exc:
            results = [exc] * len(group)
        except Exception as exc:  # noqa: BLE001  whatever it is has to reach its caller, not end this task
            if len(group) > 1:
                # The transaction failed as a whole: one batch may be what it has no room for.
                for batch in group:
                    await self._commit([batch])
                return
            results = [exc]
        for batch, result in zip(group, results, strict=True):
            if batch.done.done():
                continue
            if isinstance(result, Exception):
                batch.done.set_exception(result)
            else:
                batch.done.set_result(result)

    def _transaction(self, group: list[_Batch]) -> list[list[Event] | Exception]:
        with self._engine.begin() as conn:
            head: int = _LAST_POSITION.scalar(conn) or 0
            if len(group) == 1:
                # Its failure is the transaction's: a savepoint would copy each page that it changes, and at 64 KiB to a file.
                return [self._append(conn, group[0], head)]
            results: list[list[Event] | Exception] = []
            for batch in group:
                _SAVEPOINT.run(conn)
                try:
                    with mapped_errors(self._path):
                        events = self._append(conn, batch, head)
                except Exception as exc:  # noqa: BLE001  a bug in a fold or decision concerns its own batch alone
                    # Fails, and so ends the group, where SQLite itself has ended the transaction.
                    _ROLLBACK.run(conn)
                    results.append(exc)
                else:
                    head = max([head, *(event.position for event in events)])
                    results.append(events)
                _RELEASE.run(conn)
        return results

    def _append(self, conn: Connection, batch: _Batch, head: int) -> list[Event]:
        new = batch.decide(conn)
        if known := _known(conn, new):
            return known
        if batch.contents:
            rows = [{"digest": content_digest(body), "body": body} for body in batch.contents]
            _KEEP.run_all(conn, rows)
        if not new:
            return []
        written = self._chain(conn, new, head, batch.expected_version)
        _INSERT.run_all(conn, [row for _, row in written])
        events = [event for event, _ in written]
        self._fold.apply(conn, events)
        return events

    def _chain(
        self, conn: Connection, new: Sequence[NewEvent], head: int, expected_version: int | None
    ) -> list[tuple[Event, dict[str, int | str | None]]]:
        """Give a batch's events their positions, versions and digests."""
        heads: dict[str, tuple[int, str]] = {}
        written = []
        for position, event in enumerate(new, head + 1):
            if event.session_id not in heads:
                heads[event.session_id] = self._session_head(conn, event.session_id)
                if expected_version is not None and heads[event.session_id][0] != expected_version:
                    msg = (
                        f"session {event.session_id} is at version {heads[event.session_id][0]}, not "
                        f"{expected_version}: someone else appended first; read it again"
                    )
                    raise VersionConflict(msg)
            version, previous = heads[event.session_id]
            stored, row = _chained(event, position, version + 1, previous)
            heads[event.session_id] = (stored.version, stored.digest)
            written.append((stored, row))
        return written

    @staticmethod
    def _session_head(conn: Connection, session_id: str) -> tuple[int, str]:
        row = _SESSION_HEAD.first(conn, {"session_id": session_id})
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
    row = dict(zip(_COLUMNS, (*header, text, digest), strict=True))
    return Event(*header, event.data, digest), row


def recorded(row: Sequence[Any], data: EventData | None) -> Event:
    """An event from its whole row and its decoded body."""
    *header, _, digest = row
    return Event(*cast("Header", header), data, digest)


def _known(conn: Connection, new: Sequence[NewEvent]) -> list[Event]:
    """The events as recorded, if all of them are; empty if none is.

    Raises:
        IdempotencyConflict: Only some are, an id is recorded with another body, or stands twice in the batch.
    """
    by_id = {event.event_id: event for event in new}
    if len(by_id) < len(new):
        msg = "an event id stands twice in one batch: an id stands for one fact"
        raise IdempotencyConflict(msg)
    rows = _KNOWN.all(conn, {"event_ids": msgspec.json.encode(list(by_id)).decode()})
    if not rows:
        return []
    known = {}
    for row in rows:
        event = by_id[row.event_id]
        text = encode(event.data)
        kept = schema.forgotten_digest(row.data.encode())
        same = row.data == text if kept is None else kept == body_digest(text.encode())
        place = (event.session_id, event.data.type, event.turn_id, event.step_id, event.call_id)
        if not same or (row.session_id, row.type, row.turn_id, row.step_id, row.call_id) != place:
            msg = f"event {event.event_id} is recorded with another body: an id stands for one fact"
            raise IdempotencyConflict(msg)
        known[row.event_id] = recorded(row, event.data if kept is None else None)
    if len(known) < len(new):
        msg = "a part of the batch is recorded already: append it whole, with its first ids, or not at all"
        raise IdempotencyConflict(msg)
    return [known[event.event_id] for event in new]
