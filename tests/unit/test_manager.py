"""One call is written down before, while and after it happens, whatever its end."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, suppress
from itertools import accumulate, pairwise
from pathlib import Path

import pytest
from sqlalchemy import Engine, event
from support import answers
from support.calls import ONCE, Recorder, recorder, types_in
from support.loopback import Server

from timeline.config import MOST_TOKENS, BudgetConfig, Price
from timeline.errors import ProviderError, ServerError, StoreFull
from timeline.events import (
    CallFailed,
    CallInterrupted,
    ChunkReceived,
    Cost,
    Event,
    RateLimit,
    RequestSent,
    ResponseCompleted,
    Usage,
)
from timeline.llm.attempt import WINDOW_CHARACTERS, WINDOW_SECONDS, CallEnd
from timeline.llm.manager import LLMManager
from timeline.llm.pricing import PriceBook
from timeline.money import MOST_NANO_USD
from timeline.projections.budgets import read_budgets
from timeline.projections.usage import report
from timeline.providers.base import Besides, Delta, Finish, Item, LLMRequest, Message, OpaquePart, UsageReport
from timeline.providers.openai import OpenAIProvider
from timeline.store import content_digest
from timeline.testing import ScriptedProvider

FOREVER = 3600.0
SLOWLY = [step for _ in range(100) for step in (0.11, "x" * 3000)]
"""Each piece a window of its own."""


@pytest.fixture
async def calls(tmp_path: Path) -> AsyncIterator[Recorder]:
    async with recorder(tmp_path / "timeline.db") as made:
        yield made


def texts(items: list[object]) -> list[str]:
    return [item.text for item in items if isinstance(item, Delta)]


# ------------------------------------------------------------------ before


class Watching(Server):
    """Looks into the file at the moment a connection is accepted."""

    path: Path
    seen: list[list[str]]

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.seen.append(types_in(self.path))
        super()._connected(reader, writer)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "batch"])
async def test_the_request_is_committed_before_a_socket_opens(calls: Recorder, stream: bool) -> None:
    reply = answers.answer("Because.") if stream else answers.batch("Because.")
    async with Watching(reply) as server:
        server.path, server.seen = calls.store.path, []
        provider = OpenAIProvider(None, server.url + "/v1", name="t")

        await calls.call(provider, stream=stream)

        await provider.aclose()
    assert [["session.started", "turn.started", "step.started", "request.sent"]] == server.seen


async def test_the_request_says_what_is_asked_for_and_who_is_responsible(calls: Recorder) -> None:
    await calls.call(ScriptedProvider("Yes"), temperature=0.5, max_tokens=7, seed=3, stop=("\n",))

    (sent,) = await calls.data(RequestSent)
    assert ("scripted", "model", "asked for", 1, True) == (
        sent.provider,
        sent.model,
        sent.why,
        sent.attempt,
        sent.local,
    )
    assert {"temperature": 0.5, "max_tokens": 7, "seed": 3, "stop": ["\n"]} == sent.params
    assert sent.estimated_input_tokens > 0
    assert sent.owner.pid > 0


async def test_nothing_is_sent_when_the_request_can_t_be_recorded(calls: Recorder, disk: Disk) -> None:
    provider = ScriptedProvider("never")
    disk.fill(calls.store.path)

    with pytest.raises(StoreFull):
        await calls.call(provider, contents=["x" * 20_000])

    assert [] == provider.requests
    # Neither the request, nor what it follows from, nor an end of what never was.
    assert [] == types_in(calls.store.path)
    disk.empty()


# ------------------------------------------------------------------ while


async def test_the_first_delta_is_committed_at_once(calls: Recorder) -> None:
    call = asyncio.create_task(calls.call(ScriptedProvider(("Be", FOREVER))))

    (chunk,) = await calls.eventually(ChunkReceived)

    assert (("Be",), 0) == (chunk.texts, chunk.first)
    call.cancel()
    with suppress(asyncio.CancelledError):
        await call


async def test_a_window_is_committed_in_a_silence_too(calls: Recorder) -> None:
    call = asyncio.create_task(calls.call(ScriptedProvider(("Be", 0.01, "cau", 0.01, "se", FOREVER))))

    first, second = await calls.eventually(ChunkReceived, count=2)

    assert (("Be",), ("cau", "se"), 1) == (first.texts, second.texts, second.first)
    call.cancel()
    with suppress(asyncio.CancelledError):
        await call


async def test_windows_are_100_ms_long_and_hold_every_delta_with_its_gap(calls: Recorder) -> None:
    words = [f"word{number} " for number in range(60)]
    steps = [step for word in words for step in (0.01, word)]

    items = await calls.call(ScriptedProvider(steps))

    chunks = await calls.chunks()
    done = await calls.end()
    assert words == texts(items) == [text for chunk in chunks for text in chunk.texts]
    # One text alone first, so that the time to the first token is durable.
    assert 1 == len(chunks[0].texts)
    assert [0, *accumulate(len(chunk.texts) for chunk in chunks)][:-1] == [chunk.first for chunk in chunks]
    assert all(len(chunk.texts) == len(chunk.gaps_us) for chunk in chunks)
    gaps = [gap for chunk in chunks for gap in chunk.gaps_us]
    assert min(gaps[1:]) >= 0
    assert done.time_to_first_token_us == gaps[0]
    # All gaps together are the time up to the last delta.
    assert 0.9 * done.duration_us <= sum(gaps) <= done.duration_us
    # No two windows are nearer than their length, up to the timer's resolution.
    ends = [moment for moment, chunk in zip(_window_ends(chunks), chunks, strict=True)]
    assert min(later - earlier for earlier, later in pairwise(ends[:-1])) >= WINDOW_SECONDS * 0.85
    assert len(chunks) <= 2 + done.duration_us / 1_000_000 / (WINDOW_SECONDS * 0.85)


def _window_ends(chunks: list[ChunkReceived]) -> list[float]:
    """When each window's last delta came, seconds."""
    return [moment / 1_000_000 for moment in accumulate(sum(chunk.gaps_us) for chunk in chunks)]


async def test_what_came_with_one_read_came_at_one_time(calls: Recorder) -> None:
    await calls.call(ScriptedProvider(("Yes", ", ", "I", 0.02, " do", ".")))

    first, second, third, fourth, fifth = [gap for chunk in await calls.data(ChunkReceived) for gap in chunk.gaps_us]
    assert (0, 0, 0) == (second, third, fifth)
    assert fourth >= 20_000
    assert first >= 0


async def test_a_window_holds_at_most_64_kib(calls: Recorder) -> None:
    piece = "x" * 20_000

    await calls.call(ScriptedProvider([piece] * 20))

    chunks = await calls.chunks()
    assert piece * 20 == await calls.text()
    assert max(sum(map(len, chunk.texts)) for chunk in chunks) < WINDOW_CHARACTERS + len(piece)
    assert len(chunks) >= 5


async def test_a_change_of_kind_starts_a_new_event(calls: Recorder) -> None:
    call = [Delta("", "tool_call", 0, "id1", "add"), Delta('{"a":1}', "tool_call", 0)]

    await calls.call(ScriptedProvider([Delta("hm ", "reasoning"), Delta("so", "reasoning"), "Be", "cause", *call]))

    chunks = await calls.chunks()
    kinds = [chunk.kind for chunk in chunks]
    assert ["reasoning", "text", "tool_call"] == list(dict.fromkeys(kinds))
    assert kinds == sorted(kinds, key=["reasoning", "text", "tool_call"].index)
    assert [0, *accumulate(len(chunk.texts) for chunk in chunks)][:-1] == [chunk.first for chunk in chunks]
    assert ("hm so", "Because") == (await calls.text("reasoning"), await calls.text())
    assert (
        '{"index":0,"id":"id1","name":"add","arguments":""}{"index":0,"arguments":"{\\"a\\":1}"}'
        == await calls.text("tool_call")
    )


async def test_empty_deltas_are_kept_in_their_place(calls: Recorder) -> None:
    await calls.call(ScriptedProvider(["", "a", "", "b"]))

    assert ["", "a", "", "b"] == [text for chunk in await calls.chunks() for text in chunk.texts]


async def test_every_delta_reaches_the_caller_before_its_window_is_committed(calls: Recorder) -> None:
    words = [f"word{number} " for number in range(30)]
    stream = calls.stream(ScriptedProvider([step for word in words for step in (0.01, word)]))
    shown: list[str] = []
    locked = None
    async with aclosing(stream) as items:
        async for item in items:
            if locked is None and isinstance(item, Event) and isinstance(item.data, RequestSent):
                # From here on nobody can write: a caller that waits for the writer would get nothing.
                locked = sqlite3.connect(calls.store.path, isolation_level=None)
                locked.execute("BEGIN IMMEDIATE")
            if isinstance(item, Delta):
                shown.append(item.text)
            if shown == words and locked is not None and locked.in_transaction:
                assert "request.sent" == types_in(calls.store.path)[-1]
                locked.rollback()
    assert locked is not None
    locked.close()

    assert words == shown
    assert "".join(words) == await calls.text()


# ------------------------------------------------------------------ after


async def test_a_whole_answer_ends_in_response_completed(calls: Recorder) -> None:
    items = await calls.call(ScriptedProvider(["Be", "cause"]))

    end = await calls.end()
    assert isinstance(end, ResponseCompleted)
    assert ("stop", content_digest("Because"), "free") == (end.finish_reason, end.text_digest, end.cost.state)
    (last,) = [item for item in items if isinstance(item, CallEnd)]
    assert ("Because", None, end) == (last.text, last.error, last.data)
    # The events that were yielded are those of the log.
    recorded = [event async for event in calls.store.read()]
    assert recorded == [item for item in items if isinstance(item, Event)]


async def test_an_error_ends_in_call_failed(calls: Recorder) -> None:
    error = ServerError("it broke: ask again", provider="scripted", status=500, code="oops", retry_after=2.5)

    items = await calls.call(ScriptedProvider(["Be", "cau", error]))

    end = await calls.end()
    assert isinstance(end, CallFailed)
    assert ("server", "it broke: ask again", 500, "oops", True, 2.5) == (
        end.error.kind,
        end.error.message,
        end.error.status,
        end.error.code,
        end.error.retryable,
        end.error.retry_after,
    )
    assert (True, "estimated", "Becau") == (end.partial, end.usage_source, await calls.text())
    (last,) = [item for item in items if isinstance(item, CallEnd)]
    assert ("Becau", error) == (last.text, last.error)


async def test_an_answer_without_its_end_is_broken_not_short(calls: Recorder) -> None:
    class Silent(ScriptedProvider):
        async def stream_request(self, request):  # type: ignore[override]
            yield Delta("Be")

    (*_, last) = [item for item in await calls.call(Silent()) if isinstance(item, CallEnd)]

    assert isinstance(last.error, ProviderError)
    assert ("broken_stream", True) == ((end := await calls.end()).error.kind, end.partial)


async def test_the_last_usage_report_wins_and_is_kept_verbatim(calls: Recorder) -> None:
    first, second = (UsageReport(answers_usage(n), {"n": n}) for n in (1, 2))

    await calls.call(ScriptedProvider([first, "Yes", second, Finish("stop")]))

    end = await calls.end()
    assert (2, {"n": 2}, "provider") == (end.usage.output, end.raw_usage, end.usage_source)


@pytest.mark.parametrize(
    ("cuts", "counted", "past", "cut"),
    [
        (True, 2048, (), True),
        (True, 8000, (), False),
        (True, 0, (), False),
        (False, 2048, (), False),
        # Of a conversation that goes on, what was read before may not be counted again.
        (True, 2048, (Message("user", "word " * 8000), Message("assistant", "Yes")), False),
    ],
)
async def test_a_prompt_of_which_far_less_was_read_than_sent_was_cut(
    calls: Recorder, cuts: bool, counted: int, past: tuple[Message, ...], cut: bool
) -> None:
    class Reader(ScriptedProvider):
        cuts_prompts = cuts

        def model_digest(self, model: str) -> str:
            return f"digest of {model}"

    report = UsageReport(Usage(input=counted, output=1), {})

    await calls.call(Reader(["Yes", report, Finish("stop")]), past=past, prompt="word " * 8000)

    (sent,), end = await calls.data(RequestSent), await calls.end()
    assert (sent.estimated_input_tokens if cut else None) == end.cut_from
    assert "digest of model" == end.model_digest


async def test_an_answer_costs_what_the_tier_costs_that_it_was_given_in(calls: Recorder) -> None:
    for tier in (None, "flex", "default"):
        report = UsageReport(Usage(input=1000, output=1000), {}, tier)
        provider = ScriptedProvider([report, Finish("stop", model="gpt-5")], name="openai", local=False)
        await calls.call(provider, extra={"service_tier": "priority"})

    asked, flex, default = await calls.data(ResponseCompleted)
    assert [None, "flex", "default"] == [asked.service_tier, flex.service_tier, default.service_tier]
    assert flex.cost.nano_usd < default.cost.nano_usd < asked.cost.nano_usd


async def test_what_an_answer_used_besides_is_in_its_cost_and_in_none_of_its_counters(calls: Recorder) -> None:
    own = Usage(input=1000, output=1000)
    for besides in ((), (Besides(own), Besides(own, "gpt-5")), (Besides(own, "nobody's"),)):
        items = [UsageReport(own, {}, None, besides), Finish("stop", model="gpt-5")]
        await calls.call(ScriptedProvider(items, name="openai", local=False))

    alone, thrice, unknown = await calls.data(ResponseCompleted)
    assert (3 * alone.cost.nano_usd, alone.cost.entry) == (thrice.cost.nano_usd, thrice.cost.entry)
    assert Cost("unpriced", alone.cost.nano_usd) == unknown.cost
    assert own == alone.usage == thrice.usage == unknown.usage


async def test_the_estimate_of_what_is_sent_counts_what_goes_back_to_its_provider(calls: Recorder) -> None:
    thoughts = Message("assistant", (OpaquePart("scripted", {"reasoning_content": "because " * 500}),))

    await calls.call(ScriptedProvider(["Yes", Finish("stop")]), past=[thoughts])

    (sent,) = await calls.data(RequestSent)
    assert 1000 < sent.estimated_input_tokens < 1050


def answers_usage(output: int):
    from timeline.events import Usage

    return Usage(input=5, output=output)


@pytest.mark.parametrize("moment", ["first event", "first delta", "second delta"])
async def test_closing_the_stream_ends_in_call_interrupted(calls: Recorder, moment: str) -> None:
    shown = ""
    async with aclosing(calls.stream(ScriptedProvider(["Be", "cause", FOREVER]))) as items:
        async for item in items:
            shown += item.text if isinstance(item, Delta) else ""
            if {"first event": isinstance(item, Event), "first delta": shown, "second delta": shown == "Because"}[
                moment
            ]:
                break

    (end,) = await calls.eventually(CallInterrupted)
    assert ("closed", "estimated") == (end.reason, end.usage_source)
    assert shown == await calls.text()
    await calls.end()


@pytest.mark.parametrize(("message", "reason"), [((), "sigint"), (("closed",), "closed")], ids=["sigint", "closed"])
async def test_cancelling_the_task_ends_in_call_interrupted(
    calls: Recorder, message: tuple[str, ...], reason: str
) -> None:
    call = asyncio.create_task(calls.call(ScriptedProvider(["Be", "cause", FOREVER])))
    await calls.eventually(ChunkReceived)

    call.cancel(*message)
    with pytest.raises(asyncio.CancelledError):
        await call

    (end,) = await calls.eventually(CallInterrupted)
    assert (reason, 2) == (end.reason, end.usage.output)
    assert "Because" == await calls.text()


async def test_cancelling_before_the_request_is_committed_leaves_no_open_attempt(calls: Recorder) -> None:
    locked = sqlite3.connect(calls.store.path, isolation_level=None)
    locked.execute("BEGIN IMMEDIATE")
    provider = ScriptedProvider(["never"])
    call = asyncio.create_task(calls.call(provider))
    await asyncio.sleep(0.05)

    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    locked.rollback()
    locked.close()

    (end,) = await calls.eventually(CallInterrupted)
    assert ("sigint", []) == (end.reason, provider.requests)
    await calls.end()


async def test_what_was_interrupted_is_recorded_before_the_store_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "timeline.db"
    async with recorder(path) as calls:
        call = asyncio.create_task(calls.call(ScriptedProvider(["Be", "cause", FOREVER])))
        await calls.eventually(ChunkReceived)
        call.cancel()
        with suppress(asyncio.CancelledError):
            await call

    assert "call.interrupted" == types_in(path)[-1]


# ------------------------------------------------------------------ the disk


class Disk:
    """The writer's connections, whose file can be made to have no room."""

    def __init__(self) -> None:
        self.connections: list[sqlite3.Connection] = []
        self._pages = 1_000_000

    def connected(self, connection: object, _: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            self.connections.append(connection)
            connection.execute(f"PRAGMA max_page_count={self._pages}")

    def _limit(self, pages: int) -> None:
        self._pages = pages
        for connection in self.connections:
            # Those that made the file are closed already.
            with suppress(sqlite3.ProgrammingError):
                connection.execute(f"PRAGMA max_page_count={pages}")

    def fill(self, path: Path, *, free: int = 0) -> None:
        """Leave room for so many more pages."""
        conn = sqlite3.connect(path)
        (pages,) = conn.execute("PRAGMA page_count").fetchone()
        conn.close()
        self._limit(pages + free)

    def empty(self) -> None:
        """Give all the room back."""
        self._limit(1_000_000)


@pytest.fixture(autouse=True)
def disk() -> Iterator[Disk]:
    made = Disk()
    event.listen(Engine, "connect", made.connected)
    yield made
    event.remove(Engine, "connect", made.connected)


@pytest.mark.timeout(20)
async def test_a_disk_that_fills_up_in_mid_stream_is_an_error_not_a_hang(calls: Recorder, disk: Disk) -> None:
    shown = []

    async def read() -> None:
        async with aclosing(calls.stream(ScriptedProvider(SLOWLY))) as items:
            async for item in items:
                if isinstance(item, Delta):
                    shown.append(item.text)
                    if len(shown) == 2:
                        disk.fill(calls.store.path, free=2)

    with pytest.raises(StoreFull):
        await read()

    disk.empty()
    assert 2 < len(shown) < 50
    # What had been committed is kept; the room for the last words may be missing.
    assert "".join(shown).startswith(text := await calls.text())
    assert len(text) >= 3000
    assert (await calls.store.verify()).problem is None


async def test_the_server_is_let_go_when_the_store_fails(calls: Recorder, disk: Disk) -> None:
    async with Server(answers.stream(*SLOWLY)) as server:
        provider = OpenAIProvider(None, server.url + "/v1", name="t")

        async def read() -> None:
            async with aclosing(calls.stream(provider)) as items:
                async for item in items:
                    if isinstance(item, Delta):
                        disk.fill(calls.store.path, free=1)

        with pytest.raises(StoreFull):
            await read()

        await asyncio.wait_for(server.requests[0].hung_up.wait(), 10)
        await provider.aclose()
    disk.empty()


class Wild(ScriptedProvider):
    """Lets out what no provider may."""

    async def stream_request(self, request: LLMRequest) -> AsyncIterator[Item]:
        yield Delta("so far")
        raise RuntimeError("a bug")


async def test_whatever_comes_out_of_a_provider_the_attempt_has_its_end(calls: Recorder) -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        await calls.call(Wild())
    await calls.store.append([])

    assert isinstance(await calls.end(), CallInterrupted)
    assert "so far" == await calls.text()


async def test_what_nobody_counted_is_estimated_from_all_that_came(calls: Recorder) -> None:
    thought, wish = Delta("because " * 10, "reasoning"), Delta('{"x": 12345}', "tool_call", 0, "c1", "t")
    await calls.call(ScriptedProvider([thought, wish, ServerError("down", provider="scripted")]))

    end = await calls.end()
    assert ("estimated", 23, 20) == (end.usage_source, end.usage.output, end.usage.reasoning)


async def test_answers_dearer_than_any_sum_can_hold_end_and_are_summed_all_the_same(calls: Recorder) -> None:
    dear = {"openai:model": Price(1_000_000, 1_000_000)}
    calls.manager = LLMManager(
        calls.store, calls.clock, calls.providers.__getitem__, settings=ONCE, prices=PriceBook(dear)
    )
    used = Usage(input=MOST_TOKENS, cache_read=MOST_TOKENS, output=MOST_TOKENS)
    items = ["x", UsageReport(used, {}, None, tuple(Besides(used) for _ in range(3))), Finish("stop")]
    for _ in range(3):
        await calls.call(ScriptedProvider(items, name="openai", local=False))

    [row] = await calls.store.query(lambda conn: report(conn, None))
    [state] = await calls.store.query(
        lambda conn: read_budgets(conn, [BudgetConfig("b", limit_usd=1, window="day")], now=calls.clock.now())
    )
    assert [MOST_NANO_USD] * 3 == [end.cost.nano_usd for end in await calls.data(ResponseCompleted)]
    assert (MOST_NANO_USD, 3 * MOST_TOKENS, MOST_NANO_USD) == (row.nano_usd, row.output, state.spent)


async def test_a_count_that_nobody_can_have_counted_is_no_count(calls: Recorder) -> None:
    async with Server(answers.answer("x", tokens=(1, 2**53))) as server:
        provider = OpenAIProvider("k", server.url)
        await calls.call(provider)
        await provider.aclose()

    end = await calls.end()
    assert ("estimated", 1) == (end.usage_source, end.usage.output)


async def test_numbers_that_no_file_can_hold_end_an_attempt_all_the_same(calls: Recorder) -> None:
    far = RateLimit("requests", 9_000_000_000_000, 8_999_999_999_999, 2**60)
    usage = UsageReport(Usage(output=10**15), {})
    await calls.call(ScriptedProvider([Delta("x"), usage, Finish("stop", rate_limits=(far,))], local=False))

    assert isinstance(await calls.end(), ResponseCompleted)
