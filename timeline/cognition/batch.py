"""Many prompts, some at a time: what of them the log has answered, asking the others, and giving all back in their order.

A batch is a session whose turns know nothing of one another. Which line a turn answers stands in
its `turn.started`, so what is left to ask after a kill is a question to the log.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import Connection

import timeline
from timeline.cognition.prompt_file import Prompt
from timeline.cognition.provider_batch import Ended, Flight, ProviderBatches
from timeline.cognition.turn import TurnEnd
from timeline.config import ModelRef
from timeline.errors import (
    AuthenticationFailed,
    BudgetExceeded,
    MissingKey,
    PermissionDenied,
    QuotaExhausted,
    StoreError,
    TimelineError,
    UsageError,
)
from timeline.events import BatchEnded, BatchStarted, Clock, Cost, Event, EventData, NewEvent, SessionStarted, Usage
from timeline.events import BudgetExceeded as Passed
from timeline.llm.attempt import interrupt_reason
from timeline.llm.manager import Superseded
from timeline.projections.batches import Place, answered_items, find_batch
from timeline.projections.blocks import Attempt, Turn, fold
from timeline.projections.budgets import ONE_CALL
from timeline.providers.base import Delta
from timeline.store import EventStore, content_digest, is_alive, this_process

__all__ = ["BatchResult", "BatchStatus", "run_batch"]

HELD_CHARACTERS = 16 * 1024 * 1024
"""Answers that wait in memory for those before them; beyond it they are read from the log when it is their turn."""
PER_FRAGMENT = 150
"""About the bytes that a delta takes beside its text."""
PAGE = 50
NEAR = 200
"""Positions between two turns up to which reading on is cheaper than a query of its own."""
HOPELESS = (MissingKey, AuthenticationFailed, PermissionDenied, QuotaExhausted)
"""After these the same model would refuse every further prompt, too; so would a budget over all calls that is used up."""

AskOne = Callable[[Prompt, str, str], AsyncGenerator[Delta | Event | Superseded | TurnEnd]]
"""Asks a prompt in a session, as an item of it."""
Borrowed = Callable[[Iterable[Event]], Awaitable[dict[str, list[Event]]]]
"""The events of other calls whose answers were read again in these."""


class BatchStatus(Struct, frozen=True):
    """How far a batch is.

    Args:
        session_id: Where it is recorded.
        total: Prompts of it.
        before: Those that were answered before it was started this time.
        answered, failed: Those since.
        input, output: Tokens since, all kinds.
        nano_usd: What is known to have been paid for them, nano-US-dollars.
        unpriced: Attempts whose price nobody knows.
        handed_in: Prompts that are with a provider's batch API.
        ended_there: Those of them that have ended there, as far as it told.
    """

    session_id: str
    total: int
    before: int
    answered: int = 0
    failed: int = 0
    input: int = 0
    output: int = 0
    nano_usd: int = 0
    unpriced: int = 0
    handed_in: int = 0
    ended_there: int = 0


class BatchResult(Struct, frozen=True):
    """What became of one prompt.

    Args:
        index: Which, from 0.
        session_id: Where it is recorded.
        turn: Its turn as it was folded; None if it failed before anything was asked.
        error: Why there is no answer, or only a part of one.
    """

    index: int
    session_id: str
    turn: Turn | None
    error: TimelineError | None = None


class _Done(Struct):
    """A prompt that has ended; without `turn` it stands in the log at `place`."""

    place: Place | None
    turn: Turn | None = None
    error: TimelineError | None = None
    refused: bool = False
    """By a budget over all calls, which may have room again when others have ended."""


async def run_batch(
    store: EventStore,
    clock: Clock,
    ask: AskOne,
    borrowed: Borrowed,
    prompts: Sequence[Prompt],
    *,
    at_providers: Callable[[str], ProviderBatches],
    name: str,
    title: str,
    concurrency: int,
    fresh: bool,
    fail_fast: bool,
    provider_batch: bool,
) -> AsyncGenerator[BatchStatus | BatchResult]:
    """Ask what of a batch is not answered yet; see `timeline.runtime.Timeline.batch`."""
    keys = list(item_keys(prompts))
    session_id = await _begin(store, clock, name=name, title=title, prompts=len(keys), fresh=fresh)
    run = _Run(store, ask, borrowed, prompts, keys, session_id, at_providers(session_id))
    reason: str | None = "failed"
    try:
        run.before = await store.query(lambda conn: answered_items(conn, session_id))
        async with aclosing(run.items(0 if provider_batch else concurrency, fail_fast=fail_fast)) as items:
            async for item in items:
                yield item
        reason = None if run.whole else "failed"
    except (asyncio.CancelledError, GeneratorExit) as exc:
        reason = interrupt_reason(exc)
        raise
    finally:
        ended = BatchEnded(run.answered, run.failed, reason)  # type: ignore[arg-type]  # never `abandoned`
        await store.append([_new(clock, session_id, ended)])


def item_keys(prompts: Sequence[Prompt]) -> Iterator[str]:
    """What the log knows each prompt by: the digest of all that is asked, and, of the same asked again, a number."""
    seen: dict[str, int] = {}
    for prompt in prompts:
        digest = _digest(prompt)
        number = seen[digest] = seen.get(digest, 0) + 1
        yield digest if number == 1 else f"{digest}.{number}"


def _digest(prompt: Prompt) -> str:
    return content_digest(msgspec.json.encode(prompt))


async def _begin(store: EventStore, clock: Clock, *, name: str, title: str, prompts: int, fresh: bool) -> str:
    """Say in the log who asks the batch from now on, and in which session.

    Raises:
        UsageError: Another process asks it.
    """
    batch, begun = content_digest(name), clock.uuid7()

    def decide(conn: Connection) -> list[NewEvent]:
        known = find_batch(conn, batch)
        if known is not None and known.owner is not None and is_alive(known.owner):
            msg = f"process {known.owner.pid} is asking this batch: wait for its end, or give this one a --name of its own"
            raise UsageError(msg)
        started = BatchStarted(batch, this_process(), prompts)
        if known is not None and not fresh:
            return [_new(clock, known.session_id, started)]
        session = SessionStarted(timeline.__version__, this_process(), title)
        return [_new(clock, begun, session), _new(clock, begun, started)]

    events = await store.append_when(decide)
    return events[-1].session_id


def _new(clock: Clock, session_id: str, data: EventData) -> NewEvent:
    return NewEvent(session_id, data, clock.uuid7(), clock.now())


class _Run:
    """One run through a batch."""

    def __init__(  # noqa: PLR0917  made in one place
        self,
        store: EventStore,
        ask: AskOne,
        borrowed: Borrowed,
        prompts: Sequence[Prompt],
        keys: Sequence[str],
        session_id: str,
        at_providers: ProviderBatches,
    ) -> None:
        self._store = store
        self._ask = ask
        self._borrowed = borrowed
        self._at_providers = at_providers
        self._prompts = prompts
        self._keys = keys
        self._session_id = session_id
        self.before: dict[str, Place] = {}
        self.answered = self.failed = 0
        self.stopped = False
        self._input = self._output = self._nano_usd = self._unpriced = 0
        self._done: dict[int, _Done] = {}
        self._held = 0
        self._next = 0
        self._working = self._asking = 0
        self._alone = asyncio.Lock()
        self._idle = asyncio.Event()
        self._index: dict[str, int] = {}
        self._flights: dict[str, tuple[int, int]] = {}
        self._hopeless: dict[str | None, TimelineError] = {}
        self._changed = asyncio.Event()

    @property
    def status(self) -> BatchStatus:
        """How far it is."""
        return BatchStatus(
            self._session_id,
            len(self._keys),
            len(self.before),
            self.answered,
            self.failed,
            self._input,
            self._output,
            self._nano_usd,
            self._unpriced,
            sum(handed_in for handed_in, _ in self._flights.values()),
            sum(ended for _, ended in self._flights.values()),
        )

    @property
    def whole(self) -> bool:
        """Whether every prompt has ended."""
        return len(self.before) + self.answered + self.failed >= len(self._keys)

    async def items(self, concurrency: int, *, fail_fast: bool) -> AsyncGenerator[BatchStatus | BatchResult]:
        """Ask so many at a time, or with 0 hand all in to batch APIs; yield how far it is and what there is in order."""
        self._index = {key: index for index, key in enumerate(self._keys)}
        self.before = {key: place for key, place in self.before.items() if key in self._index}
        # Before anything is asked: who can't use the answers may still say so.
        yield self.status
        flights = await self._at_providers.flights()
        under_way = {flight.item(attempt) for flight in flights for attempt in flight.attempts.values()}
        left = [index for index, key in enumerate(self._keys) if key not in self.before and key not in under_way]
        work: list[Coroutine[Any, Any, None]]
        if concurrency:
            todo = deque(left)
            self._working = concurrency
            work = [self._work(todo, fail_fast=fail_fast) for _ in range(concurrency)]
        else:
            groups = self._at_providers.grouped((self._keys[index], self._prompts[index]) for index in left)
            work = [self._hand_in(groups)]
        workers = [asyncio.create_task(each) for each in (*work, *map(self._follow, flights))]
        for worker in workers:
            worker.add_done_callback(lambda _: self._changed.set())
        self._changed.set()
        why = "closed"
        try:
            over = False
            while not over:
                await self._changed.wait()
                self._changed.clear()
                over = all(worker.done() for worker in workers)
                for worker in workers:
                    if worker.done():
                        # Only what concerns all of them ends one before its time.
                        worker.result()
                yield self.status
                async for result in self._in_order(skip=over):
                    yield result
        except asyncio.CancelledError as exc:
            why = interrupt_reason(exc)
            raise
        finally:
            for worker in workers:
                worker.cancel(why)
            await asyncio.gather(*workers, return_exceptions=True)

    # -------------------------------------------------------------- asking

    async def _work(self, todo: deque[int], *, fail_fast: bool) -> None:
        try:
            while True:
                # Nobody begins while one is asked alone.
                async with self._alone:
                    if not todo or self.stopped:
                        return
                index, others = todo.popleft(), self._working > 1
                done = await self._answer(index)
                leave = False
                if done.refused and others and not self.stopped:
                    # What others have reserved leaves no room. Alone there may be some, and with one less from then on.
                    done, leave = await self._answer_alone(index), self._working > 1
                prompt = self._prompts[index]
                if done.error is not None and (done.refused or isinstance(done.error, HOPELESS)):
                    self._hopeless[prompt.model] = done.error
                self._end(index, done)
                self.stopped = self.stopped or (fail_fast and done.error is not None)
                if leave:
                    return
        finally:
            self._working -= 1

    async def _answer_alone(self, index: int) -> _Done:
        """Ask when what is under way has ended, and before anything else is begun."""
        async with self._alone:
            while self._asking:
                self._idle.clear()
                await self._idle.wait()
            return await self._answer(index)

    def _end(self, index: int, done: _Done) -> None:
        self._done[index] = done
        if done.error is None:
            self.answered += 1
        else:
            self.failed += 1
        self._changed.set()

    def _prompt(self, index: int) -> Prompt:
        prompt = self._prompts[index]
        if not self._keys[index].startswith(_digest(prompt)):
            msg = "the prompts were changed while they were asked: run the same command again"
            raise UsageError(msg)
        return prompt

    async def _answer(self, index: int) -> _Done:
        prompt, key = self._prompt(index), self._keys[index]
        if (hopeless := self._hopeless.get(prompt.model)) is not None:
            return _Done(None, error=hopeless)
        events: list[Event] = []
        error: TimelineError | None = None
        self._asking += 1
        try:
            async with aclosing(self._ask(prompt, self._session_id, key)) as items:
                async for item in items:
                    if isinstance(item, Event):
                        events.append(item)
                    elif isinstance(item, TurnEnd):
                        error = item.error
        except StoreError:
            raise
        except TimelineError as exc:
            error = exc
        finally:
            self._asking -= 1
            if not self._asking:
                self._idle.set()
        refused = isinstance(error, BudgetExceeded) and _of_all(events)
        turns = fold(events, await self._borrowed(events)).turns
        if not turns:
            return _Done(None, error=error, refused=refused)
        for attempt in _attempts(turns[0]):
            self._add(attempt.usage, attempt.cost)
        size = _size(turns[0])
        self._held += size
        place = Place(turns[0].turn_id, events[0].position, events[-1].position)
        # The next one to be given back is never dropped: it is read at once.
        if self._held > HELD_CHARACTERS and index > self._next:
            self._held -= size
            return _Done(place, None, error, refused)
        return _Done(place, turns[0], error, refused)

    def _add(self, usage: Usage | None, cost: Cost | None) -> None:
        if usage is not None:
            self._input += usage.total_input
            self._output += usage.output
        if cost is not None:
            self._nano_usd += cost.nano_usd or 0
            self._unpriced += cost.state == "unpriced"

    # -------------------------------------------------------------- at a provider's batch API

    async def _hand_in(self, groups: Mapping[ModelRef, Sequence[str]]) -> None:
        """Hand everything in, then wait for it."""
        flights: list[Flight] = []
        for ref, items in groups.items():
            handing = self._at_providers.submit(ref, items, lambda item: self._prompt(self._index[item]))
            async with aclosing(handing) as handed:
                async for what in handed:
                    if isinstance(what, Flight):
                        flights.append(what)
                        self._fly(what, 0)
                    else:
                        self._land(what)
        await asyncio.gather(*map(self._follow, flights))

    async def _follow(self, flight: Flight) -> None:
        self._fly(flight, 0)
        async with aclosing(self._at_providers.follow(flight)) as told:
            async for what in told:
                if isinstance(what, int):
                    self._fly(flight, what)
                else:
                    self._land(what)
        del self._flights[flight.label]

    def _fly(self, flight: Flight, ended: int) -> None:
        self._flights[flight.label] = len(flight.attempts), ended
        self._changed.set()

    def _land(self, ended: Sequence[Ended]) -> None:
        for each in ended:
            if each.response is not None:
                self._add(each.response.usage, each.response.cost)
            # A line that is in the file no more is recorded, and that is all.
            if (index := self._index.get(each.item)) is not None:
                self._end(index, _Done(each.place, error=each.error))

    # -------------------------------------------------------------- giving back

    async def _in_order(self, *, skip: bool) -> AsyncIterator[BatchResult]:
        """What has ended, up to the first that has not; with `skip` all that has."""
        while page := self._page(skip=skip):
            missing = [done.place for _, done in page if done.turn is None and done.place is not None]
            turns = await self._read(missing) if missing else {}
            for index, done in page:
                turn = done.turn
                if turn is not None:
                    self._held -= _size(turn)
                elif done.place is not None:
                    turn = turns.get(done.place.turn_id)
                yield BatchResult(index, self._session_id, turn, done.error)

    async def _read(self, places: Sequence[Place]) -> dict[str, Turn]:
        """Turns folded from the log again, by their ids."""
        wanted, calls = {place.turn_id for place in places}, set()
        events: list[Event] = []
        for first, last in _spans(places):
            async for event in self._store.read(after=first - 1, until=last):
                if event.turn_id in wanted:
                    calls |= {event.call_id} - {None}
                    events.append(event)
                elif event.turn_id is None and event.call_id in calls:
                    events.append(event)
        return {turn.turn_id: turn for turn in fold(events, await self._borrowed(events)).turns}

    def _page(self, *, skip: bool) -> list[tuple[int, _Done]]:
        page: list[tuple[int, _Done]] = []
        while self._next < len(self._keys) and len(page) < PAGE:
            done = self._done.pop(self._next, None)
            if done is None and (place := self.before.get(self._keys[self._next])) is not None:
                done = _Done(place)
            if done is not None:
                page.append((self._next, done))
            elif not skip:
                break
            self._next += 1
        return page


def _of_all(events: Iterable[Event]) -> bool:
    """Whether it was a budget over all calls that refused, and none of one call: that one says nothing of others."""
    told = (event.data for event in events)
    passed = {data.window for data in told if isinstance(data, Passed) and data.action != "warn"}
    return not passed & ONE_CALL


def _attempts(turn: Turn) -> Iterator[Attempt]:
    return (attempt for step in turn.steps for attempt in step.attempts)


def _size(turn: Turn) -> int:
    return sum(len(piece.text) + PER_FRAGMENT for attempt in _attempts(turn) for piece in attempt.fragments)


def _spans(places: Sequence[Place]) -> list[tuple[int, int]]:
    """Ranges of positions that hold all the places, those near to one another joined."""
    spans: list[tuple[int, int]] = []
    for place in sorted(places, key=lambda place: place.first):
        if spans and place.first - spans[-1][1] <= NEAR:
            spans[-1] = (spans[-1][0], max(spans[-1][1], place.last))
        else:
            spans.append((place.first, place.last))
    return spans
