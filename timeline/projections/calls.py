"""Attempts: one row for each, from `request.sent` to its end; and which of them nobody has ended yet."""

from __future__ import annotations

from typing import ClassVar

from msgspec import Struct
from sqlalchemy import (
    Column,
    Connection,
    Float,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    insert,
    literal_column,
    select,
    update,
)

from timeline.events import CallFailed, CallInterrupted, Event, Owner, RequestSent, ResponseCompleted
from timeline.projections import Projection

__all__ = ["Calls", "OpenAttempt", "attempts", "open_attempts"]

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
    Column("time_to_first_token_us", Integer),
    Column("duration_us", Integer),
    Column("first_position", Integer, nullable=False),
    Column("last_position", Integer),
    Column("estimated_input_tokens", Integer, nullable=False),
    Column("local", Integer, nullable=False),
    Column("owner_host", Text),
    Column("owner_pid", Integer),
    Column("owner_started", Float),
)

# A literal, not a parameter: only then does SQLite use the partial index.
_is_open = attempts.c.state == literal_column("'open'")
Index("attempts_open", attempts.c.first_position, sqlite_where=_is_open)


class Calls(Projection):
    """Folds the life of every attempt into the table `attempts`."""

    name: ClassVar[str] = "calls"
    version: ClassVar[int] = 1
    tables: ClassVar[tuple[Table, ...]] = (attempts,)

    def apply(self, conn: Connection, event: Event) -> None:
        """See `Projection.apply`."""
        match event.data:
            case RequestSent() as sent:
                conn.execute(
                    insert(attempts).values(
                        call_id=event.call_id,
                        attempt=sent.attempt,
                        session_id=event.session_id,
                        turn_id=event.turn_id,
                        step_id=event.step_id,
                        provider=sent.provider,
                        model=sent.model,
                        state="open",
                        started_at=event.recorded_at,
                        first_position=event.position,
                        estimated_input_tokens=sent.estimated_input_tokens,
                        local=int(sent.local),
                        owner_host=sent.owner.host,
                        owner_pid=sent.owner.pid,
                        owner_started=sent.owner.started,
                    )
                )
            case ResponseCompleted() as done:
                self._end(
                    conn,
                    event,
                    done.attempt,
                    state="completed",
                    reason=done.finish_reason,
                    duration_us=done.duration_us,
                    time_to_first_token_us=done.time_to_first_token_us,
                )
            case CallFailed() as failed:
                self._end(
                    conn,
                    event,
                    failed.attempt,
                    state="failed",
                    reason=failed.error.kind,
                    duration_us=failed.duration_us,
                )
            case CallInterrupted() as stopped:
                self._end(
                    conn,
                    event,
                    stopped.attempt,
                    state="interrupted",
                    reason=stopped.reason,
                    duration_us=stopped.duration_us,
                )
            case None if event.type == "call.failed":
                # Forgotten: which attempt it was is gone with the body; it is the call's open one.
                self._end(conn, event, None, state="failed")

    @staticmethod
    def _end(conn: Connection, event: Event, attempt: int | None, **values: object) -> None:
        which = attempts.c.attempt == attempt if attempt is not None else _is_open
        # The owner matters only while the attempt is open.
        conn.execute(
            update(attempts)
            .where(attempts.c.call_id == event.call_id, which)
            .values(last_position=event.position, owner_host=None, owner_pid=None, owner_started=None, **values)
        )


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


def open_attempts(conn: Connection) -> list[OpenAttempt]:
    """Every attempt that has not ended, oldest first."""
    query = select(attempts).where(_is_open).order_by(attempts.c.first_position)
    return [
        OpenAttempt(
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
            owner=Owner(row.owner_host, row.owner_pid, row.owner_started),
        )
        for row in conn.execute(query)
    ]
