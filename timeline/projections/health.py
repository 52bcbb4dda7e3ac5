"""How each model of each provider fares: whether its circuit is open, and how fast, reliable and dear its calls were.

Averages move by an eighth of the distance and are whole numbers, so that folding anew gives the same bytes.

What counts as a failure of the service: no connection, no answer in time, a stream that breaks off, an answer in no known
format, an error of the server's own, no capacity. What doesn't: too many requests (the limiter's business), a refused key or
request, a call that was stopped; nor a server on this machine that isn't there, which costs nobody any time; nor a route's
answer that broke off or can't be read, without which the question is asked all the same.
Forgotten failures count no more once the table is folded anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from msgspec import Struct
from sqlalchemy import (
    Column,
    Connection,
    Integer,
    MetaData,
    Table,
    Text,
    bindparam,
    func,
    literal,
    literal_column,
    select,
)

from timeline.errors import DISPENSABLE
from timeline.events import BATCH_KEY, CallFailed, Event, Owner, ResponseCompleted
from timeline.money import MOST_NANO_USD
from timeline.projections import Projection
from timeline.projections.blocks import steps
from timeline.projections.calls import attempts
from timeline.statements import Row, Statement, overwriting

__all__ = [
    "COOLDOWN",
    "FAILURES",
    "Health",
    "HealthProjection",
    "ModelStats",
    "OpenCircuit",
    "failing_words",
    "health",
    "model_stats",
    "open_circuits",
    "read_health",
    "read_stats",
]

SECOND = 1_000_000

FAILURES = frozenset({"server", "overloaded", "network", "timeout", "broken_stream", "bad_response"})
"""Kinds of errors that are the service's failure."""
_DISPENSABLE = FAILURES & {error.kind for error in DISPENSABLE}
"""Of these, those that are none where they ended a route's call."""
IN_A_ROW = 5
"""So many failures without a success between them open the circuit."""
MOST = 2**62
"""The largest number that is kept: SQLite's integers end at 2**63."""
AT_LEAST = 10
WITHIN = 60 * SECOND
"""More than half of at least so many attempts, sent within so many µs, do so, too."""
COOLDOWN = 30 * SECOND
"""How long nobody asks once it is open, µs; then one does, and everybody else waits for how that goes."""

health = Table(
    "health",
    MetaData(),
    Column("provider", Text, primary_key=True, nullable=False),
    Column("model", Text, primary_key=True, nullable=False),
    Column("in_a_row", Integer, nullable=False),  # failures since the last success
    Column("opened_at", Integer),  # when the circuit opened, or was left open by a probe; NULL: closed
    Column("reason", Text),  # kind of the failure that did it
    Column("closed_at", Integer, nullable=False),  # when a success closed it; what was before counts no more
    sqlite_with_rowid=False,
)

model_stats = Table(
    "model_stats",
    MetaData(),
    Column("provider", Text, primary_key=True, nullable=False),
    Column("model", Text, primary_key=True, nullable=False),
    Column("completed", Integer, nullable=False),
    Column("failed", Integer, nullable=False),  # by the service; see FAILURES
    Column("time_to_first_token_us", Integer),  # moving average
    Column("tokens_per_1000_s", Integer),  # moving average of output tokens, from the first token to the last
    Column("output_tokens", Integer),  # moving average, of what people read: no route's, no tool's arguments
    Column("failing_ppm", Integer, nullable=False),  # moving average of 0 and 1,000,000
    Column("priced", Integer, nullable=False),  # attempts of known price
    Column("nano_usd", Integer, nullable=False),  # their sum
    Column("last_at", Integer, nullable=False),  # when the last one ended
    sqlite_with_rowid=False,
)

_a = attempts.c
_attempt = Statement(select(attempts).where(_a.call_id == bindparam("of_call"), _a.attempt == bindparam("of_attempt")))
_of_model = (
    _a.provider == bindparam("of_provider"),
    _a.model == bindparam("of_model"),
    func.coalesce(_a.key, "") != BATCH_KEY,
)
_of_route = select(steps.c.step_id).where(steps.c.step_id == _a.step_id, steps.c.kind == literal("route")).exists()
_lately = Statement(
    select(func.count(), func.count().filter(_a.state == "failed"))
    .where(*_of_model, _a.started_at > bindparam("since"))
    .where(
        (_a.state == "completed")
        | ((_a.state == "failed") & _a.reason.in_([literal(kind) for kind in sorted(FAILURES - _DISPENSABLE)]))
        | ((_a.state == "failed") & _a.reason.in_([literal(kind) for kind in sorted(_DISPENSABLE)]) & ~_of_route)
    )
)
_kind_of_step = Statement(select(steps.c.kind).where(steps.c.step_id == bindparam("of_step")))
_health_of = Statement(
    select(health).where(health.c.provider == bindparam("of_provider"), health.c.model == bindparam("of_model"))
)
_stats_of = Statement(
    select(model_stats).where(
        model_stats.c.provider == bindparam("of_provider"), model_stats.c.model == bindparam("of_model")
    )
)

_write_health = overwriting(health)
_write_stats = overwriting(model_stats)


class HealthProjection(Projection):
    """Folds the ends of attempts into `health` and `model_stats`."""

    name: ClassVar[str] = "health"
    version: ClassVar[int] = 3
    tables: ClassVar[tuple[Table, ...]] = (health, model_stats)
    reads: ClassVar[tuple[str, ...]] = ("calls", "blocks")

    def apply(self, conn: Connection, event: Event) -> None:
        """See `Projection.apply`."""
        match event.data:
            case ResponseCompleted() as done:
                if (attempt := _ended(conn, event, done.attempt)) is not None:
                    _succeed(conn, event, attempt)
                    _count(conn, event, attempt, done)
            case CallFailed() as failed if failed.error.kind in FAILURES:
                attempt = _ended(conn, event, failed.attempt)
                if attempt is not None and not (attempt.local and failed.error.kind == "network"):
                    if not (failed.error.kind in _DISPENSABLE and _step(conn, attempt) == "route"):
                        _fail(conn, event, attempt, failed.error.kind)
                    _count(conn, event, attempt, None)


def _ended(conn: Connection, event: Event, number: int) -> Row | None:
    """The attempt that this event ended; None if another one did before, or it was a provider's batch that took hours."""
    attempt = _attempt.first(conn, {"of_call": event.call_id, "of_attempt": number})
    counts = attempt is not None and attempt.last_position == event.position and attempt.key != BATCH_KEY
    return attempt if counts else None


def _step(conn: Connection, attempt: Row) -> str | None:
    """The kind of the step that it was made for."""
    step = _kind_of_step.first(conn, {"of_step": attempt.step_id})
    return step.kind if step is not None else None


def _of(attempt: Row) -> dict[str, Any]:
    return {"of_provider": attempt.provider, "of_model": attempt.model}


def _succeed(conn: Connection, event: Event, attempt: Row) -> None:
    known = _health_of.first(conn, _of(attempt))
    if known is None or (known.in_a_row == 0 and known.opened_at is None):
        return
    row = known._asdict() | {"in_a_row": 0}
    # What was sent before the circuit opened says little of the service as it is now.
    if known.opened_at is not None and attempt.started_at > known.opened_at:
        row |= {"opened_at": None, "reason": None, "closed_at": event.recorded_at}
    _write_health.run(conn, row)


def _fail(conn: Connection, event: Event, attempt: Row, kind: str) -> None:
    known = _health_of.first(conn, _of(attempt))
    row = {
        "provider": attempt.provider,
        "model": attempt.model,
        "in_a_row": 1 + (known.in_a_row if known is not None else 0),
        "opened_at": known.opened_at if known is not None else None,
        "reason": known.reason if known is not None else None,
        "closed_at": known.closed_at if known is not None else 0,
    }
    if row["opened_at"] is not None:
        # Only a probe's failure keeps it open for longer, not that of what was sent before.
        opens = attempt.started_at > row["opened_at"]
    else:
        opens = row["in_a_row"] >= IN_A_ROW or _mostly_fails(conn, event, attempt, row["closed_at"])
    if opens:
        row |= {"opened_at": event.recorded_at, "reason": kind}
    _write_health.run(conn, row)


def _mostly_fails(conn: Connection, event: Event, attempt: Row, closed_at: int) -> bool:
    since = max(event.recorded_at - WITHIN, closed_at)
    ended, failed = _lately.one(conn, _of(attempt) | {"since": since})
    return bool(ended >= AT_LEAST and 2 * failed > ended)


def _moved(average: int | None, value: int) -> int:
    return value if average is None else average + (value - average) // 8


def _count(conn: Connection, event: Event, attempt: Row, done: ResponseCompleted | None) -> None:
    known = _stats_of.first(conn, _of(attempt))
    row: dict[str, Any] = {
        "provider": attempt.provider,
        "model": attempt.model,
        "completed": 0,
        "failed": 0,
        "time_to_first_token_us": None,
        "tokens_per_1000_s": None,
        "output_tokens": None,
        "failing_ppm": None,
        "priced": 0,
        "nano_usd": 0,
    }
    if known is not None:
        row = known._asdict()
    row["last_at"] = event.recorded_at
    row["failing_ppm"] = _moved(row["failing_ppm"], 0 if done is not None else 1_000_000)
    if done is None:
        row["failed"] += 1
    else:
        row["completed"] += 1
        first = done.time_to_first_token_us
        if first is not None:
            row["time_to_first_token_us"] = _moved(row["time_to_first_token_us"], first)
        # A batch answer comes all at once: then only its whole time tells the speed.
        writing = done.duration_us - (first or 0)
        writing = writing if 10 * writing > done.duration_us else done.duration_us
        if writing > 0 and done.usage.output > 0:
            speed = min(done.usage.output * 1000 * SECOND // writing, MOST)
            row["tokens_per_1000_s"] = _moved(row["tokens_per_1000_s"], speed)
            # A route and a tool's arguments are short, however long the model's answers are.
            if _step(conn, attempt) not in ("route", "tool"):
                row["output_tokens"] = _moved(row["output_tokens"], done.usage.output)
        if done.cost.state == "priced" and done.cost.nano_usd is not None:
            row["priced"] += 1
            row["nano_usd"] = min(row["nano_usd"] + done.cost.nano_usd, MOST_NANO_USD)
    _write_stats.run(conn, row)


# ------------------------------------------------------------------ the facts


class Health(Struct, frozen=True):
    """What `timeline.llm.breaker` decides from.

    Args:
        in_a_row: Failures since the last success.
        opened_at: When the circuit opened, µs UTC; None where it is closed.
        reason: Kind of the failure that opened it.
        probe_at: When the attempt was sent that tries again, µs UTC; None where none is under way.
    """

    in_a_row: int = 0
    opened_at: int | None = None
    reason: str | None = None
    probe_at: int | None = None


_probes = Statement(
    select(_a.started_at, _a.owner_host, _a.owner_pid, _a.owner_started)
    .where(*_of_model, _a.state == literal_column("'open'"), _a.started_at > bindparam("since"))
    .order_by(_a.started_at.desc())
)


def _everyone(_: Owner) -> bool:
    return True


def read_health(
    conn: Connection,
    provider: str,
    model: str,
    now: int,
    *,
    alive: Callable[[Owner], bool] = _everyone,
) -> Health:
    """How a model fares now.

    Args:
        conn: Any connection; inside the transaction that admits the request, only one becomes the probe.
        provider: Whose.
        model: Which.
        now: The present, µs UTC.
        alive: Whether a process still runs; a dead one's probe is none.
    """
    which = {"of_provider": provider, "of_model": model}
    known = _health_of.first(conn, which)
    if known is None:
        return Health()
    probe = None
    opened_at = known.opened_at
    if opened_at is not None and opened_at > now + COOLDOWN:
        # The clock was set back; that must not keep it open until then.
        opened_at = now - COOLDOWN
    if known.opened_at is not None:
        sent = _probes.all(conn, which | {"since": known.opened_at})
        probe = next((at for at, host, pid, since in sent if host is None or alive(Owner(host, pid, since))), None)
    return Health(known.in_a_row, opened_at, known.reason, probe)


class OpenCircuit(Struct, frozen=True):
    """A model that is left alone.

    Args:
        provider: Whose.
        model: Which.
        in_a_row: Failures since the last success.
        reason: Kind of the last one.
        opened_at: Since when, µs UTC; from `COOLDOWN` later on one request may try it.
    """

    provider: str
    model: str
    in_a_row: int
    reason: str | None
    opened_at: int


def failing_words(in_a_row: int) -> str:
    """Why a circuit is open, from the failures since the last success."""
    return f"{in_a_row} failures in a row" if in_a_row >= IN_A_ROW else "too many failures within a minute"


def open_circuits(conn: Connection) -> list[OpenCircuit]:
    """Every model whose circuit is open, by provider and model."""
    rows = conn.execute(select(health).where(health.c.opened_at.is_not(None)).order_by(*health.primary_key.columns))
    return [OpenCircuit(row.provider, row.model, row.in_a_row, row.reason, row.opened_at) for row in rows]


class ModelStats(Struct, frozen=True):
    """What past calls to a model tell.

    Args:
        calls: Attempts that ended with an answer, or failed by the service's fault.
        error_rate: Moving share of those that failed, 0 to 1.
        time_to_first_token: Seconds, moving average; None where it was never seen.
        tokens_per_second: Of the answer, moving average; None where it was never seen.
        output_tokens: Of an answer to a question, moving average; None where there was none.
        cost_nano_usd: Mean of what attempts of known price cost, nano-US-dollars; None where there are none.
    """

    calls: int
    error_rate: float = 0.0
    time_to_first_token: float | None = None
    tokens_per_second: float | None = None
    output_tokens: int | None = None
    cost_nano_usd: int | None = None


def read_stats(conn: Connection) -> Mapping[tuple[str, str], ModelStats]:
    """What is known of every model that was ever asked, by provider and model."""
    return {
        (row.provider, row.model): ModelStats(
            calls=row.completed + row.failed,
            error_rate=row.failing_ppm / 1_000_000,
            time_to_first_token=None if row.time_to_first_token_us is None else row.time_to_first_token_us / SECOND,
            tokens_per_second=None if row.tokens_per_1000_s is None else row.tokens_per_1000_s / 1000,
            output_tokens=row.output_tokens,
            cost_nano_usd=row.nano_usd // row.priced if row.priced else None,
        )
        for row in conn.execute(select(model_stats).order_by(*model_stats.primary_key.columns))
    }
