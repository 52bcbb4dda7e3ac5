"""What stands against each budget, read from what the log was folded into."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import Connection
from support.stores import NOON, OWNER, Scribe, look, opened, read_models

from timeline import events as e
from timeline.config import BudgetConfig
from timeline.events import EventData, NewEvent
from timeline.projections import budgets
from timeline.projections.budgets import BudgetState, Period, period, read_budgets
from timeline.statements import Statement
from timeline.store import EventStore

SECOND = 1_000_000
HOUR = 3600 * SECOND
DAY = 24 * HOUR


@pytest.fixture
def scribe() -> Scribe:
    return Scribe()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[EventStore]:
    async with opened(tmp_path / "timeline.db", synchronous="normal") as opened_store:
        yield opened_store


def sent(
    scribe: Scribe,
    at: int,
    end: EventData | None = None,
    *,
    session: str = "a",
    turn: str = "t",
    call: str = "",
    model: str = "openai:gpt",
    **fields: Any,
) -> list[NewEvent]:
    """An attempt and, a second later, its end."""
    provider, _, name = model.partition(":")
    ids = {"turn_id": turn, "call_id": call or scribe.clock.short_id()}
    request = e.RequestSent(fields.pop("attempt", 1), provider, name, "", (), OWNER, **fields)
    facts = [(at, request), *([(at + SECOND, end)] if end else [])]
    return [NewEvent(session, fact, scribe.clock.uuid7(), instant, **ids) for instant, fact in facts]


def paid(nano_usd: int | None, tokens: int = 0, attempt: int = 1, state: str = "priced") -> e.ResponseCompleted:
    cost = e.Cost(state, nano_usd)  # type: ignore[arg-type]
    return e.ResponseCompleted(attempt, "stop", e.Usage(output=tokens), "provider", cost, 1)


async def read(store: EventStore, *configured: BudgetConfig, now: int = NOON, **of: Any) -> tuple[BudgetState, ...]:
    return await store.query(lambda conn: read_budgets(conn, configured, now=now, **{"tz": UTC, **of}))


async def spent(store: EventStore, budget: BudgetConfig, **of: Any) -> int:
    (state,) = await read(store, budget, **of)
    return state.spent


def usd(window: Any = "month", name: str = "b", **fields: Any) -> BudgetConfig:
    return BudgetConfig(name, limit_usd=1, window=window, **fields)


# ------------------------------------------------------------------ windows


def instant(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp()) * SECOND


@pytest.mark.parametrize(
    ("window", "now", "zone", "label", "starts", "ends"),
    [
        ("day", "2026-11-25T23:59:59Z", "UTC", "2026-11-25", "2026-11-25T00:00Z", "2026-11-26T00:00Z"),
        ("day", "2026-11-25T23:59:59Z", "Asia/Kathmandu", "2026-11-26", "2026-11-25T18:15Z", "2026-11-26T18:15Z"),
        ("day", "2026-03-29T12:00Z", "Europe/Berlin", "2026-03-29", "2026-03-28T23:00Z", "2026-03-29T22:00Z"),
        ("day", "2026-10-25T12:00Z", "Europe/Berlin", "2026-10-25", "2026-10-24T22:00Z", "2026-10-25T23:00Z"),
        ("week", "2026-11-25T12:00Z", "UTC", "2026-W48", "2026-11-23T00:00Z", "2026-11-30T00:00Z"),
        ("week", "2027-01-03T23:59Z", "UTC", "2026-W53", "2026-12-28T00:00Z", "2027-01-04T00:00Z"),
        ("month", "2026-12-31T12:00Z", "America/St_Johns", "2026-12", "2026-12-01T03:30Z", "2027-01-01T03:30Z"),
        ("month", "2026-02-01T00:00Z", "UTC", "2026-02", "2026-02-01T00:00Z", "2026-03-01T00:00Z"),
    ],
)
def test_windows_are_of_the_calendar_of_their_time_zone(
    window: Any, now: str, zone: str, label: str, starts: str, ends: str
) -> None:
    assert Period(label, instant(starts), instant(ends)) == period(window, instant(now), ZoneInfo(zone))


@pytest.fixture(params=["UTC", "Pacific/Auckland", "America/St_Johns"])
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield request.param
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("window", ["day", "week", "month"])
def test_without_a_time_zone_windows_are_of_this_machines(zone: str, window: Any) -> None:
    assert period(window, NOON, ZoneInfo(zone)) == period(window, NOON)


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kathmandu", "America/St_Johns", "Pacific/Kiritimati", "Europe/London"])
@pytest.mark.parametrize("window", ["day", "week", "month"])
async def test_what_was_sent_in_a_window_counts_in_it_to_the_microsecond(
    store: EventStore, scribe: Scribe, zone: str, window: Any
) -> None:
    # London's day of 23 hours lies between two midnights of UTC.
    now = instant("2026-03-29T12:00Z")
    found = period(window, now, ZoneInfo(zone))
    inside = range(found.starts_at, found.ends_at, 7 * HOUR + 11)
    instants = (found.starts_at - 1, found.starts_at, *inside, found.ends_at - 1, found.ends_at)
    await store.append([event for at in instants for event in sent(scribe, at, paid(1))])

    assert 2 + len(inside) == await spent(store, usd(window), now=now, tz=ZoneInfo(zone))
    assert 4 + len(inside) == await spent(store, usd("total"), now=now, tz=ZoneInfo(zone))


async def test_an_attempt_counts_when_it_was_sent_not_when_it_ended(store: EventStore, scribe: Scribe) -> None:
    await store.append(sent(scribe, NOON // DAY * DAY + DAY - 1, paid(7)))

    assert 7 == await spent(store, usd("day"))
    assert 0 == await spent(store, usd("day"), now=NOON + DAY)


# ------------------------------------------------------------------ whose, and what of


async def test_a_budget_counts_what_it_is_about(store: EventStore, scribe: Scribe) -> None:
    for cost, model in ((1, "openai:gpt"), (10, "openai:mini"), (100, "groq:gpt"), (1000, "groq:a:b")):
        await store.append(sent(scribe, NOON, paid(cost), model=model))

    assert 1111 == await spent(store, usd())
    assert 11 == await spent(store, usd(provider="openai"))
    assert 1 == await spent(store, usd(model="openai:gpt"))
    assert 1000 == await spent(store, usd(model="groq:a:b"))
    assert 100 == await spent(store, usd(model="groq:gpt", provider="groq", window="total"))
    assert 0 == await spent(store, usd(provider="anthropic"))


async def test_only_budgets_that_a_request_falls_under_are_read(store: EventStore) -> None:
    configured = [
        usd(name="all"),
        usd(name="openai", provider="openai"),
        usd(name="gpt", model="openai:gpt"),
        usd(name="groq", provider="groq"),
    ]

    async def names(**of: str) -> list[str]:
        return [state.name for state in await read(store, *configured, **of)]

    assert ["all", "openai", "gpt"] == await names(provider="openai", model="gpt")
    assert ["all", "openai"] == await names(provider="openai", model="mini")
    assert ["all", "groq"] == await names(provider="groq", model="gpt")
    assert ["all", "openai", "gpt", "groq"] == await names()


async def test_sessions_turns_and_calls_are_windows_of_their_own(store: EventStore, scribe: Scribe) -> None:
    failed = e.CallFailed(1, e.ErrorInfo("server", ""), 1, True, e.Usage(output=2), "estimated", e.Cost("priced", 1))
    await store.append(sent(scribe, NOON - 400 * DAY, failed, call="c"))
    await store.append(sent(scribe, NOON, paid(10, 3, attempt=2), call="c", attempt=2))
    await store.append(sent(scribe, NOON, paid(100), call="d"))
    await store.append(sent(scribe, NOON, paid(1000), turn="u"))
    await store.append(sent(scribe, NOON, paid(10_000), session="b", turn="v"))
    ids = {"session_id": "a", "turn_id": "t", "call_id": "c"}

    assert [11, 111, 1111] == [await spent(store, usd(window), **ids) for window in ("call", "turn", "session")]
    assert 5 == await spent(store, BudgetConfig("b", limit_tokens=1, window="call"), **ids)
    assert [0, 0, 0] == [await spent(store, usd(window)) for window in ("call", "turn", "session")]
    labels = {window: (await read(store, usd(window), **ids))[0].window for window in ("call", "turn", "session")}
    assert {"call": "call", "turn": "turn", "session": "a"} == labels


async def test_what_runs_on_this_machine_is_exempt_unless_it_has_a_price(store: EventStore, scribe: Scribe) -> None:
    tokens = BudgetConfig("b", limit_tokens=1)
    await store.append(sent(scribe, NOON, paid(None, 50, state="free"), local=True))
    await store.append(sent(scribe, NOON, e.CallInterrupted(1, "sigint", e.Usage(50)), local=True))
    await store.append(sent(scribe, NOON, local=True, reserved_tokens=50))

    assert [(0, 0, 0)] * 2 == [(s.spent, s.reserved, s.unpriced) for s in await read(store, usd(), tokens)]

    await store.append(sent(scribe, NOON, paid(9, 7), local=True))
    await store.append(sent(scribe, NOON, local=True, reserved_nano_usd=3, reserved_tokens=2))

    assert [(9, 3), (7, 2)] == [(state.spent, state.reserved) for state in await read(store, usd(), tokens)]


async def test_tokens_of_every_kind_count_once(store: EventStore, scribe: Scribe) -> None:
    usage = e.Usage(1, 10, 100, 1000, 10_000, 5)
    await store.append(sent(scribe, NOON, e.ResponseCompleted(1, "stop", usage, "provider", e.Cost("priced", 1), 1)))

    assert 11_111 == await spent(store, BudgetConfig("b", limit_tokens=1))


async def test_what_has_no_price_is_counted_apart(store: EventStore, scribe: Scribe) -> None:
    await store.append(sent(scribe, NOON, paid(None, 50, state="unpriced")))
    await store.append(sent(scribe, NOON, paid(4, 50)))
    nobody = e.ResponseCompleted(1, "stop", e.Usage(), "none", e.Cost("unpriced"), 1)
    await store.append(sent(scribe, NOON, nobody))

    (state,) = await read(store, usd())

    assert (4, 1) == (state.spent, state.unpriced)
    assert 100 == await spent(store, BudgetConfig("b", limit_tokens=1))


async def test_the_part_of_a_cost_that_is_known_is_spent(store: EventStore, scribe: Scribe) -> None:
    await store.append(sent(scribe, NOON, paid(4, state="unpriced")))

    (state,) = await read(store, usd())

    assert (4, 1) == (state.spent, state.unpriced)


@pytest.mark.parametrize(("limit", "nano_usd"), [(0.07, 70_000_000), (20, 20_000_000_000), (1e-7, 100), (0.1 + 0.2, 300_000_000)])  # fmt: skip
async def test_a_limit_in_dollars_is_what_is_written(store: EventStore, limit: float, nano_usd: int) -> None:
    (state,) = await read(store, BudgetConfig("b", limit_usd=limit))

    assert nano_usd == state.limit


# ------------------------------------------------------------------ what is open


async def test_open_attempts_are_reserved_until_they_end(store: EventStore, scribe: Scribe) -> None:
    configured = [
        usd("month", "month"),
        BudgetConfig("tokens", limit_tokens=5, window="day"),
        usd("total", "mini", model="openai:mini"),
        *(usd(window, window) for window in ("session", "turn", "call")),
    ]
    ids = {"session_id": "a", "turn_id": "t", "call_id": "c"}
    reserved = {"reserved_nano_usd": 100, "reserved_tokens": 9}
    await store.append(sent(scribe, NOON, call="c", **reserved))
    await store.append(sent(scribe, NOON, call="d", model="openai:mini", **reserved))
    await store.append(sent(scribe, NOON - 2 * DAY, session="b", turn="u", **reserved))
    await store.append(sent(scribe, NOON - 40 * DAY, session="b", turn="u", **reserved))

    assert [300, 18, 100, 200, 200, 100] == [state.reserved for state in await read(store, *configured, **ids)]
    assert {0} == {state.spent for state in await read(store, *configured, **ids)}

    await store.append([NewEvent("a", paid(60, 5), scribe.clock.uuid7(), NOON + 1, turn_id="t", call_id="c")])

    assert [200, 9, 100, 100, 100, 0] == [state.reserved for state in await read(store, *configured, **ids)]
    assert [60, 5, 0, 60, 60, 60] == [state.spent for state in await read(store, *configured, **ids)]


async def test_an_attempt_that_failed_without_a_token_gives_its_reservation_back(
    store: EventStore, scribe: Scribe
) -> None:
    failed = e.CallFailed(1, e.ErrorInfo("server", ""), 1)
    await store.append(sent(scribe, NOON, failed, reserved_nano_usd=5))

    (state,) = await read(store, usd())
    assert (0, 0) == (state.spent, state.reserved)


@pytest.mark.parametrize("late", ["completed", "interrupted"])
async def test_only_the_first_end_of_an_attempt_is_spent(store: EventStore, scribe: Scribe, late: str) -> None:
    """As if a process that was taken for dead came back."""
    ends: dict[str, EventData] = {
        "completed": paid(5, 1),
        "interrupted": e.CallInterrupted(1, "abandoned", e.Usage(output=1), cost=e.Cost("priced", 5)),
    }
    second = ends.pop(late)
    await store.append(sent(scribe, NOON, *ends.values(), call="c"))
    await store.append([scribe.event("a", second, turn_id="t", call_id="c")])

    assert 5 == await spent(store, usd())


# ------------------------------------------------------------------ alerts


async def test_alerts_are_known_of_their_window_and_limit_alone(store: EventStore, scribe: Scribe) -> None:
    limit = 1_000_000_000
    for alert in (
        e.BudgetAlerted("b", "2026-11", 1, 0, limit, 80),
        e.BudgetAlerted("b", "2026-11", 1, 0, limit, 50),
        e.BudgetAlerted("b", "2026-11", 2, 0, limit, 50),
        e.BudgetAlerted("b", "2026-10", 1, 0, limit, 100),
        e.BudgetAlerted("other", "2026-11", 1, 0, limit, 100),
    ):
        await store.append([scribe.event("a", alert)])

    assert [(50, 80)] == [state.alerted for state in await read(store, usd())]
    assert [()] == [state.alerted for state in await read(store, BudgetConfig("b", limit_usd=2))]
    assert [()] == [state.alerted for state in await read(store, usd(), now=NOON + 30 * DAY)]


# ------------------------------------------------------------------ forgetting, folding anew


async def test_what_a_forgotten_session_cost_stays_spent(store: EventStore, scribe: Scribe) -> None:
    failed = e.CallFailed(
        1, e.ErrorInfo("server", "words"), 1, True, e.Usage(output=2), "estimated", e.Cost("priced", 3)
    )
    await store.append(sent(scribe, NOON, paid(40)))
    await store.append(sent(scribe, NOON - 1, failed))
    await store.append(sent(scribe, NOON, failed, reserved_nano_usd=8))
    await store.append([scribe.event("a", e.BudgetAlerted("b", "2026-11", 1, 0, 1_000_000_000, 80))])
    before = await read(store, usd(), usd("session"), session_id="a")
    rows = await asyncio.to_thread(look, store.path, "SELECT * FROM spending")

    await store.forget("a", lambda data: scribe.event("a", data))

    assert before == await read(store, usd(), usd("session"), session_id="a")
    assert (46, 0, (80,)) == (before[0].spent, before[0].reserved, before[0].alerted)
    assert rows == await asyncio.to_thread(look, store.path, "SELECT * FROM spending")


async def test_folded_in_another_order_the_sums_lie_the_same_in_the_file(store: EventStore, scribe: Scribe) -> None:
    attempts = [sent(scribe, NOON - day * DAY, model=f"p:{day}", call=f"c{day}") for day in (3, 1, 2)]
    ends = [scribe.event("a", paid(day), turn_id="t", call_id=f"c{day}") for day in (2, 3, 1)]
    await store.append([*(event for attempt in attempts for event in attempt), *ends])
    inline = await asyncio.to_thread(read_models, store.path)

    await store.rebuild(["usage"])

    assert inline == await asyncio.to_thread(read_models, store.path)
    assert sorted(inline["spending"]) == inline["spending"]


async def test_sums_stop_at_the_largest_number_that_the_file_holds(store: EventStore, scribe: Scribe) -> None:
    for at, call in ((NOON, "a"), (NOON, "b"), (NOON - 2 * HOUR, "c")):
        await store.append(sent(scribe, at, paid(2**62 + 1), call=call, reserved_nano_usd=2**62))
        await store.append(sent(scribe, at, call=f"{call} open", reserved_nano_usd=2**62))

    states = await read(store, usd(), usd("call"), call_id="b")

    most = 2**63 - 1
    assert [(most, most), (2**62 + 1, 0)] == [(state.spent, state.reserved) for state in states]


# ------------------------------------------------------------------ how much is read


async def test_a_budget_is_read_from_few_rows_however_long_the_log_is(store: EventStore) -> None:
    def plan(conn: Connection, query: Statement) -> str:
        sql = str(query.core.compile(conn))
        rows = conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", ("",) * sql.count("?"))
        return " ".join(str(row[-1]) for row in rows)

    of_period, of_scope, is_open = [
        await store.query(lambda conn, query=query: plan(conn, query))  # type: ignore[misc]
        for query in (budgets.OF_PERIOD, budgets.OF_SCOPE, budgets.OPEN)
    ]

    assert 3 == of_period.count("SEARCH spending USING PRIMARY KEY (scope=? AND starts_at>? AND starts_at<?)")
    assert "SEARCH spending USING PRIMARY KEY (scope=? AND starts_at=?)" == of_scope
    assert "USING INDEX attempts_open" in is_open
