"""Rate limits and circuits where they act: in the transaction that admits a request."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from support.calls import Recorder, recorder

from timeline.config import BudgetConfig, ProviderConfig, Retry, Settings
from timeline.errors import BudgetExceeded, RateLimited, ServerError
from timeline.events import (
    BudgetExceeded as Exceeded,
)
from timeline.events import (
    CallInterrupted,
    CallRerouted,
    Clock,
    MessageRef,
    NewEvent,
    Owner,
    RateLimit,
    RateLimitWaited,
    RequestSent,
)
from timeline.llm.manager import CallContext, CallEnd, LLMManager
from timeline.llm.router import Candidate
from timeline.providers.base import Delta, Finish, Item, LLMProvider, LLMRequest, LLMResponse, Message, ModelInfo
from timeline.store import this_process


class Scripted(LLMProvider):
    """Says what limits are left, or fails."""

    def __init__(self, name: str, left: int = 9, reset_seconds: float = 0.3, *, fails: bool = False) -> None:
        self.name = name
        self.asked = 0
        self._left = left
        self._reset = reset_seconds
        self._fails = fails

    async def stream_request(self, request: LLMRequest) -> AsyncIterator[Item]:
        self.asked += 1
        if self._fails:
            msg = f"{self.name} failed"
            raise ServerError(msg, provider=self.name)
        yield Delta("yes")
        reset_at = Clock().now() + round(self._reset * 1e6)
        yield Finish("stop", rate_limits=(RateLimit("requests", 10, self._left, reset_at),))

    async def make_request(self, request: LLMRequest) -> LLMResponse:
        raise NotImplementedError

    async def get_available_models(self) -> list[ModelInfo]:
        return []


@pytest.fixture
async def calls(tmp_path: Path) -> AsyncIterator[Recorder]:
    async with recorder(tmp_path / "timeline.db") as made:
        await made.store.append(made.opening())
        yield made


async def ask(
    calls: Recorder, *providers: Scripted, timeout: float = 30, budgets: Sequence[BudgetConfig] = (), **config: Any
) -> CallEnd:
    """One call to the first of them that may be asked."""
    settings = Settings(
        llm_providers={provider.name: ProviderConfig(**config) for provider in providers},
        retry=Retry(max_attempts=1, timeout=timeout),
        budgets=list(budgets),
    )
    named = {provider.name: provider for provider in providers}
    manager = LLMManager(calls.store, calls.clock, named.__getitem__, settings=settings)
    context = CallContext(calls.session_id, "turn", "step", (MessageRef("user"),))
    request = LLMRequest("m", messages=(Message("user", "Why?"),), max_tokens=7)
    candidates = [Candidate(provider.name, "m", "asked for") for provider in providers]
    async with aclosing(manager.stream(candidates, request, context)) as items:
        return [item async for item in items if isinstance(item, CallEnd)][-1]


async def test_a_request_that_would_be_over_the_limit_waits_and_goes(calls: Recorder) -> None:
    provider = Scripted("p", left=0)
    await ask(calls, provider)

    end = await ask(calls, provider)

    assert "yes" == end.text
    (waited,) = await calls.data(RateLimitWaited)
    assert ("p", "m", "requests", this_process()) == (waited.provider, waited.model, waited.limit, waited.owner)
    assert 0 < waited.waited_us <= 400_000
    assert waited.tokens - 7 == waited.input_tokens > 0
    assert [] == await calls.store.query(lambda conn: conn.exec_driver_sql("SELECT * FROM waits").all())


async def test_a_wait_longer_than_the_call_may_take_goes_to_the_next_candidate(calls: Recorder) -> None:
    full, other = Scripted("p", left=0, reset_seconds=60), Scripted("q")
    await ask(calls, full)

    await ask(calls, full, other, timeout=2)

    assert (1, 1) == (full.asked, other.asked)
    (rerouted,) = await calls.data(CallRerouted)
    assert rerouted.reason.startswith("rate limit requests for ")


async def test_where_there_is_no_other_it_is_an_error_that_says_for_how_long(calls: Recorder) -> None:
    full = Scripted("p", left=0, reset_seconds=60)
    await ask(calls, full)

    end = await ask(calls, full, timeout=2)

    assert isinstance(end.error, RateLimited)
    assert 5 == end.error.exit_code
    assert str(end.error).startswith("p:m is at its rate limit (requests) for another ")


async def test_a_configured_limit_holds_without_headers(calls: Recorder) -> None:
    provider = Scripted("p")
    await ask(calls, provider, rpm=1)

    end = await ask(calls, provider, rpm=1, timeout=2)

    assert isinstance(end.error, RateLimited)
    assert "(rpm)" in str(end.error)


async def test_a_model_that_keeps_failing_is_left_alone_and_the_next_one_asked_at_once(calls: Recorder) -> None:
    failing, other = Scripted("p", fails=True), Scripted("q")
    for _ in range(5):
        await ask(calls, failing)

    end = await ask(calls, failing, other)
    alone = await ask(calls, failing)

    assert (5, 1, "yes") == (failing.asked, other.asked, end.text)
    assert "p:m is left alone for 30 s (5 failures in a row, the last one: server)" in str(alone.error)
    assert 6 == len(await calls.data(RequestSent))


# ------------------------------------------------------------------ what died meanwhile


async def leave_open(calls: Recorder, owner: Owner, *, tokens: int) -> None:
    """Another process has sent a request to `p:m` that may use so many tokens, and nobody has heard of it since."""
    sent = RequestSent(1, "p", "m", "", (), owner, reserved_tokens=tokens, estimated_input_tokens=3)
    ids = {"turn_id": "turn", "step_id": "step", "call_id": calls.clock.short_id()}
    await calls.store.append([NewEvent(calls.session_id, sent, calls.clock.uuid7(), calls.clock.now(), **ids)])


def dead() -> Owner:
    """A process that had this one's id before it."""
    alive = this_process()
    return Owner(alive.host, alive.pid, alive.started - 3600)


TOKENS = BudgetConfig("all", limit_tokens=1000, window="total")


async def test_what_a_dead_process_reserved_of_a_budget_holds_nobody_back(calls: Recorder) -> None:
    await leave_open(calls, dead(), tokens=999)

    end = await ask(calls, Scripted("p"), budgets=[TOKENS])

    assert "yes" == end.text
    assert ["abandoned"] == [stopped.reason for stopped in await calls.data(CallInterrupted)]
    assert [] == await calls.data(Exceeded)


async def test_nor_does_it_send_anybody_elsewhere(calls: Recorder) -> None:
    await leave_open(calls, dead(), tokens=999)
    wanted, other = Scripted("p"), Scripted("q")
    budget = BudgetConfig("all", limit_tokens=1000, window="total", provider="p", action="fallback")

    await ask(calls, wanted, other, budgets=[budget])

    assert (1, 0) == (wanted.asked, other.asked)


async def test_what_a_dead_process_sent_counts_in_a_limit_as_what_it_may_have_used(calls: Recorder) -> None:
    await leave_open(calls, dead(), tokens=999)

    end = await ask(calls, Scripted("p"), tpm=1000, timeout=2)

    assert "yes" == end.text
    assert [] == await calls.data(RateLimitWaited)


async def test_what_a_live_process_reserved_stays_reserved(calls: Recorder) -> None:
    await leave_open(calls, this_process(), tokens=999)

    end = await ask(calls, Scripted("p"), budgets=[TOKENS])

    assert isinstance(end.error, BudgetExceeded)
    assert [] == await calls.data(CallInterrupted)
