"""A turn from the user's words to the answer: route → tool → format, or one call; each step a real call, each recorded.

The steps before the answer stand in `steps`. What a deterministic tool found out stands in the answer, or under it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing

import msgspec
from msgspec import Struct

from timeline.cognition.prompts import BRIEFLY, facts_grammar, grounded, grounded_briefly, missing_facts, user_message
from timeline.cognition.schema import misfit
from timeline.cognition.steps import Steps, is_small
from timeline.cognition.tools import Found, ToolOutcome, Tools, Workspace
from timeline.cognition.turn import Ask, Record, TurnEnd, fitting
from timeline.config import Complexity
from timeline.errors import BadResponse, StoreError, TimelineError
from timeline.events import Clock, Event, MessageRef, StepCompleted, StepFailed, TurnCompleted, TurnFailed
from timeline.llm.attempt import CallEnd, error_info, interrupt_reason
from timeline.llm.manager import LLMManager, Superseded
from timeline.llm.pricing import estimate_tokens
from timeline.llm.ranking import Request
from timeline.projections.blocks import Step, fold
from timeline.projections.drawn import UNDER
from timeline.providers.base import Delta, LLMProvider, LLMRequest
from timeline.store import EventStore

__all__ = ["CognitionProcessor", "CognitionResult"]


class CognitionResult(Struct, frozen=True):
    """What became of a user's input.

    Args:
        steps: How it was worked out.
        final_output: The answer.
        session_id: Where it is recorded.
        error: Why there is no answer, or only a part of it.
    """

    steps: tuple[Step, ...]
    final_output: str
    session_id: str
    error: TimelineError | None = None


class CognitionProcessor:
    """Works out turns.

    Args:
        store: Where everything is recorded.
        manager: Makes the calls.
        clock: Time and ids.
        get: The provider of a name.
        tools: Gives the tools that are on; None for none.
        search: Full text over past turns, for the tools: words, and how many.
        max_rounds: How often a model may call tools in one turn.
        prepare: Makes an `Ask` of an input and the name of a session, for `process_user_input`.
    """

    def __init__(
        self,
        store: EventStore,
        manager: LLMManager,
        clock: Clock,
        get: Callable[[str], LLMProvider],
        tools: Callable[[], Awaitable[Tools]] | None = None,
        *,
        search: Callable[[str, int], Awaitable[Sequence[Found]]] | None = None,
        max_rounds: int = 4,
        prepare: Callable[[str, str | None], Awaitable[Ask]] | None = None,
    ) -> None:
        self._store = store
        self._manager = manager
        self._clock = clock
        self._get = get
        self._tools = tools
        self._search = search
        self._max_rounds = max_rounds
        self._prepare = prepare

    async def process_user_input(self, text: str, session: str | None = None) -> CognitionResult:
        """Work out one input to its end.

        Args:
            text: The user's words.
            session: Id, unique prefix, title or `last` of the session to go on with; None begins one.

        Raises:
            TimelineError: Nothing was asked or recorded.
            StoreError: It can't be recorded.
        """
        if self._prepare is None:
            msg = "this processor knows no sessions: give it `prepare`, or use Timeline.cognition"
            raise ValueError(msg)
        ask = await self._prepare(text, session)
        events: list[Event] = []
        end = TurnEnd("", "")
        async with aclosing(self.run(ask)) as items:
            async for item in items:
                if isinstance(item, Event):
                    events.append(item)
                elif isinstance(item, TurnEnd):
                    end = item
        steps = tuple(step for turn in fold(events).turns for step in turn.steps)
        return CognitionResult(steps, end.text, ask.session_id, end.error)

    async def run(  # noqa: C901, PLR0912  one loop: a generator more would cost every delta its time
        self, asking: Ask | Awaitable[Ask]
    ) -> AsyncGenerator[Delta | Event | Superseded | TurnEnd]:
        """Work out a turn.

        Args:
            asking: What is asked for, or will be.

        Yields:
            The answer's deltas as they arrive, events as they are committed, a `Superseded` where the deltas so
            far no longer count, and last a `TurnEnd`.

        Raises:
            TimelineError: Nothing was asked or recorded.
            StoreError: The turn can't be recorded.
        """
        ask = asking if isinstance(asking, Ask) else await asking
        record = Record(self._store, self._clock, ask)
        final = _Final(record, ask, self._get)
        try:
            steps = await self._steps(record, ask)
            if ask.mode == "pipeline":
                async with aclosing(steps.run()) as events:
                    async for event in events:
                        yield event
                if steps.error is not None:
                    yield TurnEnd(record.turn_id, "", steps.error)
                    return
            while final.end is None:
                async with aclosing(await final.call(self._manager, steps.outcomes, steps.complexity)) as items:
                    async for item in items:
                        if type(item) is Delta:
                            yield item
                        elif isinstance(item, CallEnd):
                            # Enqueued before the call's own end is awaited: both are one transaction.
                            ended = final.conclude(item, steps.outcomes)
                        else:
                            record.committed()
                            yield item
                if final.appended:
                    yield Delta(UNDER + final.appended)
                for event in await asyncio.shield(ended):
                    yield event
                if final.end is None:
                    yield Superseded("misfit")
        except StoreError:
            raise
        except TimelineError as exc:
            # Nobody could be asked for the answer.
            if not record.begun:
                raise
            for event in await asyncio.shield(final.fail(exc)):
                yield event
        except (asyncio.CancelledError, GeneratorExit) as exc:
            record.interrupt(interrupt_reason(exc))
            raise
        if final.end is not None:
            yield final.end

    async def _steps(self, record: Record, ask: Ask) -> Steps:
        tools = await self._tools() if self._tools is not None and ask.mode == "pipeline" else Tools()
        search = None if ask.private else self._search
        workspace = Workspace(ask.folder, ask.allowed, self._clock.now, search, ask.session_id)
        return Steps(record, ask, self._manager, self._get, tools, workspace, max_rounds=self._max_rounds)


class _Final:
    """The step that answers.

    Attributes:
        appended: Facts that the answer lacks.
        end: How the turn ended, once it has.
    """

    def __init__(self, record: Record, ask: Ask, get: Callable[[str], LLMProvider]) -> None:
        self._record = record
        self._ask = ask
        self._get = get
        self._began = record.elapsed_us
        self._step_id = ""
        self._left_out = 0
        self._invalid: str | None = None
        self.appended = ""
        self.end: TurnEnd | None = None

    async def call(
        self, manager: LLMManager, outcomes: Sequence[ToolOutcome], complexity: Complexity | None
    ) -> AsyncGenerator[Delta | Event | Superseded | CallEnd]:
        """The call for the answer, not yet begun."""
        ask, record = self._ask, self._record
        if not self._step_id:
            self._began = record.elapsed_us
            pipeline = ask.mode == "pipeline"
            self._step_id = record.begin_step("format" if pipeline else "answer", 2 if pipeline else 0)
        known = [outcome.text for outcome in outcomes]
        wanted = Request(
            estimate_tokens(ask.system or "", *(each.text for each, _ in ask.past), ask.prompt, *known),
            ask.max_tokens,
            schema=ask.schema is not None,
            images=any(isinstance(file.body, bytes) for file in ask.files),
        )
        candidates = await ask.choose(
            "response_formatting" if ask.mode == "pipeline" else "default", complexity, wanted
        )
        text, system, temperature = ask.prompt, ask.system, ask.temperature
        grammar = None
        if outcomes and is_small(self._get, candidates[0]):
            # What holds such a model to its facts, no other one may understand.
            candidates = [candidate for candidate in candidates if is_small(self._get, candidate)]
            grammar = facts_grammar(outcomes) if ask.schema is None else None
            text = grounded_briefly(ask.prompt, outcomes)
            system = f"{BRIEFLY}\n\n{system}" if system else BRIEFLY
            temperature = 0 if temperature is None else temperature
        elif outcomes:
            text = grounded(ask.prompt, outcomes)
        if self._invalid is not None:
            text += (
                f"\n\nThe answer before did not fit the schema ({self._invalid}): answer again, with JSON that does."
            )
        message = record.message
        if text != ask.prompt:
            message = msgspec.structs.replace(message, ref=record.keep(text))
        said = [*ask.past, (user_message(text, ask.files), message)]
        beside = estimate_tokens(system or "")
        said, self._left_out = fitting(said, candidates[0].context, beside=beside, answer=ask.max_tokens)
        request = LLMRequest(
            candidates[0].model,
            tuple(each for each, _ in said),
            # An empty one ends the session's, and is no message.
            system=system or None,
            temperature=temperature,
            max_tokens=ask.max_tokens,
            seed=ask.seed,
            response_schema=ask.schema,
            extra={} if grammar is None else {"grammar": grammar},
        )
        ref = record.system if system == ask.system else record.keep(system or "")
        first = (MessageRef("system", ref=ref),) if system else ()
        context = record.context(
            self._step_id, (*first, *(ref for _, ref in said)), shown=True, quoting=grammar is not None
        )
        return manager.stream(candidates, request, context, opening=record.pending, contents=record.bodies)

    def conclude(self, end: CallEnd, outcomes: Sequence[ToolOutcome]) -> asyncio.Future[list[Event]]:
        """Put what follows from the end of the call in line for the log; `end` is set unless it has to be made again."""
        record, ask = self._record, self._ask
        # Whatever came of it, the beginning is recorded.
        record.committed()
        error = end.error
        if error is None and ask.schema is not None and (problem := misfit(end.text, ask.schema)):
            if self._invalid is None:
                self._invalid = problem
                return record.enqueue()
            error = BadResponse(f"the answer does not fit the schema ({problem}): ask a bigger model, or for less")
        if error is not None:
            self.end = self._ended(end, end.text, error)
            return self._failed(error)
        self.appended = "\n→ ".join(missing_facts(end.text, outcomes)) if ask.schema is None else ""
        left_out = (
            f"left out the oldest {self._left_out} turns: the model's context is full" if self._left_out else None
        )
        told = {"appended": self.appended} if self.appended and not ask.private else None
        self.end = self._ended(end, end.text + (UNDER + self.appended if self.appended else ""))
        duration = record.elapsed_us - self._began
        return record.enqueue(
            record.new(StepCompleted(duration, told, left_out, self._invalid is not None), self._step_id),
            record.new(TurnCompleted(end.call_id, record.elapsed_us)),
        )

    def _ended(self, end: CallEnd, text: str, error: TimelineError | None = None) -> TurnEnd:
        if (response := end.response) is None:
            return TurnEnd(self._record.turn_id, text, error)
        return TurnEnd(self._record.turn_id, text, error, response.sources, response.explanation)

    def fail(self, exc: TimelineError) -> asyncio.Future[list[Event]]:
        """The call could not even be begun."""
        self.end = TurnEnd(self._record.turn_id, "", exc)
        return self._failed(exc)

    def _failed(self, exc: TimelineError) -> asyncio.Future[list[Event]]:
        record = self._record
        error = error_info(exc, private=self._ask.private)
        return record.enqueue(
            record.new(StepFailed(error, record.elapsed_us - self._began), self._step_id),
            record.new(TurnFailed(error, record.elapsed_us)),
        )
