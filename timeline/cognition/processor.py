"""A turn from the user's words to the answer, as steps in the log; for now one step, `answer`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from msgspec import Struct

from timeline.cognition.prompts import File, user_message
from timeline.errors import TimelineError
from timeline.events import (
    Attachment,
    Clock,
    Event,
    EventData,
    MessageRef,
    NewEvent,
    SessionStarted,
    StepCompleted,
    StepFailed,
    StepStarted,
    TurnCompleted,
    TurnFailed,
    TurnInterrupted,
    TurnStarted,
)
from timeline.llm.attempt import CallContext, CallEnd, error_info, interrupt_reason
from timeline.llm.manager import LLMManager, Superseded
from timeline.llm.router import Candidate
from timeline.projections.blocks import Session
from timeline.providers.base import Delta, LLMRequest, Message
from timeline.store import EventStore, content_digest, this_process

__all__ = ["Ask", "TurnEnd", "answer_directly", "history"]


class Ask(Struct, frozen=True):
    """What a user asks for in one turn.

    Args:
        prompt: The user's words.
        candidates: Which models may answer, the preferred one first.
        session_id: Which timeline it belongs to.
        first: The session's first event, if the session begins with this turn.
        system: System prompt.
        files: Files that are part of the user's message.
        past: The messages before, and how the log refers to each.
        temperature, max_tokens, seed: Sampling, None for the provider's own.
        private: Record totals, not bodies.
        stream: Ask for a streamed answer.
        timeout, cache: See `timeline.llm.attempt.CallContext`.
        item: Which line of a batch it is.
    """

    prompt: str
    candidates: tuple[Candidate, ...]
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
    timeout: float | None = None
    cache: bool | None = None
    item: str | None = None


class TurnEnd(Struct, frozen=True):
    """How a turn ended.

    Args:
        turn_id: Which turn.
        text: The answer, as far as it came.
        error: Why it failed, if it did.
    """

    turn_id: str
    text: str
    error: TimelineError | None = None


async def answer_directly(
    store: EventStore, manager: LLMManager, clock: Clock, ask: Ask
) -> AsyncGenerator[Delta | Event | Superseded | TurnEnd]:
    """Work out a turn with one call.

    Yields:
        Deltas as they arrive, events as they are committed, and one `TurnEnd`.

    Raises:
        StoreError: The turn can't be recorded.
    """
    turn_id, step_id = clock.short_id(), clock.short_id()
    started = clock.monotonic()

    def new(*facts: EventData) -> list[NewEvent]:
        return [
            NewEvent(
                session_id=ask.session_id,
                data=data,
                event_id=clock.uuid7(),
                recorded_at=clock.now(),
                turn_id=None if isinstance(data, SessionStarted) else turn_id,
                step_id=step_id if isinstance(data, StepStarted | StepCompleted | StepFailed) else None,
            )
            for data in facts
        ]

    def elapsed() -> int:
        return int((clock.monotonic() - started) * 1_000_000)

    turn, message, bodies = _opening(ask)
    opening = new(*((ask.first,) if ask.first else ()), turn, StepStarted("answer"))
    request, context = _call(ask, message, turn, turn_id, step_id)
    ended: asyncio.Future[list[Event]] | None = None
    result: TurnEnd | None = None
    try:
        call = manager.stream(ask.candidates, request, context, opening=opening, contents=bodies)
        async with aclosing(call) as items:
            async for item in items:
                if type(item) is Delta or not isinstance(item, CallEnd):
                    yield item
                    continue
                # Enqueued before the call's own end is awaited: both are one transaction.
                if item.error is None:
                    ended = store.enqueue(new(StepCompleted(elapsed()), TurnCompleted(item.call_id, elapsed())))
                else:
                    error = error_info(item.error, private=ask.private)
                    ended = store.enqueue(new(StepFailed(error, elapsed()), TurnFailed(error, elapsed())))
                result = TurnEnd(turn_id, item.text, item.error)
    except (asyncio.CancelledError, GeneratorExit) as exc:
        if ended is None:
            store.enqueue(new(TurnInterrupted(interrupt_reason(exc), elapsed())))
        raise
    if ended is not None and result is not None:
        for event in await asyncio.shield(ended):
            yield event
        yield result


def _opening(ask: Ask) -> tuple[TurnStarted, MessageRef, list[str | bytes]]:
    """The turn's first event, how its message is referred to, and the bodies to keep."""
    bodies = (
        [] if ask.private else [ask.prompt, *(file.body for file in ask.files), *([ask.system] if ask.system else [])]
    )

    def ref(body: str | bytes | None) -> str | None:
        return None if ask.private or body is None else content_digest(body)

    attachments = tuple(
        Attachment(
            name="" if ask.private else file.name,
            media_type=file.media_type,
            size=file.size,
            ref=ref(file.body),
        )
        for file in ask.files
    )
    opening = TurnStarted(
        mode="direct",
        owner=this_process(),
        prompt=ref(ask.prompt),
        system=ref(ask.system),
        attachments=attachments,
        private=ask.private,
        item=ask.item,
    )
    refs = tuple(item.ref for item in attachments if item.ref)
    return opening, MessageRef("user", ref=opening.prompt, attachments=refs), bodies


def _call(
    ask: Ask, message: MessageRef, opening: TurnStarted, turn_id: str, step_id: str
) -> tuple[LLMRequest, CallContext]:
    request = LLMRequest(
        model=ask.candidates[0].model,
        messages=(*(past for past, _ in ask.past), user_message(ask.prompt, ask.files)),
        # An empty one ends the session's, and is no message.
        system=ask.system or None,
        temperature=ask.temperature,
        max_tokens=ask.max_tokens,
        seed=ask.seed,
    )
    system = (MessageRef("system", ref=opening.system),) if ask.system else ()
    context = CallContext(
        session_id=ask.session_id,
        turn_id=turn_id,
        step_id=step_id,
        messages=(*system, *(ref for _, ref in ask.past), message),
        private=ask.private,
        stream=ask.stream,
        timeout=ask.timeout,
        cache=ask.cache,
    )
    return request, context


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
        if turn.item or answer is None or not answer.text or not isinstance(prompt, str):
            continue
        refs = tuple(item.ref for item in turn.attachments if item.ref)
        kept = [item for item in turn.attachments if item.ref in contents]
        files = [File(item.name, contents[item.ref or ""], item.media_type) for item in kept]
        messages.append((user_message(prompt, files), MessageRef("user", ref=turn.prompt, attachments=refs)))
        messages.append((Message("assistant", answer.text), MessageRef("assistant", call=answer.recorded_in)))
    return tuple(messages)
