"""Turns that are drawn from events as these come: at their original pace, or while another process records them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing

import msgspec
from rich.console import Console

from timeline.events import CallCacheHit, ChunkReceived, Event
from timeline.looking import Looking
from timeline.projections.blocks import Folding, Turn

from . import output
from .blocks import draw_question, draw_turn
from .live import Together

__all__ = ["Following", "events_of", "play", "until_a_turn_ends"]

ENDS = ("turn.completed", "turn.failed", "turn.interrupted")


def events_of(events: Sequence[Event], turn_id: str | None) -> list[Event]:
    """Those of a turn; texts belong to it by their call."""
    calls = {event.call_id for event in events if event.turn_id == turn_id and event.call_id}
    return [event for event in events if event.turn_id == turn_id or event.call_id in calls]


# ------------------------------------------------------------------ at a pace


async def play(
    console: Console,
    turn: Turn,
    events: Sequence[Event],
    borrowed: Mapping[str, Sequence[Event]],
    bodies: Mapping[str, str | bytes],
    speed: float,
    *,
    cognition: bool,
) -> None:
    """Draw a turn on a terminal as it was drawn while it ran; when that is broken off, all of it at once.

    Args:
        console: The terminal.
        turn: Which turn.
        events: All of its session.
        borrowed: As for `blocks.fold`.
        bodies: Prompts, arguments and results by digest.
        speed: 1 is the original pace, 2 twice as fast.
        cognition: Draw its steps, not just a line that sums them up.
    """
    draw_question(console, turn, bodies)
    mine = events_of(events, turn.turn_id)
    folding = Folding(borrowed)
    for event in events[: events.index(mine[0])]:
        folding.add(event)
    began, clock = mine[0].recorded_at, time.monotonic()

    def now() -> int:
        return began + int((time.monotonic() - clock) * speed * 1_000_000)

    view = Together(console, console, folding=folding, recorded=True, hint=False, cognition=cognition, now=now)
    view.learn(bodies)
    waiting = list(_paced(mine))
    try:
        while waiting:
            at, event = waiting[0]
            await asyncio.sleep(max(at - now(), 0) / 1_000_000 / speed)
            view.event(event)
            waiting.pop(0)
    finally:
        view.stop()
        for _, event in waiting:
            view.event(event)
        if view.turn is not None:
            # That they are cut off, its events can't tell.
            view.turn.state = turn.state
        view.end(None)


def _paced(events: Sequence[Event]) -> Iterator[tuple[int, Event]]:
    """When each thing happened, µs UTC, the deltas of a window one by one."""
    at = events[0].recorded_at
    for event in events:
        data = event.data
        if not isinstance(data, ChunkReceived):
            at = max(at, event.recorded_at)
            yield at, event
            continue
        gaps = [*data.gaps_us, *[0] * len(data.texts)]
        for number, text in enumerate(data.texts):
            at += gaps[number]
            one = msgspec.structs.replace(data, first=data.first + number, texts=(text,), gaps_us=(gaps[number],))
            yield at, msgspec.structs.replace(event, data=one)


# ------------------------------------------------------------------ while it happens


async def until_a_turn_ends(timeline: Looking, events: Sequence[Event]) -> AsyncGenerator[Event]:
    """What is recorded after these events of a session, up to the end of the turn that is open, or else of the next."""
    watched = _open_turn(events)
    async with aclosing(timeline.follow(events[-1].session_id, after=events[-1].position)) as later:
        async for event in later:
            if event.type == "turn.started" and watched is None:
                watched = event.turn_id
            yield event
            if event.turn_id == watched and event.type in ENDS:
                return


def _open_turn(events: Sequence[Event]) -> str | None:
    ended = {event.turn_id for event in events if event.type in ENDS}
    still = [event.turn_id for event in events if event.type == "turn.started" and event.turn_id not in ended]
    return still[-1] if still else None


class Following:
    """A session on a console while another process goes on with it.

    On a terminal the turn that runs is redrawn; elsewhere it is drawn when it has ended.

    Args:
        timeline: Where bodies are found.
        console: Where to.
        cognition: Draw the steps of turns, not just lines that sum them up.
    """

    def __init__(self, timeline: Looking, console: Console, *, cognition: bool) -> None:
        self._timeline = timeline
        self._console = console
        self._cognition = cognition
        self._borrowed: dict[str, list[Event]] = {}
        self._folding = Folding(self._borrowed)
        self._view: Together | None = None
        self._redrawn = console.file.isatty() and not console.is_dumb_terminal
        self._drawn = 0

    async def begin(self, events: Sequence[Event]) -> None:
        """Draw what has happened, up to the turn that is open."""
        running = _open_turn(events)
        self._borrowed.update(await self._timeline.borrowed(events))
        whole = Folding(self._borrowed)
        for event in events:
            whole.add(event)
        bodies = await self._timeline.bodies(whole.session)
        for turn in whole.session.turns:
            if turn.turn_id != running:
                self._space()
                draw_turn(self._console, turn, bodies, cognition=self._cognition)
        begun = False
        for event in events:
            begun = begun or (event.type == "turn.started" and event.turn_id == running)
            if begun:
                await self.add(event)
            else:
                self._folding.add(event)
        if running is None:
            output.notice("no turn is running: waiting for the next one")

    async def add(self, event: Event) -> None:
        """Draw what an event changes."""
        if isinstance(event.data, CallCacheHit):
            self._borrowed.update(await self._timeline.borrowed([event]))
        if self._view is None and event.type == "turn.started":
            await self._begin_turn(event)
        elif self._view is None:
            self._folding.add(event)
        else:
            self._view.event(event)
            if self._view.wanted:
                self._view.learn(await self._timeline.store.contents(self._view.wanted))

    async def _begin_turn(self, event: Event) -> None:
        self._view = Together(
            self._console,
            self._console,
            folding=self._folding,
            recorded=True,
            hint=False,
            cognition=self._cognition,
            redrawn=self._redrawn,
        )
        self._space()
        seen = Folding()
        seen.add(event)
        (turn,) = seen.session.turns
        draw_question(self._console, turn, await self._timeline.bodies(seen.session))
        self._view.event(event)

    def end(self) -> None:
        """Draw the last turn for good."""
        if self._view is not None:
            self._view.stop()
            self._view.end(None)

    def _space(self) -> None:
        if self._drawn:
            self._console.print()
        self._drawn += 1
