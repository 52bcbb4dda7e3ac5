"""An equal request is answered from the log, or by following who is getting the answer; it goes out once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.answers import FOREVER
from support.faults import Bench, Outcome
from support.stores import opened

from timeline.config import BudgetConfig, CacheConfig, Price, Retry, Settings
from timeline.errors import ServerError
from timeline.events import (
    CallCacheHit,
    CallInterrupted,
    CallRerouted,
    Clock,
    Cost,
    Event,
    RequestSent,
    ResponseCompleted,
    SessionRedacted,
    Source,
    Usage,
)
from timeline.llm.manager import LLMManager
from timeline.llm.pricing import PriceBook
from timeline.llm.router import Candidate
from timeline.providers.base import Besides, Delta, Finish, ImagePart, LLMRequest, Message, Tool, UsageReport
from timeline.testing import ScriptedProvider

PRICES = {"scripted:model": Price(2.0, 10.0)}
ON = CacheConfig(enabled=True)
ANSWER = [
    Delta("Hm. ", "reasoning"),
    "Be",
    0.01,
    "cause.",
    UsageReport(Usage(input=100, output=20), {}),
    Finish("stop"),
]
COST = 100 * 2_000 + 20 * 10_000
"""Nano-US-dollars of it."""


class Cached:
    """Asks one provider, with the cache as it is set."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.provider = ScriptedProvider(ANSWER, local=False)

    async def ask(
        self, config: CacheConfig = ON, *, provider: ScriptedProvider | None = None, temperature: Any = 0.0, **more: Any
    ) -> Outcome:
        provider = provider or self.provider
        settings = Settings(cache=config, prices=PRICES)
        manager = LLMManager(
            self.bench.store, self.bench.clock, lambda _: provider, PriceBook(settings.prices), settings
        )
        candidates = [Candidate(provider.name, more.pop("model", "model"), "asked for")]
        return await self.bench.made(manager, candidates, temperature=temperature, **more)

    async def one_asked(self) -> None:
        """Returns as soon as a request has gone out."""
        while not self.asked:  # noqa: ASYNC110  the provider tells nobody
            await asyncio.sleep(0.01)

    @property
    def asked(self) -> int:
        """How many requests went out."""
        return len(self.provider.requests)


@pytest.fixture
async def cached(tmp_path: Path) -> AsyncIterator[Cached]:
    async with opened(tmp_path / "timeline.db", synchronous="normal") as store:
        yield Cached(Bench(store))


# ------------------------------------------------------------------ a hit


async def test_an_equal_request_is_answered_from_the_log_and_costs_nothing(cached: Cached) -> None:
    first = await cached.ask()
    second = await cached.ask()

    assert (1, ["from the log"]) == (cached.asked, second.trace)
    assert (first.deltas, "Because.") == (second.deltas, second.end.text if second.end else None)
    (hit,) = second.data(CallCacheHit)
    (done,) = first.data(ResponseCompleted)
    source = next(event for event in first.log if isinstance(event.data, ResponseCompleted))
    # What it would have cost again.
    assert COST == done.cost.nano_usd
    assert (
        CallCacheHit(source.call_id or "", COST, 1, "scripted", "model", "stop", "asked for"),
        [],
        [],
    ) == (hit, second.data(RequestSent), second.data(ResponseCompleted))
    assert first.end is not None
    assert second.end is not None
    assert first.end.response is not None
    assert second.end.response is not None
    for name in ("content", "reasoning", "finish_reason", "model"):
        assert getattr(first.end.response, name) == getattr(second.end.response, name)
    assert Usage() == second.end.response.usage


async def test_a_hit_and_who_follows_name_the_sources_of_the_answer_and_why_it_ended(cached: Cached) -> None:
    pages = (Source("https://a.example", "A"),)
    cached.provider = ScriptedProvider(["Yes", 0.3, Finish("stop", explanation="Why", sources=pages)], local=False)

    asking = asyncio.create_task(cached.ask())
    await cached.one_asked()
    outcomes = [await cached.ask(), await asking, await cached.ask()]

    assert (1, [1, 0, 1]) == (cached.asked, [len(outcome.data(CallCacheHit)) for outcome in outcomes])
    responses = [outcome.end.response for outcome in outcomes if outcome.end and outcome.end.response]
    assert [(pages, "Why")] * 3 == [(response.sources, response.explanation) for response in responses]


async def test_a_hit_tells_of_no_saving_where_only_a_part_of_the_cost_is_known(cached: Cached) -> None:
    used = UsageReport(Usage(output=20), {}, besides=(Besides(Usage(output=5), "nobody's"),))
    provider = ScriptedProvider(["Because.", used, Finish("stop")], local=False)

    first, second = await cached.ask(provider=provider), await cached.ask(provider=provider)

    (done,), (hit,) = first.data(ResponseCompleted), second.data(CallCacheHit)
    assert (Cost("unpriced", 20 * 10_000), None) == (done.cost, hit.saved_nano_usd)


async def test_a_hit_is_no_source_of_its_own(cached: Cached) -> None:
    outcomes = [await cached.ask() for _ in range(3)]

    first, *others = outcomes
    source = next(event.call_id for event in first.log if isinstance(event.data, ResponseCompleted))
    assert [source] * 2 == [other.data(CallCacheHit)[0].source_call for other in others]


@pytest.mark.parametrize(
    ("config", "temperature", "forced", "hit"),
    [
        (ON, 0.0, None, True),
        (ON, 0.3, None, True),
        (ON, 0.31, None, False),
        (ON, None, None, False),
        (ON, 1.5, True, True),
        (ON, None, True, True),
        (ON, 0.0, False, False),
        (CacheConfig(), 0.0, None, False),
        (CacheConfig(), 0.0, True, True),
        (CacheConfig(enabled=True, max_temperature=1), 1.0, None, True),
        (CacheConfig(enabled=True, max_temperature=0), 0.1, None, False),
    ],
)
async def test_it_is_used_where_the_settings_and_the_temperature_allow_or_the_caller_says(
    cached: Cached, config: CacheConfig, temperature: float | None, forced: bool | None, hit: bool
) -> None:
    for _ in range(2):
        await cached.ask(config, temperature=temperature, cache=forced)

    assert (1 if hit else 2) == cached.asked


async def test_an_answer_is_good_for_as_long_as_the_settings_say(cached: Cached) -> None:
    class Later(Clock):
        def now(self) -> int:
            return super().now() + 3600 * 1_000_000

    await cached.ask()
    cached.bench.clock = Later()

    assert ["from the log"] == (await cached.ask(CacheConfig(enabled=True, ttl=3700))).trace
    assert ["scripted: answered"] == (await cached.ask(CacheConfig(enabled=True, ttl=3500))).trace
    # The new answer is young.
    assert ["from the log"] == (await cached.ask(CacheConfig(enabled=True, ttl=60))).trace


async def test_an_answer_in_one_piece_and_a_streamed_one_are_the_same_answer(cached: Cached) -> None:
    await cached.ask(stream=False)

    assert (["from the log"], "Hm. Because.") == ((second := await cached.ask()).trace, second.text)


# ------------------------------------------------------------------ never


async def test_what_is_private_is_neither_kept_nor_looked_for(cached: Cached) -> None:
    await cached.ask(private=True, cache=True)
    await cached.ask(cache=True)
    await cached.ask(private=True, cache=True)

    assert 3 == cached.asked


async def test_what_was_forgotten_is_asked_again(cached: Cached) -> None:
    first = await cached.ask()
    session = first.log[0].session_id
    clock = cached.bench.clock

    def redacted(data: SessionRedacted) -> Any:
        from timeline.events import NewEvent

        return NewEvent(session, data, clock.uuid7(), clock.now())

    await cached.bench.store.forget(session, redacted)

    assert ["scripted: answered"] == (await cached.ask()).trace


CALL = Delta('{"a": 1}', "tool_call", 0, "id1", "add")
NEVER: dict[str, list[Any]] = {
    "calls a tool": ["Let me see. ", CALL, Finish("tool_calls")],
    "calls a tool, and says stop": ["Let me see. ", CALL, Finish("stop")],
    "filtered": ["Be", Finish("content_filter")],
    "to be continued": ["Be", Finish("pause")],
    "for an unknown reason": ["Be", Finish("unknown")],
    "failed": ["Be", ServerError("it broke", provider="scripted", retryable=False)],
    "failed at once": [ServerError("it broke", provider="scripted", retryable=False)],
}


@pytest.mark.parametrize("name", NEVER)
async def test_what_is_no_whole_answer_is_asked_again(cached: Cached, name: str) -> None:
    cached.provider = ScriptedProvider(NEVER[name], local=False)

    for _ in range(2):
        await cached.ask()

    assert 2 == cached.asked


async def test_an_answer_that_reached_its_limit_would_reach_it_again(cached: Cached) -> None:
    cached.provider = ScriptedProvider(["Be", Finish("length")])

    await cached.ask(max_tokens=1)
    again = await cached.ask(max_tokens=1)

    assert ["from the log"] == again.trace
    assert again.end is not None
    assert again.end.response is not None
    assert "length" == again.end.response.finish_reason


async def test_an_interrupted_answer_is_asked_again(cached: Cached) -> None:
    cached.provider = ScriptedProvider(["Be", FOREVER], ANSWER, local=False)
    call = asyncio.create_task(cached.ask())
    await cached.one_asked()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call

    assert ["scripted: answered"] == (await cached.ask()).trace


# ------------------------------------------------------------------ what is equal


TOOL = Tool("add", "adds", {"type": "object"})
BASE: dict[str, Any] = {"prompt": "Why?", "system": "Be brief.", "max_tokens": 9, "seed": 1, "stop": ("x",)}
OTHERS: list[dict[str, Any]] = [
    {"prompt": "Why"},
    {"prompt": "Why? "},
    {"system": "Be long."},
    {"system": None},
    {"max_tokens": 10},
    {"max_tokens": None},
    {"seed": 2},
    {"stop": ("y",)},
    {"stop": ("x", "y")},
    {"temperature": 0.1},
    {"model": "other"},
    {"tools": (TOOL,)},
    {"tools": (TOOL,), "tool_choice": "none"},
    {"tools": (Tool("add", "adds up", {"type": "object"}),)},
    {"response_schema": {"type": "object"}},
    {"response_schema": {"type": "array"}},
    {"reasoning": "low"},
    {"extra": {"top_p": 0.5}},
]


async def test_requests_are_equal_where_all_that_is_sent_is_and_nothing_else_counts(cached: Cached) -> None:
    digests = []
    for change in ({}, *OTHERS):
        sent = (await cached.ask(**(BASE | change))).data(RequestSent)
        digests += [data.request_digest for data in sent]

    # Nobody got another one's answer,
    assert 1 + len(OTHERS) == len(set(digests)) == cached.asked
    # and in other sessions, turns and calls each gets its own.
    for change in ({}, *OTHERS):
        assert ["from the log"] == (await cached.ask(**(BASE | change))).trace
    assert 1 + len(OTHERS) == cached.asked


async def test_the_same_of_another_provider_is_another_answer(cached: Cached) -> None:
    other = ScriptedProvider("No.", name="other", local=False)

    await cached.ask()
    outcome = await cached.ask(provider=other)

    assert (["other: answered"], "No.") == (outcome.trace, outcome.text)


def test_an_image_is_part_of_what_is_equal() -> None:
    import msgspec

    def encoded(data: bytes) -> bytes:
        return msgspec.json.encode(LLMRequest("m", (Message("user", (ImagePart(data, "image/png"),)),)))

    assert encoded(b"1") != encoded(b"2")
    assert encoded(b"1") == encoded(b"1")


# ------------------------------------------------------------------ at the same time


def slowly(words: int = 20) -> list[Any]:
    return [step for number in range(words) for step in (f"word{number} ", 0.03)]


async def test_twenty_equal_requests_at_once_are_made_once(cached: Cached) -> None:
    cached.provider = ScriptedProvider(slowly(), local=False)

    outcomes = await asyncio.gather(*(cached.ask() for _ in range(20)))

    whole = "".join(f"word{number} " for number in range(20))
    assert (1, {whole}) == (cached.asked, {outcome.shown for outcome in outcomes})
    traces = [outcome.trace for outcome in outcomes]
    assert (1, 19) == (traces.count(["scripted: answered"]), traces.count(["from the log"]))
    # Each delta by itself, and all of them what the one call recorded.
    assert {20} == {len(outcome.deltas) for outcome in outcomes}
    assert {None} == {outcome.error for outcome in outcomes}


async def test_who_follows_sees_the_words_while_they_come(cached: Cached) -> None:
    cached.provider = ScriptedProvider(["Be", FOREVER], local=False)
    first = asyncio.create_task(cached.ask())
    await cached.one_asked()
    seen: list[str] = []

    async def follow() -> None:
        settings = Settings(cache=ON)
        manager = LLMManager(cached.bench.store, cached.bench.clock, lambda _: cached.provider, settings=settings)
        await cached.bench.made(
            manager,
            [Candidate("scripted", "model", "asked for")],
            temperature=0.0,
            seen=seen.append,
        )

    second = asyncio.create_task(follow())
    for _ in range(200):
        await asyncio.sleep(0.02)
        if seen:
            break
    second.cancel()
    first.cancel()
    await asyncio.gather(first, second, return_exceptions=True)

    assert ["Be"] == seen


async def test_who_follows_can_go_without_harm_to_anybody(cached: Cached) -> None:
    cached.provider = ScriptedProvider(slowly(), local=False)
    calls = [asyncio.create_task(cached.ask()) for _ in range(4)]
    await asyncio.sleep(0.2)
    # All but the one whose request it is.
    leader = await _leader(cached)

    followers = [call for number, call in enumerate(calls) if number != leader]
    followers[0].cancel()
    ended = await asyncio.gather(*calls, return_exceptions=True)

    gone = [outcome for outcome in ended if isinstance(outcome, asyncio.CancelledError)]
    whole = [outcome for outcome in ended if isinstance(outcome, Outcome) and "word19" in outcome.text]
    assert (1, 3, 1) == (len(gone), len(whole), cached.asked)


async def _leader(cached: Cached) -> int:
    """Which of the calls, in the order in which they began, makes the request."""
    events = [event async for event in cached.bench.store.read()]
    sessions = list(dict.fromkeys(event.session_id for event in events))
    (sent,) = [event for event in events if isinstance(event.data, RequestSent)]
    return sessions.index(sent.session_id)


@pytest.mark.parametrize("words", [True, False], ids=["in mid-stream", "before the first words"])
async def test_when_the_one_is_stopped_another_takes_over(cached: Cached, words: bool) -> None:
    pause = [FOREVER, "Be"]
    cached.provider = ScriptedProvider(["Be", FOREVER] if words else pause, ANSWER, local=False)
    calls = [asyncio.create_task(cached.ask()) for _ in range(5)]
    await asyncio.sleep(0.3)
    leader = await _leader(cached)

    calls[leader].cancel()
    ended = await asyncio.gather(*calls, return_exceptions=True)

    outcomes = [outcome for outcome in ended if isinstance(outcome, Outcome)]
    assert (2, 4) == (cached.asked, len(outcomes))
    # What was shown of the first is taken back; where nothing was, nothing is.
    assert {"Be⟲Hm. Because." if words else "Hm. Because."} == {outcome.shown for outcome in outcomes}
    traces = [outcome.trace for outcome in outcomes]
    assert (1, 3) == (traces.count(["scripted: answered"]), traces.count(["from the log"]))


async def test_when_the_one_fails_another_asks_for_itself(cached: Cached) -> None:
    broken = ServerError("it broke", provider="scripted", retryable=False)
    cached.provider = ScriptedProvider(["Be", 0.3, broken], ANSWER, local=False)

    outcomes = await asyncio.gather(*(cached.ask() for _ in range(3)))

    assert ["Be", "Be⟲Hm. Because.", "Be⟲Hm. Because."] == sorted(outcome.shown for outcome in outcomes)
    assert 2 == cached.asked


async def test_who_follows_waits_no_longer_than_its_own_time(cached: Cached) -> None:
    cached.provider = ScriptedProvider([FOREVER, "Be"], local=False)
    first = asyncio.create_task(cached.ask())
    await cached.one_asked()

    outcome = await cached.ask(timeout=0.3)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)

    assert (1, 1) == (outcome.code, cached.asked)
    assert "gave no answer within the 0.3 s of the call" in str(outcome.error)


async def test_what_another_machine_has_begun_is_not_waited_for(cached: Cached) -> None:
    """Nobody can tell whether it is still there."""
    cached.provider = ScriptedProvider(ANSWER, local=False)
    first = await cached.ask()
    begun = next(event for event in first.log if isinstance(event.data, RequestSent))
    # As if it had never ended, elsewhere.
    await _begun_elsewhere(cached, begun)

    outcome = await asyncio.wait_for(cached.ask(seed=7), 20)

    assert ["scripted: answered"] == outcome.trace


async def _begun_elsewhere(cached: Cached, begun: Event) -> None:
    import msgspec

    from timeline.events import NewEvent, Owner
    from timeline.store import content_digest

    clock = cached.bench.clock
    assert isinstance(begun.data, RequestSent)
    asked = LLMRequest("model", (Message("user", "Why?"),), temperature=0.0, seed=7)
    data = msgspec.structs.replace(
        begun.data,
        owner=Owner("another-host", 1, 1.0),
        request_digest=content_digest(msgspec.json.encode(("scripted", asked))),
    )
    await cached.bench.store.append(
        [NewEvent(begun.session_id, data, clock.uuid7(), clock.now(), begun.turn_id, begun.step_id, "elsewhere")]
    )


async def test_what_stands_in_does_so_for_a_follower_whose_time_is_over(cached: Cached) -> None:
    cached.provider = ScriptedProvider([FOREVER, "Be"], local=False)
    here = ScriptedProvider("Here.", name="here")
    first = asyncio.create_task(cached.ask())
    await cached.one_asked()
    providers = {"scripted": cached.provider, "here": here}
    manager = LLMManager(
        cached.bench.store,
        cached.bench.clock,
        providers.__getitem__,
        settings=Settings(cache=ON, retry=Retry(timeout=0.3)),
    )

    outcome = await cached.bench.made(
        manager, [Candidate(name, "model", "asked for") for name in providers], temperature=0.0
    )
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)

    assert (["scripted → here: timeout", "here: answered"], "Here.") == (outcome.trace, outcome.text)


async def test_calls_of_tools_are_made_by_each_for_itself(cached: Cached) -> None:
    cached.provider = ScriptedProvider(["Let me see. ", 0.3, CALL, Finish("tool_calls")], local=False)

    outcomes = await asyncio.gather(*(cached.ask() for _ in range(4)))

    assert 4 == cached.asked
    calls = [outcome.end.response.tool_calls for outcome in outcomes if outcome.end and outcome.end.response]
    assert [1] * 4 == [len(call) for call in calls]


async def test_another_candidates_answer_in_the_log_says_why_it_is_that_one(cached: Cached) -> None:
    """The first one can't be asked now; the second one's answer is known."""
    await cached.ask()
    dear = ScriptedProvider("Never.", name="dear", local=False)
    providers = {"dear": dear, "scripted": cached.provider}
    settings = Settings(
        cache=ON,
        prices={**PRICES, "dear:model": Price(1000, 1000)},
        budgets=[BudgetConfig("little", limit_usd=0.000001, provider="dear", action="fallback")],
    )
    manager = LLMManager(
        cached.bench.store, cached.bench.clock, providers.__getitem__, PriceBook(settings.prices), settings
    )

    outcome = await cached.bench.made(
        manager, [Candidate(name, "model", "asked for") for name in providers], temperature=0.0
    )

    assert ("Hm. Because.", 1, []) == (outcome.text, cached.asked, dear.requests)
    assert ["dear", "scripted"] == [
        name.partition(":")[0] for data in outcome.data(CallRerouted) for name in (data.source, data.target)
    ]


async def test_an_interrupted_follower_leaves_no_attempt_open(cached: Cached) -> None:
    cached.provider = ScriptedProvider(["Be", FOREVER], local=False)
    calls = [asyncio.create_task(cached.ask()) for _ in range(2)]
    await asyncio.sleep(0.3)

    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    await cached.bench.store.append_when(lambda _: [])

    events = [event.data async for event in cached.bench.store.read()]
    assert (1, 1) == tuple(sum(isinstance(data, kind) for data in events) for kind in (RequestSent, CallInterrupted))
