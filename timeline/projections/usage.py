"""What every ended attempt used and cost, and the sums of it that `timeline report` shows."""

from __future__ import annotations

from typing import ClassVar, Literal

from msgspec import Struct
from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Integer,
    MetaData,
    Table,
    Text,
    case,
    func,
    insert,
    literal_column,
    select,
    text,
)

from timeline.events import CallFailed, CallInterrupted, Event, FailedAttempt, ResponseCompleted, SessionRedacted
from timeline.projections import Projection
from timeline.projections.calls import attempts

__all__ = ["Grouping", "ReportRow", "UsageProjection", "report", "usage"]

Grouping = Literal["day", "month", "model", "provider", "session"]

usage = Table(
    "usage",
    MetaData(),
    Column("call_id", Text, primary_key=True, nullable=False),
    Column("attempt", Integer, primary_key=True, nullable=False),
    Column("input", Integer, nullable=False),
    Column("cache_read", Integer, nullable=False),
    Column("cache_write", Integer, nullable=False),
    Column("cache_write_1h", Integer, nullable=False),
    Column("output", Integer, nullable=False),
    Column("reasoning", Integer, nullable=False),
    Column("source", Text, nullable=False),  # provider, estimated, none
    Column("cost_state", Text, nullable=False),  # priced, free, unpriced
    Column("nano_usd", Integer),
)


# The first end of an attempt counts.
_add = insert(usage).prefix_with("OR IGNORE")


class UsageProjection(Projection):
    """Folds token counters and costs into the table `usage`, beside the attempt they belong to."""

    name: ClassVar[str] = "usage"
    version: ClassVar[int] = 1
    tables: ClassVar[tuple[Table, ...]] = (usage,)

    def apply(self, conn: Connection, event: Event) -> None:
        """See `Projection.apply`."""
        match event.data:
            case ResponseCompleted() | CallInterrupted() | CallFailed() as ended:
                self._add(conn, event.call_id, ended)
            case SessionRedacted() as redacted:
                # Known already, unless the projection is folded anew: then this is where forgotten failures count.
                for failed in redacted.failed:
                    self._add(conn, failed.call_id, failed)

    @staticmethod
    def _add(
        conn: Connection, call_id: str | None, ended: ResponseCompleted | CallInterrupted | CallFailed | FailedAttempt
    ) -> None:
        counters, cost = ended.usage, ended.cost
        if counters is None:
            return
        row = {
            "call_id": call_id,
            "attempt": ended.attempt,
            "input": counters.input,
            "cache_read": counters.cache_read,
            "cache_write": counters.cache_write,
            "cache_write_1h": counters.cache_write_1h,
            "output": counters.output,
            "reasoning": counters.reasoning,
            "source": ended.usage_source,
            "cost_state": cost.state if cost else "unpriced",
            "nano_usd": cost.nano_usd if cost else None,
        }
        conn.execute(_add, row)


class ReportRow(Struct, frozen=True):
    """Sums over the attempts of one group.

    Args:
        group: The day (`2026-11-22`), month, `provider:model`, provider, or session id.
        calls: Logical calls.
        failed: Attempts that failed.
        interrupted: Attempts that were interrupted.
        input, cache_read, cache_write, output, reasoning: Tokens; `cache_write` counts both lifetimes.
        nano_usd: What is known to have been paid, nano-US-dollars.
        unpriced: Attempts that used tokens of unknown price.
        free: Attempts on this machine.
        estimated: Attempts whose tokens we estimated.
    """

    group: str
    calls: int
    failed: int
    interrupted: int
    input: int
    cache_read: int
    cache_write: int
    output: int
    reasoning: int
    nano_usd: int
    unpriced: int
    free: int
    estimated: int


def report(
    conn: Connection,
    by: Grouping | None,
    *,
    since: int | None = None,
    until: int | None = None,
    session_id: str | None = None,
) -> list[ReportRow]:
    """Sum attempts, a row a group, in the order of the groups' names (sessions: of time).

    Args:
        conn: Any connection.
        by: The grouping; None for one row of totals. Days are of this machine's time zone.
        since: Only attempts begun at or after this instant, µs UTC.
        until: Only attempts begun before this instant, µs UTC.
        session_id: Only this session's.
    """
    a, u = attempts.c, usage.c
    local = (a.started_at // 1_000_000, "unixepoch", "localtime")
    groups: dict[str | None, ColumnElement[str]] = {
        None: literal_column("''"),
        "day": func.strftime("%Y-%m-%d", *local),
        "month": func.strftime("%Y-%m", *local),
        "model": a.provider + ":" + a.model,
        "provider": a.provider,
        "session": a.session_id,
    }
    group = groups[by]

    def count(condition: ColumnElement[bool]) -> ColumnElement[int]:
        return func.coalesce(func.sum(case((condition, 1), else_=0)), 0)

    def total(column: ColumnElement[int]) -> ColumnElement[int]:
        return func.coalesce(func.sum(column), 0)

    query = (
        select(
            group.label("group"),
            func.count(func.distinct(a.call_id)),
            count(a.state == "failed"),
            count(a.state == "interrupted"),
            total(u.input),
            total(u.cache_read),
            total(u.cache_write + u.cache_write_1h),
            total(u.output),
            total(u.reasoning),
            total(u.nano_usd),
            count((u.cost_state == "unpriced") & (u.source != "none")),
            count(u.cost_state == "free"),
            count(u.source == "estimated"),
        )
        .select_from(attempts)
        .outerjoin(usage, (u.call_id == a.call_id) & (u.attempt == a.attempt))
        .order_by(func.min(a.first_position) if by == "session" else text("1"))
    )
    if by:
        query = query.group_by(group)
    if since is not None:
        query = query.where(a.started_at >= since)
    if until is not None:
        query = query.where(a.started_at < until)
    if session_id is not None:
        query = query.where(a.session_id == session_id)
    names = ReportRow.__struct_fields__
    return [ReportRow(**dict(zip(names, row, strict=True))) for row in conn.execute(query)]
