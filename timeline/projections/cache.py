"""Which answers of the log would do for an equal request, and which equal request is being answered now."""

from __future__ import annotations

from typing import ClassVar

from msgspec import Struct
from sqlalchemy import Column, Connection, Integer, MetaData, Table, Text, bindparam, delete, select

from timeline.events import Event, ResponseCompleted
from timeline.projections import Projection
from timeline.projections.calls import OpenAttempt, attempts, open_attempt, open_where
from timeline.projections.usage import usage
from timeline.statements import Statement, overwriting

__all__ = ["WHOLE", "Cache", "Cached", "cached", "find_cached", "under_way"]

WHOLE = frozenset({"stop", "length"})
"""How an answer ends that an equal request would get again. Calls of tools are not among them: what has to be sent
back with them (signed reasoning, say) is not in the log."""

cached = Table(
    "cached",
    MetaData(),
    Column("request_digest", Text, primary_key=True, nullable=False),
    Column("session_id", Text, nullable=False),
    Column("call_id", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("finish_reason", Text, nullable=False),
    Column("completed_at", Integer, nullable=False),
    sqlite_with_rowid=False,
)

_made = Statement(
    select(attempts.c.request_digest).where(
        attempts.c.call_id == bindparam("of_call"), attempts.c.attempt == bindparam("of_attempt")
    )
)
_keep = overwriting(cached)
_forget = Statement(delete(cached).where(cached.c.session_id == bindparam("of_session")))
_find = Statement(
    select(
        cached.c.session_id,
        cached.c.call_id,
        cached.c.attempt,
        cached.c.finish_reason,
        attempts.c.provider,
        attempts.c.model,
        attempts.c.first_position,
        attempts.c.last_position,
        usage.c.cost_state,
        usage.c.nano_usd,
    )
    .join(attempts, (attempts.c.call_id == cached.c.call_id) & (attempts.c.attempt == cached.c.attempt))
    .outerjoin(usage, (usage.c.call_id == cached.c.call_id) & (usage.c.attempt == cached.c.attempt))
    .where(cached.c.request_digest == bindparam("digest"), cached.c.completed_at >= bindparam("since"))
)
_under_way = open_where(attempts.c.request_digest == bindparam("digest"))


class Cache(Projection):
    """Folds whole answers into the table `cached`, by the digest of what was asked; the last one counts."""

    name: ClassVar[str] = "cache"
    version: ClassVar[int] = 1
    tables: ClassVar[tuple[Table, ...]] = (cached,)
    reads: ClassVar[tuple[str, ...]] = ("calls",)

    def apply(self, conn: Connection, event: Event) -> None:
        """See `Projection.apply`."""
        match event.type, event.data:
            case _, ResponseCompleted(finish_reason=reason) as done if reason in WHOLE:
                digest = _made.scalar(conn, {"of_call": event.call_id, "of_attempt": done.attempt})
                if digest is not None:
                    row = {
                        "request_digest": digest,
                        "session_id": event.session_id,
                        "call_id": event.call_id,
                        "attempt": done.attempt,
                        "finish_reason": reason,
                        "completed_at": event.recorded_at,
                    }
                    _keep.run(conn, row)
            case "session.redacted", _:
                _forget.run(conn, {"of_session": event.session_id})


class Cached(Struct, frozen=True):
    """A whole answer in the log.

    Args:
        session_id, call_id, attempt: Where its chunks are,
        first_position, last_position: and between which positions.
        provider, model: Who gave it.
        finish_reason: How it ended.
        nano_usd: What it cost, nano-US-dollars; None where that is unknown.
    """

    session_id: str
    call_id: str
    attempt: int
    first_position: int
    last_position: int
    provider: str
    model: str
    finish_reason: str
    nano_usd: int | None


def find_cached(conn: Connection, digest: str, *, since: int = 0) -> Cached | None:
    """The last whole answer to a request of that digest.

    Args:
        conn: Any connection.
        digest: See `timeline.events.RequestSent`.
        since: Only one completed at or after this instant, µs UTC.
    """
    row = _find.first(conn, {"digest": digest, "since": since})
    if row is None:
        return None
    return Cached(
        session_id=row.session_id,
        call_id=row.call_id,
        attempt=row.attempt,
        first_position=row.first_position,
        last_position=row.last_position,
        provider=row.provider,
        model=row.model,
        finish_reason=row.finish_reason,
        nano_usd={"free": 0, "priced": row.nano_usd}.get(row.cost_state),
    )


def under_way(conn: Connection, digest: str) -> list[OpenAttempt]:
    """Attempts at a request of that digest that have not ended, oldest first; their processes may have."""
    return [open_attempt(row) for row in _under_way.all(conn, {"digest": digest})]
