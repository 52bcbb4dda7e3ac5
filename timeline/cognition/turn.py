"""One turn as it is put into the log: what is asked for, its opening, its steps' events, and its one end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct
from sqlalchemy import Connection

from timeline.cognition.prompts import File, user_message
from timeline.config import BudgetConfig, Complexity, Task
from timeline.errors import TimelineError
from timeline.events import (
    Attachment,
    Clock,
    Event,
    EventData,
    InterruptReason,
    MessageRef,
    NewEvent,
    SessionStarted,
    Source,
    StepCompleted,
    StepKind,
    StepSkipped,
    StepStarted,
    TurnInterrupted,
    TurnStarted,
)
from timeline.llm.attempt import CallContext
from timeline.llm.pricing import estimate_tokens
from timeline.llm.ranking import Request
from timeline.llm.router import Candidate
from timeline.projections.blocks import Session, is_open_turn
from timeline.providers.base import LLMRequest, Message
from timeline.store import EventStore, content_digest, this_process

__all__ = ["Ask", "Choose", "Record", "TurnEnd", "always", "fitting", "history"]

ANSWER_TOKENS = 1024
"""What is left of a model's context for an answer whose length nobody limited, or a quarter of it where that is less."""

Choose = Callable[[Task, Complexity | None, Request], Awaitable[Sequence[Candidate]]]
"""Which models may be asked for a step of a turn, the preferred one first; at least one, or a `TimelineError`."""


class Ask(Struct, frozen=True):
    """What a user asks for in one turn.

    Args:
        prompt: The user's words.
        choose: Which models may be asked.
        session_id: Which timeline it belongs to.
        first: The session's first event, if the session begins with this turn.
        system: System prompt.
        files: Files that are part of the user's message.
        past: The messages before, and how the log refers to each.
        temperature, max_tokens, seed: Sampling of the answer, None for the provider's own.
        private: Record totals, not bodies.
        stream: Ask for a streamed answer.
        mode: `pipeline` routes, uses tools, then answers; `direct` is one call.
        schema: JSON Schema that the answer has to follow.
        folder, allowed: Where tools may read.
        timeout, cache, budgets: See `timeline.llm.attempt.CallContext`.
        item: Which line of a batch it is.
    """

    prompt: str
    choose: Choose
    session_id: str
    first: SessionStarted | None = None
    system: str | None = None
    files: tuple[File, ...] = ()
    past: tuple[tuple[Message, MessageRef], ...] = ()
    temperature: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    private: bool = False
    stream: bool = True
    mode: Literal["pipeline", "direct"] = "direct"
    schema: dict[str, Any] | None = None
    folder: Path = Path()
    allowed: tuple[Path, ...] = ()
    timeout: float | None = None
    cache: bool | None = None
    budgets: tuple[BudgetConfig, ...] = ()
    item: str | None = None


class TurnEnd(Struct, frozen=True):
    """How a turn ended.

    Args:
        turn_id: Which turn.
        text: The answer, as far as it came.
        error: Why it failed, if it did.
        sources: The pages that the answer names as its sources.
        explanation: The provider's sentence on why the answer ended so, where it has one.
    """

    turn_id: str
    text: str
    error: TimelineError | None = None
    sources: tuple[Source, ...] = ()
    explanation: str | None = None


def always(*candidates: Candidate) -> Choose:
    """The same models for every step."""

    async def choose(_task: Task, _complexity: Complexity | None, _request: Request) -> Sequence[Candidate]:
        return candidates

    return choose


class Record:
    """A turn's place in the log.

    Attributes:
        turn_id: Which.
        message: How the log refers to the user's message.
        pending: What is recorded together with the next call, in order.
        bodies: The bodies that `pending` refers to.
    """

    def __init__(self, store: EventStore, clock: Clock, ask: Ask) -> None:
        self._store = store
        self._clock = clock
        self._ask = ask
        self._started = clock.monotonic()
        self._begun = False
        self.turn_id = clock.short_id()
        self.bodies: list[str | bytes] = []
        opening = self._opening()
        self.system = opening.system
        refs = tuple(item.ref for item in opening.attachments if item.ref)
        self.message = MessageRef("user", ref=opening.prompt, attachments=refs)
        self.pending = [*([self.new(ask.first)] if ask.first else []), self.new(opening)]

    @property
    def begun(self) -> bool:
        """Whether anything of the turn is in the log."""
        return self._begun

    @property
    def elapsed_us(self) -> int:
        """Since the turn began, µs."""
        return int((self._clock.monotonic() - self._started) * 1_000_000)

    def begin_step(self, kind: StepKind, index: int) -> str:
        """A step begins, which is recorded with what comes next; its id."""
        step_id = self._clock.short_id()
        self.pending.append(self.new(StepStarted(kind, index), step_id))
        return step_id

    def end_step(self, step_id: str, data: StepCompleted) -> None:
        """A step has ended, which is recorded with what comes next."""
        self.pending.append(self.new(data, step_id))

    def skip_step(self, kind: StepKind, index: int, reason: str) -> None:
        """A step isn't needed, which is recorded with what comes next."""
        self.pending.append(self.new(StepSkipped(kind, reason, index), self._clock.short_id()))

    def new(self, data: EventData, step_id: str | None = None) -> NewEvent:
        """A fact of this turn."""
        return NewEvent(
            session_id=self._ask.session_id,
            data=data,
            event_id=self._clock.uuid7(),
            recorded_at=self._clock.now(),
            turn_id=None if isinstance(data, SessionStarted) else self.turn_id,
            step_id=step_id,
        )

    def keep(self, body: str | bytes) -> str | None:
        """The reference to a body that is stored with what is recorded next; None where bodies aren't recorded."""
        if self._ask.private:
            return None
        self.bodies.append(body)
        return content_digest(body)

    def refs_of(self, request: LLMRequest) -> tuple[MessageRef, ...]:
        """References to a request's own words, which are kept."""
        system = [MessageRef("system", ref=self.keep(request.system))] if request.system else []
        return (*system, *(MessageRef(message.role, ref=self.keep(message.text)) for message in request.messages))

    def committed(self) -> None:
        """What was pending is in the log."""
        if self.pending or self.bodies:
            self._begun = True
            self.pending, self.bodies = [], []

    def enqueue(self, *events: NewEvent) -> asyncio.Future[list[Event]]:
        """Put what is pending and these events in line for the log."""
        pending, bodies = self.pending, self.bodies
        self.committed()
        return self._store.enqueue([*pending, *events], contents=bodies)

    async def commit(self, *events: NewEvent) -> list[Event]:
        """As `enqueue`, waited for."""
        return await asyncio.shield(self.enqueue(*events))

    def interrupt(self, reason: InterruptReason) -> None:
        """The turn was stopped; recorded if its beginning was."""
        event = self.new(TurnInterrupted(reason, self.elapsed_us))

        def decide(conn: Connection) -> list[NewEvent]:
            return [event] if is_open_turn(conn, self.turn_id) else []

        self._store.enqueue_when(decide)

    def context(
        self,
        step_id: str,
        messages: Sequence[MessageRef],
        *,
        shown: bool,
        quoting: bool = False,
        dispensable: bool = False,
    ) -> CallContext:
        """Where a call of this turn belongs.

        Args:
            step_id: Its step.
            messages: What is sent, but for the system prompt.
            shown: Whether the user sees its text while it comes.
            quoting: Whether its further fields repeat what was said.
            dispensable: Whether the turn goes on without its answer.
        """
        ask = self._ask
        return CallContext(
            session_id=ask.session_id,
            turn_id=self.turn_id,
            step_id=step_id,
            messages=tuple(messages),
            private=ask.private,
            stream=ask.stream,
            shown=shown,
            quoting=quoting,
            timeout=ask.timeout,
            cache=ask.cache,
            budgets=ask.budgets,
            dispensable=dispensable,
        )

    def _opening(self) -> TurnStarted:
        ask = self._ask
        return TurnStarted(
            mode=ask.mode,
            owner=this_process(),
            prompt=self.keep(ask.prompt),
            system=None if ask.system is None else self.keep(ask.system),
            attachments=tuple(
                Attachment(
                    name="" if ask.private else file.name,
                    media_type=file.media_type,
                    size=file.size,
                    ref=self.keep(file.body),
                )
                for file in ask.files
            ),
            private=ask.private,
            item=ask.item,
        )


def history(session: Session, contents: Mapping[str, str | bytes]) -> tuple[tuple[Message, MessageRef], ...]:
    """The messages of a session so far: each turn that has an answer, whole or cut short, and whose bodies are there.

    Turns of a batch are left out: none of them follows from another.

    Args:
        session: The fold of its events.
        contents: Bodies of its prompts and attachments by digest.
    """
    messages: list[tuple[Message, MessageRef]] = []
    for turn in session.turns:
        answer = turn.answer
        prompt = contents.get(turn.prompt or "")
        if turn.item or answer is None or not turn.answer_text or not isinstance(prompt, str):
            continue
        refs = tuple(item.ref for item in turn.attachments if item.ref)
        kept = [item for item in turn.attachments if item.ref in contents]
        files = [File(item.name, contents[item.ref or ""], item.media_type) for item in kept]
        messages.append((user_message(prompt, files), MessageRef("user", ref=turn.prompt, attachments=refs)))
        messages.append((Message("assistant", turn.answer_text), MessageRef("assistant", call=answer.recorded_in)))
    return tuple(messages)


Said = tuple[Message, MessageRef]


def fitting(
    messages: Sequence[Said], context: int | None, *, beside: int = 0, answer: int | None = None
) -> tuple[list[Said], int]:
    """The newest messages that fit a model's context, and how many older exchanges were left out.

    Args:
        messages: The conversation, oldest first: pairs of a user's message and its answer, then the last message.
        context: Most tokens of prompt and answer together; None where that is unknown, and all is taken.
        beside: Estimated tokens of what goes with them.
        answer: Most tokens of the answer.
    """
    kept = list(messages)
    if context is None:
        return kept, 0
    room = context - beside - (answer or min(ANSWER_TOKENS, context // 4))
    left_out = 0
    while len(kept) > 2 and estimate_tokens(*(message.text for message, _ in kept)) > room:  # noqa: PLR2004  a pair
        del kept[:2]
        left_out += 1
    return kept, left_out
