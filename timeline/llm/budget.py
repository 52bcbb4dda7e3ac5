"""What a budget says to one request: pass, go elsewhere, or stop; and what a request may cost at most.

Pure: where the budgets stand comes from `timeline.projections.budgets`, and is read in the
transaction that admits the request. So what is spent and reserved never passes a limit, however
many processes ask at once, as long as no request costs more than it reserved.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, tzinfo
from typing import Any

import msgspec
from msgspec import Struct

from timeline.config import MAX_COST, BudgetConfig
from timeline.events import BudgetAlerted, BudgetExceeded
from timeline.llm.pricing import PriceBook, estimate_tokens
from timeline.money import rounded, usd
from timeline.projections.budgets import BudgetState, applies
from timeline.providers.base import ImagePart, LLMRequest

__all__ = [
    "DEFAULT_MAX_TOKENS",
    "THRESHOLDS",
    "Admitted",
    "BudgetDecision",
    "Refuse",
    "Reservation",
    "Skip",
    "alerts",
    "bounded_max_tokens",
    "decide",
    "estimate_input",
    "reservation",
]

THRESHOLDS = (50, 80, 100)
"""Percent of a limit at which people are told."""
DEFAULT_MAX_TOKENS = 4096
"""What an answer is reckoned with where nobody limits it; under a budget that stops requests, it is limited to that."""
TOKENS_PER_MESSAGE = 4
"""What marks the beginning and end of a message, about
(https://cookbook.openai.com/examples/how_to_count_tokens_with_tiktoken)."""
TOKENS_PER_IMAGE = 1600
"""The most that Anthropic counts for an image that it need not shrink
(https://docs.claude.com/en/docs/build-with-claude/vision); about OpenAI's most, too."""
FEW_HOURS = 48
FEW_PLACES, ALL_PLACES = 4, 9
"""Decimals of an amount in dollars: to a hundredth of a cent, as `timeline budget` has them, and to the last."""
SESSION_CHARACTERS = 13


# ------------------------------------------------------------------ what a request may cost


class Reservation(Struct, frozen=True):
    """What an attempt may use at most; zeros for one that is free.

    Args:
        nano_usd: Nano-US-dollars; None where the price is unknown.
        tokens: Prompt and answer.
    """

    nano_usd: int | None
    tokens: int


def reservation(
    prices: PriceBook,
    provider: str,
    model: str,
    input_tokens: int,
    max_tokens: int | None,
    *,
    local: bool,
    at: int,
    extra: Mapping[str, Any] | None = None,
) -> Reservation:
    """What an attempt may use at most: the estimate of its prompt and the longest answer, at the model's price.

    Args:
        prices: What tokens cost; `PriceBook.ready` should have been waited for.
        provider: Its name as configured.
        model: The name to ask for.
        input_tokens: As `estimate_input` has it.
        max_tokens: The limit that is sent; None reckons with `DEFAULT_MAX_TOKENS`.
        local: Whether the model runs on this machine; it is free then, unless the user gave it a price.
        at: When, µs UTC.
        extra: Further fields of the request; some raise or lower its price.
    """
    output = DEFAULT_MAX_TOKENS if max_tokens is None else max_tokens
    nano_usd = prices.most(provider, model, input_tokens, output, local=local, at=at, extra=extra)
    free = local and nano_usd == 0
    return Reservation(nano_usd, 0 if free else input_tokens + output)


def estimate_input(request: LLMRequest) -> int:
    """About how many tokens all that is sent will be counted as: text, tools, schema and images."""
    parts = [part for message in request.messages if not isinstance(message.content, str) for part in message.content]
    images = sum(isinstance(part, ImagePart) for part in parts)
    shapes = [*request.tools, *([request.response_schema] if request.response_schema else [])]
    shapes += [call for message in request.messages for call in message.tool_calls]
    texts = [
        request.system or "",
        *(text for message in request.messages for text in (message.text, message.opaque_text)),
    ]
    texts += [msgspec.json.encode(shape).decode() for shape in shapes]
    return estimate_tokens(*texts) + TOKENS_PER_MESSAGE * len(request.messages) + TOKENS_PER_IMAGE * images


def bounded_max_tokens(
    max_tokens: int | None,
    budgets: Iterable[BudgetConfig],
    provider: str,
    model: str,
    *,
    free: bool,
    maximum: int | None = None,
) -> int | None:
    """The limit to send, so that what is reserved is the most that can be spent.

    Args:
        max_tokens: What the caller asked for; it stays.
        budgets: All that are configured.
        provider: Its name as configured.
        model: The name to ask for.
        free: Whether the request is exempt from budgets.
        maximum: The longest answer that the model can give, where known.
    """
    strict = (budget for budget in budgets if budget.action != "warn" and applies(budget, provider, model))
    if max_tokens is not None or free or next(strict, None) is None:
        return max_tokens
    return min(DEFAULT_MAX_TOKENS, maximum or DEFAULT_MAX_TOKENS)


# ------------------------------------------------------------------ the decision


class Admitted(Struct, frozen=True):
    """The request may be sent; `events` are appended with it, alerts and warnings."""

    events: tuple[BudgetAlerted | BudgetExceeded, ...] = ()


class Skip(Struct, frozen=True):
    """Go to the next candidate; `events` are appended, `message` says why."""

    events: tuple[BudgetAlerted | BudgetExceeded, ...]
    message: str


class Refuse(Struct, frozen=True):
    """Don't send it, nor to another; `events` are appended, `message` is that of `timeline.errors.BudgetExceeded`."""

    events: tuple[BudgetAlerted | BudgetExceeded, ...]
    message: str


BudgetDecision = Admitted | Skip | Refuse


def decide(
    states: Sequence[BudgetState],
    requested_nano_usd: int | None,
    requested_tokens: int,
    now: int,
    *,
    tz: tzinfo | None = None,
    maybe_free: str | None = None,
) -> BudgetDecision:
    """What the budgets say to a request; the strictest of them wins.

    A request passes a budget if what is spent, what is reserved and what it may use itself are together no more than
    the limit. One that costs nothing always passes; one of unknown price passes no budget in dollars but those that
    only warn: money is never spent by surprise.

    Args:
        states: Where the budgets stand that it falls under.
        requested_nano_usd: What it may cost at most; None where its price is unknown.
        requested_tokens: What it may use at most.
        now: µs UTC.
        tz: For people to read when a window ends; None for this machine's time zone.
        maybe_free: The provider, where it is a server on this machine that may compute its answers itself.
    """
    requested = {"nano_usd": requested_nano_usd, "tokens": requested_tokens}
    passed = [state for state in states if _is_passed(state, requested[state.unit])]
    told = alerts(states)
    for action, outcome in (("block", Refuse), ("fallback", Skip)):
        strict = [state for state in passed if state.action == action]
        if strict:
            # Of several the one that holds longest: waiting for another would not help.
            worst = max(strict, key=lambda state: (state.ends_at is None, state.ends_at or 0))
            message = _sentence(worst, requested[worst.unit], now, tz, maybe_free)
            return outcome((*told, *(_exceeded(state, requested[state.unit]) for state in strict)), message)
    return Admitted((*told, *(_exceeded(state, requested[state.unit]) for state in passed)))


def alerts(states: Iterable[BudgetState]) -> tuple[BudgetAlerted, ...]:
    """What to tell of budgets that passed a threshold by what was really spent: the highest, once in a window."""
    found = []
    for state in states:
        if state.window in ("call", "turn"):
            # Over before anybody could act on it.
            continue
        crossed = [each for each in THRESHOLDS if state.spent > 0 and state.spent * 100 >= state.limit * each]
        if crossed and crossed[-1] > max(state.alerted, default=0):
            numbers = (state.spent, state.reserved, state.limit, crossed[-1])
            found.append(BudgetAlerted(state.name, state.window, *numbers, state.unit))
    return tuple(found)


def _is_passed(state: BudgetState, requested: int | None) -> bool:
    if requested is None:
        return True
    return requested > 0 and state.spent + state.reserved + requested > state.limit


def _exceeded(state: BudgetState, requested: int | None) -> BudgetExceeded:
    return BudgetExceeded(
        budget=state.name,
        window=state.window,
        spent=state.spent,
        reserved=state.reserved,
        limit=state.limit,
        requested=requested,
        unit=state.unit,
        action=state.action,
        ends_at=state.ends_at,
    )


# ------------------------------------------------------------------ in words


def _sentence(state: BudgetState, requested: int | None, now: int, tz: tzinfo | None, maybe_free: str | None) -> str:
    """What is spent and reserved, what this would cost, the limit, when the window ends, and what to do."""
    unit = state.unit
    # Of a session's id, as much as tells it from others.
    window = state.window[:SESSION_CHARACTERS]
    name = MAX_COST if state.name == MAX_COST else f'the budget "{state.name}" ({window})'
    spent, reserved, asked = _amounts(state, requested or 0)
    stands = f"{name} of {_limit(state)} has {spent} spent"
    if state.reserved:
        stands += f" and {reserved} reserved by requests under way"
    if requested is None:
        allow = f"leave {MAX_COST} out" if state.name == MAX_COST else "set the budget's action to warn"
        remedy = f"give the model a price under 'prices' in the configuration, or {allow}"
        if maybe_free is not None:
            says = f"say 'local: true' under '{maybe_free}' in the configuration if it computes its answers on this machine"
            remedy = f"{says}, {remedy}"
        return f"not sent, because nobody knows what it would cost: {stands}; {remedy}"
    setting = MAX_COST if state.name == MAX_COST else "its limit_usd" if unit == "nano_usd" else "its limit_tokens"
    remedy = f"ask for less with --max-tokens, or raise {setting}"
    if state.ends_at is not None:
        remedy = f"wait until {_instant(state.ends_at, now, tz)}, {remedy}"
    means = "use" if unit == "tokens" else "cost"
    return f"not sent, because it may {means} {asked}: {stands}; {remedy}"


def _limit(state: BudgetState) -> str:
    """`$20.00`, `1,500 tokens`: exact, as it was written."""
    return f"{state.limit:,} tokens" if state.unit == "tokens" else usd(state.limit)


def _amounts(state: BudgetState, requested: int) -> tuple[str, str, str]:
    """What is spent, reserved and requested, with as few digits as show that together they are more than the limit."""
    amounts = (state.spent, state.reserved, requested)
    if state.unit == "tokens":
        spent, reserved, asked = (f"{amount:,} tokens" for amount in amounts)
        return spent, reserved, asked
    for places in range(FEW_PLACES, ALL_PLACES):
        if sum(rounded(amount, places) for amount in amounts) > rounded(state.limit):
            break
    else:
        places = ALL_PLACES
    spent, reserved, asked = (usd(amount, places=places) for amount in amounts)
    return spent, reserved, asked


def _instant(at: int, now: int, tz: tzinfo | None) -> str:
    """`2026-12-01 00:00, in 5 days`."""
    hours = -(-(at - now) // 3_600_000_000)
    far = f"{hours} hour{'s' if hours > 1 else ''}" if hours < FEW_HOURS else f"{hours // 24} days"
    return f"{datetime.fromtimestamp(at // 1_000_000, tz):%Y-%m-%d %H:%M}, in {far}"
