"""Prompts that go through a provider's batch API: recorded before and after, at half the price, whatever happens in between."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from support.batch_service import AnthropicBatches, Fault, OpenAIBatches, Service
from support.command import Backend, Home
from support.loopback import Reply, Request

import timeline.config
from timeline.cognition.batch import BatchResult, BatchStatus
from timeline.cognition.prompt_file import Prompt
from timeline.cognition.provider_batch import LOOKS, MOST_CHARACTERS
from timeline.errors import AuthenticationFailed, UsageError
from timeline.runtime import Timeline

SERVICES = {"openai": OpenAIBatches, "anthropic": AnthropicBatches}


@pytest.fixture(params=SERVICES)
def service(request: pytest.FixtureRequest, home: Home, backend: Backend) -> Service:
    """A provider `t` with a batch API and a price."""
    configure(home, request.param)
    made = SERVICES[request.param]()
    backend.says(made)
    return made


def configure(home: Home, kind: str, **more: Any) -> None:
    entry = {"kind": kind, "base_url": home.url, "api_key": "key-12345", "models": ["m"]}
    settings = {
        "llm_providers": {"t": entry},
        "routing_strategy": {"default": "t:m"},
        "prices": {"t:m": {"input_per_million": 2.0, "output_per_million": 10.0}},
        **more,
    }
    (home.path / "config.yaml").write_text(json.dumps(settings))


@asynccontextmanager
async def opened(home: Home) -> AsyncIterator[Timeline]:
    async with Timeline.open(config=timeline.config.load(environ=home.env, cwd=home.work)) as made:
        yield made


async def items(home: Home, words: Iterable[str], **options: Any) -> list[BatchStatus | BatchResult]:
    asks = [Prompt(word, system="Be brief", max_tokens=20) for word in words]
    options = {"name": "words", "provider_batch": True, "poll_seconds": 0.02, **options}
    async with opened(home) as line:
        return [item async for item in line.batch(asks, **options)]


async def run(home: Home, words: Iterable[str], **options: Any) -> list[BatchResult]:
    return [item for item in await items(home, words, **options) if isinstance(item, BatchResult)]


def texts(results: list[BatchResult]) -> list[str]:
    return [result.turn.answer.text if result.turn and result.turn.answer else "" for result in results]


def kinds(results: list[BatchResult]) -> list[str | None]:
    return [result.error and result.error.kind for result in results]


# ------------------------------------------------------------------ what is recorded


async def test_answers_come_in_order_and_everything_is_recorded(home: Home, service: Service) -> None:
    results = await run(home, "abc")

    assert ["re: a", "re: b", "re: c"] == texts(results)
    assert list("abc") == service.prompts()
    home.end()
    sent = home.events("request.sent")
    assert {(False, 1, "t", "m")} == {
        (row["data"]["stream"], row["data"]["attempt"], row["data"]["provider"], row["data"]["model"]) for row in sent
    }
    assert [20] * 3 == [
        body["max_tokens"] if "max_tokens" in body else body["max_completion_tokens"]
        for _, body in service.batches["batch_1"]
    ]
    (told,) = [row["data"] for row in home.events("batch.submitted")]
    assert ("batch_1", 3, "t", "m") == (told["provider_batch"], told["requests"], told["provider"], told["model"])
    assert {row["data"]["owner"]["host"] for row in sent} == {f"provider-batch/{told['submission']}"}
    async with opened(home) as line:
        assert (await line.store.verify()).problem is None


async def test_every_request_is_recorded_before_it_is_handed_in(home: Home, service: Service) -> None:
    seen: list[int] = []

    def look(_: Request) -> None:
        seen.append(len(home.events("request.sent")))

    service.on_create = look
    await run(home, "abc")

    assert [3] == seen


async def test_a_batch_costs_half_and_the_price_says_so(home: Home, service: Service) -> None:
    found = await items(home, "ab")

    # 100 tokens at $2 and 10 at $10 a million are $0.0003.
    costs = [row["data"]["cost"] for row in home.events("response.completed")]
    assert [(150_000, "config", "t:m (batch: half)")] * 2 == [
        (cost["nano_usd"], cost["table"], cost["entry"]) for cost in costs
    ]
    status = [item for item in found if isinstance(item, BatchStatus)][-1]
    assert (2, 300_000, 200, 20, 0) == (
        status.answered,
        status.nano_usd,
        status.input,
        status.output,
        status.handed_in,
    )


async def test_what_waits_at_a_provider_is_counted(home: Home, service: Service) -> None:
    found = [item for item in await items(home, "abc") if isinstance(item, BatchStatus)]

    assert (3, 0) in [(status.handed_in, status.ended_there) for status in found]


async def test_each_request_fails_by_itself(home: Home, service: Service) -> None:
    faults = {
        "b": Fault("invalid_request_error", "odd prompt"),
        "c": Fault("expired"),
        "d": Fault("canceled"),
        "e": Fault("missing"),
    }
    service.answer = lambda prompt: faults.get(prompt, f"re: {prompt}")

    results = await run(home, "abcde")

    assert ["re: a", "", "", "", ""] == texts(results)
    assert [None, "invalid_request", "timeout", "server", "server"] == kinds(results)
    assert "odd prompt" in str(results[1].error)
    home.end()

    faults.clear()

    assert [f"re: {word}" for word in "abcde"] == texts(await run(home, "abcde"))
    assert list("abcdebcde") == service.prompts()


async def test_a_batch_that_is_refused_fails_its_prompts(home: Home, service: Service) -> None:
    service.on_create = lambda _: Reply.json({"error": {"type": "invalid_request_error", "message": "too many"}}, 400)

    results = await run(home, "ab")

    assert ["invalid_request"] * 2 == kinds(results)
    home.end()


async def test_a_refused_key_is_told_and_what_is_with_the_provider_stays_there(home: Home, backend: Backend) -> None:
    configure(home, "openai")
    service = OpenAIBatches()

    def locked(request: Request) -> Reply:
        if request.method == "GET":
            return Reply.json({"error": {"message": "no such key", "type": "invalid_request_error"}}, 401)
        return service(request)

    backend.says(locked)
    with pytest.raises(AuthenticationFailed):
        await run(home, "ab")
    assert [] == home.events("call.failed", "turn.failed", "turn.interrupted")

    backend.says(service)

    assert ["re: a", "re: b"] == texts(await run(home, "ab"))
    assert list("ab") == service.prompts()


async def test_a_batch_that_fails_its_validation_says_why(home: Home, backend: Backend) -> None:
    configure(home, "openai")
    service = OpenAIBatches(problem="line 1 is odd")
    backend.says(service)

    results = await run(home, "ab")

    assert ["invalid_request"] * 2 == kinds(results)
    assert "t refused the batch (line 1 is odd)" in str(results[0].error)


async def test_more_than_fits_into_one_batch_goes_into_several(home: Home, backend: Backend) -> None:
    configure(home, "openai")
    service = OpenAIBatches(answer=lambda prompt: f"re: {prompt[:1]}")
    backend.says(service)
    words = [f"{number} {'x' * (MOST_CHARACTERS // 4)}" for number in range(5)]

    results = await run(home, words)

    assert [f"re: {number}" for number in range(5)] == texts(results)
    assert [4, 1] == [len(requests) for requests in service.batches.values()]
    home.end()


# ------------------------------------------------------------------ going on


async def stopped_while(home: Home, words: str, service: Service) -> None:
    """Hand in, and leave while the provider works."""
    service.polls = 10**9
    task = asyncio.create_task(items(home, words))
    while not any(service.looks.values()):  # noqa: ASYNC110  the service lives in another thread
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    service.polls = 1


async def test_who_is_stopped_goes_on_with_what_is_at_the_provider(home: Home, service: Service) -> None:
    await stopped_while(home, "abc", service)
    assert [] == home.events("turn.interrupted", "call.interrupted")

    assert ["re: a", "re: b", "re: c"] == texts(await run(home, "abc"))

    assert 1 == len(service.batches)
    home.end()


async def test_without_the_flag_what_is_at_the_provider_is_fetched_and_the_rest_is_asked(
    home: Home, backend: Backend
) -> None:
    configure(home, "openai")
    service = OpenAIBatches()
    backend.says(service)
    await stopped_while(home, "ab", service)

    def both(request: Request) -> Reply:
        if request.path.endswith("/chat/completions"):
            return Reply.json({"choices": [{"message": {"content": "direct"}, "finish_reason": "stop"}]})
        return service(request)

    backend.says(both)

    assert ["re: a", "direct", "re: b"] == texts(await run(home, "acb", provider_batch=False))


async def test_a_line_that_was_removed_meanwhile_is_recorded_all_the_same(home: Home, service: Service) -> None:
    await stopped_while(home, "abc", service)

    assert ["re: b"] == texts(await run(home, "b"))

    assert 3 == len(home.events("turn.completed"))


async def test_results_that_break_off_are_fetched_again_and_none_is_recorded_twice(
    home: Home, service: Service
) -> None:
    words = [str(number) for number in range(250)]
    service.cut = 60_000

    results = await run(home, words)

    assert [f"re: {word}" for word in words] == texts(results)
    home.end()


async def test_a_batch_that_was_cleared_away_is_asked_again(home: Home, service: Service) -> None:
    await stopped_while(home, "ab", service)
    batches = dict(service.batches)
    service.batches.clear()

    assert ["model_not_found"] * 2 == kinds(await run(home, "ab"))

    service.batches.update(batches)
    assert ["re: a", "re: b"] == texts(await run(home, "ab"))
    assert list("abab") == service.prompts()


async def test_a_network_that_is_gone_for_a_while_is_waited_for(home: Home, service: Service, backend: Backend) -> None:
    broken = [3]

    def sometimes(request: Request) -> Reply:
        if request.method == "GET" and broken[0]:
            broken[0] -= 1
            return Reply(status=0)
        return service(request)

    backend.says(sometimes)

    assert ["re: a"] == texts(await run(home, "a"))
    assert 0 == broken[0]


async def test_a_batch_that_was_taken_without_our_being_told_is_found(home: Home, service: Service) -> None:
    # The provider has it, but its answer never comes.
    service.after_create = lambda _: Reply(status=0)

    assert ["re: a", "re: b"] == texts(await run(home, "ab"))
    assert 1 == len(service.batches)
    home.end()


@pytest.mark.parametrize(
    "reply",
    [
        Reply.json({"error": {"type": "server_error", "message": "oops"}}, 500),
        Reply([b"bad gateway"], status=502),
        Reply([b"<html>"], headers={"content-type": "text/html"}),
        Reply.json({"object": "something"}),
    ],
    ids=["500", "502", "no JSON", "no id"],
)
async def test_a_batch_that_was_taken_and_answered_with_an_error_is_found(
    home: Home, service: Service, reply: Reply
) -> None:
    service.after_create = lambda _: reply

    assert ["re: a", "re: b"] == texts(await run(home, "ab"))
    assert 1 == len(service.batches)
    home.end()


async def test_a_batch_that_its_provider_lists_late_is_found(home: Home, service: Service, backend: Backend) -> None:
    service.after_create = lambda _: Reply(status=0)
    lists = 0

    def late(request: Request) -> Reply:
        nonlocal lists
        if request.method == "GET" and request.path.partition("?")[0].endswith("/batches"):
            lists += 1
            if lists < LOOKS:
                return Reply.json({"data": [], "has_more": False})
        return service(request)

    backend.says(late)

    assert ["re: a"] == texts(await run(home, "a"))
    assert (LOOKS, 1) == (lists, len(service.batches))


async def test_a_batch_of_a_provider_whose_clock_is_behind_is_found(home: Home, service: Service) -> None:
    def behind(_: Request) -> Reply:
        service.created["batch_1"] -= 30
        return Reply(status=0)

    service.after_create = behind

    assert ["re: a", "re: b"] == texts(await run(home, "ab"))
    assert 1 == len(service.batches)


async def test_a_batch_that_never_arrived_is_told_so_and_asked_again(home: Home, service: Service) -> None:
    service.on_create = lambda _: Reply(status=0)

    assert ["server"] * 2 == kinds(await run(home, "ab"))
    assert ["abandoned"] * 2 == [row["data"]["reason"] for row in home.events("call.interrupted")]

    service.on_create = lambda _: None

    assert ["re: a", "re: b"] == texts(await run(home, "ab"))
    home.end()


async def test_somebody_else_s_batch_is_not_taken_for_ours(home: Home, backend: Backend) -> None:
    configure(home, "anthropic")
    service = AnthropicBatches()

    def other(request: Request) -> Reply:
        requests = [(f"theirs-{number}", params) for number, params in enumerate(["x", "y"])]
        service.batches["batch_9"] = [
            (name, {"model": "m", "messages": [{"content": text}]}) for name, text in requests
        ]
        service.created["batch_9"] = 2e9
        service.entries.append({"id": "batch_9"})
        return Reply(status=0)

    service.on_create = other
    backend.says(service)

    assert ["server"] * 2 == kinds(await run(home, "ab"))
    assert ["abandoned"] * 2 == [row["data"]["reason"] for row in home.events("call.interrupted")]
    home.end()


# ------------------------------------------------------------------ what can't be


async def test_a_provider_without_a_batch_api_is_named(home: Home, backend: Backend) -> None:
    (home.path / "config.yaml").write_text(json.dumps({"routing_strategy": {"default": "ollama:llama3"}}))

    with pytest.raises(UsageError, match="ollama has no batch API: ask it without --provider-batch"):
        await run(home, "a")
    assert [] == home.events("request.sent")


async def test_as_many_are_handed_in_as_a_budget_allows_and_the_log_says_why_no_more(
    home: Home, service: Service
) -> None:
    # 20 tokens of an answer at half of $10 a million are 100,000 nano-dollars, and a little for the prompt.
    budgets = [{"name": "small", "limit_usd": 0.00025, "window": "total"}]
    configure(home, "openai" if isinstance(service, OpenAIBatches) else "anthropic", budgets=budgets)

    assert [None, None, "budget_exceeded"] == kinds(await run(home, "abc"))

    assert list("ab") == service.prompts()
    (told,) = [row["data"] for row in home.events("budget.exceeded")]
    assert ("small", "total") == (told["budget"], told["window"])
    # What the two have cost is told by the next that asks: 300,000 of 250,000.
    assert ["budget_exceeded"] == kinds(await run(home, "c"))
    assert [100] == [row["data"]["threshold_percent"] for row in home.events("budget.alerted")]
    assert list("ab") == service.prompts()
    home.end()


async def test_a_prompt_that_is_too_large_for_a_budget_of_one_call_stops_no_other(home: Home, service: Service) -> None:
    budgets = [{"name": "each", "limit_tokens": 60, "window": "call"}]
    configure(home, "openai" if isinstance(service, OpenAIBatches) else "anthropic", budgets=budgets)

    assert [None, "budget_exceeded", None] == kinds(await run(home, ["a", "long " * 100, "c"]))

    assert ["a", "c"] == service.prompts()
    assert ["each"] == [row["data"]["budget"] for row in home.events("budget.exceeded")]
    home.end()


async def test_requests_at_a_provider_stay_open_for_others(home: Home, service: Service) -> None:
    await stopped_while(home, "a", service)

    async with opened(home):
        pass

    assert [] == home.events("turn.interrupted", "call.interrupted")


async def test_how_long_a_batch_took_says_nothing_of_how_fast_a_model_is(home: Home, service: Service) -> None:
    service.answer = lambda prompt: Fault("expired") if prompt != "a" else "fine"

    await run(home, "abcdefgh")

    with home.connect() as conn:
        assert [] == conn.execute("SELECT * FROM health").fetchall()
        assert [] == conn.execute("SELECT * FROM model_stats").fetchall()


@pytest.mark.parametrize("provider_batch", [True, False])
async def test_offline_nothing_is_handed_in_or_fetched_elsewhere(
    home: Home, service: Service, backend: Backend, *, provider_batch: bool
) -> None:
    kind = "openai" if isinstance(service, OpenAIBatches) else "anthropic"
    if not provider_batch:
        await stopped_while(home, "a", service)
    configure(home, kind, offline=True)
    settings = json.loads((home.path / "config.yaml").read_text())
    settings["llm_providers"]["t"]["local"] = False
    (home.path / "config.yaml").write_text(json.dumps(settings))
    backend.requests.clear()

    with pytest.raises(UsageError, match="t:m is not on this machine, and only such may be asked"):
        await run(home, "a", provider_batch=provider_batch)

    assert [] == backend.requests
    assert [] == home.events("turn.interrupted")


async def test_offline_a_batch_api_on_this_machine_is_used(home: Home, service: Service) -> None:
    configure(home, "openai" if isinstance(service, OpenAIBatches) else "anthropic", offline=True)

    assert ["re: a"] == texts(await run(home, "a"))
