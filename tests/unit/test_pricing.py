"""What an attempt costs: against arithmetic of its own, by hand, and where there is no price."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ModelInfo, ModelPrice, StartDateConstraint, TieredPrices, TimeOfDateConstraint
from hypothesis import given
from hypothesis import strategies as st
from support import answers
from support.command import Backend, Home

from timeline import config
from timeline.config import MOST_TOKENS, Price
from timeline.errors import ConfigError, NotFound
from timeline.events import Cost, Usage
from timeline.llm.pricing import PriceBook, Rates, estimate_tokens, together

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
AT = int(NOON.timestamp()) * 1_000_000
MIXED = Usage(input=12_345, cache_read=6_789, cache_write=1_011, cache_write_1h=213, output=4_151, reasoning=617)

ADDRESSES = {
    "openai": "https://api.openai.com/v1",
    "anthropic": "https://api.anthropic.com",
    "groq": "https://api.groq.com/openai/v1",
    "router": "https://openrouter.ai/api/v1",
    "togetherai": "https://api.together.xyz/v1",
    "deep": "https://api.deepseek.com",
    "secretive": "https://user:password@api.mistral.ai/v1?key=1",
    "mine": "https://llm.example.com/v1",
    "here": "http://127.0.0.1:8080/v1",
}


def served(name: str) -> tuple[str, str | None]:
    if name not in ADDRESSES:
        msg = f"there is no provider {name}"
        raise NotFound(msg)
    return (name if name in ("openai", "anthropic", "groq") else "openai"), ADDRESSES[name]


BOOK = PriceBook(served=served)


def cost(provider: str, *models: str | None, usage: Usage = MIXED, book: PriceBook = BOOK, **more: Any) -> Cost:
    return book.cost(provider, models, usage, **{"local": False, "at": AT, **more})


# ------------------------------------------------------------------ arithmetic of the test's own


def in_force(model: ModelInfo) -> ModelPrice:
    """The prices on that day, without the package's own code."""
    if isinstance(model.prices, ModelPrice):
        return model.prices
    standing = [
        each.prices
        for each in model.prices
        if each.constraint is None
        or (isinstance(each.constraint, StartDateConstraint) and each.constraint.start_date <= NOON.date())
        or (
            isinstance(each.constraint, TimeOfDateConstraint)
            and each.constraint.start_time <= NOON.timetz() < each.constraint.end_time
        )
    ]
    return standing[-1] if standing else model.prices[0].prices


def expected_nano(prices: ModelPrice, usage: Usage) -> int:
    """In fractions, counter by counter, rounded half to even once."""
    prompt = usage.input + usage.cache_read + usage.cache_write + usage.cache_write_1h

    def rate(*names: str) -> Fraction:
        for name in names:
            price = prices.__dict__.get(f"{name}_mtok")
            if isinstance(price, TieredPrices):
                tiers = [tier.price for tier in price.tiers if prompt > tier.start]
                return Fraction(tiers[-1] if tiers else price.base)
            if price is not None:
                return Fraction(price)
        return Fraction(0)

    dollars = (
        usage.input * rate("input")
        + usage.cache_read * rate("cache_read", "input")
        + usage.cache_write * rate("cache_write", "input")
        + usage.cache_write_1h * rate("cache_write_1h", "cache_write", "input")
        + (usage.output - usage.reasoning) * rate("output")
        + usage.reasoning * rate("output_reasoning", "output")
    ) / 1_000_000
    return round(dollars * 10**9)


PRICED = [
    ("openai", "gpt-4o"),
    ("openai", "gpt-4o-mini"),
    ("openai", "gpt-4.1"),
    ("openai", "gpt-4.1-mini"),
    ("openai", "gpt-4.1-nano"),
    ("openai", "gpt-5"),
    ("openai", "gpt-5-mini"),
    ("openai", "gpt-5-nano"),
    ("openai", "o3"),
    ("openai", "o4-mini"),
    ("anthropic", "claude-sonnet-4-5"),
    ("anthropic", "claude-opus-4-1"),
    ("anthropic", "claude-haiku-4-5"),
    ("anthropic", "claude-3-7-sonnet-latest"),
    ("groq", "llama-3.3-70b-versatile"),
    ("groq", "llama-3.1-8b-instant"),
    ("groq", "openai/gpt-oss-120b"),
    ("router", "anthropic/claude-sonnet-4.5"),
    ("router", "google/gemini-2.5-pro"),
    ("togetherai", "meta-llama/Llama-3.3-70B-Instruct-Turbo"),
    ("deep", "deepseek-chat"),
    ("secretive", "mistral-large-latest"),
]


@pytest.mark.parametrize("usage", [MIXED, Usage(input=1), Usage(input=300_000, cache_read=1, output=7, reasoning=7)])
@pytest.mark.parametrize(("provider", "model"), PRICED)
def test_price_is_that_of_independent_arithmetic(provider: str, model: str, usage: Usage) -> None:
    found = cost(provider, model, usage=usage)
    table, _, entry = (found.entry or "").partition("/")
    vendor = next(each for each in get_snapshot().providers if each.id == table)
    known = next(each for each in vendor.models if each.id == entry)

    assert "priced" == found.state
    assert "genai-prices" == found.table
    assert found.table_version
    assert expected_nano(in_force(known), usage) == found.nano_usd


@pytest.mark.parametrize(
    ("provider", "model", "usage", "dollars"),
    [
        # https://openai.com/api/pricing: gpt-4o $2.50 input, $1.25 cached input, $10.00 output
        ("openai", "gpt-4o-2024-08-06", Usage(input=1000, cache_read=2000, output=500), "0.01"),
        # https://docs.anthropic.com/en/docs/about-claude/pricing: Claude Sonnet 4.5 $3 input, $3.75 and $6 for
        # cache writes of 5 minutes and 1 hour, $0.30 cache hits, $15 output
        (
            "anthropic",
            "claude-sonnet-4-5-20250929",
            Usage(input=1000, cache_read=10_000, cache_write=2000, cache_write_1h=1000, output=400, reasoning=300),
            "0.0255",
        ),
        # https://groq.com/pricing: Llama 3.3 70B Versatile $0.59 input, $0.79 output
        ("groq", "llama-3.3-70b-versatile", Usage(input=1_000_000, output=1_000_000), "1.38"),
    ],
)
def test_price_is_that_of_the_vendors_own_page(provider: str, model: str, usage: Usage, dollars: str) -> None:
    day = datetime(2025, 11, 1, tzinfo=UTC)

    found = cost(provider, model, usage=usage, at=int(day.timestamp()) * 1_000_000)

    assert Fraction(dollars) * 10**9 == found.nano_usd


def test_price_changes_on_the_day_that_the_vendor_changed_it() -> None:
    """https://openai.com/api/pricing: o3 fell from $10 to $2 per million input tokens on 10 June 2025."""
    million = Usage(input=1_000_000)
    days = [int(datetime(2025, 6, day, tzinfo=UTC).timestamp()) * 1_000_000 for day in (9, 10)]

    assert [10 * 10**9, 2 * 10**9] == [cost("openai", "o3", usage=million, at=day).nano_usd for day in days]


def test_what_is_free_adds_nothing_and_what_is_unknown_leaves_the_part_that_is_known() -> None:
    free, unknown, paid = Cost("free"), Cost("unpriced"), Cost("priced", 7, "config", "1", "openai:m")

    assert [paid, paid, Cost("priced", 14, "config", "1", "openai:m"), free] == [
        together(costs) for costs in ([free, paid], [paid, free], [paid, paid], [free, free])
    ]
    assert [Cost("unpriced", 7), Cost("unpriced", 7), unknown, unknown] == [
        together(costs) for costs in ([paid, unknown], [unknown, free, paid], [free, unknown], [unknown])
    ]


# ------------------------------------------------------------------ properties

counts = st.integers(min_value=0, max_value=MOST_TOKENS)
usages = st.builds(Usage, counts, counts, counts, counts, counts)
dollars = st.floats(min_value=0, max_value=1_000_000, allow_nan=False).map(lambda value: round(value, 6))
prices = st.builds(Price, dollars, dollars, st.none() | dollars, st.none() | dollars, st.none() | dollars)
COUNTERS = ("input", "cache_read", "cache_write", "cache_write_1h", "output")


def alone(usage: Usage, counter: str) -> Usage:
    return Usage(**{counter: getattr(usage, counter)})


@given(price=prices, usage=usages)
def test_own_price_is_additive_over_counters_and_never_negative(price: Price, usage: Usage) -> None:
    book = PriceBook({"mine:m": price}, served)

    whole = cost("mine", "m", usage=usage, book=book).nano_usd
    parts = [cost("mine", "m", usage=alone(usage, counter), book=book).nano_usd for counter in COUNTERS]

    assert whole is not None
    assert all(part is not None and part >= 0 for part in parts)
    # Each sum is rounded once, by half a nano-dollar at most.
    assert abs(whole - sum(part or 0 for part in parts)) <= len(COUNTERS) / 2


@given(usage=usages, model=st.sampled_from(["gpt-4o", "gpt-4.1-nano", "gpt-5"]))
def test_table_price_is_additive_over_counters_and_never_negative(usage: Usage, model: str) -> None:
    whole = cost("openai", model, usage=usage).nano_usd
    parts = [cost("openai", model, usage=alone(usage, counter)).nano_usd for counter in COUNTERS]

    assert whole is not None
    assert all(part is not None and part >= 0 for part in parts)
    assert abs(whole - sum(part or 0 for part in parts)) <= len(COUNTERS) / 2


@given(usage=usages, more=counts)
def test_reasoning_changes_no_price_beyond_that_of_output(usage: Usage, more: int) -> None:
    thinking = Usage(output=usage.output, reasoning=more)

    assert cost("openai", "o3", usage=Usage(output=usage.output)) == cost("openai", "o3", usage=thinking)


# ------------------------------------------------------------------ prices of one's own


def test_own_price_is_exact_and_says_where_it_comes_from() -> None:
    price = Price(1.5, 6, cache_read_per_million=0.2)
    book = PriceBook({"openai:my-model": price}, served)

    found = cost("openai", "my-model", usage=Usage(input=3, cache_read=2, cache_write=1, output=1), book=book)

    assert Cost("priced", 3 * 1500 + 2 * 200 + 1500 + 6000, "config", found.table_version, "openai:my-model") == found
    assert (
        found.table_version
        != cost("openai", "my-model", book=PriceBook({"openai:my-model": Price(1, 6)})).table_version
    )


@pytest.mark.parametrize(("tokens", "nano"), [(1, 0), (3, 2), (5, 2), (7, 4)])
def test_half_a_nano_dollar_is_rounded_to_the_even_one(tokens: int, nano: int) -> None:
    book = PriceBook({"mine:m": Price(0.0005, 1)}, served)

    assert nano == cost("mine", "m", usage=Usage(input=tokens), book=book).nano_usd


def test_one_hour_cache_costs_as_the_cache_and_the_cache_as_input_unless_said_otherwise() -> None:
    usage = Usage(cache_read=1_000_000, cache_write=1_000_000, cache_write_1h=1_000_000)
    book = PriceBook(
        {
            "mine:plain": Price(2, 9),
            "mine:cache": Price(2, 9, cache_write_per_million=3),
            "mine:none": Price(2, 9, 0, 0, 0),
        },
        served,
    )

    assert [6, 8, 0] == [
        (cost("mine", model, usage=usage, book=book).nano_usd or 0) // 10**9 for model in ("plain", "cache", "none")
    ]


def test_own_price_wins_over_the_table_and_over_running_here() -> None:
    book = PriceBook({"openai:gpt-4o": Price(1, 1), "here:proxied": Price(1, 1)}, served)

    assert "config" == cost("openai", "gpt-4o", book=book).table
    # What a provider calls the model may be more exact than what was asked for and configured.
    assert "config" == cost("openai", "gpt-4o-2024-08-06", "gpt-4o", book=book).table
    assert "priced" == cost("here", "proxied", book=book, local=True).state


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("prices: {m: {input_per_million: 1, output_per_million: 1}}", "prices.m: expected provider:model as the key"),
        ("prices: {'opnai:m': {input_per_million: 1, output_per_million: 1}}", "did you mean openai?"),
        ("prices: {'openai:m': {input_per_million: 1}}", 'prices."openai:m": output_per_million is missing: add it'),
        ("prices: {'openai:m': {input_per_milion: 1}}", "did you mean input_per_million?"),
        (
            "prices: {'openai:m': {input_per_million: -1, output_per_million: 1}}",
            "input_per_million: expected a number from 0 up to 1000000, got -1",
        ),
        ("prices: {'openai:m': {input_per_million: .nan, output_per_million: 1}}", "got NaN"),
        ("prices: {'openai:m': {input_per_million: '1', output_per_million: 1}}", 'up to 1000000, got "1"'),
    ],
)
def test_wrong_price_is_named_with_what_was_expected(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "config.yaml").write_text(text)

    with pytest.raises(ConfigError) as caught:
        config.load(environ={"TIMELINE_HOME": str(tmp_path), "HOME": str(tmp_path)}, cwd=tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}/config.yaml: prices")
    assert problem in str(caught.value)


def test_project_cannot_make_spending_look_smaller(tmp_path: Path) -> None:
    project = tmp_path / ".timeline.yaml"
    project.write_text("prices: {'openai:gpt-4o': {input_per_million: 0, output_per_million: 0}}")

    with pytest.raises(ConfigError, match="a project file may not set this") as caught:
        config.load(environ={"TIMELINE_HOME": str(tmp_path / "home"), "HOME": str(tmp_path)}, cwd=tmp_path)
    assert str(project) in str(caught.value)


# ------------------------------------------------------------------ where there is no price


def test_what_runs_on_this_machine_is_free() -> None:
    assert Cost("free") == cost("here", "gpt-4o", local=True)


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("openai", "no-such-model"),
        ("mine", "gpt-4o"),  # a server of one's own sells at a price of its own
        ("here", "gpt-4o"),
        ("gone", "gpt-4o"),  # not configured any more
        ("openai", "whisper-1"),  # sold by the second
        ("openai", "text-embedding-3-small"),  # answers with no tokens, so those have no price
        ("groq", "whisper-large-v3"),
    ],
)
def test_what_has_no_price_is_unpriced_and_not_zero(provider: str, model: str) -> None:
    assert Cost("unpriced") == cost(provider, model)


def test_entry_without_any_price_is_unpriced_and_not_zero() -> None:
    empty = [
        model.id
        for vendor in get_snapshot().providers
        if vendor.id == "openai"
        for model in vendor.models
        if not in_force(model)._comparable_values()
    ]

    assert empty
    assert {Cost("unpriced")} == {cost("openai", model) for model in empty}


def test_every_entry_has_a_price_or_none_and_never_fails() -> None:
    states = {
        cost(provider, model.id).state
        for vendor in get_snapshot().providers
        for provider in ADDRESSES
        if vendor.id == provider or (provider, vendor.id) in {("router", "openrouter"), ("togetherai", "together")}
        for model in vendor.models
    }

    assert {"priced", "unpriced"} == states


def test_vendor_behind_another_address_keeps_its_prices() -> None:
    book = PriceBook(served=lambda name: (name, "http://127.0.0.1:1/v1"))

    assert ["openai/gpt-4o", None] == [cost(name, "gpt-4o", book=book).entry for name in ("openai", "other")]


def test_model_that_the_provider_returned_is_looked_up_before_the_one_asked_for() -> None:
    assert "openai/gpt-4o-mini" == cost("openai", "gpt-4o-mini-2024-07-18", "gpt-4o").entry
    assert "openai/gpt-4o" == cost("openai", "unheard-of", "gpt-4o").entry
    assert "openai/gpt-4o" == cost("openai", None, "gpt-4o").entry


def test_asking_for_faster_or_slower_service_changes_the_price() -> None:
    plain, fast, slow = (
        cost("openai", "gpt-5", usage=Usage(input=1000, output=1000), extra=extra).nano_usd or 0
        for extra in ({}, {"service_tier": "priority"}, {"service_tier": "flex"})
    )

    assert slow < plain < fast


def test_a_batch_costs_what_the_table_says_of_batches_or_half() -> None:
    book, at = PriceBook({"openai:own": Price(input_per_million=2.0, output_per_million=10.0)}), AT
    usage = Usage(input=100_000, output=10_000)

    # https://platform.claude.com/docs/en/about-claude/pricing#batch-processing and https://openai.com/api/pricing
    for provider, model, dollars, entry in (
        ("anthropic", "claude-sonnet-4-5", 0.225, "anthropic/claude-sonnet-4-5 (batch)"),
        ("openai", "gpt-4o-mini", 0.0105, "openai/gpt-4o-mini (batch)"),
        ("groq", "llama-3.1-8b-instant", 0.0029, "groq/llama-3.1-8b-instant (batch: half)"),
        ("openai", "own", 0.15, "openai:own (batch: half)"),
    ):
        cost = book.batch_cost(provider, [model], usage, local=False, at=at)
        assert (round(dollars * 1e9), entry) == (cost.nano_usd, cost.entry)
    assert "unpriced" == book.batch_cost("openai", ["nobody's"], usage, local=False, at=at).state
    assert "free" == book.batch_cost("openai", ["mine"], usage, local=True, at=at).state


def test_listed_price_says_what_there_is_to_compare() -> None:
    found = BOOK.listed("anthropic", "claude-sonnet-4-5", local=False, at=AT)
    own = PriceBook({"mine:m": Price(1, 2)}, served).listed("mine", "m", local=False, at=AT)

    assert ("priced", "genai-prices", "anthropic/claude-sonnet-4-5") == (found.state, found.table, found.entry)
    assert found.rates is not None
    assert (3, 15) == (found.rates.input, found.rates.output)
    assert (found.context or 0) >= 200_000
    assert Rates(1, 2, None, None, None) == own.rates  # type: ignore[arg-type]
    assert "free" == BOOK.listed("here", "m", local=True, at=AT).state
    assert "unpriced" == BOOK.listed("mine", "m", local=False, at=AT).state


# ------------------------------------------------------------------ when it is looked up

OFFLINE = """
import asyncio, sys, threading, time

def refuse(event, args):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise SystemExit(f"{event} {args}")

sys.addaudithook(refuse)
from timeline.events import Usage
from timeline.llm.pricing import PriceBook

async def main():
    book = PriceBook()
    book.expect("here", "m", local=True)
    await book.ready("here", "m", local=True)
    book.expect("mine", "m", local=False)
    assert "genai_prices" not in sys.modules, "imported for nothing"
    book.expect("openai", "gpt-4o", local=False)
    assert "genai_prices" not in sys.modules, "imported while the connection opens"
    late = []
    ticking = asyncio.create_task(tick(late))
    await book.ready("openai", "gpt-4o", local=False)
    ticking.cancel()
    threads = [threading.Thread(target=book.cost, args=("openai", ["o3"], Usage(1)), kwargs={"local": False, "at": 1}) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    print(book.cost("openai", ["gpt-4o"], Usage(1), local=False, at=1).state, len(late) > 2)

async def tick(late):
    while True:
        late.append(time.perf_counter())
        await asyncio.sleep(0.002)

asyncio.run(main())
"""


def test_table_is_imported_beside_the_event_loop_and_never_from_the_network() -> None:
    done = subprocess.run([sys.executable, "-c", OFFLINE], capture_output=True, text=True, check=False)

    assert ("priced True\n", "", 0) == (done.stdout, done.stderr, done.returncode)


QUICK_END = """
import sys, time
from timeline.llm.pricing import PriceBook
PriceBook().expect("openai", "gpt-4o", local=False)
import atexit
atexit.register(lambda: print("genai_prices" in sys.modules))
"""


def test_program_that_ends_at_once_imports_no_table() -> None:
    done = subprocess.run([sys.executable, "-c", QUICK_END], capture_output=True, text=True, check=False)

    assert ("False\n", "", 0) == (done.stdout, done.stderr, done.returncode)


def test_estimate_counts_a_token_for_four_characters() -> None:
    assert [0, 1, 1, 2] == [estimate_tokens(text) for text in ("", "a", "abcd", "abcde")]


# ------------------------------------------------------------------ in the log


def configure(home: Home, **more: Any) -> None:
    entry = {"base_url": home.url, "api_key": "sk-0123456789", "models": ["gpt-4o"]}
    settings = {
        "llm_providers": {"openai": entry},
        "routing_strategy": {"default": "openai:gpt-4o", "fallback": None},
        "mode": "direct",
        "retry": {"max_attempts": 1},
        **more,
    }
    (home.path / "config.yaml").write_text(json.dumps(settings))


def costs(home: Home) -> list[dict[str, Any]]:
    return [row["data"].get("cost") for row in home.events("response.completed", "call.failed", "call.interrupted")]


@pytest.mark.parametrize("stream", [True, False])
def test_answer_is_priced_by_what_the_provider_counted(home: Home, backend: Backend, stream: bool) -> None:
    configure(home)
    backend.says(answers.answer("Hi", tokens=(1000, 100)) if stream else answers.batch("Hi", tokens=(1000, 100)))
    done = home.run("ask", "--json", *([] if stream else ["--no-stream"]), "hello")

    # $2.50 and $10.00 a million: https://openai.com/api/pricing
    assert {"state": "priced", "usd": 0.0035} == done.json()["cost"]
    (cost,) = costs(home)
    assert (3_500_000, "genai-prices", "openai/gpt-4o") == (cost["nano_usd"], cost["table"], cost["entry"])


def test_answer_is_priced_by_the_users_own_price(home: Home, backend: Backend) -> None:
    price = {"input_per_million": 1.5, "output_per_million": 6, "cache_read_per_million": 0.2}
    configure(home, prices={"openai:gpt-4o": price})
    backend.says(
        answers.stream(
            "Hi", answers.usage(1000, 100, cached=400), answers.delta(finish="stop"), answers.event("[DONE]")
        )
    )
    done = home.run("ask", "--json", "hello")

    assert {"state": "priced", "usd": (600 * 1.5 + 400 * 0.2 + 100 * 6) / 1e6} == done.json()["cost"]
    assert "config" == costs(home)[0]["table"]


def test_attempt_that_broke_off_is_priced_by_the_estimate(home: Home, backend: Backend) -> None:
    configure(home, prices={"openai:gpt-4o": {"input_per_million": 1000, "output_per_million": 1_000_000}})
    backend.says(answers.broken("four more words here"))
    done = home.run("ask", "hello")

    assert 1 == done.code
    # 5 characters are about 2 tokens of the prompt, 20 are 5 of the answer.
    assert [2 * 10**6 + 5 * 10**9] == [cost["nano_usd"] for cost in costs(home)]


def test_attempt_whose_process_died_is_priced_by_the_estimate(home: Home, backend: Backend) -> None:
    configure(home, prices={"openai:gpt-4o": {"input_per_million": 1000, "output_per_million": 1_000_000}})
    backend.says(answers.stream("four more words here", answers.FOREVER))
    process = home.start("ask", "hello")
    process.read_until("here")
    with sqlite3.connect(home.store) as conn:
        while not conn.execute("SELECT count(*) FROM events WHERE type = 'chunk.received'").fetchone()[0]:
            pass
    process.send(9)
    process.wait()
    home.run("sessions", "list")

    assert ["abandoned"] == [row["data"]["reason"] for row in home.events("call.interrupted")]
    assert [2 * 10**6 + 5 * 10**9] == [cost["nano_usd"] for cost in costs(home)]


def test_attempt_that_the_user_stopped_is_priced_by_the_estimate(home: Home, backend: Backend) -> None:
    configure(home)
    backend.says(answers.stream("four more words here", answers.FOREVER))
    process = home.start("ask", "hello")
    process.read_until("here")
    process.send(signal.SIGINT)

    assert 130 == process.wait()
    # 2 tokens at $2.50 and 5 at $10.00 a million: https://openai.com/api/pricing
    assert [("priced", 2 * 2500 + 5 * 10_000)] == [(cost["state"], cost["nano_usd"]) for cost in costs(home)]


def test_call_that_runs_here_never_imports_the_table(home: Home, backend: Backend) -> None:
    backend.says(answers.answer("Hi"))
    done = home.run("ask", "hello", env={"PYTHONPROFILEIMPORTTIME": "1"}, fresh=True)

    assert 0 == done.code
    assert "import time:" in done.err
    assert "genai_prices" not in done.err
    assert ["free"] == [cost["state"] for cost in costs(home)]
