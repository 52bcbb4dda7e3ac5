"""What a batch asks, what it doesn't ask again, and how it gives everything back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
from support.answers import FOREVER, answer, refused, stream
from support.command import Backend, Home
from support.loopback import Reply, Request

import timeline.config
from timeline.cognition import batch
from timeline.cognition.batch import BatchResult, BatchStatus, item_keys
from timeline.cognition.prompt_file import Prompt
from timeline.config import BudgetConfig
from timeline.errors import UsageError
from timeline.projections.batches import Place
from timeline.runtime import Timeline


def asked(request: Request) -> str:
    return str(request.json()["messages"][-1]["content"])


def echo(request: Request) -> Reply:
    return answer("re: ", asked(request))


@asynccontextmanager
async def opened(home: Home) -> AsyncIterator[Timeline]:
    async with Timeline.open(config=timeline.config.load(environ=home.env, cwd=home.work)) as made:
        yield made


def prompts(words: Iterable[str], **options: Any) -> list[Prompt]:
    return [Prompt(word, **options) for word in words]


async def run(line: Timeline, asks: list[Prompt], **options: Any) -> list[BatchResult]:
    """All results; by the name `words` unless another is given."""
    items = [item async for item in line.batch(asks, **{"name": "words", **options})]
    assert isinstance(items[0], BatchStatus)
    assert isinstance(items[-1], BatchResult | BatchStatus)
    return [item for item in items if isinstance(item, BatchResult)]


def texts(results: list[BatchResult]) -> list[str]:
    return [result.turn.answer.text if result.turn and result.turn.answer else "" for result in results]


async def test_prompts_know_nothing_of_one_another_and_stand_in_one_session(home: Home, backend: Backend) -> None:
    backend.says(echo)
    async with opened(home) as line:
        results = await run(line, prompts("abc", system="Be brief"), concurrency=1, title="Words")

        (session,) = await line.sessions()
    assert ["re: a", "re: b", "re: c"] == texts(results)
    assert [[("system", "Be brief"), ("user", word)] for word in "abc"] == [backend.messages(n) for n in range(3)]
    assert ("Words", 3, {session.id}) == (session.title, session.turns, {result.session_id for result in results})


async def test_the_same_prompt_with_other_options_is_asked_again(home: Home, backend: Backend) -> None:
    backend.says(echo)
    async with opened(home) as line:
        await run(line, prompts("a"))
        await run(line, prompts("a", temperature=1.0))
        await run(line, prompts("a"))

    assert 2 == len(backend.requests)


async def test_fresh_asks_all_again_and_is_what_goes_on_from_then(home: Home, backend: Backend) -> None:
    backend.says(echo)
    async with opened(home) as line:
        await run(line, prompts("ab"))
        backend.says(lambda request: answer("new: ", asked(request)))

        fresh = await run(line, prompts("ab"), fresh=True)

        assert ["new: a", "new: b"] == texts(fresh) == texts(await run(line, prompts("ab")))
        assert 2 == len(await line.sessions())
    assert 2 == len(backend.requests)


async def test_another_name_is_another_batch(home: Home, backend: Backend) -> None:
    backend.says(echo)
    async with opened(home) as line:
        await run(line, prompts("a"))
        await run(line, prompts("a"), name="other")

        assert ["other", "words"] == [session.title for session in await line.sessions()]
    assert 2 == len(backend.requests)


async def test_a_batch_whose_session_was_forgotten_is_asked_again(home: Home, backend: Backend) -> None:
    backend.says(echo)
    async with opened(home) as line:
        await run(line, prompts("a"))
        await line.forget("words")

        assert ["re: a"] == texts(await run(line, prompts("a")))
    assert 2 == len(backend.requests)


async def test_a_refused_key_is_not_tried_with_every_prompt_of_its_model(home: Home, backend: Backend) -> None:
    home.configure(models=["m", "fine"])
    backend.says(lambda request: echo(request) if request.json()["model"] == "fine" else refused(401, "no such key"))
    asks = prompts([str(number) for number in range(30)]) + prompts("z", model="t:fine")
    async with opened(home) as line:
        results = await run(line, asks, concurrency=2)

    assert 3 >= len(backend.requests)
    assert ["authentication"] * 30 + [None] == [result.error and result.error.kind for result in results]
    assert None is results[29].turn
    assert "re: z" == texts(results)[-1]


async def test_a_model_that_nobody_has_fails_its_own_prompt(home: Home, backend: Backend) -> None:
    backend.says(echo)
    async with opened(home) as line:
        bad, good = await run(line, [Prompt("a", model="nobody:x"), Prompt("b")])

    assert (None, "re: b") == (bad.turn, texts([good])[0])
    assert "nobody" in str(bad.error)


async def test_continue_means_the_last_conversation_and_a_batch_has_no_history(home: Home, backend: Backend) -> None:
    backend.says(echo)
    async with opened(home) as line:
        async for _ in line.ask("hello"):
            pass
        await run(line, prompts("a", system="Be brief"))
        async for _ in line.ask("and?", session="last"):
            pass

        assert [("user", "hello"), ("assistant", "re: hello"), ("user", "and?")] == backend.messages()
        async for _ in line.ask("now you", session="words"):
            pass

    assert [("user", "now you")] == backend.messages()


async def test_what_was_under_way_when_it_is_left_is_recorded_and_asked_again(home: Home, backend: Backend) -> None:
    backend.says(lambda request: stream("a word", FOREVER) if asked(request) == "b" else echo(request))
    async with opened(home) as line:
        async with aclosing(line.batch(prompts("abc"), name="words", concurrency=1)) as items:
            async for item in items:
                if isinstance(item, BatchResult):
                    await asyncio.sleep(0.1)
                    break
        backend.says(echo)

        assert ["re: a", "re: b", "re: c"] == texts(await run(line, prompts("abc")))
    assert ["b", "c"] == sorted(map(asked, backend.requests))
    assert ["closed"] == [row["data"]["reason"] for row in home.events("turn.interrupted")]
    ends = [row["data"] for row in home.events("batch.ended")]
    assert [{"answered": 1, "failed": 0, "reason": "closed"}, {"answered": 2, "failed": 0}] == ends
    home.end()


async def test_a_status_comes_before_anything_is_asked(home: Home, backend: Backend) -> None:
    backend.says(echo)
    async with opened(home) as line:
        async with aclosing(line.batch(prompts("ab"), name="words")) as items:
            first = await anext(items)
            await asyncio.sleep(0.1)

        assert BatchStatus(first.session_id, 2, 0) == first
    assert [] == backend.requests


async def test_the_last_status_counts_tokens(home: Home, backend: Backend) -> None:
    backend.says(echo)
    async with opened(home) as line:
        await run(line, prompts("a"))
        items = [item async for item in line.batch(prompts("abc"), name="words")]

    status = [item for item in items if isinstance(item, BatchStatus)][-1]
    assert (3, 1, 2, 0, 10, 4) == (
        status.total,
        status.before,
        status.answered,
        status.failed,
        status.input,
        status.output,
    )


async def test_answers_too_many_to_hold_are_read_from_the_log_when_it_is_their_turn(
    home: Home, backend: Backend
) -> None:
    long = "x" * (batch.HELD_CHARACTERS // 3)
    backend.says(lambda request: answer("late", before=1.0) if asked(request) == "a" else answer(long, asked(request)))
    async with opened(home) as line:
        results = await run(line, prompts("abcdefg"), concurrency=6)

    assert ["late", *(long + word for word in "bcdefg")] == texts(results)


async def test_prompts_that_change_meanwhile_are_not_taken_for_others(home: Home, backend: Backend) -> None:
    class Changing(list[Prompt]):
        def __getitem__(self, index: Any) -> Any:
            return Prompt("other")

    backend.says(echo)
    async with opened(home) as line:
        with pytest.raises(UsageError, match="the prompts were changed"):
            await run(line, Changing(prompts("ab")))
    assert ["failed"] == [row["data"]["reason"] for row in home.events("batch.ended")]


def test_items_are_known_by_all_that_is_asked_and_the_same_ones_by_their_number() -> None:
    one, other, same = item_keys([Prompt("a"), Prompt("a", seed=1), Prompt("a")])

    assert one != other
    assert f"{one}.2" == same


def test_places_near_to_one_another_are_read_at_once() -> None:
    places = [Place("c", 900, 950), Place("a", 1, 9), Place("b", 5, 100), Place("d", 940, 941)]

    assert [(1, 100), (900, 950)] == batch._spans(places)


async def test_a_budget_that_others_have_reserved_is_no_reason_to_give_up(home: Home, backend: Backend) -> None:
    # Each reserves $0.00102 and uses $0.00001: two at a time fit, and one after the other all of them.
    home.configure(local=False, api_key="key-12345")
    settings = json.loads((home.path / "config.yaml").read_text())
    settings["prices"] = {"t:m": {"input_per_million": 1.0, "output_per_million": 10.0}}
    settings["budgets"] = [{"name": "small", "limit_usd": 0.0025, "window": "session"}]
    (home.path / "config.yaml").write_text(json.dumps(settings))
    backend.says(lambda request: answer("re: ", asked(request), tokens=(5, 1), before=0.05))

    async with opened(home) as line:
        results = await run(line, prompts("abcdefghij", max_tokens=100), concurrency=6)

    assert [f"re: {word}" for word in "abcdefghij"] == texts(results)
    assert 10 == len(backend.requests)
    home.end()


async def test_a_budget_that_is_used_up_ends_the_batch(home: Home, backend: Backend) -> None:
    home.configure(local=False, api_key="key-12345")
    settings = json.loads((home.path / "config.yaml").read_text())
    settings["prices"] = {"t:m": {"input_per_million": 1.0, "output_per_million": 10.0}}
    (home.path / "config.yaml").write_text(json.dumps(settings))
    backend.says(lambda request: answer("re: ", asked(request), tokens=(5, 100)))
    budget = BudgetConfig("--max-cost", limit_usd=0.0031, window="session")

    async with opened(home) as line:
        results = await run(line, prompts("abcdefghij", max_tokens=100), concurrency=3, budgets=[budget])

    assert 3 == len(backend.requests) == sum(result.error is None for result in results)
    assert {"budget_exceeded"} == {result.error.kind for result in results if result.error}
    home.end()


def priced(home: Home, **settings: Any) -> None:
    home.configure(local=False, api_key="key-12345")
    written = json.loads((home.path / "config.yaml").read_text())
    written["prices"] = {"t:m": {"input_per_million": 1.0, "output_per_million": 10.0}}
    (home.path / "config.yaml").write_text(json.dumps({**written, **settings}))


@pytest.mark.parametrize("concurrency", [2, 4])
async def test_a_prompt_that_is_refused_after_all_others_have_ended_fails_and_is_told(
    home: Home, backend: Backend, concurrency: int
) -> None:
    # Both fit at first; one waits for its turn, and then the other has used up everything.
    priced(home, budgets=[{"name": "small", "limit_usd": 0.0025, "window": "session"}])
    settings = json.loads((home.path / "config.yaml").read_text())
    settings["llm_providers"]["t"]["max_concurrent"] = 1
    (home.path / "config.yaml").write_text(json.dumps(settings))
    backend.says(answer("re: a", tokens=(5000, 1), before=0.1))

    async with opened(home) as line:
        results = await run(line, prompts("ab", max_tokens=100), concurrency=concurrency)

    assert [None, "budget_exceeded"] == [result.error and result.error.kind for result in results]
    assert [{"answered": 1, "failed": 1}] == [row["data"] for row in home.events("batch.ended")]
    home.end()


async def test_a_prompt_is_refused_once_for_what_others_have_reserved_and_then_asked_alone(
    home: Home, backend: Backend
) -> None:
    # Small ones reserve $0.00102 and end one after the other; the large one's $0.00302 fit beside one of them.
    priced(home, budgets=[{"name": "small", "limit_usd": 0.0045, "window": "session"}])
    backend.says(
        lambda request: answer("re: ", asked(request), tokens=(5, 1), before=0.1 * "abcdX".index(asked(request)))
    )
    asks = [*prompts("abcd", max_tokens=100), Prompt("X", max_tokens=300)]

    async with opened(home) as line:
        results = await run(line, asks, concurrency=4)

    assert [f"re: {word}" for word in "abcdX"] == texts(results)
    assert 1 == len(home.events("turn.failed"))
    home.end()


async def test_a_prompt_that_is_too_large_for_a_budget_of_one_call_stops_no_other(home: Home, backend: Backend) -> None:
    priced(home, budgets=[{"name": "each", "limit_tokens": 200, "window": "call"}])
    backend.says(echo)
    asks = [Prompt("a", max_tokens=100), Prompt("b", max_tokens=1000), *prompts("cd", max_tokens=100)]

    async with opened(home) as line:
        results = await run(line, asks, concurrency=2)

    assert ["re: a", "", "re: c", "re: d"] == texts(results)
    assert [None, "budget_exceeded", None, None] == [result.error and result.error.kind for result in results]
    assert 1 == len(home.events("turn.failed"))


async def test_an_answer_out_of_the_cache_is_given_back_whole_now_and_later(home: Home, backend: Backend) -> None:
    backend.says(echo)
    async with opened(home) as line:
        first = await run(line, prompts("aba"), concurrency=1, cache=True)

        assert ["re: a", "re: b", "re: a"] == texts(first) == texts(await run(line, prompts("aba")))
    assert 2 == len(backend.requests)
    assert 1 == len(home.events("call.cache_hit"))
