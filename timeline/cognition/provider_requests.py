"""The events of requests in a provider's batch: what is recorded before they are handed in, and of how each ended."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct
from sqlalchemy import Connection

from timeline.cognition.prompt_file import Prompt
from timeline.config import BudgetConfig, ModelRef
from timeline.errors import ProviderError
from timeline.events import (
    BATCH_KEY,
    CallFailed,
    CallInterrupted,
    ChunkReceived,
    EventData,
    MessageRef,
    Owner,
    RequestSent,
    ResponseAnnotated,
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
from timeline.llm.pricing import PriceBook, estimate_tokens, together
from timeline.projections.budgets import ONE_CALL, BudgetState, read_budgets
from timeline.projections.calls import OpenAttempt
from timeline.providers.base import Besides, Collector, Finish, LLMRequest, Message
from timeline.providers.batches import Outcome
from timeline.store import content_digest

__all__ = ["Asked", "Fitting", "ask", "ends", "fitting", "gone", "label_of"]

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


class Fitting(Struct, frozen=True):
    """What budgets say to requests that are to be handed in together.

    Args:
        taken: Those that may be.
        too_large: Those that a budget of one call or turn refuses, each with the reason.
        full: Why none after these may be: a budget over all calls has no room for the next; None if all were looked at.
        facts: What is to be recorded of it.
    """

    taken: tuple[Asked, ...]
    too_large: tuple[tuple[Asked, str], ...] = ()
    full: str | None = None
    facts: tuple[EventData, ...] = ()


def fitting(
    conn: Connection,
    budgets: Sequence[BudgetConfig],
    asks: Iterable[Asked],
    ref: ModelRef,
    *,
    session_id: str,
    now: int,
) -> Fitting:
    """As many of the requests, in their order, as the budgets allow.

    Args:
        conn: Of the transaction in which they are recorded.
        budgets: All that hold.
        asks: The requests, all for one model.
        ref: That model.
        session_id: Where they are recorded.
        now: µs UTC.
    """

    def states(*, one_call: bool) -> tuple[BudgetState, ...]:
        chosen = [each for each in budgets if (each.window in ONE_CALL) is one_call]
        return read_budgets(conn, chosen, now=now, session_id=session_id, provider=ref.provider, model=ref.model)

    of_each, of_all = states(one_call=True), states(one_call=False)
    taken: list[Asked] = []
    too_large: list[tuple[Asked, str]] = []
    facts: list[EventData] = []
    nano_usd: int | None = 0
    tokens = 0
    # Of one over all calls only the last word counts: it is about all of them together.
    last: tuple[EventData, ...] = ()
    full = None
    for each in asks:
        alone = budget.decide(of_each, each.nano_usd, each.tokens, now)
        if not isinstance(alone, budget.Admitted):
            too_large.append((each, alone.message))
            facts += alone.events
            continue
        more = None if nano_usd is None or each.nano_usd is None else nano_usd + each.nano_usd
        together = budget.decide(of_all, more, tokens + each.tokens, now)
        if not isinstance(together, budget.Admitted):
            full, last = together.message, (*last, *together.events)
            break
        facts += alone.events
        last, nano_usd, tokens = together.events, more, tokens + each.tokens
        taken.append(each)
    return Fitting(tuple(taken), tuple(too_large), full, (*facts, *dict.fromkeys(last)))


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
    told = response.sources or response.explanation
    said = [(text, kind) for text, kind in ((response.reasoning, "reasoning"), (response.content, "text")) if text]
    return (
        *(
            ChunkReceived(index, (text,), (0 if index else duration,), kind)  # type: ignore[arg-type]
            for index, (text, kind) in enumerate(said)
        ),
        *((ResponseAnnotated(response.sources, response.explanation, attempt.attempt),) if told else ()),
        ResponseCompleted(
            attempt=attempt.attempt,
            finish_reason=response.finish_reason,
            usage=usage,
            usage_source="provider" if response.usage_reported else "estimated",
            cost=together(
                [
                    prices.batch_cost(
                        attempt.provider,
                        (part.model,) if part.model else names,
                        part.usage,
                        local=attempt.local,
                        at=attempt.started_at,
                    )
                    for part in (Besides(usage), *response.besides)
                ]
            ),
            duration_us=duration,
            raw_finish_reason=response.raw_finish_reason,
            raw_usage=response.raw_usage,
            model=finish.model if finish else None,
            request_id=response.request_id,
            text_digest=content_digest(response.content),
            service_tier=response.tier,
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
