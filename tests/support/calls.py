"""One call of the manager on a real file, for tests of what it records."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from support.stores import projections
from timeline.config import Retry, Settings
from timeline.events import (
    CallFailed,
    CallInterrupted,
    ChunkReceived,
    Clock,
    Event,
    MessageRef,
    NewEvent,
    RequestSent,
    ResponseCompleted,
    SessionStarted,
    StepStarted,
    TurnStarted,
)
from timeline.llm.manager import CallContext, CallEnd, LLMManager
from timeline.llm.router import Candidate
from timeline.providers.base import Delta, LLMProvider, LLMRequest, Message
from timeline.store import EventStore, this_process

__all__ = ["Recorder", "opened", "recorder"]

ONCE = Settings(retry=Retry(max_attempts=1))
"""Nothing is tried again."""
ENDS = (ResponseCompleted, CallFailed, CallInterrupted)


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[EventStore]:
    """A store with all its read models."""
    async with EventStore.open(path, projections()) as store:
        yield store


class Recorder:
    """Makes calls within one session and turn, and looks at what of them is in the file."""

    def __init__(self, store: EventStore, clock: Clock) -> None:
        self.store = store
        self.clock = clock
        self.providers: dict[str, LLMProvider] = {}
        self.manager = LLMManager(store, clock, self.providers.__getitem__, settings=ONCE)
        self.session_id = clock.uuid7()

    def opening(self) -> list[NewEvent]:
        """A session, a turn and a step."""
        facts = (
            (SessionStarted("test", this_process()), None, None),
            (TurnStarted("direct", this_process()), "turn", None),
            (StepStarted("answer"), "turn", "step"),
        )
        return [
            NewEvent(self.session_id, data, self.clock.uuid7(), self.clock.now(), turn, step)
            for data, turn, step in facts
        ]

    def stream(
        self,
        provider: LLMProvider,
        *,
        private: bool = False,
        stream: bool = True,
        contents: Sequence[str] = (),
        past: Sequence[Message] = (),
        **request: Any,
    ) -> Any:
        """The call, not yet begun."""
        asked = LLMRequest("model", messages=(*past, Message("user", request.pop("prompt", "Why?"))), **request)
        context = CallContext(self.session_id, "turn", "step", (MessageRef("user"),), private=private, stream=stream)
        self.providers[provider.name] = provider
        candidates = [Candidate(provider.name, "model", "asked for")]
        return self.manager.stream(candidates, asked, context, opening=self.opening(), contents=contents)

    async def call(self, provider: LLMProvider, **options: Any) -> list[Delta | Event | CallEnd]:
        """The call to its end: all it yielded."""
        async with aclosing(self.stream(provider, **options)) as items:
            return [item async for item in items]

    async def data(self, *types: type) -> list[Any]:
        """The recorded facts of these types."""
        return [event.data async for event in self.store.read() if isinstance(event.data, types)]

    async def chunks(self) -> list[ChunkReceived]:
        return await self.data(ChunkReceived)

    async def text(self, kind: str = "text") -> str:
        """What stands in the chunks."""
        return "".join(text for chunk in await self.chunks() if chunk.kind == kind for text in chunk.texts)

    async def end(self) -> Any:
        """The one end of the one attempt."""
        (sent,) = await self.data(RequestSent)
        (end,) = await self.data(*ENDS)
        assert sent.attempt == end.attempt
        return end

    async def eventually(self, *types: type, count: int = 1) -> list[Any]:
        """The facts of these types, as soon as there are so many."""
        for _ in range(400):
            if len(found := await self.data(*types)) >= count:
                return found
            await asyncio.sleep(0.02)
        raise AssertionError([type(data).__name__ for data in await self.data(object)])


@asynccontextmanager
async def recorder(path: Path) -> AsyncIterator[Recorder]:
    """A recorder on a store at `path`."""
    async with opened(path) as store:
        yield Recorder(store, Clock())


def types_in(path: Path) -> list[str]:
    """The types of the events that anyone else can see in the file now."""
    conn = sqlite3.connect(path)
    try:
        return [row[0] for row in conn.execute("SELECT type FROM events ORDER BY position")]
    finally:
        conn.close()


def everything(folder: Path) -> bytes:
    """Every byte of every file."""
    return b"".join(path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file())


def as_json(events: Sequence[Event]) -> list[Any]:
    """Events as plain values, for messages."""
    return [msgspec.to_builtins(event) for event in events]
