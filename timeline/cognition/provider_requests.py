"""The events of requests in a provider's batch: what is recorded before they are handed in, and of how each ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import Struct
from sqlalchemy import Connection

from timeline.cognition.prompt_file import Prompt
from timeline.config import BudgetConfig, ModelRef
from timeline.errors import BudgetExceeded, ProviderError
from timeline.events import (
    BATCH_KEY,
    CallFailed,
    CallInterrupted,
    ChunkReceived,
    EventData,
    MessageRef,
    Owner,
    RequestSent,
    ResponseCompleted,
    StepCompleted,
    StepFailed,
    StepStarted,
    TurnCompleted,
    TurnFailed,
    TurnInterrupted,
    TurnStarted,
    Usage,
)
from timeline.llm import budget
from timeline.llm.attempt import error_info
from timeline.llm.budget import DEFAULT_MAX_TOKENS, bounded_max_tokens, estimate_input
from timeline.llm.pricing import PriceBook, estimate_tokens
from timeline.projections.budgets import read_budgets
from timeline.projections.calls import OpenAttempt
from timeline.providers.base import Collector, Finish, LLMRequest, Message
from timeline.providers.batches import Outcome
from timeline.store import content_digest

__all__ = ["Asked", "ask", "ends", "gone", "label_of", "within_budgets"]

OWNER = "provider-batch/"


class Asked(Struct, frozen=True):
    """A prompt as it is handed in.

    Args:
        item: What the log knows it by.
        call_id: What the provider knows it by.
        request: What is asked.
        bodies: What its events refer to.
        facts: Those events, in their order.
        nano_usd, tokens: What it may use at most; None where nobody knows the price.
    """

    item: str
    call_id: str
    request: LLMRequest
    bodies: tuple[str, ...]
    facts: tuple[EventData, ...]
    nano_usd: int | None
    tokens: int

    @property
    def size(self) -> int:
        """About the characters that it takes on the wire."""
        return 200 + sum(map(len, self.bodies))


def ask(
    item: str,
    prompt: Prompt,
    *,
    ref: ModelRef,
    label: str,
    call_id: str,
    prices: PriceBook,
    budgets: Sequence[BudgetConfig],
    local: bool,
    now: int,
) -> Asked:
    """A prompt made ready.

    Args:
        item: What the log knows it by.
        prompt: What to ask.
        ref: Which model.
        label: Our own name for the provider's batch.
        call_id: Of the call.
        prices: What tokens cost; ready.
        budgets: All that hold for it.
        local: Whether the model runs on this machine.
        now: µs UTC.
    """
    limit = bounded_max_tokens(prompt.max_tokens, budgets, ref.provider, ref.model, free=local)
    request = LLMRequest(
        model=ref.model,
        messages=(Message("user", prompt.prompt),),
        system=prompt.system or None,
        temperature=prompt.temperature,
        max_tokens=limit,
        seed=prompt.seed,
    )
    tokens, longest = estimate_input(request), limit or DEFAULT_MAX_TOKENS
    most = Usage(input=tokens, output=longest)
    cost = prices.batch_cost(ref.provider, [ref.model], most, local=local, at=now)
    nano_usd = None if cost.state == "unpriced" else cost.nano_usd or 0
    owner, user = Owner(OWNER + label, 0, 0.0), content_digest(prompt.prompt)
    system = content_digest(request.system) if request.system else None
    params = {name: getattr(request, name) for name in ("temperature", "max_tokens", "seed")}
    facts = (
        TurnStarted("direct", owner, prompt=user, system=system, item=item),
        StepStarted("answer"),
        RequestSent(
            attempt=1,
            provider=ref.provider,
            model=ref.model,
            why="in a batch of the provider's",
            messages=(*((MessageRef("system", ref=system),) if system else ()), MessageRef("user", ref=user)),
            owner=owner,
            params={name: value for name, value in params.items() if value is not None},
            stream=False,
            estimated_input_tokens=tokens,
            reserved_nano_usd=nano_usd or 0,
            local=local,
            reserved_tokens=tokens + longest,
            key=BATCH_KEY,
        ),
    )
    bodies = (prompt.prompt, request.system) if request.system else (prompt.prompt,)
    return Asked(item, call_id, request, bodies, facts, nano_usd, tokens + longest)


def label_of(owner: Owner) -> str | None:
    """Our own name for the provider's batch that owns a request; None where a process does."""
    return owner.host.removeprefix(OWNER) if owner.host.startswith(OWNER) else None


def within_budgets(
    conn: Connection,
    budgets: Sequence[BudgetConfig],
    asks: Sequence[Asked],
    ref: ModelRef,
    *,
    session_id: str,
    now: int,
) -> tuple[EventData, ...]:
    """What budgets say to requests that are handed in together; the events to record of it.

    Raises:
        BudgetExceeded: All of them together, or one of them, would pass one.
    """
    told: tuple[EventData, ...] = ()
    costs = [each.nano_usd for each in asks]
    sums: tuple[tuple[bool, Callable[[list[int]], int]], ...] = ((True, max), (False, sum))
    for one_call, total in sums:
        states = read_budgets(
            conn,
            [each for each in budgets if (each.window in ("call", "turn")) is one_call],
            now=now,
            session_id=session_id,
            provider=ref.provider,
            model=ref.model,
        )
        nano_usd = None if None in costs else total([cost for cost in costs if cost is not None])
        match budget.decide(states, nano_usd, total([each.tokens for each in asks]), now):
            case budget.Admitted(events):
                told += events
            case budget.Skip(_, message) | budget.Refuse(_, message):
                raise BudgetExceeded(message)
    return told


def ends(attempt: OpenAttempt, outcome: Outcome, prices: PriceBook, *, now: int) -> tuple[EventData, ...]:
    """The events of a request's end: its text, its call's, step's and turn's ends.

    Args:
        attempt: Which request.
        outcome: What became of it.
        prices: What tokens cost; ready.
        now: µs UTC.
    """
    duration = max(now - attempt.started_at, 0)
    if outcome.error is not None:
        return _failure(outcome.error, duration)
    collector, finish = Collector(), None
    for item in outcome.items:
        collector.add(item)
        finish = item if isinstance(item, Finish) else finish
    response = collector.response(provider=attempt.provider, model=attempt.model)
    usage, names = response.usage, (finish.model if finish else None, attempt.model)
    if not response.usage_reported:
        usage = Usage(input=attempt.estimated_input_tokens, output=estimate_tokens(response.content))
    said = [(text, kind) for text, kind in ((response.reasoning, "reasoning"), (response.content, "text")) if text]
    return (
        *(
            ChunkReceived(index, (text,), (0 if index else duration,), kind)  # type: ignore[arg-type]
            for index, (text, kind) in enumerate(said)
        ),
        ResponseCompleted(
            attempt=attempt.attempt,
            finish_reason=response.finish_reason,
            usage=usage,
            usage_source="provider" if response.usage_reported else "estimated",
            cost=prices.batch_cost(attempt.provider, names, usage, local=attempt.local, at=attempt.started_at),
            duration_us=duration,
            raw_finish_reason=response.raw_finish_reason,
            raw_usage=response.raw_usage,
            model=finish.model if finish else None,
            request_id=response.request_id,
            text_digest=content_digest(response.content),
        ),
        StepCompleted(duration),
        TurnCompleted(attempt.call_id, duration),
    )


def _failure(error: ProviderError, duration: int) -> tuple[EventData, ...]:
    told = error_info(error)
    return CallFailed(1, told, duration), StepFailed(told, duration), TurnFailed(told, duration)


def gone(attempt: OpenAttempt) -> tuple[EventData, ...]:
    """The events of a request that never reached the provider: it has used nothing."""
    return CallInterrupted(attempt.attempt, "abandoned", Usage(), "none"), TurnInterrupted("abandoned")
