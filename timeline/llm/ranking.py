"""What each `auto:…` means: which of several models is cheapest, fastest, best or a balance, and in what words.

Prices are those of the price table, speeds those of past calls. Nobody can measure how good an answer is, and a
high price is no proof: `best` is the order in which the user lists the models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal

from msgspec import Struct

from timeline.config import ModelRef, Strategy
from timeline.errors import TimelineError
from timeline.events import Cost
from timeline.llm.pricing import ListPrice
from timeline.money import dollars
from timeline.projections.health import ModelStats
from timeline.providers.base import Capabilities

__all__ = [
    "TYPICAL_OUTPUT",
    "ModelFacts",
    "Ranked",
    "Request",
    "answer_tokens",
    "price_words",
    "rank",
    "speed_words",
]

TYPICAL_OUTPUT = 500
"""Tokens of an answer of which nothing is known."""


class Request(Struct, frozen=True):
    """What a model must take.

    Args:
        input_tokens: About how many tokens are sent.
        max_tokens: Most tokens of the answer.
        tools, schema, images: Whether it must call tools, follow a schema, look at images.
    """

    input_tokens: int = 0
    max_tokens: int | None = None
    tools: bool = False
    schema: bool = False
    images: bool = False


class ModelFacts(Struct, frozen=True):
    """What is known of a model. Nothing, by default, except that it is somewhere else.

    Args:
        here: Whether it may be asked without a network.
        problem: Why its settings can't be used.
        capabilities: What it can do.
        context: Most tokens of prompt and answer together.
        price: In the price table.
        estimate: About what this request would cost.
        stats: Of past calls.
        open_until: Until when the circuit breaker keeps it from being asked, µs UTC.
        limited_until: Until when a rate limit does.
    """

    here: bool = False
    problem: TimelineError | None = None
    capabilities: Capabilities | None = None
    context: int | None = None
    price: ListPrice = ListPrice("unpriced")
    estimate: Cost = Cost("unpriced")
    stats: ModelStats | None = None
    open_until: int | None = None
    limited_until: int | None = None

    def waits(self, now: int) -> str | None:
        """Why it had better not be asked now."""
        if (self.open_until or 0) > now:
            return "its circuit is open after failures"
        if (self.limited_until or 0) > now:
            return "its rate limit is reached"
        return None


class Ranked(Struct, frozen=True):
    """A model in its place, and why there."""

    ref: ModelRef
    why: str


def rank(
    strategy: Strategy, refs: Sequence[ModelRef], known: Callable[[ModelRef], ModelFacts], request: Request, now: int
) -> list[Ranked]:
    """The models in the order in which a strategy asks them.

    Those that had better not be asked now stand behind all others; equal ones stay in the order of `refs`.

    Args:
        strategy: By what.
        refs: Models, in the order of the user's list.
        known: What is known of each.
        request: What is to be asked.
        now: µs UTC.
    """
    score = _SCORES[strategy](refs, known, request)
    order = sorted(refs, key=lambda ref: (known(ref).waits(now) is not None, score[ref]))
    count = len(refs)
    return [
        Ranked(ref, _words(strategy, place, count, _measure(strategy, ref, known(ref), refs), known(ref).waits(now)))
        for place, ref in enumerate(order, 1)
    ]


# ------------------------------------------------------------------ scores: the lower, the sooner


Score = tuple[bool, float]


def answer_tokens(request: Request, stats: ModelStats | None) -> int:
    """About how many tokens a model will answer with."""
    usual = (stats and stats.output_tokens) or TYPICAL_OUTPUT
    return min(usual, request.max_tokens) if request.max_tokens else usual


def _seconds(request: Request, stats: ModelStats | None) -> float | None:
    """About how long a model takes, the time of failed tries included; None where that was never measured."""
    if stats is None or stats.tokens_per_second is None:
        return None
    # The same length for all: who answers at length isn't slow.
    usual = TYPICAL_OUTPUT if request.max_tokens is None else min(TYPICAL_OUTPUT, request.max_tokens)
    once = (stats.time_to_first_token or 0) + usual / stats.tokens_per_second
    return once / max(1 - stats.error_rate, 0.01)


def _by_cost(
    refs: Sequence[ModelRef], known: Callable[[ModelRef], ModelFacts], _request: Request
) -> dict[ModelRef, Score]:
    costs = {ref: known(ref).estimate for ref in refs}
    return {ref: (cost.state == "unpriced", cost.nano_usd or 0) for ref, cost in costs.items()}


def _by_time(
    refs: Sequence[ModelRef], known: Callable[[ModelRef], ModelFacts], request: Request
) -> dict[ModelRef, Score]:
    times = {ref: _seconds(request, known(ref).stats) for ref in refs}
    return {ref: (time is None, time or 0) for ref, time in times.items()}


def _by_list(
    refs: Sequence[ModelRef], _known: Callable[[ModelRef], ModelFacts], _request: Request
) -> dict[ModelRef, Score]:
    return {ref: (False, place) for place, ref in enumerate(refs)}


def _by_both(
    refs: Sequence[ModelRef], known: Callable[[ModelRef], ModelFacts], request: Request
) -> dict[ModelRef, Score]:
    """The sum of the places by cost and by time: no model's scale outweighs the other."""
    cost, time = _by_cost(refs, known, request), _by_time(refs, known, request)
    return {ref: (False, _place(ref, cost) + _place(ref, time)) for ref in refs}


def _place(ref: ModelRef, scores: dict[ModelRef, Score]) -> int:
    return 1 + sum(other < scores[ref] for other in scores.values())


_SCORES: dict[
    Strategy, Callable[[Sequence[ModelRef], Callable[[ModelRef], ModelFacts], Request], dict[ModelRef, Score]]
]
_SCORES = {"cheapest": _by_cost, "fastest": _by_time, "best": _by_list, "balanced": _by_both}


# ------------------------------------------------------------------ words


def _words(strategy: Strategy, place: int, count: int, measure: str, waits: str | None) -> str:
    if waits:
        return f"{measure}, behind the others as {waits}" if count > 1 else f"{measure}, though {waits}"
    if count == 1:
        return f"{measure}, the only one"
    if place > 1:
        return f"{measure}, number {place} of {count}"
    first = {"cheapest": "the cheapest", "fastest": "the fastest", "best": "the best", "balanced": "the best balance"}
    return f"{measure}, {first[strategy]} of {count}"


def _measure(strategy: Strategy, ref: ModelRef, facts: ModelFacts, refs: Sequence[ModelRef]) -> str:
    match strategy:
        case "cheapest":
            return price_words(facts.price)
        case "fastest":
            return speed_words(facts.stats)
        case "best":
            return f"number {refs.index(ref) + 1} in the list of models"
        case _:
            return f"{price_words(facts.price)}, {speed_words(facts.stats)}"


def price_words(price: ListPrice) -> str:
    """A price as people read it."""
    if price.rates is None:
        return "free" if price.state == "free" else "of unknown price"
    into, out = (dollars(rate or Decimal(0)) for rate in (price.rates.input, price.rates.output))
    return f"{into} in and {out} out per million tokens"


def speed_words(stats: ModelStats | None) -> str:
    """A speed as people read it."""
    if stats is None or stats.tokens_per_second is None:
        return "not measured yet"
    first = "" if stats.time_to_first_token is None else f"{stats.time_to_first_token:.1f} s to the first token and "
    return f"{first}{stats.tokens_per_second:.0f} tokens a second"
