"""Whether a call may go out now, to whom, and what is recorded of that: one write transaction, so that no other process comes in between.

The facts are folds of the log (`timeline.projections`), the decisions are pure (`budget`, `limiter`, `breaker`);
here they meet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import msgspec
from msgspec import Struct
from sqlalchemy import Connection

from timeline.config import BudgetConfig, Settings
from timeline.errors import BudgetExceeded, Overloaded, RateLimited, TimelineError
from timeline.events import BudgetExceeded as Exceeded
from timeline.events import CallCacheHit, CallRerouted, Clock, Event, EventData, NewEvent, RateLimitWaited
from timeline.llm import breaker, budget, limiter
from timeline.llm.attempt import Attempt, CallContext, encoded_tools, interrupt_reason
from timeline.llm.budget import Reservation, bounded_max_tokens, estimate_input, reservation
from timeline.llm.pricing import PriceBook
from timeline.llm.reaper import any_abandoned, reap
from timeline.llm.router import Candidate
from timeline.projections.budgets import BudgetState, applies, read_budgets
from timeline.projections.cache import Cached, find_cached, under_way
from timeline.projections.calls import OpenAttempt
from timeline.projections.health import read_health
from timeline.projections.limit_facts import Configured, read_limits
from timeline.providers.base import LLMProvider, LLMRequest
from timeline.providers.reach import may_be_free
from timeline.store import Decide, EventStore, content_digest, is_alive, this_process

__all__ = ["Admitted", "Chain", "Following", "Hit", "Option", "Refused", "Verdict", "Waiting"]


class Option(Struct):
    """A candidate, ready to be asked.

    Args:
        candidate: Which.
        provider: Whom to ask; None until it is made.
        local: Whether it runs on this machine, as its provider said when it was made ready.
        request: What, with the candidate's model.
        digest: Of the request; None where bodies aren't recorded.
        tries: Attempts made at it.
        reservation: What an attempt may use at most; None until that is worked out.
        input_tokens: Of it, the prompt, as estimated.
    """

    candidate: Candidate
    request: LLMRequest
    provider: LLMProvider | None = None
    local: bool = False
    digest: str | None = None
    tries: int = 0
    reservation: Reservation | None = None
    input_tokens: int = 0


class Chain(Struct):
    """A call under way: the candidates that are left, and what was not recorded yet.

    Args:
        call_id: Which call.
        context: Where it belongs.
        options: The candidates that are left, the next one first.
        opening: What the call's first event follows from; empty once it is recorded.
        contents: Bodies that the opening and the messages refer to; empty once they are recorded.
        wanted: The first of all candidates.
        deadline: When its first words must have come, on the clock's monotonic time; None for no limit.
        attempts: How many were made.
        error: The first candidate's last failure.
        notes: What happened on the way and is to be recorded with the next event.
        follows: Whether it takes part in the answer to an equal request that somebody else is getting.
    """

    call_id: str
    context: CallContext
    options: list[Option]
    opening: Sequence[NewEvent]
    contents: Sequence[str | bytes]
    wanted: Candidate
    deadline: float | None
    attempts: int = 0
    error: TimelineError | None = None
    notes: list[EventData] = []
    follows: bool = True


class Admitted(Struct, frozen=True):
    """The attempt's `request.sent` is committed; `chain.options[0]` is asked."""

    attempt: Attempt


class Waiting(Struct, frozen=True):
    """Not now: ask again after so many seconds."""

    seconds: float


class Hit(Struct, frozen=True):
    """An equal request has been answered."""

    source: Cached
    data: CallCacheHit


class Following(Struct, frozen=True):
    """An equal request is being answered."""

    source: OpenAttempt


class Refused(Struct, frozen=True):
    """Nobody may be asked."""

    error: TimelineError
    facts: tuple[EventData, ...] = ()


class _Unprepared(Struct, frozen=True):
    """The answer depends on a candidate whose provider isn't made yet."""

    index: int


class _HeldBack(Struct, frozen=True):
    """The answer depends on what dead processes have left open."""


class _Skip(Struct, frozen=True):
    reason: str
    error: TimelineError
    facts: tuple[EventData, ...] = ()


class _Wait(Struct, frozen=True):
    until: int
    limit: str


class _Free(Struct, frozen=True):
    facts: tuple[EventData, ...] = ()


Verdict = Admitted | Waiting | Hit | Following | Refused
_Judged = _Free | _Wait | _Skip | Refused


class Admission:
    """Decides and records, for every call of a process.

    Args:
        store: The log.
        clock: Time and ids.
        settings: The policies as configured.
        prices: What tokens cost.
        get: The provider of a name, made if need be.
        attempt: Makes an attempt of a chain's option.
    """

    def __init__(
        self,
        store: EventStore,
        clock: Clock,
        settings: Settings,
        prices: PriceBook,
        get: Callable[[str], LLMProvider],
        attempt: Callable[[Chain, Option], Attempt],
    ) -> None:
        self._store = store
        self._clock = clock
        self._settings = settings
        self._prices = prices
        self._get = get
        self._attempt = attempt

    # -------------------------------------------------------------- candidates

    def prepare(self, chain: Chain, index: int = 0) -> None:
        """Make the provider of a candidate; one that can't be made leaves the chain, and that is noted.

        Raises:
            TimelineError: It was the last one; what the first one failed with.
        """
        option = chain.options[index]
        try:
            option.provider = self._get(option.candidate.provider)
            option.local = option.provider.is_local(option.candidate.model)
        except TimelineError as exc:
            chain.error = chain.error or exc
            del chain.options[index]
            if not chain.options:
                raise chain.error from None
            if index == 0:
                target = str(chain.options[0].candidate)
                chain.notes.append(CallRerouted(str(option.candidate), target, f"{exc.kind}: {exc}"))
                self.prepare(chain)
            return
        budgets = self._budgets(chain)
        provider, model = option.candidate.provider, option.candidate.model
        # What runs on this machine is free, unless the user gave it a price.
        free = option.local and f"{provider}:{model}" not in self._settings.prices
        limit = bounded_max_tokens(option.request.max_tokens, budgets, provider, model, free=free)
        option.request = msgspec.structs.replace(option.request, max_tokens=limit)
        if not chain.context.private:
            asked = (option.candidate.provider, option.request)
            option.digest = content_digest(msgspec.json.encode(asked))

    def _budgets(self, chain: Chain) -> list[BudgetConfig]:
        return [*self._settings.budgets, *chain.context.budgets]

    async def _reckon(self, chain: Chain) -> None:
        """Work out what an attempt at each candidate that is ready may use: prices can take a moment to be there."""
        for option in chain.options:
            if option.provider is None or option.reservation is not None:
                continue
            request, (provider, model) = option.request, (option.candidate.provider, option.candidate.model)
            tokens = option.input_tokens = estimate_input(request)
            if any(applies(budget, provider, model) for budget in self._budgets(chain)):
                await self._prices.ready(provider, model, local=option.local)
                option.reservation = reservation(
                    self._prices,
                    provider,
                    model,
                    tokens,
                    request.max_tokens,
                    local=option.local,
                    at=self._clock.now(),
                    extra=request.extra,
                )
            else:
                option.reservation = Reservation(0, tokens + (request.max_tokens or 0))

    # -------------------------------------------------------------- the transaction

    async def admit(self, chain: Chain) -> tuple[Verdict, list[Event]]:
        """Decide what happens now to a call, and record it.

        Returns:
            The decision, and the events as recorded.

        Raises:
            TimelineError: No candidate's provider can be made.
            StoreError: Nothing can be recorded.
        """
        reaped = False
        while True:
            decided: list[Verdict | _Unprepared | _HeldBack] = []
            left: list[Option] = []

            def decide(conn: Connection) -> list[NewEvent]:
                facts: list[EventData] = []
                verdict, left[:] = self._judge_all(conn, chain, facts)  # noqa: B023  run to its end in this round
                decided[:] = [verdict]  # noqa: B023
                if isinstance(verdict, _Unprepared):
                    return []
                if not reaped and _is_held_back(verdict, facts) and any_abandoned(conn):  # noqa: B023  as above
                    decided[:] = [_HeldBack()]  # noqa: B023
                    return []
                events = [*chain.opening, *(self.new(chain, fact) for fact in (*chain.notes, *facts))]
                if isinstance(verdict, Admitted):
                    events.append(verdict.attempt.request_sent)
                return events

            await self._reckon(chain)
            option = chain.options[0]
            tools = [encoded_tools(option.request)] if option.request.tools and not chain.context.private else []
            recorded = await self._committed(decide, [*chain.contents, *tools], decided)
            verdict = decided[0]
            if isinstance(verdict, _Unprepared):
                self.prepare(chain, verdict.index)
                continue
            if isinstance(verdict, _HeldBack):
                await reap(self._store, self._clock, self._prices)
                # Once is enough: what another one leaves open meanwhile is looked at the next time.
                reaped = True
                continue
            chain.options = left
            chain.opening, chain.contents, chain.notes = (), (), []
            return verdict, recorded

    async def _committed(
        self, decide: Decide, contents: Sequence[str | bytes], decided: Sequence[Verdict | _Unprepared | _HeldBack]
    ) -> list[Event]:
        """Wait for the transaction; who stops waiting has to end what it may have begun, behind it in the log."""
        future = self._store.enqueue_when(decide, contents=contents)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError as exc:
            reason = interrupt_reason(exc)

            def undo(_: Connection) -> list[NewEvent]:
                return [verdict.attempt.unsent(reason) for verdict in decided if isinstance(verdict, Admitted)]

            self._store.enqueue_when(undo)
            raise

    def _judge_all(
        self, conn: Connection, chain: Chain, facts: list[EventData]
    ) -> tuple[Verdict | _Unprepared, list[Option]]:
        """The decision, the options that are left after it, and what of it is to be recorded."""
        now = self._clock.now()
        passed: list[tuple[Option, _Skip]] = []
        waits: list[tuple[_Wait, Option]] = []
        for index, option in enumerate(chain.options):
            if option.provider is None:
                return _Unprepared(index), chain.options
            rest = chain.options[index:]
            if waits and option.candidate.fallback:
                # What only stands in is no better than a wait.
                break
            if (known := self._known(conn, chain, option, now)) is not None:
                self._note_passed(facts, chain, option, passed, waits)
                facts += [known.data] if isinstance(known, Hit) else []
                return known, rest
            match self._judge(conn, chain, option, now):
                case _Free() as free:
                    self._note_passed(facts, chain, option, passed, waits)
                    facts += free.facts
                    attempt = self._attempt(chain, option)
                    reserved = option.reservation or Reservation(0, 0)
                    attempt.reserve(option.digest, reserved.nano_usd or 0, reserved.tokens)
                    return Admitted(attempt), [*rest, *(waiting for _, waiting in waits)]
                case Refused() as refused if not waits:
                    facts += refused.facts
                    return refused, rest
                case Refused(error):
                    passed.append((option, _Skip(error.kind, error)))
                case _Skip() as skip:
                    facts += skip.facts
                    passed.append((option, skip))
                case _Wait() as wait:
                    waits.append((wait, option))
                    if not self._settings.routing_strategy.rotate:
                        break
        if not waits:
            error = chain.error or passed[0][1].error
            return Refused(error), chain.options
        wait, option = min(waits, key=lambda item: item[0].until)
        self._note_passed(facts, chain, option, passed, ())
        provider = option.provider
        seconds = max(wait.until - now, 0) / 1_000_000
        key = provider.key_mark if provider is not None else None
        facts.append(
            RateLimitWaited(
                option.candidate.provider,
                option.candidate.model,
                wait.limit,
                max(wait.until - now, 0),
                key,
                option.reservation.tokens if option.reservation else 0,
                option.input_tokens,
                this_process(),
            )
        )
        gone = {id(skipped) for skipped, _ in passed}
        rest = [option, *(other for other in chain.options if other is not option and id(other) not in gone)]
        return Waiting(seconds), rest

    @staticmethod
    def _note_passed(
        facts: list[EventData],
        chain: Chain,
        option: Option,
        passed: Sequence[tuple[Option, _Skip]],
        waits: Sequence[tuple[_Wait, Option]],
    ) -> None:
        """Say why another candidate than the first one is asked."""
        first = chain.options[0]
        if option is first:
            return
        reasons = [skip.reason for skipped, skip in passed if skipped is first]
        reasons += [f"free sooner than after {wait.limit}" for wait, waiting in waits if waiting is first]
        facts.append(CallRerouted(str(first.candidate), str(option.candidate), reasons[0] if reasons else "not now"))

    def _known(self, conn: Connection, chain: Chain, option: Option, now: int) -> Hit | Following | None:
        """The answer of an equal request, or who is getting it."""
        if option.digest is None or not self._cacheable(chain.context, option.request):
            return None
        ttl = self._settings.cache.ttl
        since = now - int(ttl * 1_000_000) if ttl is not None else 0
        if (found := find_cached(conn, option.digest, since=since)) is not None:
            data = CallCacheHit(
                found.call_id,
                found.nano_usd,
                found.attempt,
                found.provider,
                found.model,
                found.finish_reason,
                option.candidate.why,
            )
            return Hit(found, data)
        # Of another machine nobody can tell whether it still lives.
        here = this_process().host
        for attempt in under_way(conn, option.digest) if chain.follows else ():
            if attempt.owner.host == here and is_alive(attempt.owner):
                return Following(attempt)
        return None

    def _cacheable(self, context: CallContext, request: LLMRequest) -> bool:
        if context.cache is not None:
            return context.cache
        config = self._settings.cache
        cold = request.temperature is not None and request.temperature <= config.max_temperature
        return config.enabled and cold

    def _judge(self, conn: Connection, chain: Chain, option: Option, now: int) -> _Judged:
        """What the policies say to an attempt at a candidate."""
        candidate = option.candidate
        health = read_health(conn, candidate.provider, candidate.model, now, alive=is_alive)
        if isinstance(circuit := breaker.decide(health, now), breaker.Open):
            left = max(circuit.until - now, 0) / 1_000_000
            msg = f"{candidate} is left alone for {left:.0f} s ({circuit.reason}): ask again then, or another model with -m"
            return _Skip(circuit.reason, Overloaded(msg, provider=candidate.provider))
        judged = self._within_budgets(conn, chain, option, now)
        return self._within_limits(conn, chain, option, now) or judged if isinstance(judged, _Free) else judged

    def _within_limits(self, conn: Connection, chain: Chain, option: Option, now: int) -> _Wait | _Skip | None:
        """How long rate limits hold an attempt back; a candidate that is free only after the call's deadline is skipped."""
        candidate, reserved = option.candidate, option.reservation or Reservation(0, 0)
        config = self._settings.llm_providers.get(candidate.provider)
        configured = Configured(config.rpm, config.tpm, config.max_concurrent) if config else Configured()
        key = option.provider.key_mark if option.provider is not None else None
        facts = read_limits(
            conn, candidate.provider, candidate.model, key, configured, now, call_id=chain.call_id, alive=is_alive
        )
        needed = limiter.Needed(tokens=reserved.tokens, input_tokens=option.input_tokens)
        decision = limiter.decide(facts, needed, now)
        if isinstance(decision, limiter.Free):
            return None
        seconds = (decision.until_us - now) / 1_000_000
        if chain.deadline is None or self._clock.monotonic() + seconds <= chain.deadline:
            return _Wait(decision.until_us, decision.limit)
        msg = (
            f"{candidate} is at its rate limit ({decision.limit}) for another {seconds:.0f} s, longer than this call may"
            " take: ask again then, raise --timeout, or ask another model"
        )
        error = RateLimited(msg, provider=candidate.provider, retry_after=seconds)
        return _Skip(f"rate limit {decision.limit} for {seconds:.0f} s", error)

    def _within_budgets(self, conn: Connection, chain: Chain, option: Option, now: int) -> _Free | _Skip | Refused:
        reserved, provider = option.reservation or Reservation(0, 0), option.candidate.provider
        maybe_free = provider if may_be_free(self._settings, provider) else None
        stand = self._stand(conn, chain, option, now)
        match budget.decide(stand, reserved.nano_usd, reserved.tokens, now, maybe_free=maybe_free):
            case budget.Admitted(events):
                return _Free(events)
            case budget.Skip(events, message):
                return _Skip(f"budget: {message}", BudgetExceeded(message), events)
            case budget.Refuse(events, message):
                return Refused(BudgetExceeded(message), events)

    def _stand(self, conn: Connection, chain: Chain, option: Option, now: int) -> tuple[BudgetState, ...]:
        """Where the budgets stand that an attempt at a candidate falls under."""
        return read_budgets(
            conn,
            self._budgets(chain),
            now=now,
            session_id=chain.context.session_id,
            turn_id=chain.context.turn_id,
            call_id=chain.call_id,
            provider=option.candidate.provider,
            model=option.candidate.model,
        )

    def alert(self, chain: Chain, option: Option, attempt: Attempt) -> None:
        """Tell of thresholds that an attempt has passed, behind its end in the log: whoever asked wants to know now."""
        if not self._budgets(chain):
            return

        def decide(conn: Connection) -> list[NewEvent]:
            return [
                self.new(chain, fact) for fact in budget.alerts(self._stand(conn, chain, option, self._clock.now()))
            ]

        attempt.committed.push(self._store.enqueue_when(decide))

    def new(self, chain: Chain, data: EventData) -> NewEvent:
        """A fact of a call."""
        context = chain.context
        return NewEvent(
            session_id=context.session_id,
            data=data,
            event_id=self._clock.uuid7(),
            recorded_at=self._clock.now(),
            turn_id=context.turn_id,
            step_id=context.step_id,
            call_id=chain.call_id,
        )


def _is_held_back(verdict: Verdict, facts: Sequence[EventData]) -> bool:
    """Whether a decision would have been another one with less reserved, running or sent."""
    passed = any(isinstance(fact, Exceeded | CallRerouted) for fact in facts)
    return passed or isinstance(verdict, Waiting | Refused)
