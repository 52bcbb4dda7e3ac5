"""Whatever is asked, whenever, and however it ends: no budget that stops requests is passed, and alerts come once.

The test keeps a ledger of its own, in which it looks up what should stand against each budget.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, create_engine, select
from support.stores import NOON, OWNER

from timeline import events as e
from timeline.config import BudgetConfig
from timeline.events import Event, EventData
from timeline.llm.budget import Admitted, decide
from timeline.projections.budgets import applies, read_budgets
from timeline.projections.calls import Calls
from timeline.projections.usage import UsageProjection, budget_alerts, spending

HOUR = 3_600_000_000
EVER = ("total",)

amounts = st.sampled_from([7, 1, 0, 2, 5, 11, 13, 17, 23])
zones = st.sampled_from(["UTC", "Asia/Kathmandu", "America/St_Johns", "Europe/London"]).map(ZoneInfo)
limits = st.one_of(
    st.integers(0, 60).map(lambda nano: {"limit_usd": nano / 10**9}),
    st.integers(0, 60).map(lambda tokens: {"limit_tokens": tokens}),
)
configs = st.builds(
    lambda limit, **fields: BudgetConfig(name="", **limit, **fields),
    limit=limits,
    window=st.sampled_from(["call", "turn", "session", "day", "week", "month", "total"]),
    provider=st.sampled_from([None, None, "openai"]),
    model=st.sampled_from([None, None, "openai:gpt"]),
    action=st.sampled_from(["block", "block", "fallback", "warn"]),
)
asks = st.tuples(
    st.just("ask"),
    st.sampled_from(["one", "two"]),  # session
    st.integers(0, 1),  # turn of it
    st.booleans(),  # another attempt of the call before
    st.sampled_from(["openai:gpt", "openai:gpt", "openai:mini", "groq:gpt", "embedded:smollm2"]),
    st.one_of(amounts, amounts, amounts, amounts, st.none()),  # nano-US-dollars
    amounts,  # tokens
)
ends = st.tuples(
    st.just("end"),
    st.integers(0, 5),
    st.sampled_from(["completed", "failed", "refused", "interrupted"]),
    st.sampled_from([1.0, 1.0, 0.5, 0.0]),
)
passes = st.tuples(st.just("pass"), st.sampled_from([HOUR // 4, 1, HOUR, 9 * HOUR, 200 * HOUR]))
histories = st.lists(st.one_of(asks, asks, asks, ends, ends, ends, passes), min_size=25, max_size=60)


@dataclass
class Entry:
    """An attempt as the test's own ledger has it."""

    session: str
    turn: str
    call: str
    attempt: int
    model: str
    at: int
    local: bool
    nano_usd: int
    tokens: int
    open: bool = True


@dataclass
class World:
    conn: Connection
    budgets: list[BudgetConfig]
    zone: tzinfo
    now: int = NOON
    events: list[Event] = field(default_factory=list)
    ledger: list[Entry] = field(default_factory=list)
    alerts: defaultdict[tuple[str, str], list[int]] = field(default_factory=lambda: defaultdict(list))

    def record(self, data: EventData, entry: Entry) -> None:
        number = len(self.events) + 1
        ids = (entry.turn, None, entry.call)
        event = Event(number, str(number), entry.session, number, data.type, data.v, self.now, *ids, data, str(number))
        self.events.append(event)
        fold(self.conn, event)

    def ask(self, session: str, turn: int, again: bool, model: str, nano_usd: int | None, tokens: int) -> None:
        local = model.startswith("embedded")
        if local:
            nano_usd = tokens = 0
        before = self.ledger[-1] if again and self.ledger else None
        if before is not None:
            place = (before.session, before.turn, before.call, before.attempt + 1)
        else:
            place = (session, f"{session}-{turn}", f"call-{len(self.ledger)}", 1)
        entry = Entry(*place, model, self.now, local, nano_usd or 0, tokens)
        provider, _, name = model.partition(":")
        states = read_budgets(
            self.conn,
            self.budgets,
            now=self.now,
            session_id=entry.session,
            turn_id=entry.turn,
            call_id=entry.call,
            provider=provider,
            model=name,
            tz=self.zone,
        )
        under = [budget for budget in self.budgets if applies(budget, provider, name)]
        for budget, state in zip(under, states, strict=True):
            assert self.stands(budget)[self.window(budget, entry)] == (state.spent, state.reserved)
        decision = decide(states, nano_usd, tokens, self.now, tz=self.zone)
        for fact in decision.events:
            if isinstance(fact, e.BudgetAlerted):
                self.alerts[fact.budget, fact.window].append(fact.threshold_percent)
            self.record(fact, entry)
        if isinstance(decision, Admitted):
            sent = e.RequestSent(
                entry.attempt,
                provider,
                name,
                "",
                (),
                OWNER,
                reserved_nano_usd=entry.nano_usd,
                reserved_tokens=tokens,
                local=local,
            )
            self.record(sent, entry)
            self.ledger.append(entry)

    def end(self, which: int, how: str, part: float) -> None:
        is_open = [entry for entry in self.ledger if entry.open]
        if not is_open:
            return
        entry = is_open[which % len(is_open)]
        entry.open = False
        entry.nano_usd, entry.tokens = int(entry.nano_usd * part), int(entry.tokens * part)
        usage = e.Usage(input=entry.tokens // 2, output=entry.tokens - entry.tokens // 2)
        cost = e.Cost("priced", entry.nano_usd)
        if entry.local:
            usage, cost = e.Usage(99, output=99), e.Cost("free")
        error = e.ErrorInfo("server", "it failed")
        match how:
            case "completed":
                data: EventData = e.ResponseCompleted(entry.attempt, "stop", usage, "provider", cost, 1)
            case "failed":
                data = e.CallFailed(entry.attempt, error, 1, True, usage, "estimated", cost)
            case "refused":
                entry.nano_usd = entry.tokens = 0
                data = e.CallFailed(entry.attempt, error, 1)
            case _:
                data = e.CallInterrupted(entry.attempt, "abandoned", usage, cost=cost)
        self.record(data, entry)

    def window(self, budget: BudgetConfig, entry: Entry) -> tuple[object, ...]:
        """Which window of the budget an attempt counts in."""
        local = datetime.fromtimestamp(entry.at // 1_000_000, self.zone)
        windows: dict[str, tuple[object, ...]] = {
            "call": (entry.call,),
            "turn": (entry.turn,),
            "session": (entry.session,),
            "day": (local.year, local.month, local.day),
            "week": local.isocalendar()[:2],
            "month": (local.year, local.month),
            "total": EVER,
        }
        return windows[budget.window]

    def stands(self, budget: BudgetConfig) -> defaultdict[tuple[object, ...], tuple[int, int]]:
        """What is spent and reserved in every window."""
        sums: defaultdict[tuple[object, ...], tuple[int, int]] = defaultdict(lambda: (0, 0))
        for entry in self.ledger:
            provider, _, name = entry.model.partition(":")
            if not entry.local and applies(budget, provider, name):
                spent, reserved = sums[self.window(budget, entry)]
                amount = entry.tokens if budget.limit_usd is None else entry.nano_usd
                sums[self.window(budget, entry)] = (
                    (spent, reserved + amount) if entry.open else (spent + amount, reserved)
                )
        return sums


PROJECTIONS = (Calls(), UsageProjection())


def fold(conn: Connection, event: Event) -> None:
    for projection in PROJECTIONS:
        projection.apply(conn, event)


@contextmanager
def tables() -> Iterator[Connection]:
    engine = create_engine("sqlite://")
    with engine.connect() as conn:
        for projection in PROJECTIONS:
            for table in projection.tables:
                table.create(conn)
        yield conn
    engine.dispose()


@settings(max_examples=40)
@given(st.lists(configs, min_size=1, max_size=3), zones, histories)
def test_spent_and_reserved_never_pass_a_limit_that_stops_requests_and_alerts_come_once(
    configured: list[BudgetConfig], zone: tzinfo, history: list[Any]
) -> None:
    budgets = [msgspec.structs.replace(budget, name=str(number)) for number, budget in enumerate(configured)]
    with tables() as conn, tables() as anew:
        world = World(conn, budgets, zone)
        for what, *values in history:
            if what == "pass":
                world.now += values[0]
            else:
                getattr(world, what)(*values)
            for budget in budgets:
                limit = budget.limit_tokens if budget.limit_usd is None else round(budget.limit_usd * 10**9)
                assert limit is not None
                most = max((sum(amounts) for amounts in world.stands(budget).values()), default=0)
                assert budget.action == "warn" or most <= limit
        for thresholds in world.alerts.values():
            assert sorted(set(thresholds)) == thresholds

        for event in world.events:
            fold(anew, event)
        for table in (spending, budget_alerts):
            assert conn.execute(select(table)).all() == anew.execute(select(table)).all()
