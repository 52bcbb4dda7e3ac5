"""Attempts: one row for each, from `request.sent` to its end; and which of them nobody has ended yet."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

from msgspec import Struct
from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    bindparam,
    func,
    insert,
    literal_column,
    or_,
    select,
    update,
)

from timeline.events import (
    CallFailed,
    CallInterrupted,
    ChunkReceived,
    Event,
    Owner,
    RequestSent,
    ResponseCompleted,
    SessionRedacted,
)
from timeline.projections import Projection
from timeline.projections.owners import NOBODY, owned_by, owner_columns, owner_of
from timeline.statements import Row, Statement

__all__ = ["Calls", "OpenAttempt", "attempts", "open_attempt", "open_attempts", "open_where", "where_recorded"]

attempts = Table(
    "attempts",
    MetaData(),
    Column("call_id", Text, primary_key=True, nullable=False),
    Column("attempt", Integer, primary_key=True, nullable=False),
    Column("session_id", Text, nullable=False),
    Column("turn_id", Text),
    Column("step_id", Text),
    Column("provider", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("state", Text, nullable=False),  # open, completed, failed, interrupted
    Column("reason", Text),  # finish reason, error kind, or why it was interrupted
    Column("started_at", Integer, nullable=False),
    Column("time_to_first_token_us", Integer),  # of a completed one
    Column("duration_us", Integer),
    Column("first_at", Integer),  # when the first words were recorded; NULL for a private or unstreamed one
    Column("ended_at", Integer),
    Column("first_position", Integer, nullable=False),
    Column("last_position", Integer),
    Column("estimated_input_tokens", Integer, nullable=False),
    Column("local", Integer, nullable=False),
    *owner_columns(),
    Column("key", Text),
    Column("reserved_nano_usd", Integer, nullable=False),
    Column("reserved_tokens", Integer, nullable=False),
    Column("request_digest", Text),
)
Index("attempts_of_provider", attempts.c.provider, attempts.c.started_at)

# A literal, not a parameter: only then does SQLite use the partial index.
_is_open = attempts.c.state == literal_column("'open'")
Index("attempts_open", attempts.c.first_position, sqlite_where=_is_open)


_begin = Statement(insert(attempts).prefix_with("OR IGNORE"))
# The first end counts. The owner matters only while the attempt is open.
_end = Statement(
    update(attempts)
    .where(attempts.c.call_id == bindparam("of_call"), _is_open)
    .where(or_(bindparam("of_attempt", type_=Integer).is_(None), attempts.c.attempt == bindparam("of_attempt")))
    .values(
        state=bindparam("state"),
        reason=bindparam("reason"),
        duration_us=bindparam("duration_us"),
        time_to_first_token_us=bindparam("time_to_first_token_us"),
        last_position=bindparam("last_position"),
        ended_at=bindparam("ended_at"),
        **NOBODY,
    )
)
_hear = Statement(
    update(attempts)
    .where(attempts.c.call_id == bindparam("of_call"), attempts.c.attempt == bindparam("of_attempt"), _is_open)
    .values(first_at=bindparam("first_at"))
)
_hear_again = Statement(
    update(attempts)
    .where(attempts.c.call_id == bindparam("of_call"), attempts.c.first_at.is_(None), _is_open)
    .values(first_at=bindparam("first_at"))
)
_explain = Statement(
    update(attempts)
    .where(attempts.c.call_id == bindparam("of_call"), attempts.c.attempt == bindparam("of_attempt"))
    .values(reason=bindparam("reason"), duration_us=bindparam("duration_us"))
)


class Calls(Projection):
    """Folds the life of every attempt into the table `attempts`."""

    name: ClassVar[str] = "calls"
    version: ClassVar[int] = 4
    tables: ClassVar[tuple[Table, ...]] = (attempts,)

    def apply(self, conn: Connection, event: Event) -> None:
        """See `Projection.apply`."""
        match event.data:
            case RequestSent() as sent:
                row = {
                    "call_id": event.call_id,
                    "attempt": sent.attempt,
                    "session_id": event.session_id,
                    "turn_id": event.turn_id,
                    "step_id": event.step_id,
                    "provider": sent.provider,
                    "model": sent.model,
                    "state": "open",
                    "started_at": event.recorded_at,
                    "first_position": event.position,
                    "estimated_input_tokens": sent.estimated_input_tokens,
                    "local": int(sent.local),
                    **owned_by(sent.owner),
                    "key": sent.key,
                    "reserved_nano_usd": sent.reserved_nano_usd,
                    "reserved_tokens": sent.reserved_tokens,
                    "request_digest": sent.request_digest,
                }
                _begin.run(conn, row)
            case None if event.type == "chunk.received":
                # Forgotten: which of the attempt's it was is gone with the body; the first one counts.
                _hear_again.run(conn, {"of_call": event.call_id, "first_at": event.recorded_at})
            case ChunkReceived(first=0) as chunk:
                which = {"of_call": event.call_id, "of_attempt": chunk.attempt}
                _hear.run(conn, which | {"first_at": event.recorded_at})
            case ResponseCompleted() as done:
                values = (done.attempt, done.finish_reason, done.duration_us, done.time_to_first_token_us)
                _finish(conn, event, "completed", values)
            case CallFailed() as failed:
                _finish(conn, event, "failed", (failed.attempt, failed.error.kind, failed.duration_us, None))
            case CallInterrupted() as stopped:
                _finish(conn, event, "interrupted", (stopped.attempt, stopped.reason, stopped.duration_us, None))
            case SessionRedacted() as redacted:
                for known in redacted.failed:
                    which = {"of_call": known.call_id, "of_attempt": known.attempt}
                    _explain.run(conn, which | {"reason": known.kind, "duration_us": known.duration_us})
            case None if event.type == "call.failed":
                # Forgotten: which attempt it was is gone with the body; it is the call's open one.
                _finish(conn, event, "failed", (None, None, None, None))


def _finish(
    conn: Connection, event: Event, state: str, values: tuple[int | None, str | None, int | None, int | None]
) -> None:
    names = ("of_attempt", "reason", "duration_us", "time_to_first_token_us")
    row = dict(zip(names, values, strict=True))
    end = {"of_call": event.call_id, "state": state, "last_position": event.position, "ended_at": event.recorded_at}
    _end.run(conn, row | end)


class OpenAttempt(Struct, frozen=True):
    """An attempt without an end, and who has to end it."""

    session_id: str
    turn_id: str | None
    step_id: str | None
    call_id: str
    attempt: int
    provider: str
    model: str
    first_position: int
    started_at: int
    estimated_input_tokens: int
    local: bool
    owner: Owner


def open_attempts(conn: Connection, *conditions: ColumnElement[bool]) -> list[OpenAttempt]:
    """Every attempt that has not ended and is as `conditions` say, oldest first."""
    which = open_where(*conditions) if conditions else _every_open
    return [open_attempt(row) for row in which.all(conn)]


def open_where(*conditions: ColumnElement[bool]) -> Statement:
    """What `open_attempts` runs, for those who run it with every call."""
    return Statement(select(attempts).where(_is_open, *conditions).order_by(attempts.c.first_position))


_every_open = open_where()


def open_attempt(row: Row) -> OpenAttempt:
    """One of its rows."""
    return OpenAttempt(
        session_id=row.session_id,
        turn_id=row.turn_id,
        step_id=row.step_id,
        call_id=row.call_id,
        attempt=row.attempt,
        provider=row.provider,
        model=row.model,
        first_position=row.first_position,
        started_at=row.started_at,
        estimated_input_tokens=row.estimated_input_tokens,
        local=bool(row.local),
        owner=owner_of(row),
    )


def where_recorded(conn: Connection, calls: Collection[str]) -> dict[str, tuple[str, int, int | None]]:
    """Of each of these calls: its session, its first position, and its last one, None while it is open."""
    which = attempts.c.call_id
    spans = (func.min(attempts.c.first_position), func.max(attempts.c.last_position))
    # Where one attempt is open there is no last position yet.
    still_open = func.max(_is_open)
    query = select(which, attempts.c.session_id, *spans, still_open).where(which.in_(calls)).group_by(which)
    return {
        call: (session, first, None if is_open else last) for call, session, first, last, is_open in conn.execute(query)
    }
