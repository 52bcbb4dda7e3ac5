"""What may hold one more request back: what providers told and refused, what was sent since, and who goes first.

Facts only; `timeline.llm.limiter` decides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from msgspec import Struct
from sqlalchemy import (
    ColumnElement,
    Connection,
    Integer,
    Text,
    and_,
    bindparam,
    case,
    func,
    literal_column,
    not_,
    or_,
    select,
)

from timeline.events import Owner
from timeline.projections.calls import attempts
from timeline.projections.limits import (
    AGREEING,
    CONFIRMING,
    MINUTE,
    OWN_COUNT,
    REFUSAL,
    SECOND,
    forgotten_at,
    limits,
    of_model,
    unit_of,
    waits,
    was_refused,
)
from timeline.projections.owners import owner_of
from timeline.projections.usage import usage
from timeline.statements import Row, Statement

__all__ = [
    "Configured",
    "KnownLimit",
    "LimitFacts",
    "Refused",
    "Sent",
    "Shape",
    "Told",
    "Waiter",
    "Waiting",
    "known_limits",
    "queue",
    "read_limits",
]

BUCKETS = 240
"""A window's requests are read as at most so many groups, each as late as its last."""
GRACE = 2 * SECOND
"""How long a waiter may be late before its place lapses, µs."""
ON_THE_WAY = 5 * SECOND
"""A request of which nothing was heard has reached the server after this time at the latest, µs."""

Shape = Literal["rolling", "resets", "gradual"]


class Configured(Struct, frozen=True):
    """Limits that the configuration gives a provider; None where it gives none.

    Args:
        rpm, tpm: Requests and tokens in any 60 seconds.
        max_concurrent: Requests at a time.
    """

    rpm: int | None = None
    tpm: int | None = None
    max_concurrent: int | None = None


class Sent(Struct, frozen=True):
    """Requests sent at about the same time.

    Args:
        at: When the last of them had reached the server at the latest, µs UTC.
        requests: How many.
        tokens, input_tokens: What they used; of those that run, what they may use.
    """

    at: int
    requests: int = 1
    tokens: int = 0
    input_tokens: int = 0


class Waiter(Struct, frozen=True):
    """A request that goes first.

    Args:
        until: When it means to be sent, µs UTC.
        tokens, input_tokens: What it may use.
        same_model: Whether it waits for the same model, else only for the same provider.
    """

    until: int
    tokens: int = 0
    input_tokens: int = 0
    same_model: bool = True


class Told(Struct, frozen=True):
    """A limit as the newest report told it.

    Args:
        name: The provider's word; `unit_of` says what it counts.
        limit: The most that is allowed; None where it wasn't told.
        remaining: What was left of it; None where it wasn't told.
        reset_at: When it is full again, µs UTC.
        told_at: When the report came, µs UTC.
        window_us: Over which time it counts, as far as known.
        refill_us: From empty to full, where it refills steadily.
        shape: `gradual`: refills steadily. `resets`: full at once at the reset. `rolling`: neither was seen, so
            what was sent counts until its window has passed.
        since: What was sent and isn't in the report.
        ours: The window is known, and nobody but us seems to use it: counting our own requests is enough.
    """

    name: str
    limit: int | None
    remaining: int | None
    reset_at: int
    told_at: int
    window_us: int
    refill_us: int | None = None
    shape: Shape = "rolling"
    since: Sent = Sent(0, 0)
    ours: bool = False


class Refused(Struct, frozen=True):
    """The provider refused a request not long ago.

    Args:
        until: Nothing is to be sent before, µs UTC.
        limit: How many requests it had taken within `window_us`; None if that isn't known.
        window_us: See `limit`.
        running, completed: Requests sent since `until`.
        careful: Nothing is known but the refusal: feel the way.
    """

    until: int
    limit: int | None
    window_us: int
    running: int = 0
    completed: int = 0
    careful: bool = True


class LimitFacts(Struct, frozen=True):
    """All that a decision about one more request needs.

    Args:
        told: What the provider told of this model.
        refused: What it refused.
        sent: Requests to this model, of the longest window in `told`, oldest first.
        sent_to_provider: Requests to any of its models in the last minute, oldest first.
        running: Requests without an end.
        configured: See `Configured`.
        ahead: Who goes first, in order.
        waiting_since: Since when this call waits, µs UTC.
    """

    told: tuple[Told, ...] = ()
    refused: Refused | None = None
    sent: tuple[Sent, ...] = ()
    sent_to_provider: tuple[Sent, ...] = ()
    running: int = 0
    configured: Configured = Configured()
    ahead: tuple[Waiter, ...] = ()
    waiting_since: int | None = None


_a = attempts.c
_now = bindparam("now", type_=Integer)
# At its first words; counted back from its end, which is written down when it comes.
_first = _a.ended_at - func.max(_a.duration_us - func.coalesce(_a.time_to_first_token_us, _a.duration_us), 0)
_arrived_at: ColumnElement[int] = func.coalesce(
    _first, _a.ended_at, _a.first_at, func.min(_a.started_at + ON_THE_WAY, func.max(_now, _a.started_at))
)
_u = usage.c
_used_input = _u.input + _u.cache_read + _u.cache_write + _u.cache_write_1h
_open = _a.state == "open"
_tokens = case((_open, _a.reserved_tokens), else_=func.coalesce(_used_input + _u.output, 0))
_input = case((_open, _a.estimated_input_tokens), else_=func.coalesce(_used_input, 0))
_ended = and_(_u.call_id == _a.call_id, _u.attempt == _a.attempt)
_of_key = func.coalesce(_a.key, "") == bindparam("of_key")
_sums = (func.count(), func.coalesce(func.sum(_tokens), 0), func.coalesce(func.sum(_input), 0))

_since_report = Statement(
    select(*_sums)
    .select_from(attempts.outerjoin(usage, _ended))
    .where(
        of_model,
        _a.started_at > bindparam("as_of", type_=Integer) - ON_THE_WAY,
        _arrived_at > bindparam("as_of", type_=Integer),
        _a.first_position != bindparam("told_by"),
        not_(was_refused),
    )
)
_own = Statement(
    select(func.count()).where(
        of_model, _a.started_at > bindparam("since"), _a.started_at <= bindparam("told_at"), not_(was_refused)
    )
)
_sent = Statement(
    select(func.max(_arrived_at), *_sums)
    .select_from(attempts.outerjoin(usage, _ended))
    .where(_a.provider == bindparam("of_provider"), _of_key, _a.started_at > bindparam("since"), not_(was_refused))
    .where(or_(bindparam("of_model", type_=Text).is_(None), _a.model == bindparam("of_model")))
    .group_by(_a.started_at // bindparam("width", type_=Integer))
    .order_by(literal_column("1"))
)
_after_refusal = Statement(
    select(_a.state, func.count().label("n"))
    .where(of_model, _a.started_at >= bindparam("since"), or_(_open, _a.state == "completed"))
    .group_by(_a.state)
)
_running = Statement(
    select(_a.owner_host, _a.owner_pid, _a.owner_started).where(
        _a.state == literal_column("'open'"), _a.provider == bindparam("of_provider"), _of_key
    )
)
_known_of_model = Statement(
    select(limits).where(
        limits.c.provider == bindparam("of_provider"),
        limits.c.model == bindparam("of_model"),
        limits.c.key == bindparam("of_key"),
    )
)
_queue = Statement(
    select(waits)
    .where(waits.c.provider == bindparam("of_provider"), waits.c.key == bindparam("of_key"))
    .order_by(waits.c.position)
)


def _everyone(_: Owner) -> bool:
    return True


def read_limits(
    conn: Connection,
    provider: str,
    model: str,
    key: str | None,
    configured: Configured,
    now: int,
    *,
    call_id: str | None = None,
    alive: Callable[[Owner], bool] = _everyone,
) -> LimitFacts:
    """What is known that may hold back one more request.

    Args:
        conn: Any connection; inside the transaction that admits the request, nobody comes in between.
        provider: Whom the request goes to.
        model: Which of its models.
        key: With which key; see `RequestSent.key`.
        configured: The provider's limits by the configuration.
        now: The present, µs UTC.
        call_id: The call that asks, whose own place in the queue counts; None: it comes last.
        alive: Whether a process still runs; those of dead ones are in nobody's way.
    """
    of_key = {"of_provider": provider, "of_key": key or ""}
    this = of_key | {"of_model": model}
    rows = _known_of_model.all(conn, this)
    rows = [row for row in rows if row.as_of <= now + MINUTE]
    told = tuple(found for row in rows if (found := _told(conn, row, this, now)) is not None)
    refused = next((_refusal(conn, row, this) for row in rows if _refuses(row, now)), None)
    windows = [limit.window_us for limit in told] + ([refused.window_us] if refused else [])
    window = min(max(windows, default=0), OWN_COUNT)
    by_minute = configured.rpm is not None or configured.tpm is not None
    ahead, since = _ahead(conn, of_key, model, call_id, now, alive)
    running = 0
    if configured.max_concurrent is not None:
        owners = _running.all(conn, of_key)
        running = sum(host is None or alive(Owner(host, pid, started)) for host, pid, started in owners)
    return LimitFacts(
        told=told,
        refused=refused,
        sent=_recent(conn, this, window, now) if window else (),
        sent_to_provider=_recent(conn, of_key | {"of_model": None}, MINUTE, now) if by_minute else (),
        running=running,
        configured=configured,
        ahead=ahead,
        waiting_since=since,
    )


def _recent(conn: Connection, which: dict[str, Any], window: int, now: int) -> tuple[Sent, ...]:
    values = {"since": now - window - ON_THE_WAY, "width": max(window // BUCKETS, 1), "now": now}
    return tuple(Sent(*row) for row in _sent.all(conn, which | values))


def _told(conn: Connection, row: Row, this: dict[str, Any], now: int) -> Told | None:
    if row.name == REFUSAL or unit_of(row.name) is None or (row.allowed is None and row.remaining is None):
        return None
    values = {"as_of": row.as_of, "told_by": row.told_by, "now": now}
    requests, tokens, inputs = _since_report.one(conn, this | values)
    shape: Shape = "resets" if row.resets or (row.window_us or 0) > OWN_COUNT else "rolling"
    if row.agreed >= AGREEING and row.refill_us and row.reset_at is not None:
        shape = "gradual"
    return Told(
        name=row.name,
        limit=row.allowed,
        remaining=row.remaining,
        reset_at=row.reset_at if row.reset_at is not None else row.told_at + MINUTE,
        told_at=row.told_at,
        window_us=row.window_us or MINUTE,
        refill_us=row.refill_us,
        shape=shape,
        since=Sent(row.as_of, requests, tokens, inputs),
        ours=_ours(conn, row, this),
    )


def _ours(conn: Connection, row: Row, this: dict[str, Any]) -> bool:
    """Whether our own requests explain what the report counts."""
    if unit_of(row.name) != "requests" or row.confirmed < CONFIRMING or row.allowed is None or row.remaining is None:
        return False
    if row.window_us > OWN_COUNT or row.resets:
        # Where the limit is full at once at its reset, the reset is what counts.
        return False
    window = {"since": row.as_of - row.window_us - ON_THE_WAY, "told_at": row.told_at}
    own: int = _own.scalar(conn, this | window)
    return bool(row.allowed - row.remaining <= own)


def _refuses(row: Row, now: int) -> bool:
    return row.name == REFUSAL and now < forgotten_at(row)


def _refusal(conn: Connection, row: Row, this: dict[str, Any]) -> Refused:
    since: dict[str, int] = {}
    if not row.resets and row.allowed is None:
        since = {row.state: row.n for row in _after_refusal.all(conn, this | {"since": row.reset_at})}
    return Refused(
        until=row.reset_at,
        limit=row.allowed,
        window_us=row.window_us,
        running=since.get("open", 0),
        completed=since.get("completed", 0),
        careful=not row.resets,
    )


def _ahead(
    conn: Connection,
    of_key: dict[str, Any],
    model: str,
    call_id: str | None,
    now: int,
    alive: Callable[[Owner], bool],
) -> tuple[tuple[Waiter, ...], int | None]:
    """Who goes first, and since when the call itself waits."""
    ahead: list[Waiter] = []
    for row in _queue.all(conn, of_key):
        if row.call_id == call_id:
            return tuple(ahead), row.since
        if row.until + GRACE < now:
            continue
        if row.owner_host is not None and not alive(owner_of(row)):
            continue
        ahead.append(Waiter(row.until, row.tokens, row.input_tokens, row.model == model))
    return tuple(ahead), None


class KnownLimit(Struct, frozen=True):
    """A limit for people: what stands in the table `limits`.

    Args:
        key: Tells keys apart; None where they aren't.
        told_at, reset_at: µs UTC.
    """

    provider: str
    model: str
    key: str | None
    name: str
    limit: int | None
    remaining: int | None
    reset_at: int | None
    told_at: int
    window_us: int | None


def known_limits(conn: Connection) -> list[KnownLimit]:
    """Every limit that was ever told, by provider and model."""
    return [
        KnownLimit(
            provider=row.provider,
            model=row.model,
            key=row.key or None,
            name=row.name,
            limit=row.allowed,
            remaining=row.remaining,
            reset_at=row.reset_at,
            told_at=row.told_at,
            window_us=row.window_us,
        )
        for row in conn.execute(select(limits).order_by(*limits.primary_key.columns))
    ]


class Waiting(Struct, frozen=True):
    """A call in the queue, for people.

    Args:
        provider: Whom it waits for.
        model: Which of its models.
        name: For which limit; `retry` before it is tried again.
        since: Since when, µs UTC.
        until: When it means to be sent, µs UTC.
    """

    provider: str
    model: str
    name: str
    since: int
    until: int


def queue(conn: Connection, now: int, *, alive: Callable[[Owner], bool] = _everyone) -> list[Waiting]:
    """Who waits now, the first one first."""
    return [
        Waiting(row.provider, row.model, row.name, row.since, row.until)
        for row in conn.execute(select(waits).where(waits.c.until >= now - GRACE).order_by(waits.c.position))
        if row.owner_host is None or alive(owner_of(row))
    ]
