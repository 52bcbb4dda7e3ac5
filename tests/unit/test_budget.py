"""What budgets say to a request, told where they stand: no store, no clock."""

from __future__ import annotations

from datetime import UTC
from typing import Any

import msgspec
import pytest
from support.stores import NOON

from timeline.config import BudgetConfig, Price, max_cost
from timeline.errors import UsageError
from timeline.events import BudgetExceeded
from timeline.llm.budget import (
    DEFAULT_MAX_TOKENS,
    Admitted,
    BudgetDecision,
    Refuse,
    Reservation,
    Skip,
    alerts,
    bounded_max_tokens,
    decide,
    estimate_input,
    reservation,
)
from timeline.llm.pricing import PriceBook
from timeline.projections.budgets import BudgetState
from timeline.providers.base import ImagePart, LLMRequest, Message, OpaquePart, TextPart, Tool

CENT = 10_000_000
HOUR = 3_600_000_000


def state(**changes: Any) -> BudgetState:
    """A dollar a month, nothing of it spent."""
    return msgspec.structs.replace(
        BudgetState("monthly", "2026-11", "nano_usd", 0, 0, 100 * CENT, "block", NOON + 100 * HOUR), **changes
    )


def asked(*states: BudgetState, nano_usd: int | None = CENT, tokens: int = 100) -> BudgetDecision:
    return decide(states, nano_usd, tokens, NOON, tz=UTC)


# ------------------------------------------------------------------ who passes


def test_without_a_budget_everything_passes() -> None:
    assert Admitted() == asked(nano_usd=None)


@pytest.mark.parametrize(("spent", "reserved"), [(0, 0), (99, 0), (0, 99), (49, 50)])
def test_a_request_that_just_fits_passes(spent: int, reserved: int) -> None:
    decision = asked(state(spent=spent * CENT, reserved=reserved * CENT, alerted=(80,)))

    assert Admitted() == decision


@pytest.mark.parametrize(("spent", "reserved"), [(99, 0), (0, 99), (49, 50), (300, 0)])
def test_a_request_that_is_a_nano_dollar_too_much_is_refused(spent: int, reserved: int) -> None:
    decision = asked(state(spent=spent * CENT, reserved=reserved * CENT, alerted=(100,)), nano_usd=CENT + 1)

    assert isinstance(decision, Refuse)
    assert (
        BudgetExceeded(
            budget="monthly",
            window="2026-11",
            spent=spent * CENT,
            reserved=reserved * CENT,
            limit=100 * CENT,
            requested=CENT + 1,
            unit="nano_usd",
            action="block",
            ends_at=NOON + 100 * HOUR,
        ),
    ) == decision.events


def test_a_budget_of_nothing_refuses_everything_that_costs() -> None:
    assert isinstance(asked(state(limit=0), nano_usd=1), Refuse)


@pytest.mark.parametrize("action", ["block", "fallback", "warn"])
@pytest.mark.parametrize("unit", ["nano_usd", "tokens"])
def test_what_is_free_passes_a_budget_that_is_used_up(action: str, unit: str) -> None:
    decision = asked(state(action=action, unit=unit, spent=500 * CENT, alerted=(100,)), nano_usd=0, tokens=0)

    assert Admitted() == decision


@pytest.mark.parametrize(("tokens", "outcome"), [(900, Admitted), (901, Refuse)])
def test_a_budget_of_tokens_counts_tokens_and_no_money(tokens: int, outcome: type) -> None:
    budget = state(unit="tokens", limit=1000, spent=50, reserved=50)

    assert outcome is type(asked(budget, nano_usd=None, tokens=tokens))
    assert outcome is type(asked(budget, nano_usd=10**12, tokens=tokens))


@pytest.mark.parametrize(("action", "outcome"), [("block", Refuse), ("fallback", Skip), ("warn", Admitted)])
def test_the_action_says_what_happens_to_what_does_not_fit(action: str, outcome: type) -> None:
    decision = asked(state(spent=100 * CENT, action=action, alerted=(100,)))

    assert outcome is type(decision)
    assert [action] == [event.action for event in decision.events if isinstance(event, BudgetExceeded)]


@pytest.mark.parametrize(("action", "outcome"), [("block", Refuse), ("fallback", Skip), ("warn", Admitted)])
def test_an_unknown_price_passes_no_budget_in_dollars_but_those_that_only_warn(action: str, outcome: type) -> None:
    decision = asked(state(action=action), nano_usd=None)

    assert outcome is type(decision)
    assert [(action, None)] == [
        (event.action, event.requested) for event in decision.events if isinstance(event, BudgetExceeded)
    ]


@pytest.mark.parametrize(
    ("actions", "outcome"),
    [
        (["warn", "fallback", "block"], Refuse),
        (["block", "warn"], Refuse),
        (["warn", "fallback"], Skip),
        (["warn", "warn"], Admitted),
    ],
)
def test_the_strictest_of_several_budgets_wins(actions: list[str], outcome: type) -> None:
    fits = state(name="roomy", limit=10**15)
    decision = asked(fits, *(state(spent=100 * CENT, action=action, alerted=(100,)) for action in actions))

    assert outcome is type(decision)
    # Of a request that was not sent, no budget let it pass with a warning.
    strictest = {"Refuse": "block", "Skip": "fallback", "Admitted": "warn"}[outcome.__name__]
    assert {strictest} == {event.action for event in decision.events if isinstance(event, BudgetExceeded)}


# ------------------------------------------------------------------ what is said


def message(decision: BudgetDecision) -> str:
    assert isinstance(decision, Refuse | Skip)
    return decision.message


def test_a_refusal_says_what_is_spent_what_it_would_cost_when_the_window_ends_and_what_to_do() -> None:
    refused = asked(state(spent=99 * CENT, reserved=CENT // 2, alerted=(80,)))

    assert (
        'not sent, because it may cost $0.01: the budget "monthly" (2026-11) of $1.00 has $0.99 spent and $0.005 reserved'
        " by requests under way; wait until 2026-11-27 16:00, in 4 days, ask for less with --max-tokens, or raise its limit_usd"
    ) == message(refused)


def test_a_refusal_for_tokens_speaks_of_tokens() -> None:
    refused = asked(state(unit="tokens", limit=1500, spent=1000, window="total", ends_at=None), tokens=2000)

    assert (
        'not sent, because it may use 2,000 tokens: the budget "monthly" (total) of 1,500 tokens has 1,000 tokens spent;'
        " ask for less with --max-tokens, or raise its limit_tokens"
    ) == message(refused)


def test_a_refusal_for_an_unknown_price_says_how_to_give_one() -> None:
    assert (
        'not sent, because nobody knows what it would cost: the budget "monthly" (2026-11) of $1.00 has $0.00 spent;'
        " give the model a price under 'prices' in the configuration, or set the budget's action to warn"
    ) == message(asked(state(), nano_usd=None))


@pytest.mark.parametrize(
    ("spent", "nano_usd", "words"),
    [
        (0, 723_074_650, "may cost $0.7231:"),
        (0, 723_000_001, "may cost $0.723000001:"),
        (1000, 722_999_001, 'may cost $0.723: the budget "monthly" (2026-11) of $0.723 has $0.000001 spent'),
    ],
)
def test_a_refusal_has_as_few_digits_as_show_that_it_does_not_fit(spent: int, nano_usd: int, words: str) -> None:
    assert words in message(asked(state(limit=723_000_000, spent=spent), nano_usd=nano_usd))


def test_a_refusal_for_max_cost_speaks_of_the_option() -> None:
    budget = state(name="--max-cost", window="turn", ends_at=None, limit=5)

    assert (
        "not sent, because it may cost $0.00000002: --max-cost of $0.000000005 has $0.00 spent;"
        " ask for less with --max-tokens, or raise --max-cost"
    ) == message(asked(budget, nano_usd=20))
    assert message(asked(budget, nano_usd=None)).endswith("in the configuration, or leave --max-cost out")


@pytest.mark.parametrize(("hours", "words"), [(0.5, "in 1 hour,"), (1.5, "in 2 hours,"), (48, "in 2 days,"), (75, "in 3 days,")])  # fmt: skip
def test_a_refusal_says_how_far_the_end_of_the_window_is(hours: float, words: str) -> None:
    assert words in message(asked(state(limit=0, ends_at=NOON + int(hours * HOUR))))


def test_of_several_budgets_the_one_that_holds_longest_is_named() -> None:
    day = state(name="daily", limit=0, ends_at=NOON + HOUR)
    month, total = state(limit=0), state(name="ever", window="total", limit=0, ends_at=None)

    assert '"monthly"' in message(asked(day, month))
    assert '"ever"' in message(asked(day, total, month))


# ------------------------------------------------------------------ alerts


@pytest.mark.parametrize(
    ("spent", "told"), [(0, []), (49, []), (50, [50]), (79, [50]), (80, [80]), (99, [80]), (100, [100]), (250, [100])]
)
def test_the_highest_threshold_that_was_passed_is_told(spent: int, told: list[int]) -> None:
    assert told == [alert.threshold_percent for alert in alerts([state(spent=spent * CENT, reserved=99 * CENT)])]


@pytest.mark.parametrize(
    ("spent", "before", "told"),
    [(55, [50], []), (85, [50], [80]), (85, [80], []), (100, [50, 80], [100]), (100, [100], [])],
)
def test_a_threshold_is_told_once(spent: int, before: list[int], told: list[int]) -> None:
    given = alerts([state(spent=spent * CENT, alerted=tuple(before))])

    assert told == [alert.threshold_percent for alert in given]


def test_an_alert_says_where_the_budget_stands() -> None:
    (alert,) = alerts([state(unit="tokens", spent=60 * CENT, reserved=7)])

    assert ("monthly", "2026-11", 60 * CENT, 7, 100 * CENT, "tokens") == (
        alert.budget,
        alert.window,
        alert.spent,
        alert.reserved,
        alert.limit,
        alert.unit,
    )


def test_a_request_that_is_refused_still_tells_of_a_threshold() -> None:
    decision = asked(state(spent=100 * CENT))

    assert ["budget.alerted", "budget.exceeded"] == [event.type for event in decision.events]


@pytest.mark.parametrize("window", ["call", "turn"])
def test_there_are_no_alerts_of_what_is_over_at_once(window: str) -> None:
    assert () == alerts([state(window=window, spent=100 * CENT)])


# ------------------------------------------------------------------ what a request may cost


def priced(**prices: float) -> PriceBook:
    return PriceBook({"work:m": Price(input_per_million=2, output_per_million=10, **prices)})


def test_the_reservation_is_the_prompt_and_the_longest_answer_at_the_models_price() -> None:
    assert Reservation(1000 * 2000 + 50 * 10_000, 1050) == reservation(
        priced(), "work", "m", 1000, 50, local=False, at=NOON
    )


def test_an_answer_without_a_limit_is_reckoned_with_the_default_one() -> None:
    assert Reservation(DEFAULT_MAX_TOKENS * 10_000, DEFAULT_MAX_TOKENS) == reservation(
        priced(), "work", "m", 0, None, local=False, at=NOON
    )


def test_a_model_without_a_price_has_a_reservation_of_tokens_alone() -> None:
    assert Reservation(None, 150) == reservation(priced(), "work", "other", 100, 50, local=False, at=NOON)


def test_a_model_on_this_machine_reserves_nothing_unless_it_has_a_price() -> None:
    assert Reservation(0, 0) == reservation(priced(), "work", "other", 100, 50, local=True, at=NOON)
    assert Reservation(700_000, 150) == reservation(priced(), "work", "m", 100, 50, local=True, at=NOON)


def test_a_prompt_that_is_to_be_cached_is_reckoned_at_the_dearest_price() -> None:
    prices = priced(cache_write_per_million=2.5, cache_write_1h_per_million=4)
    extra = {"cache_control": {"type": "ephemeral"}}

    assert 4_000_000 == reservation(prices, "work", "m", 1000, 0, local=False, at=NOON, extra=extra).nano_usd
    assert 2_000_000 == reservation(prices, "work", "m", 1000, 0, local=False, at=NOON).nano_usd


def test_the_table_of_prices_is_asked_for_the_most_too() -> None:
    assert Reservation(1000 * 2500 + 500 * 10_000, 1500) == reservation(
        PriceBook(), "openai", "gpt-4o", 1000, 500, local=False, at=NOON
    )


def test_the_estimate_of_a_prompt_counts_all_that_is_sent() -> None:
    plain = LLMRequest("m", (Message("user", "x" * 400),))
    tool = Tool("look", "Looks something up", {"type": "object"})
    image = ImagePart("image/png", b"")

    assert 104 == estimate_input(plain)
    assert 114 == estimate_input(msgspec.structs.replace(plain, system="y" * 40))
    assert 104 < estimate_input(msgspec.structs.replace(plain, tools=(tool,)))
    assert 104 < estimate_input(msgspec.structs.replace(plain, response_schema={"type": "object"}))
    assert 1704 == estimate_input(LLMRequest("m", (Message("user", (TextPart("x" * 400), image)),)))
    kept = OpaquePart("work", {"reasoning_content": "x" * 400})
    assert 104 + 100 < estimate_input(LLMRequest("m", (Message("assistant", (kept, TextPart("x" * 400))),)))


BLOCKING = BudgetConfig("b", limit_usd=1, provider="work")


def test_an_answer_is_limited_where_a_budget_could_stop_it_and_nobody_else_limits_it() -> None:
    def bound(max_tokens: int | None = None, **changes: Any) -> int | None:
        budget = msgspec.structs.replace(BLOCKING, **changes.pop("budget", {}))
        return bounded_max_tokens(max_tokens, [budget], "work", "m", **{"free": False, **changes})

    assert DEFAULT_MAX_TOKENS == bound()
    assert DEFAULT_MAX_TOKENS == bound(budget={"action": "fallback"})
    assert 1000 == bound(maximum=1000)
    assert DEFAULT_MAX_TOKENS == bound(maximum=100_000)
    assert 9000 == bound(9000, maximum=1000)
    assert None is bound(free=True)
    assert None is bound(budget={"action": "warn"})
    assert None is bound(budget={"provider": "other"})
    assert None is bound(budget={"provider": None, "model": "work:other"})


# ------------------------------------------------------------------ --max-cost


@pytest.mark.parametrize("text", ["0.05", "$0.05", " $5e-2 "])
def test_max_cost_is_a_budget_of_one_question(text: str) -> None:
    assert BudgetConfig("--max-cost", limit_usd=0.05, window="turn", action="block") == max_cost(text)


@pytest.mark.parametrize("text", ["", "$", "five", "-1", "nan", "inf", "1,5", "10000000"])
def test_max_cost_that_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no amount of US dollars: write it like"):
        max_cost(text)
