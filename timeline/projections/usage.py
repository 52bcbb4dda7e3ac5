"""What every ended attempt used and cost: the sums that `timeline report` shows, and those that budgets are held against."""

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
    bindparam,
    case,
    func,
    literal_column,
    select,
    text,
)
from sqlalchemy.dialects.sqlite import insert

from timeline.events import (
    BudgetAlerted,
    CallFailed,
    CallInterrupted,
    Event,
    FailedAttempt,
    ResponseCompleted,
    SessionRedacted,
)
from timeline.money import MOST_NANO_USD
from timeline.projections import Projection
from timeline.projections.calls import attempts
from timeline.statements import Statement

__all__ = [
    "DAY",
    "QUARTER",
    "Grouping",
    "ReportRow",
    "UsageProjection",
    "budget_alerts",
    "report",
    "spending",
    "summed",
    "usage",
]

Grouping = Literal["day", "month", "model", "provider", "session"]

QUARTER = 15 * 60 * 1_000_000
"""µs of a quarter of an hour: in every time zone, days begin with one of UTC's."""
DAY = 24 * 60 * 60 * 1_000_000
"""µs of a day of UTC."""
_HALF = 2**32

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

# Sums of what is not free, so that a budget is read from a few rows however long the log is. In the order of their
# keys, as SQLite keeps them: so a rebuild that counts in another order writes the same bytes.
spending = Table(
    "spending",
    MetaData(),
    Column(
        "scope", Text, primary_key=True, nullable=False
    ),  # quarter, day, total, or the id of a session, turn or call
    Column("starts_at", Integer, primary_key=True, nullable=False),  # µs UTC, of a quarter of an hour or a day; else 0
    Column("provider", Text, primary_key=True, nullable=False),
    Column("model", Text, primary_key=True, nullable=False),
    Column("nano_usd", Integer, nullable=False),
    Column("tokens", Integer, nullable=False),
    Column("unpriced", Integer, nullable=False),  # attempts whose cost is unknown
    sqlite_with_rowid=False,
)

budget_alerts = Table(
    "budget_alerts",
    MetaData(),
    Column("budget", Text, primary_key=True, nullable=False),
    Column("window", Text, primary_key=True, nullable=False),
    Column("limit", Integer, primary_key=True, nullable=False),
    Column("threshold_percent", Integer, primary_key=True, nullable=False),
    sqlite_with_rowid=False,
)


def summed(column: ColumnElement[int]) -> ColumnElement[int]:
    """The exact sum of what isn't negative, 0 of nothing, at most what an integer holds: SQLite's `sum` fails beyond."""
    upper, lower = func.sum(column // _HALF), func.sum(column % _HALF)
    return func.coalesce(func.min(upper * _HALF + lower, MOST_NANO_USD), 0)


# The first end of an attempt counts.
_add = Statement(insert(usage).prefix_with("OR IGNORE"))
_attempt = Statement(
    select(
        attempts.c.session_id,
        attempts.c.turn_id,
        attempts.c.provider,
        attempts.c.model,
        attempts.c.started_at,
        attempts.c.local,
    ).where(attempts.c.call_id == bindparam("call_id"), attempts.c.attempt == bindparam("attempt"))
)
_counting = insert(spending)
_spend = Statement(
    _counting.on_conflict_do_update(
        index_elements=list(spending.primary_key),
        # A sum that is too large for an integer is a float to SQLite, and larger than the largest.
        set_={
            name: func.min(spending.c[name] + _counting.excluded[name], MOST_NANO_USD)
            for name in ("nano_usd", "tokens", "unpriced")
        },
    )
)
_alert = Statement(insert(budget_alerts).prefix_with("OR IGNORE"))


class UsageProjection(Projection):
    """Folds token counters and costs: into `usage` beside the attempt they belong to, and into the sums of `spending`."""

    name: ClassVar[str] = "usage"
    version: ClassVar[int] = 2
    tables: ClassVar[tuple[Table, ...]] = (usage, spending, budget_alerts)
    reads: ClassVar[tuple[str, ...]] = ("calls",)

    def apply(self, conn: Connection, event: Event) -> None:
        """See `Projection.apply`."""
        match event.data:
            case ResponseCompleted() | CallInterrupted() | CallFailed() as ended:
                self._add(conn, event.call_id, ended)
            case BudgetAlerted() as alerted:
                row = {name: getattr(alerted, name) for name in ("budget", "window", "limit", "threshold_percent")}
                _alert.run(conn, row)
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
        if _add.run(conn, row):
            _count(conn, row, counters.total_input + counters.output)


def _count(conn: Connection, row: dict[str, str | int | None], tokens: int) -> None:
    """Add an attempt's end to the sums of when it was sent, unless it cost nothing because it ran on this machine."""
    sent = _attempt.first(conn, {"call_id": row["call_id"], "attempt": row["attempt"]})
    if sent is None or row["cost_state"] == "free" or (sent.local and not row["nano_usd"]):
        return
    counted = {
        "provider": sent.provider,
        "model": sent.model,
        "nano_usd": row["nano_usd"] or 0,
        "tokens": tokens,
        "unpriced": int(row["cost_state"] == "unpriced" and row["source"] != "none"),
    }
    scopes = [
        ("quarter", sent.started_at // QUARTER * QUARTER),
        ("day", sent.started_at // DAY * DAY),
        ("total", 0),
        *((part_of, 0) for part_of in (sent.session_id, sent.turn_id, row["call_id"]) if part_of),
    ]
    _spend.run_all(conn, [{"scope": scope, "starts_at": starts_at, **counted} for scope, starts_at in scopes])


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

    query = (
        select(
            group.label("group"),
            func.count(func.distinct(a.call_id)),
            count(a.state == "failed"),
            count(a.state == "interrupted"),
            summed(u.input),
            summed(u.cache_read),
            summed(u.cache_write + u.cache_write_1h),
            summed(u.output),
            summed(u.reasoning),
            summed(u.nano_usd),
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
