"""What stands against each budget: when its window began and ends, what was spent in it and what open requests may still cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import date, datetime, timedelta, tzinfo
from decimal import Decimal
from typing import Literal

import msgspec
from msgspec import Struct
from sqlalchemy import ColumnElement, Connection, Text, and_, bindparam, func, literal_column, or_, select

from timeline.config import BudgetConfig
from timeline.money import MOST_NANO_USD
from timeline.projections.calls import attempts
from timeline.projections.usage import DAY, budget_alerts, spending, summed
from timeline.statements import Statement

__all__ = ["ONE_CALL", "BudgetState", "Period", "applies", "period", "read_budgets"]

NANO = 1_000_000_000
SECOND = 1_000_000
ONE_CALL = frozenset({"turn", "call"})
"""Windows that say nothing of other calls: what is too much for one of them may be right for the next prompt."""


class BudgetState(Struct, frozen=True):
    """A budget in its present window.

    Args:
        name: The budget's.
        window: Which: `2026-11`, `2026-W48`, `2026-11-25`, a session's id, `turn`, `call` or `total`.
        unit: What the amounts count: nano-US-dollars or tokens.
        spent: By attempts that ended, whichever process made them.
        reserved: What attempts that are still open may use at most.
        limit: The most of both.
        action: What happens to a request that would pass it.
        ends_at: When the window ends, µs UTC; None where it doesn't by itself.
        alerted: Thresholds of which was told, in percent, in order.
        unpriced: Attempts in the window whose cost nobody knows, and which `spent` lacks.
    """

    name: str
    window: str
    unit: Literal["nano_usd", "tokens"]
    spent: int
    reserved: int
    limit: int
    action: Literal["block", "warn", "fallback"]
    ends_at: int | None = None
    alerted: tuple[int, ...] = ()
    unpriced: int = 0


class Period(Struct, frozen=True):
    """One window of a calendar.

    Args:
        label: Its name, as ISO 8601 writes it: `2026-11`, `2026-W48`, `2026-11-25`.
        starts_at: µs UTC.
        ends_at: The first instant after it, µs UTC.
    """

    label: str
    starts_at: int
    ends_at: int


# ------------------------------------------------------------------ windows


def period(window: Literal["day", "week", "month"], now: int, tz: tzinfo | None = None) -> Period:
    """The day, week (from Monday) or month in which an instant lies.

    Args:
        window: Which.
        now: µs UTC.
        tz: Whose calendar; None for this machine's time zone.
    """
    today = datetime.fromtimestamp(now // SECOND, tz).date()
    match window:
        case "day":
            label, first, after = today.isoformat(), today, today + timedelta(days=1)
        case "week":
            year, week, weekday = today.isocalendar()
            first = today - timedelta(days=weekday - 1)
            label, after = f"{year}-W{week:02d}", first + timedelta(days=7)
        case "month":
            first = today.replace(day=1)
            label, after = f"{today:%Y-%m}", (first + timedelta(days=31)).replace(day=1)
    return Period(label, _midnight(first, tz), _midnight(after, tz))


def _midnight(day: date, tz: tzinfo | None) -> int:
    # Without a time zone, `timestamp` takes the machine's.
    return int(datetime(day.year, day.month, day.day, tzinfo=tz).timestamp()) * SECOND


# ------------------------------------------------------------------ reading


def applies(budget: BudgetConfig, provider: str | None, model: str | None) -> bool:
    """Whether a budget counts what this model of this provider costs; any budget does for a provider of None."""
    if provider is None:
        return True
    if budget.provider is not None and budget.provider != provider:
        return False
    return budget.model is None or budget.model == f"{provider}:{model}"


def read_budgets(
    conn: Connection,
    budgets: Iterable[BudgetConfig],
    *,
    now: int,
    session_id: str | None = None,
    turn_id: str | None = None,
    call_id: str | None = None,
    provider: str | None = None,
    model: str | None = None,
    tz: tzinfo | None = None,
) -> tuple[BudgetState, ...]:
    """Where the budgets stand that a request falls under, in their order.

    Args:
        conn: Any connection; inside the transaction that admits a request, the answer holds until it is committed.
        budgets: All that are configured.
        now: µs UTC.
        session_id: What the request is part of.
        turn_id: Likewise.
        call_id: Likewise.
        provider: Whom it would go to; None for all budgets, whomever they are about.
        model: The name to ask for there.
        tz: Whose calendar days, weeks and months are of; None for this machine's time zone.
    """
    chosen = [budget for budget in budgets if applies(budget, provider, model)]
    if not chosen:
        return ()
    ids = {"session": session_id, "turn": turn_id, "call": call_id}
    windows = [_window(budget, now, ids, tz) for budget in chosen]
    is_open = [_Open(*row) for row in OPEN.all(conn)]
    told: defaultdict[tuple[str, str, int], list[int]] = defaultdict(list)
    pairs = [(budget.name, window.label) for budget, window in zip(chosen, windows, strict=True)]
    for name, label, limit, threshold in ALERTED.all(conn, {"pairs": msgspec.json.encode(pairs).decode()}):
        told[name, label, limit].append(threshold)
    states = []
    for budget, window in zip(chosen, windows, strict=True):
        limit = _limit(budget)
        nano_usd, tokens, unpriced = _spent(conn, budget, window)
        held = [attempt for attempt in is_open if _is_held(budget, window, attempt)]
        in_usd = budget.limit_usd is not None
        state = BudgetState(
            name=budget.name,
            window=window.label,
            unit="nano_usd" if in_usd else "tokens",
            spent=nano_usd if in_usd else tokens,
            reserved=min(sum(attempt.nano_usd if in_usd else attempt.tokens for attempt in held), MOST_NANO_USD),
            limit=limit,
            action=budget.action,
            ends_at=window.period.ends_at if window.period else None,
            alerted=tuple(told[budget.name, window.label, limit]),
            unpriced=unpriced,
        )
        states.append(state)
    return tuple(states)


class _Open(Struct, frozen=True):
    """An attempt without an end, and what it reserved."""

    provider: str
    model: str
    started_at: int
    nano_usd: int
    tokens: int
    session_id: str
    turn_id: str | None
    call_id: str


class _Window(Struct, frozen=True):
    """A budget's present window.

    Args:
        label: As of a `BudgetState`.
        period: Of one of the calendar.
        scope: Of another, as `spending` has it: the id of a session, turn or call, or `total`.
    """

    label: str
    period: Period | None = None
    scope: str = ""


def _window(budget: BudgetConfig, now: int, ids: Mapping[str, str | None], tz: tzinfo | None) -> _Window:
    match budget.window:
        case "day" | "week" | "month" as window:
            found = period(window, now, tz)
            return _Window(found.label, found)
        case "session":
            return _Window(ids["session"] or "session", scope=ids["session"] or "")
        case "total":
            return _Window("total", scope="total")
        case "turn" | "call" as window:
            return _Window(window, scope=ids[window] or "")


def _limit(budget: BudgetConfig) -> int:
    if budget.limit_usd is None:
        return budget.limit_tokens or 0
    # Digit for digit as it is written: 0.07 is seven cents.
    return int(Decimal(repr(budget.limit_usd)) * NANO)


def _spent(conn: Connection, budget: BudgetConfig, window: _Window) -> tuple[int, int, int]:
    """Nano-US-dollars, tokens, and attempts of unknown cost."""
    provider, _, model = (budget.model or "").partition(":")
    whose = {"of_provider": budget.provider or provider or None, "of_model": model or None}
    if window.period is None:
        sums = OF_SCOPE.one(conn, {"of_scope": window.scope, **whose})
        return sums.nano_usd, sums.tokens, sums.unpriced
    starts_at, ends_at = window.period.starts_at, window.period.ends_at
    # Quarters of an hour up to the first midnight of UTC, then days, then quarters again: the same sum from fewer rows.
    first_day, last_day = -(-starts_at // DAY) * DAY, ends_at // DAY * DAY
    if first_day > last_day:
        first_day = last_day = ends_at
    times = {"starts_at": starts_at, "first_day": first_day, "last_day": last_day, "ends_at": ends_at}
    sums = OF_PERIOD.one(conn, times | whose)
    return sums.nano_usd, sums.tokens, sums.unpriced


def _is_held(budget: BudgetConfig, window: _Window, attempt: _Open) -> bool:
    """Whether an open attempt counts against the budget: in the window in which it was sent."""
    if window.period is not None:
        if not window.period.starts_at <= attempt.started_at < window.period.ends_at:
            return False
    elif budget.window != "total" and window.scope != getattr(attempt, f"{budget.window}_id"):
        return False
    return applies(budget, attempt.provider, attempt.model)


# ------------------------------------------------------------------ queries: made once, as they run with every request


_a, _s, _b = attempts.c, spending.c, budget_alerts.c
OPEN = Statement(
    select(
        _a.provider,
        _a.model,
        _a.started_at,
        _a.reserved_nano_usd,
        _a.reserved_tokens,
        _a.session_id,
        _a.turn_id,
        _a.call_id,
    ).where(
        # A literal, not a parameter: only then does SQLite use the partial index.
        _a.state == literal_column("'open'"),
        # What runs on this machine and costs nothing is exempt.
        (_a.local == 0) | (_a.reserved_nano_usd > 0),
    )
)
_pair = func.json_each(bindparam("pairs")).table_valued("value").c.value
ALERTED = Statement(
    select(_b.budget, _b.window, _b.limit, _b.threshold_percent)
    .where(_b.budget == func.json_extract(_pair, "$[0]"), _b.window == func.json_extract(_pair, "$[1]"))
    .order_by(_b.threshold_percent)
)

_sums = [summed(_s[name]).label(name) for name in ("nano_usd", "tokens", "unpriced")]
_provider, _model = bindparam("of_provider", type_=Text), bindparam("of_model", type_=Text)
_whose = (_provider.is_(None) | (_s.provider == _provider)) & (_model.is_(None) | (_s.model == _model))
OF_SCOPE = Statement(select(*_sums).where(_s.scope == bindparam("of_scope"), _s.starts_at == 0, _whose))


def _between(scope: str, first: str, after: str) -> ColumnElement[bool]:
    return and_(_s.scope == scope, _s.starts_at >= bindparam(first), _s.starts_at < bindparam(after))


OF_PERIOD = Statement(
    select(*_sums).where(
        or_(
            _between("quarter", "starts_at", "first_day"),
            _between("day", "first_day", "last_day"),
            _between("quarter", "last_day", "ends_at"),
        ),
        _whose,
    )
)
