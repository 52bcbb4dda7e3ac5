"""Calls to servers that fail, and what the log tells of each: one store, many calls at once."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support import answers
from support.loopback import Reply, Request, Server
from support.stores import opened
from timeline.config import Retry, Routing, Settings
from timeline.errors import TimelineError
from timeline.events import (
    CallCacheHit,
    CallFailed,
    CallInterrupted,
    CallRerouted,
    CallRetryScheduled,
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
from timeline.llm.manager import CallContext, CallEnd, LLMManager, Superseded
from timeline.llm.router import Candidate
from timeline.providers.base import Delta, LLMProvider, LLMRequest, Message
from timeline.providers.openai import OpenAIProvider
from timeline.providers.waiting import Timeouts
from timeline.store import EventStore, this_process

__all__ = ["FAST", "Bench", "Outcome", "bench", "either", "full_port"]

FAST = Retry(max_attempts=2, base_delay=0.002, max_delay=0.004, timeout=30)
"""Two attempts, with hardly a wait between them."""
ENDS = (ResponseCompleted, CallFailed, CallInterrupted)

Script = Reply | Callable[[Request], Reply] | Iterable[Reply | Callable[[Request], Reply]]


def either(text: str) -> Callable[[Request], Reply]:
    """A whole answer, streamed or not, as it is asked for."""
    return lambda request: answers.answer(text) if request.json()["stream"] else answers.batch(text)


@contextlib.contextmanager
def full_port() -> Iterator[int]:
    """A port of 127.0.0.1 that takes no more connections, and refuses none either."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        address = listening.getsockname()
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(address)
        yield address[1]


@dataclass
class Outcome:
    """What became of a call.

    Attributes:
        text: What stands on the screen in the end.
        shown: All that was shown; `⟲` where it no longer counted.
        deltas: All that came.
        end: The call's last item; None where it raised.
        error: Why it failed, as the user is told.
        log: What was recorded of it.
        seconds: How long it took.
        requests: How many requests each server got.
    """

    text: str = ""
    shown: str = ""
    deltas: list[Delta] = field(default_factory=list)
    end: CallEnd | None = None
    error: TimelineError | None = None
    log: list[Event] = field(default_factory=list)
    seconds: float = 0.0
    requests: list[int] = field(default_factory=list)

    @property
    def code(self) -> int:
        """What the command would end with."""
        return self.error.exit_code if self.error else 0

    def data(self, *types: type) -> list[Any]:
        """Recorded facts of these types."""
        return [event.data for event in self.log if isinstance(event.data, types)]

    @property
    def waits(self) -> list[float]:
        """Seconds before each repetition, as recorded."""
        return [data.delay_us / 1_000_000 for data in self.data(CallRetryScheduled)]

    @property
    def trace(self) -> list[str]:
        """What happened, a line each, as the log tells it; but for rate limits, which are another matter."""
        lines: list[str] = []
        who = ""
        for data in self.data(object):
            match data:
                case RequestSent():
                    who = data.provider.rstrip("0123456789")
                case CallFailed():
                    lines.append(f"{who}: {data.error.kind}{' after some words' if data.partial else ''}")
                case CallInterrupted():
                    lines.append(f"{who}: {data.reason}")
                case ResponseCompleted():
                    lines.append(f"{who}: answered")
                case CallCacheHit():
                    lines.append("from the log")
                case CallRetryScheduled():
                    lines.append("again")
                case CallRerouted():
                    names = [name.partition(":")[0].rstrip("0123456789") for name in (data.source, data.target)]
                    lines.append(f"{names[0]} → {names[1]}: {data.reason}")
        return lines


class Bench:
    """Makes calls on one store, each in a session of its own and to servers of its own, so that none disturbs another."""

    def __init__(self, store: EventStore) -> None:
        self.store = store
        self.clock = Clock()
        self._calls = 0

    async def call(
        self,
        *scripts: Script | LLMProvider | str,
        stream: bool = True,
        retry: Retry = FAST,
        routing: Routing = Routing(),  # noqa: B008  frozen
        timeouts: Timeouts = Timeouts(),  # noqa: B008  frozen
        settings: Settings | None = None,
        contexts: Sequence[int | None] = (),
        timeout: float | None = None,
        shown: bool = True,
        **request: Any,
    ) -> Outcome:
        """A call to its end. Its candidates are `a`, `b`, … in the order of their scripts.

        Args:
            scripts: What each candidate's server says; a provider stands for itself, a text is an address.
            contexts: What each candidate has room for.
            request: Fields of the request.
            stream, retry, routing, timeouts, settings, timeout, shown: What the call is made with.
        """
        self._calls += 1
        number = self._calls
        async with AsyncExitStack() as stack:
            servers: list[Server] = []
            providers: dict[str, LLMProvider] = {}
            for letter, script in zip("abcdef", scripts, strict=False):
                # A name for each, as what the log knows of one is held against it.
                name = f"{letter}{number}"
                if isinstance(script, LLMProvider):
                    script.name = name
                    providers[name] = script
                    continue
                url = script
                if not isinstance(script, str):
                    servers.append(await stack.enter_async_context(Server(script)))
                    url = servers[-1].url + "/v1"
                made = OpenAIProvider(None, url, name=name, timeouts=timeouts)
                stack.push_async_callback(made.aclose)
                providers[name] = made
            settings = settings or Settings(retry=retry, routing_strategy=routing)
            manager = LLMManager(self.store, self.clock, providers.__getitem__, settings=settings)
            rooms = [*contexts, *[None] * len(providers)]
            candidates = [
                Candidate(name, "m", "asked for", context=room) for name, room in zip(providers, rooms, strict=False)
            ]
            outcome = await self.made(manager, candidates, stream=stream, timeout=timeout, shown=shown, **request)
            outcome.requests = [len(server.requests) for server in servers]
        _check(outcome)
        return outcome

    async def made(
        self,
        manager: LLMManager,
        candidates: Sequence[Candidate],
        *,
        stream: bool = True,
        timeout: float | None = None,
        cache: bool | None = None,
        private: bool = False,
        shown: bool = True,
        seen: Callable[[str], object] = str,
        **request: Any,
    ) -> Outcome:
        """A call of a manager to its end, in a session of its own; `seen` is told the deltas' texts as they come."""
        session, turn, step = self.clock.uuid7(), self.clock.short_id(), self.clock.short_id()
        context = CallContext(
            session,
            turn,
            step,
            (MessageRef("user"),),
            stream=stream,
            timeout=timeout,
            cache=cache,
            private=private,
            shown=shown,
        )
        asked = LLMRequest("", (Message("user", request.pop("prompt", "Why?")),), **request)
        opening = self._opening(session, turn, step)
        outcome, begun = Outcome(), time.monotonic()
        async with aclosing(manager.stream(candidates, asked, context, opening=opening)) as items:
            async for item in items:
                if isinstance(item, Delta):
                    seen(item.text)
                    outcome.deltas.append(item)
                    outcome.text += item.text
                    outcome.shown += item.text
                elif isinstance(item, Superseded):
                    outcome.text = ""
                    outcome.shown += "⟲"
                elif isinstance(item, CallEnd):
                    outcome.end, outcome.error = item, item.error
        outcome.seconds = time.monotonic() - begun
        outcome.log = [event async for event in self.store.read(session_id=session)]
        return outcome

    def _opening(self, session: str, turn: str, step: str) -> list[NewEvent]:
        owner = this_process()
        facts = (
            (SessionStarted("test", owner), None, None),
            (TurnStarted("direct", owner), turn, None),
            (StepStarted("answer"), turn, step),
        )
        return [NewEvent(session, data, self.clock.uuid7(), self.clock.now(), *ids) for data, *ids in facts]

    async def together(self, calls: dict[Any, Any]) -> dict[Any, Outcome]:
        """Many calls at once."""
        outcomes = await asyncio.gather(*calls.values())
        return dict(zip(calls, outcomes, strict=True))


def _check(outcome: Outcome) -> None:
    """What holds of every call: each attempt has one end, none begins before the last has ended, no word is lost."""
    open_attempt: int | None = None
    for data in outcome.data(RequestSent, *ENDS):
        if isinstance(data, RequestSent):
            assert open_attempt is None
            open_attempt = data.attempt
        else:
            assert open_attempt == data.attempt
            open_attempt = None
    assert open_attempt is None
    sent = outcome.data(RequestSent)
    assert [*range(1, len(sent) + 1)] == [data.attempt for data in sent]
    if not outcome.data(CallCacheHit) and (chunks := outcome.data(ChunkReceived)):
        assert len(outcome.deltas) == sum(len(chunk.texts) for chunk in chunks)


@asynccontextmanager
async def bench(path: Path) -> AsyncIterator[Bench]:
    """A bench on a store at `path`."""
    async with opened(path, synchronous="normal") as store:
        yield Bench(store)
