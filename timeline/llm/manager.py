"""One call to a model, from the candidates for it to its one answer: cache, admission, attempts, retry, fallback.

Everything that happens is in the log before, while and after it does; there is no other retry loop in the program.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any, Literal

import msgspec

from timeline.config import Settings
from timeline.errors import (
    AuthenticationFailed,
    ContextTooLong,
    ModelNotFound,
    PermissionDenied,
    ProviderTimeout,
    StoreError,
    TimelineError,
)
from timeline.events import (
    CallCacheHit,
    CallFailed,
    CallInterrupted,
    CallRerouted,
    CallRetryScheduled,
    ChunkReceived,
    Clock,
    Event,
    EventData,
    NewEvent,
    ResponseAnnotated,
    ResponseCompleted,
)
from timeline.llm.admission import Admission, Admitted, Chain, Following, Hit, Option, Refused, Waiting
from timeline.llm.attempt import Attempt, CallContext, CallEnd, interrupt_reason
from timeline.llm.pricing import PriceBook
from timeline.llm.retry import Again, GiveUp, Next, after_failure
from timeline.llm.router import Candidate
from timeline.projections.cache import WHOLE
from timeline.projections.calls import OpenAttempt
from timeline.providers.base import Collector, Delta, Finish, FinishReason, Item, LLMProvider, LLMRequest
from timeline.store import EventStore, is_alive

__all__ = ["CallContext", "CallEnd", "LLMManager", "Superseded", "deltas_of"]

FOLLOW_SECONDS = 0.1
"""How often the chunks of an equal request, made by somebody else, are looked for: as often as they are written."""
ALIVE_SECONDS = 1.0
"""How often it is asked whether that somebody still lives."""


MISTAKES = (AuthenticationFailed, PermissionDenied, ModelNotFound)
"""What the user has to know and put right; another model of the route may answer, one that only stands in may not."""
ANSWERED: Again | Next | GiveUp = GiveUp("it is answered")


class Superseded(msgspec.Struct, frozen=True):
    """What was yielded of this call so far no longer counts: it begins anew.

    Attributes:
        reason: It broke off, or it is whole and doesn't fit the schema that it has to follow.
    """

    reason: Literal["broke_off", "misfit"] = "broke_off"


class LLMManager:
    """Makes calls and records them.

    Args:
        store: Where to.
        clock: Time, randomness and ids.
        get: The provider of a name; raises a `TimelineError` where it can't be made.
        prices: What tokens cost.
        settings: The policies.
    """

    def __init__(
        self,
        store: EventStore,
        clock: Clock,
        get: Callable[[str], LLMProvider],
        prices: PriceBook | None = None,
        settings: Settings | None = None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._get = get
        self._prices = prices or PriceBook()
        self._settings = settings or Settings()
        self._admission = Admission(store, clock, self._settings, self._prices, get, self._attempt)

    async def stream(  # noqa: C901, PLR0912  one loop: a generator more would cost every delta its time
        self,
        candidates: Sequence[Candidate],
        request: LLMRequest,
        context: CallContext,
        *,
        opening: Sequence[NewEvent] = (),
        contents: Sequence[str | bytes] = (),
    ) -> AsyncGenerator[Delta | Event | Superseded | CallEnd]:
        """Make one call.

        Args:
            candidates: Whom to ask, the preferred one first; at least one.
            request: What; its model is each candidate's.
            context: Where it belongs.
            opening: What the call's first event follows from; both are recorded, or neither.
            contents: Bodies that `opening` and the context's messages refer to.

        Yields:
            Deltas as they arrive, the recorded events as they are committed, and a `CallEnd`; what is enqueued
            before the stream is resumed after it is committed together with the call's last event.

        Raises:
            TimelineError: Nobody can be asked, and nothing was recorded.
            StoreError: The call can't be recorded any more.
        """
        chain = self._chain(candidates, request, context, opening, contents)
        self._admission.prepare(chain)
        while True:
            verdict, recorded = await self._admission.admit(chain)
            if not isinstance(verdict, Admitted):
                for event in recorded:
                    yield event
                async with aclosing(self._without(chain, verdict)) as others:
                    async for other in others:
                        yield other
                        if isinstance(other, CallEnd):
                            return
                continue
            attempt, step, option = verdict.attempt, ANSWERED, chain.options[0]
            chain.attempts += 1
            option.tries += 1
            take, committed = attempt.take, attempt.committed
            try:
                for event in recorded:
                    yield event
                attempt.begin()
                async with aclosing(attempt.items()) as items:  # type: ignore[type-var]
                    # The deadline is for the first words; after them, the provider's own time limits hold.
                    first = await self._first(items, chain)
                    if first is not None and take(first):
                        yield first  # type: ignore[misc]
                    async for item in items:
                        if take(item):
                            yield item  # type: ignore[misc]
                        if committed.some:
                            for event in committed.pop():
                                yield event
                await attempt.priced()
                end = attempt.complete()
            except StoreError:
                raise
            except TimelineError as exc:
                end = attempt.fail(exc)
                step = self._after(chain, exc, attempt)
            except (asyncio.CancelledError, GeneratorExit) as exc:
                # Only enqueued, not awaited: the writer commits it even while this task goes down.
                attempt.interrupt(interrupt_reason(exc))
                raise
            finally:
                # Whatever else comes out of a provider, an attempt has its one end.
                if not attempt.ended:
                    attempt.interrupt("closed")
            self._admission.alert(chain, option, attempt)
            if isinstance(step, GiveUp):
                yield end if end.error is None else msgspec.structs.replace(end, error=chain.error)
            for future in committed.drain():
                for event in await asyncio.shield(future):
                    yield event
            if isinstance(step, GiveUp):
                return
            if attempt.shown:
                yield Superseded()
            if isinstance(step, Again):
                await asyncio.sleep(step.delay_seconds)

    # -------------------------------------------------------------- candidates and attempts

    def _chain(
        self,
        candidates: Sequence[Candidate],
        request: LLMRequest,
        context: CallContext,
        opening: Sequence[NewEvent],
        contents: Sequence[str | bytes],
    ) -> Chain:
        wanted = candidates[0]
        instead = wanted.instead
        return Chain(
            call_id=self._clock.short_id(),
            context=context,
            options=[
                Option(candidate, msgspec.structs.replace(request, model=candidate.model)) for candidate in candidates
            ],
            opening=opening,
            contents=contents,
            wanted=wanted,
            deadline=self._deadline(context),
            notes=[CallRerouted(instead.name, str(wanted), f"it {instead.why}")] if instead else [],
        )

    def _deadline(self, context: CallContext) -> float | None:
        timeout = context.timeout if context.timeout is not None else self._settings.retry.timeout
        return None if timeout is None else self._clock.monotonic() + timeout

    def _attempt(self, chain: Chain, option: Option) -> Attempt:
        if option.provider is None:
            msg = f"the provider of {option.candidate} was not made"
            raise ValueError(msg)
        return Attempt(
            self._store,
            self._clock,
            self._prices,
            option.provider,
            option.request,
            chain.context,
            call_id=chain.call_id,
            number=chain.attempts + 1,
            why=option.candidate.why,
            local=option.local,
        )

    async def _first(self, items: AsyncIterator[Item], chain: Chain) -> Item | None:
        """The first item, in the time that there is for it."""
        option = chain.options[0]
        left = self._allowed(chain, option)
        try:
            async with asyncio.timeout(left):
                return await anext(items, None)
        except TimeoutError:
            raise self._late(chain) from None

    def _late(self, chain: Chain) -> ProviderTimeout:
        candidate, waited = chain.options[0].candidate, chain.context.timeout or self._settings.retry.timeout
        msg = f"{candidate} gave no answer within the {waited:g} s of the call: raise --timeout or ask another model"
        return ProviderTimeout(msg, provider=candidate.provider, retryable=False)

    def _allowed(self, chain: Chain, option: Option) -> float | None:
        """Seconds that an attempt at a candidate may take until its first words; None where it may take its time."""
        # An answer in one piece may take as long as its provider's own time limits allow, unless the caller says.
        patient = not chain.context.stream and chain.context.timeout is None
        return None if patient else self._left(chain, option)

    def _left(self, chain: Chain, option: Option) -> float | None:
        """Seconds that are left of the call's time; None where there is no limit.

        A model on this machine may have to be fetched and loaded: that takes the time it takes, unless the caller says.
        """
        if chain.deadline is None or (chain.context.timeout is None and self._runs_here(option)):
            return None
        return max(chain.deadline - self._clock.monotonic(), 0)

    def _runs_here(self, option: Option) -> bool:
        try:
            provider = option.provider or self._get(option.candidate.provider)
            return provider.is_local(option.request.model)
        except TimelineError:
            return option.local

    # -------------------------------------------------------------- after a failure

    def _after(self, chain: Chain, exc: TimelineError, attempt: Attempt) -> Again | Next | GiveUp:
        """What follows from a failed attempt; that is put in line for the log behind the attempt's end."""
        option, others = chain.options[0], chain.options[1:]
        routing = self._settings.routing_strategy
        if attempt.shown or chain.error is None or option.candidate == chain.wanted:
            chain.error = exc
        if attempt.shown and routing.on_stream_error == "fail":
            return GiveUp("the answer broke off")
        if attempt.shown:
            # It begins anew, and so does its time.
            chain.deadline = self._deadline(chain.context)
        step = after_failure(
            exc,
            tries=option.tries,
            left_seconds=self._left(chain, option),
            policy=self._settings.retry,
            chance=self._clock.random_bits(32) / 2**32,
            on_refusal=routing.fallback_on_refusal,
            contexts=(option.candidate.context, [other.candidate.context for other in others]),
            dispensable=chain.context.dispensable,
        )
        if isinstance(step, Again):
            note: EventData = CallRetryScheduled(chain.attempts, int(step.delay_seconds * 1_000_000), step.reason)
            attempt.committed.push(self._store.enqueue([self._admission.new(chain, note)]))
            return step
        if isinstance(exc, ContextTooLong):
            ours = option.candidate.context
            others = [other for other in others if not (ours and (other.candidate.context or ours + 1) <= ours)]
        if isinstance(exc, MISTAKES):
            others = [other for other in others if not other.candidate.fallback]
        rerouted = None if isinstance(step, GiveUp) else self._pass_on(chain, others, step.reason)
        if rerouted is None:
            return GiveUp(step.reason)
        attempt.committed.push(self._store.enqueue([self._admission.new(chain, rerouted)]))
        return step

    def _pass_on(self, chain: Chain, others: list[Option], reason: str) -> CallRerouted | None:
        """It is the turn of the first of these; None where it is nobody's."""
        if chain.deadline is not None and chain.deadline <= self._clock.monotonic():
            # What runs here stands in for those whose time is over.
            others = [other for other in others if self._runs_here(other) or self._allowed(chain, other) is None]
        if not others:
            return None
        rerouted = CallRerouted(str(chain.options[0].candidate), str(others[0].candidate), reason)
        chain.options = others
        if self._runs_here(others[0]):
            chain.deadline = self._deadline(chain.context)
        return rerouted

    # -------------------------------------------------------------- without an attempt

    async def _without(
        self, chain: Chain, verdict: Waiting | Refused | Hit | Following
    ) -> AsyncGenerator[Delta | Event | Superseded | CallEnd]:
        """What happens instead of an attempt; without a `CallEnd` where admission has to be asked again."""
        if isinstance(verdict, Waiting):
            await asyncio.sleep(verdict.seconds)
            return
        if isinstance(verdict, Refused):
            yield CallEnd(chain.call_id, None, "", verdict.error)
            return
        other = self._recorded(chain, verdict) if isinstance(verdict, Hit) else self._followed(chain, verdict.source)
        async with aclosing(other) as items:
            async for item in items:
                yield item

    async def _recorded(self, chain: Chain, hit: Hit) -> AsyncGenerator[Delta | CallEnd]:
        """The answer as the log has it."""
        collector, source, told = Collector(), hit.source, ResponseAnnotated()
        async for event in self._store.read(
            call_id=source.call_id, after=source.first_position, until=source.last_position
        ):
            for delta in deltas_of(event, source.attempt):
                collector.add(delta)
                yield delta
            if isinstance(event.data, ResponseAnnotated) and event.data.attempt == source.attempt:
                told = event.data
        yield self._borrowed(chain, collector, hit.data, told)

    async def _followed(
        self, chain: Chain, source: OpenAttempt
    ) -> AsyncGenerator[Delta | Event | Superseded | CallEnd]:
        """The answer as somebody else is getting it; without a `CallEnd` where that came to nothing."""
        collector, shown, told = Collector(), False, ResponseAnnotated()
        async with aclosing(self._follow(chain, source)) as followed:
            async for item in followed:
                if isinstance(item, Delta):
                    shown = chain.context.shown
                    collector.add(item)
                    yield item
                elif isinstance(item, ResponseAnnotated):
                    told = item
                elif isinstance(item, TimelineError):
                    chain.error = chain.error or item
                    if (rerouted := self._pass_on(chain, chain.options[1:], item.kind)) is None:
                        yield CallEnd(chain.call_id, None, "", chain.error)
                    else:
                        chain.notes.append(rerouted)
                    return
                elif item.finish_reason in WHOLE:
                    data = self._hit(chain, source, item)
                    for event in await self._store.append([self._admission.new(chain, data)]):
                        yield event
                    yield self._borrowed(chain, collector, data, told)
                    return
                else:
                    # The next one would be no better to follow.
                    chain.follows = False
        if shown:
            yield Superseded()

    @staticmethod
    def _borrowed(chain: Chain, collector: Collector, data: CallCacheHit, told: ResponseAnnotated) -> CallEnd:
        reason: FinishReason = "length" if data.finish_reason == "length" else "stop"
        collector.add(Finish(reason, model=data.model, explanation=told.explanation, sources=told.sources))
        response = collector.response(provider=data.provider or "", model=data.model or "")
        return CallEnd(chain.call_id, data, response.content, response=response)

    @staticmethod
    def _hit(chain: Chain, source: OpenAttempt, done: ResponseCompleted) -> CallCacheHit:
        return CallCacheHit(
            source.call_id,
            {"free": 0, "priced": done.cost.nano_usd}.get(done.cost.state),
            source.attempt,
            source.provider,
            source.model,
            done.finish_reason,
            chain.options[0].candidate.why,
        )

    async def _follow(
        self, chain: Chain, source: OpenAttempt
    ) -> AsyncGenerator[Delta | ResponseAnnotated | ResponseCompleted | TimelineError]:
        """What another process, or another task of this one, records of an attempt; ends early where that fails.

        Last comes its end, or the error that the call's time is over before the first words.
        """
        position, looked, words = source.first_position, self._clock.monotonic(), False
        while True:
            events = [event async for event in self._store.read(call_id=source.call_id, after=position)]
            for event in events:
                position = event.position
                for delta in deltas_of(event, source.attempt):
                    words = True
                    yield delta
                data = event.data
                if isinstance(data, ResponseAnnotated) and data.attempt == source.attempt:
                    yield data
                if isinstance(data, ResponseCompleted) and data.attempt == source.attempt:
                    yield data
                    return
                if isinstance(data, CallFailed | CallInterrupted) and data.attempt == source.attempt:
                    return
            if not words and self._allowed(chain, chain.options[0]) == 0:
                yield self._late(chain)
                return
            if not events and self._clock.monotonic() - looked > ALIVE_SECONDS:
                looked = self._clock.monotonic()
                if not is_alive(source.owner):
                    return
            await asyncio.sleep(FOLLOW_SECONDS)


def deltas_of(event: Event, attempt: int) -> list[Delta]:
    """The deltas that an attempt's event holds."""
    chunk = event.data
    if not isinstance(chunk, ChunkReceived) or chunk.attempt != attempt:
        return []
    if chunk.kind != "tool_call":
        return [Delta(text, chunk.kind) for text in chunk.texts]
    fragments = [msgspec.json.decode(text, type=dict[str, Any]) for text in chunk.texts]
    return [
        Delta(item.get("arguments", ""), "tool_call", item.get("index", 0), item.get("id"), item.get("name"))
        for item in fragments
    ]
