"""Ends in the log what processes that are no more had begun: their attempts, at an estimate, and their turns."""

from __future__ import annotations

import contextlib

from sqlalchemy import Connection

from timeline.errors import StoreDamaged
from timeline.events import CallInterrupted, ChunkReceived, Clock, EventData, NewEvent, TurnInterrupted, Usage
from timeline.llm.pricing import PriceBook, estimate_tokens
from timeline.projections.blocks import OpenTurn, open_turns
from timeline.projections.calls import OpenAttempt, open_attempts
from timeline.store import EventStore, is_alive

__all__ = ["any_abandoned", "reap"]


async def reap(store: EventStore, clock: Clock, prices: PriceBook) -> None:
    """End what is open and whose process is dead; what a live one has open is left alone.

    Args:
        store: Where it is recorded.
        clock: Time and ids.
        prices: What the attempts may have cost.

    Raises:
        StoreError: It can't be recorded.
    """
    attempts, turns = await store.query(_abandoned)
    if not attempts and not turns:
        return
    texts = {attempt.call_id: await _text(store, attempt) for attempt in attempts}
    for attempt in attempts:
        await prices.ready(attempt.provider, attempt.model, local=attempt.local)

    def end(attempt: OpenAttempt) -> CallInterrupted:
        output = estimate_tokens(texts.get(attempt.call_id, ""))
        usage = Usage(input=attempt.estimated_input_tokens, output=output)
        names, local, at = (attempt.model,), attempt.local, attempt.started_at
        cost = prices.cost(attempt.provider, names, usage, local=local, at=at)
        return CallInterrupted(attempt=attempt.attempt, reason="abandoned", usage=usage, cost=cost)

    def new(of: OpenAttempt | OpenTurn, data: EventData) -> NewEvent:
        return NewEvent(
            session_id=of.session_id,
            data=data,
            event_id=clock.uuid7(),
            recorded_at=clock.now(),
            turn_id=of.turn_id,
            step_id=getattr(of, "step_id", None),
            call_id=getattr(of, "call_id", None),
        )

    def decide(conn: Connection) -> list[NewEvent]:
        # Asked again inside the transaction: another process that starts now has seen the same.
        attempts, turns = _abandoned(conn)
        ends = [new(attempt, end(attempt)) for attempt in attempts]
        return ends + [new(turn, TurnInterrupted("abandoned")) for turn in turns]

    await store.append_when(decide)


async def _text(store: EventStore, attempt: OpenAttempt) -> str:
    """What came of an attempt, up to what can't be read of it: that it is damaged must not leave it open for ever."""
    texts: list[str] = []
    with contextlib.suppress(StoreDamaged):
        async for event in store.read(call_id=attempt.call_id, after=attempt.first_position):
            if isinstance(event.data, ChunkReceived) and event.data.kind != "tool_call":
                texts += event.data.texts
    return "".join(texts)


def any_abandoned(conn: Connection) -> bool:
    """Whether an attempt is open that nobody is left to end: what it reserved is in everybody's way."""
    return any(not is_alive(attempt.owner) for attempt in open_attempts(conn))


def _abandoned(conn: Connection) -> tuple[list[OpenAttempt], list[OpenTurn]]:
    attempts = [attempt for attempt in open_attempts(conn) if not is_alive(attempt.owner)]
    return attempts, [turn for turn in open_turns(conn) if not is_alive(turn.owner)]
