"""Prompts handed in to a provider's batch API: recorded before they are, and their answers when they are fetched.

Such a request outlives its process. Its owner in the log is therefore no process but the batch (`provider-batch/` and
our own name for it): nobody takes it for abandoned, and who goes on with the batch fetches what was answered meanwhile.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing

import msgspec
from msgspec import Struct
from sqlalchemy import Connection

from timeline.cognition.prompt_file import Prompt
from timeline.cognition.provider_requests import Asked, Fitting, ask, ends, fitting, gone, label_of
from timeline.config import BudgetConfig, Config, ModelRef
from timeline.errors import (
    BadResponse,
    BrokenStream,
    BudgetExceeded,
    NetworkError,
    Overloaded,
    ProviderError,
    ProviderTimeout,
    ServerError,
    TimelineError,
    UsageError,
)
from timeline.events import (
    BatchSubmitted,
    ChunkReceived,
    Clock,
    EventData,
    NewEvent,
    ResponseCompleted,
    StepCompleted,
    StepFailed,
    StepStarted,
)
from timeline.llm.pricing import PriceBook
from timeline.projections.batches import Place, open_items, provider_batches
from timeline.projections.calls import OpenAttempt, attempts, open_attempts
from timeline.providers.base import LLMProvider
from timeline.providers.batches import BatchAPI, BatchState, Outcome, batch_api
from timeline.providers.reach import runs_here
from timeline.store import EventStore

__all__ = ["Ended", "Flight", "ProviderBatches"]

MOST_REQUESTS = 10_000
MOST_CHARACTERS = 16 * 1024 * 1024
"""Of one batch. OpenAI takes 50,000 requests and 200 MB, Anthropic 100,000 and 256 MB; all of it is in memory once."""
AT_ONCE = 100
"""Requests or results recorded in one transaction."""
FIRST_POLL_SECONDS = 5.0
SLOWER = 1.5
LOOKS = 4
"""How often a batch is looked for before it counts as never taken: a list may lag behind what was taken."""
LAG_SECONDS = 120.0
"""After which it doesn't any more."""
GONE = 404
MAYBE_TAKEN = (NetworkError, ProviderTimeout, ServerError, Overloaded, BadResponse, BrokenStream)
"""Errors of handing in that say nothing of the requests: they may have been taken all the same."""


class Ended(Struct, frozen=True):
    """A prompt that has ended.

    Args:
        item: What the log knows it by.
        place: Where it stands; None if nothing of it is recorded.
        error: Why it has no answer.
        response: What is recorded of the answer's end.
    """

    item: str
    place: Place | None
    error: TimelineError | None = None
    response: ResponseCompleted | None = None


class Flight(Struct, frozen=True):
    """Requests that are with a provider.

    Args:
        label: Our own name for them.
        told: What the log says of the batch; None while the provider's id of it is not recorded.
        attempts: Those that have not ended, by call.
        items: Item, and position of its first event, by turn.
    """

    label: str
    told: BatchSubmitted | None
    attempts: dict[str, OpenAttempt]
    items: Mapping[str, tuple[str, int]]

    @property
    def ref(self) -> ModelRef:
        """Which model they ask."""
        first = next(iter(self.attempts.values()))
        return ModelRef(first.provider, first.model)

    def item(self, attempt: OpenAttempt) -> str:
        """Which prompt an attempt asks."""
        return self.items[attempt.turn_id or ""][0]


class ProviderBatches:
    """The provider batches of one batch's session.

    Args:
        store, clock, prices, config: Of the program.
        get: The provider of a name.
        session_id: Which session.
        poll_seconds: How long to wait at most between two looks at a batch.
        budgets: Further budgets, beside the configured ones.
    """

    def __init__(
        self,
        store: EventStore,
        clock: Clock,
        *,
        prices: PriceBook,
        config: Config,
        get: Callable[[str], LLMProvider],
        session_id: str,
        poll_seconds: float,
        budgets: Sequence[BudgetConfig] = (),
    ) -> None:
        self._store = store
        self._clock = clock
        self._prices = prices
        self._config = config
        self._get = get
        self._session_id = session_id
        self._poll_seconds = poll_seconds
        self._budgets = (*config.settings.budgets, *budgets)

    # -------------------------------------------------------------- looking

    def grouped(self, prompts: Iterable[tuple[str, Prompt]]) -> dict[ModelRef, list[str]]:
        """The items by the model they ask: a provider's batch is for one model.

        Raises:
            UsageError: A model's provider has no batch API, or is elsewhere and only this machine may be asked.
            TimelineError: A model can't be asked.
        """
        groups: defaultdict[ModelRef, list[str]] = defaultdict(list)
        chosen: dict[str | None, ModelRef] = {}
        for item, prompt in prompts:
            if prompt.model not in chosen:
                chosen[prompt.model] = self._config.choose(prompt.model)
                self._api(chosen[prompt.model])
            groups[chosen[prompt.model]].append(item)
        return groups

    def _api(self, ref: ModelRef) -> BatchAPI:
        if self._config.settings.offline and runs_here(self._config, ref) is False:
            msg = (
                f"{ref} is not on this machine, and only such may be asked (offline): ask one that is with -m, or leave"
                " --offline and the setting offline away"
            )
            raise UsageError(msg)
        api = batch_api(self._get(ref.provider))
        if api is None:
            msg = f"{ref.provider} has no batch API: ask it without --provider-batch"
            raise UsageError(msg)
        return api

    async def flights(self) -> list[Flight]:
        """What is with providers now. What a process died over before it was handed in is recorded as abandoned.

        Raises:
            UsageError: It is with one elsewhere, and only this machine may be asked.
            ProviderError: What may have been handed in can't be looked for.
        """
        found = []
        for flight in await self._store.query(self._flights):
            known, api = flight, self._api(flight.ref)
            if known.told is None:
                known = await self._look_for(flight, api)
            if known.told is None:
                await self._abandon(known, None)
            else:
                found.append(known)
        return found

    def _flights(self, conn: Connection) -> list[Flight]:
        told, items = provider_batches(conn, self._session_id), open_items(conn, self._session_id)
        by_label: defaultdict[str, dict[str, OpenAttempt]] = defaultdict(dict)
        for attempt in open_attempts(conn, attempts.c.session_id == self._session_id):
            if (label := label_of(attempt.owner)) is not None:
                by_label[label][attempt.call_id] = attempt
        return [Flight(label, told.get(label), found, items) for label, found in by_label.items()]

    # -------------------------------------------------------------- handing in

    async def submit(
        self, ref: ModelRef, items: Sequence[str], prompt_of: Callable[[str], Prompt]
    ) -> AsyncGenerator[Flight | list[Ended], None]:
        """Record prompts and hand them in, in as many batches as it takes.

        Args:
            ref: Which model.
            items: Which prompts, as the log knows them.
            prompt_of: The prompt of an item.

        Yields:
            What is with the provider now, and what has ended because it wasn't taken.
        """
        api = self._api(ref)
        await self._ready(ref.provider, ref.model)
        done = 0
        while done < len(items):
            label, asks, full = self._clock.short_id(), list[Asked](), None
            room = MOST_CHARACTERS
            while done < len(items) and len(asks) < MOST_REQUESTS and room > 0:
                page: list[Asked] = []
                for item in items[done : done + AT_ONCE]:
                    page.append(self._ask(api, ref, label, item, prompt_of(item)))
                    room -= page[-1].size
                    if room <= 0:
                        break
                fits = await self._record(ref, page)
                asks += fits.taken
                done += len(fits.taken) + len(fits.too_large)
                if fits.too_large:
                    yield [Ended(each.item, None, BudgetExceeded(why)) for each, why in fits.too_large]
                if fits.full is not None:
                    full = BudgetExceeded(fits.full)
                    break
            if asks:
                yield await self._hand_in(api, label, asks)
            if full is not None:
                yield [Ended(item, None, full) for item in items[done:]]
                return

    def _ask(self, api: BatchAPI, ref: ModelRef, label: str, item: str, prompt: Prompt) -> Asked:
        local, call_id = api.provider.is_local(ref.model), self._clock.short_id()
        now = self._clock.now()
        return ask(
            item,
            prompt,
            ref=ref,
            label=label,
            call_id=call_id,
            prices=self._prices,
            budgets=self._budgets,
            local=local,
            now=now,
        )

    async def _record(self, ref: ModelRef, asks: Sequence[Asked]) -> Fitting:
        """Commit what belongs to requests, of as many as the budgets allow, and what these say."""
        decided: list[Fitting] = []
        # Filled by the decision, which the writer takes first: what isn't handed in leaves no words behind.
        contents: list[str] = []

        def decide(conn: Connection) -> list[NewEvent]:
            fits = fitting(conn, self._budgets, asks, ref, session_id=self._session_id, now=self._clock.now())
            decided[:] = [fits]
            contents[:] = [body for each in fits.taken for body in each.bodies]
            events = [self._new(fact) for fact in fits.facts]
            for each in fits.taken:
                turn_id, step_id = self._clock.short_id(), self._clock.short_id()
                events += [self._new(fact, turn_id, step_id, each.call_id) for fact in each.facts]
            return events

        await self._store.append_when(decide, contents=contents)
        return decided[0]

    async def _hand_in(self, api: BatchAPI, label: str, asks: Sequence[Asked]) -> Flight | list[Ended]:
        recorded = await self._store.query(self._flights)
        (flight,) = [flight for flight in recorded if flight.label == label]
        try:
            batch = await api.submit(label, [(each.call_id, each.request) for each in asks])
        except MAYBE_TAKEN:
            # It may have been taken all the same: whoever follows it looks.
            return flight
        except ProviderError as exc:
            return await self._end(flight, [(attempt, Outcome("", error=exc)) for attempt in flight.attempts.values()])
        return await self._submitted(flight, batch)

    async def _submitted(self, flight: Flight, batch: str) -> Flight:
        first = next(iter(flight.attempts.values()))
        told = BatchSubmitted(flight.label, first.provider, first.model, batch, len(flight.attempts))
        await self._store.append([self._new(told)])
        return msgspec.structs.replace(flight, told=told)

    # -------------------------------------------------------------- fetching

    async def follow(self, flight: Flight) -> AsyncGenerator[list[Ended] | int, None]:
        """Wait for what is with a provider, and record how it ended.

        Yields:
            How many of its requests have ended there, and when it is over what is recorded, page by page.

        Raises:
            ProviderError: The provider can't be asked, and won't be later.
            StoreError: It can't be recorded.
        """
        api = self._api(flight.ref)
        await self._ready(flight.ref.provider, flight.ref.model)
        left, pause = dict(flight.attempts), min(FIRST_POLL_SECONDS, self._poll_seconds)
        while left:
            try:
                if flight.told is None:
                    flight = await self._look_for(flight, api)
                    if flight.told is None:
                        yield await self._abandon(flight, api.never_taken())
                        return
                state = await api.state(flight.told.provider_batch)
                yield state.ended
                if state.over:
                    async with aclosing(self._fetch(flight, api, state, left)) as pages:
                        async for page in pages:
                            yield page
                    return
            except ProviderError as exc:
                if exc.status == GONE:
                    # Cleared away there: nobody will ever know its answers.
                    rest = msgspec.structs.replace(flight, attempts=dict(left))
                    yield await self._end(rest, [(attempt, Outcome("", error=exc)) for attempt in left.values()])
                    return
                if not exc.retryable:
                    raise
            await asyncio.sleep(pause)
            pause = min(pause * SLOWER, self._poll_seconds)

    async def _look_for(self, flight: Flight, api: BatchAPI) -> Flight:
        """A batch that may have been taken without our being told, with the provider's id of it if it was."""
        known = await self._store.query(lambda conn: provider_batches(conn, self._session_id))
        sent = [attempt.started_at for attempt in flight.attempts.values()]
        others = {told.provider_batch for told in known.values()}
        pause = min(FIRST_POLL_SECONDS, self._poll_seconds)
        for look in range(1, LOOKS + 1):
            batch = await api.find(flight.label, len(flight.attempts), since=min(sent), known=others)
            if batch is not None:
                return await self._submitted(flight, batch)
            if look == LOOKS or self._clock.now() - max(sent) > LAG_SECONDS * 1_000_000:
                break
            await asyncio.sleep(pause)
            pause = min(pause * SLOWER, self._poll_seconds)
        return flight

    async def _fetch(
        self, flight: Flight, api: BatchAPI, state: BatchState, left: dict[str, OpenAttempt]
    ) -> AsyncGenerator[list[Ended], None]:
        """Record the results; what is recorded leaves `left`, so that fetching may break off and begin anew."""
        page: dict[str, tuple[OpenAttempt, Outcome]] = {}
        async with aclosing(api.results(state, next(iter(left.values())).model)) as outcomes:
            async for outcome in outcomes:
                if (attempt := left.get(outcome.custom_id)) is None:
                    continue
                page[outcome.custom_id] = attempt, outcome
                if len(page) >= AT_ONCE:
                    yield await self._end(flight, page.values())
                    for call_id in page:
                        del left[call_id]
                    page = {}
        if page:
            yield await self._end(flight, page.values())
            for call_id in page:
                del left[call_id]
        if not left:
            return
        rest = msgspec.structs.replace(flight, attempts=dict(left))
        if state.problem is None and len(left) == len(flight.attempts):
            # Somebody else's batch, taken for ours by its time and size, or one that was cleared away.
            yield await self._abandon(rest, api.without_result())
            return
        error = api.without_result() if state.problem is None else api.never_begun(state.problem)
        yield await self._end(rest, [(attempt, Outcome("", error=error)) for attempt in left.values()])

    # -------------------------------------------------------------- recording

    async def _end(self, flight: Flight, outcomes: Iterable[tuple[OpenAttempt, Outcome]]) -> list[Ended]:
        """Record how requests ended."""
        found = list(outcomes)
        facts = [(attempt, ends(attempt, outcome, self._prices, now=self._clock.now())) for attempt, outcome in found]
        places = await self._append(flight, facts)
        responses = {
            attempt.call_id: fact for attempt, of_it in facts for fact in of_it if isinstance(fact, ResponseCompleted)
        }
        return [
            Ended(flight.item(attempt), places[attempt.call_id], outcome.error, responses.get(attempt.call_id))
            for attempt, outcome in found
        ]

    async def _abandon(self, flight: Flight, error: ProviderError | None) -> list[Ended]:
        """Record that requests never reached the provider; they can be asked again."""
        places = await self._append(flight, [(attempt, gone(attempt)) for attempt in flight.attempts.values()])
        return [Ended(flight.item(attempt), places[attempt.call_id], error) for attempt in flight.attempts.values()]

    async def _append(
        self, flight: Flight, ended: Sequence[tuple[OpenAttempt, Sequence[EventData]]]
    ) -> dict[str, Place]:
        events = [
            self._new(fact, attempt.turn_id, attempt.step_id, attempt.call_id)
            for attempt, facts in ended
            for fact in facts
        ]
        recorded = await self._store.append(events)
        last = {event.turn_id: event.position for event in recorded}
        return {
            attempt.call_id: Place(attempt.turn_id, flight.items[attempt.turn_id][1], last[attempt.turn_id])
            for attempt, _ in ended
            if attempt.turn_id is not None
        }

    async def _ready(self, provider: str, model: str) -> None:
        await self._prices.ready(provider, model, local=self._get(provider).is_local(model))

    def _new(
        self, data: EventData, turn_id: str | None = None, step_id: str | None = None, call_id: str | None = None
    ) -> NewEvent:
        of_step = isinstance(data, StepStarted | StepCompleted | StepFailed)
        of_turn = data.type.startswith("turn.")
        return NewEvent(
            session_id=self._session_id,
            data=data,
            event_id=self._clock.uuid7(),
            recorded_at=self._clock.now(),
            # As everywhere: a window's turn and step are its call's.
            turn_id=None if isinstance(data, ChunkReceived) else turn_id,
            step_id=None if of_turn or isinstance(data, ChunkReceived) else step_id,
            call_id=None if of_turn or of_step else call_id,
        )
