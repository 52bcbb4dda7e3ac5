"""What providers told of their limits, what they refused, and who waits: of all processes, in one place."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from sqlalchemy import (
    Column,
    Connection,
    Integer,
    MetaData,
    Table,
    Text,
    and_,
    bindparam,
    delete,
    func,
    not_,
    select,
)
from sqlalchemy.dialects.sqlite import insert

from timeline.events import (
    CallCacheHit,
    CallFailed,
    CallInterrupted,
    CallRerouted,
    CallRetryScheduled,
    ErrorInfo,
    Event,
    RateLimit,
    RateLimitWaited,
    RequestSent,
    ResponseCompleted,
    StepCompleted,
    StepFailed,
    TurnCompleted,
    TurnFailed,
    TurnInterrupted,
)
from timeline.projections import Projection
from timeline.projections.calls import attempts
from timeline.projections.owners import NOBODY, owned_by, owner_columns
from timeline.statements import Row, Statement, overwriting

__all__ = [
    "AGREEING",
    "CONFIRMING",
    "MINUTE",
    "OWN_COUNT",
    "REFUSAL",
    "SECOND",
    "Limits",
    "Unit",
    "forgotten_at",
    "limits",
    "of_model",
    "unit_of",
    "waits",
    "was_refused",
]

SECOND = 1_000_000
MINUTE = 60 * SECOND

REFUSAL = "retry-after"
"""The name under which a refusal stands among the limits."""

DEFAULT_HOLD = SECOND
"""How long others hold back after a refusal that named no wait, µs."""
KEPT = MINUTE
"""How long a lapsed place may still be taken up again, µs."""
OWN_COUNT = 5 * MINUTE
"""Windows longer than this are judged by what the provider tells, not by counting our own requests, µs."""
LONGEST_WINDOW = 400 * 86_400 * SECOND
ROUND_WINDOWS = tuple(
    number * unit for unit in (SECOND, MINUTE, 60 * MINUTE) for number in (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 24, 30)
)
MOST = 2**62
"""The largest number that is kept: SQLite's integers end at 2**63."""
AGREEING = 3
"""So many reports in a row have to fit a steady refill."""
CONFIRMING = 2
"""So often, besides the first time, the longest span has to be seen, before it is taken for the whole window."""

Unit = Literal["requests", "tokens", "input", "output"]

limits = Table(
    "limits",
    MetaData(),
    Column("provider", Text, primary_key=True, nullable=False),
    Column("model", Text, primary_key=True, nullable=False),
    Column("key", Text, primary_key=True, nullable=False),  # '' where keys aren't told apart
    Column("name", Text, primary_key=True, nullable=False),  # the provider's word, or retry-after
    Column("allowed", Integer),
    Column("remaining", Integer),
    Column("reset_at", Integer),
    Column("as_of", Integer, nullable=False),  # when the attempt that told it was sent
    Column("told_at", Integer, nullable=False),  # when its first words came
    Column("told_by", Integer, nullable=False),  # the position of its request.sent
    Column("window_us", Integer),  # the longest span seen from a report to its reset
    Column("confirmed", Integer, nullable=False),  # how often it was seen again
    Column("refill_us", Integer),  # how long it would take from empty to full, by this report
    Column("agreed", Integer, nullable=False),  # reports in a row that fit a steady refill
    Column("resets", Integer, nullable=False),  # at its reset it was seen to be full at once
    sqlite_with_rowid=False,
)

waits = Table(
    "waits",
    MetaData(),
    Column("position", Integer, primary_key=True),  # of the event with which the call joined the queue
    Column("call_id", Text, nullable=False),
    Column("turn_id", Text),
    Column("step_id", Text),
    Column("provider", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("name", Text, nullable=False),  # which limit, or why
    Column("since", Integer, nullable=False),
    Column("until", Integer, nullable=False),
    Column("tokens", Integer, nullable=False),
    Column("input_tokens", Integer, nullable=False),
    *owner_columns(),
)


def unit_of(name: str) -> Unit | None:
    """What a limit of that name counts; None for what isn't known here, and limits nothing."""
    if "token" in name:
        return "input" if "input" in name else "output" if "output" in name else "tokens"
    return "requests" if "request" in name else None


# ------------------------------------------------------------------ the fold


_a = attempts.c
_attempt = Statement(select(attempts).where(_a.call_id == bindparam("of_call"), _a.attempt == bindparam("of_attempt")))
of_model = and_(  # of_provider, of_model and of_key, the latter '' for none
    _a.provider == bindparam("of_provider"),
    _a.model == bindparam("of_model"),
    func.coalesce(_a.key, "") == bindparam("of_key"),
)
was_refused = and_(_a.state == "failed", func.coalesce(_a.reason, "") == "rate_limited")
# Those that had certainly arrived when the report's request was sent, and well within its window.
_certain = Statement(
    select(func.count()).where(
        of_model,
        _a.started_at > bindparam("since"),
        _a.ended_at < bindparam("sent_at"),
        _a.state == "completed",
    )
)
_accepted = Statement(select(func.count()).where(of_model, _a.started_at > bindparam("since"), not_(was_refused)))

_row = Statement(
    select(limits).where(
        limits.c.provider == bindparam("of_provider"),
        limits.c.model == bindparam("of_model"),
        limits.c.key == bindparam("of_key"),
        limits.c.name == bindparam("of_name"),
    )
)
_write = overwriting(limits)
_wait_of = Statement(select(waits).where(waits.c.call_id == bindparam("of_call")))
_join = Statement(insert(waits).prefix_with("OR REPLACE"))
_prune = Statement(delete(waits).where(waits.c.until < bindparam("before")))
_leave_call, _leave_step, _leave_turn = (
    Statement(delete(waits).where(column == bindparam("of")))
    for column in (waits.c.call_id, waits.c.step_id, waits.c.turn_id)
)


class Limits(Projection):
    """Folds what answers told into `limits`, and who waits into `waits`.

    A limit's row is that of the attempt sent last; what an older one tells late only widens its window. Two things are
    learnt, since headers don't say them: whether a limit refills steadily (then a part of it is free
    before its reset), and whether it is full at once at its reset (then what was sent before doesn't count after it).
    """

    name: ClassVar[str] = "limits"
    version: ClassVar[int] = 1
    tables: ClassVar[tuple[Table, ...]] = (limits, waits)
    reads: ClassVar[tuple[str, ...]] = ("calls",)

    def apply(self, conn: Connection, event: Event) -> None:
        """See `Projection.apply`."""
        match event.data:
            case RequestSent() | CallRerouted() | CallCacheHit() | CallInterrupted():
                _leave(conn, _leave_call, event.call_id)
            case ResponseCompleted() as done:
                _leave(conn, _leave_call, event.call_id)
                if done.rate_limits:
                    _report(conn, event, done.attempt, done.rate_limits)
            case CallFailed() as failed:
                _leave(conn, _leave_call, event.call_id)
                _report(conn, event, failed.attempt, failed.rate_limits, failed.error)
            case RateLimitWaited() as waited:
                _wait(conn, event, waited)
            case CallRetryScheduled() as retry:
                _retry(conn, event, retry)
            case StepCompleted() | StepFailed():
                _leave(conn, _leave_step, event.step_id)
            case TurnCompleted() | TurnFailed() | TurnInterrupted():
                _leave(conn, _leave_turn, event.turn_id)


def _report(
    conn: Connection, event: Event, number: int, told: tuple[RateLimit, ...], error: ErrorInfo | None = None
) -> None:
    holds = error is not None and (
        error.kind == "rate_limited" or (error.kind in ("overloaded", "server") and error.retry_after is not None)
    )
    if not told and not holds:
        return
    attempt = _attempt.first(conn, {"of_call": event.call_id, "of_attempt": number})
    if attempt is None:
        return
    refused = error is not None and error.kind == "rate_limited"
    for limit in told:
        _tell(conn, event, attempt, limit, refused=refused)
    if error is not None and holds:
        emptied = any(limit.remaining == 0 and limit.reset_at is not None for limit in told)
        if error.retry_after is not None or not emptied:
            _refuse(conn, event, attempt, error.retry_after, counts=not told)


def _of(attempt: Row, name: str) -> dict[str, Any]:
    return {"provider": attempt.provider, "model": attempt.model, "key": attempt.key or "", "name": name}


def _known(conn: Connection, which: dict[str, Any]) -> Row | None:
    return _row.first(conn, {f"of_{name}": value for name, value in which.items()})


def _tell(conn: Connection, event: Event, attempt: Row, limit: RateLimit, *, refused: bool) -> None:
    which = _of(attempt, limit.name)
    old = _known(conn, which)
    sent_at = attempt.started_at
    # The end is written down when it comes; the beginning, before the commit that everything waits for.
    first = attempt.time_to_first_token_us
    took = 0 if first is None else max((attempt.duration_us or 0) - first, 0)
    told_at = max(event.recorded_at - took, sent_at)
    span = None if limit.reset_at is None else min(max(limit.reset_at - told_at, 1), LONGEST_WINDOW)
    window, confirmed = _window(old, limit, span)
    # The clock may have been set: a report from the future is no newer one.
    if old is not None and sent_at < old.as_of <= event.recorded_at:
        _write.run(conn, old._asdict() | {"window_us": window, "confirmed": confirmed})
        return
    used = None if limit.limit is None or limit.remaining is None else max(limit.limit - limit.remaining, 0)
    refill = None
    if used and limit.limit and limit.reset_at is not None and limit.reset_at - told_at >= SECOND:
        refill = min((limit.reset_at - told_at) * limit.limit // used, MOST)
    row = {
        "allowed": limit.limit,
        "remaining": limit.remaining,
        "reset_at": limit.reset_at,
        "as_of": sent_at,
        "told_at": told_at,
        "told_by": attempt.first_position,
        "window_us": window,
        "confirmed": confirmed,
        "refill_us": refill or (old.refill_us if old is not None else None),
        "agreed": _agreed(old, limit, used, refill),
        "resets": int(unit_of(limit.name) != "requests" or (not refused and _resets(conn, which, old, attempt, used))),
    }
    _write.run(conn, which | row)


def _round(span: int) -> int:
    """The round time of which a report shows nearly all: it comes a little after its request was counted."""
    return next((window for window in ROUND_WINDOWS if span <= window <= span * 5 // 4), span)


def _window(old: Row | None, limit: RateLimit, span: int | None) -> tuple[int | None, int]:
    """The longest span seen, and how often it was seen again; where the limit resets at once, what was long ago fades."""
    span = None if span is None else _round(span)
    if old is None or old.window_us is None or old.allowed != limit.limit:
        return span, 0
    known: int = old.window_us
    if span is None or span < known:
        fading = old.resets and span is not None
        return max(span or 0, known - known // 16 if fading else known), old.confirmed
    return span, min(old.confirmed + 1, CONFIRMING) if span == known else 0


def _agreed(old: Row | None, limit: RateLimit, used: int | None, refill: int | None) -> int:
    """How many reports in a row say the same speed of refill, though they say different fills."""
    if old is None or old.allowed != limit.limit or not limit.limit:
        return 0
    agreed: int = old.agreed
    if refill is None or old.refill_us is None or old.remaining is None or not used:
        return agreed
    before = max(old.allowed - old.remaining, 0)
    if 4 * abs(used - before) < max(used, before):
        return agreed
    return min(agreed + 1, AGREEING) if 5 * abs(refill - old.refill_us) <= max(refill, old.refill_us) else 0


def _resets(conn: Connection, which: dict[str, Any], old: Row | None, attempt: Row, used: int | None) -> bool:
    """Whether the limit forgets at once: fewer count than have certainly arrived in the last half of its window."""
    if old is None or old.window_us is None or old.window_us > OWN_COUNT or used is None:
        return bool(old.resets) if old is not None else False
    if old.resets:
        return True
    values = {f"of_{name}": value for name, value in which.items() if name != "name"}
    window = {"since": attempt.started_at - old.window_us // 2, "sent_at": attempt.started_at}
    certain: int = _certain.scalar(conn, values | window)
    return used < certain + 1


def _refuse(conn: Connection, event: Event, attempt: Row, retry_after: float | None, *, counts: bool) -> None:
    """Hold others back; where no header told a limit, the last window's accepted requests stand for it."""
    which = _of(attempt, REFUSAL)
    old = _known(conn, which)
    hold = DEFAULT_HOLD if retry_after is None else min(max(round(retry_after * SECOND), 0), LONGEST_WINDOW)
    reset_at = event.recorded_at + hold
    window, most = max(hold, DEFAULT_HOLD), None
    if old is not None and event.recorded_at < forgotten_at(old):
        window, most = max(window, old.window_us or 0), old.allowed
        if attempt.started_at <= old.told_at:
            reset_at = max(reset_at, old.reset_at or 0)
        elif counts and most is not None and attempt.started_at > (old.reset_at or 0):
            # It was sent as the last refusal allowed, and refused: that was too much for so little time.
            window = max(hold, window * 3 // 2)
    allowed = None
    if counts and window <= OWN_COUNT:
        values = {f"of_{name}": value for name, value in which.items() if name != "name"}
        accepted: int = _accepted.scalar(conn, values | {"since": event.recorded_at - window})
        accepted = accepted if most is None else min(accepted, most)
        allowed = accepted if accepted > 1 else None
    row = {
        "allowed": allowed,
        "remaining": 0,
        "reset_at": reset_at,
        "as_of": attempt.started_at,
        "told_at": event.recorded_at,
        "told_by": attempt.first_position,
        "window_us": window,
        "confirmed": 0,
        "refill_us": None,
        "agreed": 0,
        "resets": int(not counts),
    }
    _write.run(conn, which | row)


def forgotten_at(refusal: Row) -> int:
    """When a refusal says nothing about the present any more."""
    at: int = max(refusal.reset_at or 0, refusal.told_at + max(MINUTE, 10 * (refusal.window_us or 0)))
    return at


def _leave(conn: Connection, place: Statement, id_: str | None) -> None:
    if id_ is not None:
        place.run(conn, {"of": id_})


def _wait(conn: Connection, event: Event, waited: RateLimitWaited) -> None:
    if event.call_id is None:
        return
    row: dict[str, Any] = {
        "provider": waited.provider,
        "model": waited.model,
        "key": waited.key or "",
        "name": waited.limit,
        "until": event.recorded_at + waited.waited_us,
        "tokens": waited.tokens,
        "input_tokens": waited.input_tokens,
        **owned_by(waited.owner),
    }
    _take_place(conn, event, row)


def _retry(conn: Connection, event: Event, retry: CallRetryScheduled) -> None:
    """A call that will be made again is one that waits."""
    attempt = _attempt.first(conn, {"of_call": event.call_id, "of_attempt": retry.attempt})
    if attempt is None:
        return
    row = {
        "provider": attempt.provider,
        "model": attempt.model,
        "key": attempt.key or "",
        "name": "retry",
        "until": event.recorded_at + retry.delay_us,
        "tokens": attempt.reserved_tokens,
        "input_tokens": attempt.estimated_input_tokens,
        **NOBODY,
    }
    _take_place(conn, event, row)


def _take_place(conn: Connection, event: Event, row: dict[str, Any]) -> None:
    """Join the queue, or stay in one's place of it; places that lapsed long ago go."""
    _prune.run(conn, {"before": event.recorded_at - KEPT})
    old = _wait_of.first(conn, {"of_call": event.call_id})
    place = {"position": event.position, "since": event.recorded_at}
    if old is not None:
        _leave(conn, _leave_call, event.call_id)
        if (old.provider, old.model, old.key) == (row["provider"], row["model"], row["key"]):
            place = {"position": old.position, "since": old.since}
    ids = {"call_id": event.call_id, "turn_id": event.turn_id, "step_id": event.step_id}
    _join.run(conn, place | ids | row)
