"""One attempt of a call: its events from `request.sent` to its one end, and the state between them.

Deltas go to the log in windows; exactly one of `response.completed`, `call.failed` and `call.interrupted` ends it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from operator import sub
from typing import Any

import msgspec
from msgspec import Struct

from timeline.config import BudgetConfig
from timeline.errors import BrokenStream, PluginError, ProviderError, TimelineError
from timeline.events import (
    CallCacheHit,
    CallFailed,
    CallInterrupted,
    ChunkReceived,
    Clock,
    Cost,
    DeltaKind,
    ErrorInfo,
    Event,
    EventData,
    InterruptReason,
    MessageRef,
    NewEvent,
    RequestSent,
    ResponseAnnotated,
    ResponseCompleted,
    Usage,
    UsageSource,
)
from timeline.llm.pricing import PriceBook, estimate_tokens, together
from timeline.providers.base import (
    Besides,
    Collector,
    Delta,
    Finish,
    Item,
    LLMProvider,
    LLMRequest,
    LLMResponse,
    UsageReport,
)
from timeline.store import EventStore, content_digest, this_process

__all__ = [
    "Attempt",
    "CallContext",
    "CallEnd",
    "Commits",
    "encoded_tools",
    "error_info",
    "interrupt_reason",
]

_FAR_BELOW = 2.5
"""An estimate is seldom wrong by more than this factor."""
_SHORT_PROMPT = 1000
"""Tokens up to which no context is too small."""
WINDOW_SECONDS = 0.1
WINDOW_NS = int(WINDOW_SECONDS * 1e9)
WINDOW_CHARACTERS = 64 * 1024


class CallContext(Struct, frozen=True):
    """Where a call belongs and what may be written about it.

    Args:
        session_id, turn_id, step_id: What it is part of.
        messages: What is sent, as references, system prompt first.
        private: Record totals, not bodies.
        stream: Ask for a streamed answer.
        shown: Whether the caller shows what comes to somebody, who would see it taken back.
        quoting: Its further fields (`LLMRequest.extra`) repeat what was said, which stands in the log once, as a body that
            can be forgotten.
        timeout: Seconds that it may take until its first words, waits included; None for the configured one.
        cache: Whether an equal request's answer will do; None for what is configured.
        budgets: Further budgets, beside the configured ones.
        dispensable: Whether the turn goes on where its answer breaks off or can't be read.
    """

    session_id: str
    turn_id: str
    step_id: str
    messages: tuple[MessageRef, ...]
    private: bool = False
    stream: bool = True
    shown: bool = True
    quoting: bool = False
    timeout: float | None = None
    cache: bool | None = None
    budgets: tuple[BudgetConfig, ...] = ()
    dispensable: bool = False


class CallEnd(Struct, frozen=True):
    """The last item of a call; what is enqueued before the stream is resumed is committed together with it.

    Args:
        call_id: Which call.
        data: How its last attempt ended, or whence its answer was taken; None where no attempt was made.
        text: The answer's text, as far as it came.
        error: The failure, if it failed.
        response: The whole answer, if it didn't.
    """

    call_id: str
    data: ResponseCompleted | CallFailed | CallCacheHit | None
    text: str
    error: TimelineError | None = None
    response: LLMResponse | None = None


class Commits:
    """Futures of what was enqueued, in order. `some` is true when one is done: it is asked with every delta."""

    def __init__(self) -> None:
        self._futures: deque[asyncio.Future[list[Event]]] = deque()
        self.some = False

    def push(self, future: asyncio.Future[list[Event]]) -> None:
        """What `EventStore.enqueue` returned."""
        self._futures.append(future)
        future.add_done_callback(self._done)

    def _done(self, _: asyncio.Future[list[Event]]) -> None:
        self.some = True

    def pop(self) -> list[Event]:
        """What was committed since the last time; raises what an append failed with."""
        self.some = False
        events: list[Event] = []
        while self._futures and self._futures[0].done():
            events += self._futures.popleft().result()
        return events

    def drain(self) -> list[asyncio.Future[list[Event]]]:
        """Those that are left, to be waited for."""
        futures = list(self._futures)
        self._futures.clear()
        return futures


class Attempt:
    """The events of one attempt and the state between them.

    Attributes:
        request_sent: The first event, once `reserve` has made it; `begin` says that it is committed.
        committed: What was enqueued since.
        ended: Whether its end is among that.
    """

    request_sent: NewEvent
    ended = False

    def __init__(
        self,
        store: EventStore,
        clock: Clock,
        prices: PriceBook,
        provider: LLMProvider,
        request: LLMRequest,
        context: CallContext,
        *,
        call_id: str,
        number: int,
        why: str,
        local: bool,
    ) -> None:
        self._store = store
        self._clock = clock
        self._prices = prices
        self._provider = provider
        self._request = request
        self._context = context
        self._call_id = call_id
        self._number = number
        self._why = why
        self._local = local
        self._sent_at = clock.now()
        self._monotonic_ns = clock.monotonic_ns
        self._started = clock.monotonic_ns()
        self._first_delta: int | None = None
        self._last_delta = self._started
        self._estimated_input = _estimate_input(request)
        self._usage: UsageReport | None = None
        self._finish: Finish | None = None
        self._answer: list[str] = []
        self._reasoning: list[str] = []
        self._tool_calls: list[Delta] = []
        # The window that is open.
        self._texts: list[str] = []
        self._times: list[int] = []
        self._kind: DeltaKind = "text"
        self._first_index = 0
        self._characters = 0
        self._due = 0
        self._now = 0
        self._timer: asyncio.TimerHandle | None = None
        self.committed = Commits()

    # -------------------------------------------------------------- beginning

    def reserve(self, request_digest: str | None, nano_usd: int, tokens: int) -> None:
        """Make `request_sent`, the event to commit before a connection is opened.

        Args:
            request_digest: See `timeline.events.RequestSent`.
            nano_usd: What it may cost at most, nano-US-dollars.
            tokens: What it may use at most, prompt and answer.
        """
        request, context, provider = self._request, self._context, self._provider
        self.request_sent = self._new(
            RequestSent(
                attempt=self._number,
                provider=provider.name,
                model=request.model,
                why=self._why,
                messages=context.messages,
                owner=this_process(),
                params=_params(request, context),
                tools=content_digest(encoded_tools(request)) if request.tools else None,
                stream=context.stream,
                estimated_input_tokens=self._estimated_input,
                reserved_nano_usd=nano_usd,
                request_digest=request_digest,
                local=self._local,
                reserved_tokens=tokens,
                key=getattr(provider, "key_mark", None),
            )
        )

    def begin(self) -> None:
        """`request_sent` is committed: the request goes out now."""
        self._prices.expect(self._provider.name, self._request.model, local=self._local)
        self._sent_at = self._clock.now()
        self._started = self._last_delta = self._clock.monotonic_ns()

    def unsent(self, reason: InterruptReason) -> NewEvent:
        """Its end, where it was given up between `request_sent` and the request."""
        return self._new(CallInterrupted(self._number, reason, Usage(), "none"))

    def items(self) -> AsyncIterator[Item]:
        """What the provider answers."""
        request = self._request
        return self._provider.stream_request(request) if self._context.stream else _batch(self._provider, request)

    @property
    def shown(self) -> bool:
        """Whether anything has come that somebody was shown."""
        return self._context.shown and (self._first_delta is not None or bool(self._texts))

    # -------------------------------------------------------------- while it streams

    def take(self, item: Item) -> bool:
        """Record an item of the provider's; whether it is one to show."""
        if type(item) is Delta:
            now = self._now or self._look_at_clock()
            if item.kind != self._kind:
                self.flush()
                self._kind = item.kind
            if item.kind == "tool_call":
                self._tool_calls.append(item)
                text = _tool_fragment(item)
            else:
                text = item.text
            self._texts.append(text)
            self._times.append(now)
            self._characters += len(text)
            if now >= self._due or self._characters >= WINDOW_CHARACTERS:
                self.flush()
            elif self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(WINDOW_SECONDS, self.flush)
            return True
        if isinstance(item, UsageReport):
            self._usage = item
        elif isinstance(item, Finish):
            self._finish = item
        return False

    def _look_at_clock(self) -> int:
        """The time, which holds until the event loop turns: what is taken until then came with the same read."""
        self._now = self._monotonic_ns()
        asyncio.get_running_loop().call_soon(self._forget_time)
        return self._now

    def _forget_time(self) -> None:
        self._now = 0

    def flush(self) -> None:
        """Put the open window in line for the log."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._texts:
            return
        self._due = self._monotonic_ns() + WINDOW_NS
        if self._first_delta is None:
            self._first_delta = self._times[0]
        if self._kind == "text":
            self._answer += self._texts
        elif self._kind == "reasoning":
            self._reasoning += self._texts
        if not self._context.private:
            micros = [(now - self._started) // 1000 for now in (self._last_delta, *self._times)]
            chunk = ChunkReceived(
                first=self._first_index,
                texts=tuple(self._texts),
                gaps_us=tuple(map(sub, micros[1:], micros)),
                kind=self._kind,
                attempt=self._number,
            )
            self.committed.push(self._enqueue(chunk))
        self._first_index += len(self._texts)
        self._last_delta = self._times[-1]
        self._texts, self._times, self._characters = [], [], 0

    # -------------------------------------------------------------- its one end

    async def priced(self) -> None:
        """Wait until what it cost can be told at once."""
        await self._prices.ready(self._provider.name, self._request.model, local=self._was_local())

    def complete(self) -> CallEnd:
        """The provider gave a whole answer."""
        if self._finish is None:
            msg = f"{self._provider.name} ended its answer without saying that it is whole: ask again"
            raise BrokenStream(msg, provider=self._provider.name)
        if self._finish.reason == "stop" and self._tool_calls:
            # Some say so of an answer that waits for the results of its calls.
            self._finish = msgspec.structs.replace(self._finish, reason="tool_calls")
        finish, text = self._finish, self._text()
        usage, source = self._so_far()
        done = ResponseCompleted(
            attempt=self._number,
            finish_reason=finish.reason,
            usage=usage,
            usage_source=source,
            cost=self._cost(usage, finish.model),
            duration_us=self._elapsed(),
            time_to_first_token_us=self._time_to_first_token(),
            raw_finish_reason=finish.raw_reason,
            raw_usage=self._usage.raw if self._usage else None,
            model=finish.model,
            request_id=finish.request_id,
            text_digest=None if self._context.private else content_digest(text),
            rate_limits=finish.rate_limits,
            cut_from=self._cut_from(),
            model_digest=self._provider.model_digest(self._request.model),
            service_tier=self._usage.tier if self._usage else None,
        )
        if (finish.sources or finish.explanation) and not self._context.private:
            self.committed.push(self._enqueue(ResponseAnnotated(finish.sources, finish.explanation, self._number)))
        self._end(done)
        return CallEnd(self._call_id, done, text, response=self._response())

    def fail(self, exc: TimelineError) -> CallEnd:
        """The provider, the way to it, or the model's file failed."""
        text = self._text()
        used = self._usage or text or self._reasoning or self._tool_calls
        usage, source = self._so_far()
        failed = CallFailed(
            attempt=self._number,
            error=error_info(exc, private=self._context.private),
            duration_us=self._elapsed(),
            partial=bool(text),
            usage=usage if used else None,
            usage_source=source if used else "none",
            cost=self._cost(usage) if used else None,
            rate_limits=exc.rate_limits if isinstance(exc, ProviderError) else (),
        )
        self._end(failed)
        return CallEnd(self._call_id, failed, text, exc)

    def interrupt(self, reason: InterruptReason) -> None:
        """The caller stopped it."""
        self.flush()
        usage, source = self._so_far()
        self._end(
            CallInterrupted(
                attempt=self._number,
                reason=reason,
                usage=usage,
                usage_source=source,
                cost=self._cost(usage),
                duration_us=self._elapsed(),
            )
        )

    def _response(self) -> LLMResponse:
        collector = Collector()
        items = [Delta("".join(self._answer)), Delta("".join(self._reasoning), "reasoning"), *self._tool_calls]
        for item in (*items, self._usage, self._finish):
            if item is not None:
                collector.add(item)
        return collector.response(provider=self._provider.name, model=self._request.model)

    def _text(self) -> str:
        """The answer as far as it came; the window that is open is put in line."""
        self.flush()
        return "".join(self._answer)

    def _end(self, data: EventData) -> None:
        self.ended = True
        self.flush()
        self.committed.push(self._enqueue(data))

    def _was_local(self) -> bool:
        """Whether it was computed here: a local server may tell only with its answer that it passed the question on."""
        try:
            return self._local and self._provider.is_local(self._request.model)
        except PluginError:
            # However little its provider knows of itself, an attempt has its end.
            return self._local

    def _cost(self, usage: Usage, returned: str | None = None) -> Cost:
        request, extra, local = self._request, self._request.extra, self._was_local()
        if self._usage is not None and self._usage.tier is not None:
            # The tier it was answered in, which may not be the one that was asked for.
            extra = {**extra, "service_tier": self._usage.tier}
        own = Besides(usage)
        return together(
            [
                self._prices.cost(
                    self._provider.name,
                    (part.model,) if part.model else (returned, request.model),
                    part.usage,
                    local=local,
                    at=self._sent_at,
                    extra=extra,
                )
                for part in (own, *(self._usage.besides if self._usage else ()))
            ]
        )

    def _so_far(self) -> tuple[Usage, UsageSource]:
        """What was used up to here, and whose numbers these are."""
        estimate = self._estimate()
        if self._usage is None:
            return estimate, "estimated"
        told = self._usage.usage
        if not self._usage.begun:
            return told, "provider"
        output = max(told.output, estimate.output)
        return msgspec.structs.replace(told, output=output, reasoning=estimate.reasoning), "estimated"

    def _estimate(self) -> Usage:
        """What nobody counted: of all that came, reasoning and wishes for tools too."""
        reasoning = estimate_tokens("".join(self._reasoning))
        wishes = estimate_tokens("".join(call.text for call in self._tool_calls))
        said = estimate_tokens("".join(self._answer))
        return Usage(input=self._estimated_input, output=said + reasoning + wishes, reasoning=reasoning)

    def _cut_from(self) -> int | None:
        """How long the prompt was, where so little of it was counted that a part must have been left out."""
        if any(message.role == "assistant" for message in self._request.messages):
            # Who cuts unsaid may also leave out of the count what it still had from the request before.
            return None
        counted = self._usage.usage.total_input if self._usage and self._provider.cuts_prompts else 0
        return self._estimated_input if 0 < counted * _FAR_BELOW < self._estimated_input - _SHORT_PROMPT else None

    def _elapsed(self) -> int:
        return (self._clock.monotonic_ns() - self._started) // 1000

    def _time_to_first_token(self) -> int | None:
        return None if self._first_delta is None else (self._first_delta - self._started) // 1000

    def _enqueue(self, data: EventData) -> asyncio.Future[list[Event]]:
        return self._store.enqueue([self._new(data)])

    def _new(self, data: EventData) -> NewEvent:
        return NewEvent(
            session_id=self._context.session_id,
            data=data,
            event_id=self._clock.uuid7(),
            recorded_at=self._clock.now(),
            # A window's turn and step are its call's; there are many windows.
            turn_id=None if isinstance(data, ChunkReceived) else self._context.turn_id,
            step_id=None if isinstance(data, ChunkReceived) else self._context.step_id,
            call_id=self._call_id,
        )


async def _batch(provider: LLMProvider, request: LLMRequest) -> AsyncIterator[Item]:
    """A batch answer as the stream it would have been."""
    response = await provider.make_request(request)
    if response.reasoning:
        yield Delta(response.reasoning, "reasoning")
    if response.content:
        yield Delta(response.content)
    for index, call in enumerate(response.tool_calls):
        yield Delta(msgspec.json.encode(call.arguments).decode(), "tool_call", index, call.id, call.name)
    if response.usage_reported:
        yield UsageReport(response.usage, response.raw_usage or {}, response.tier, response.besides)
    yield Finish(
        response.finish_reason,
        response.raw_finish_reason,
        response.model,
        response.request_id,
        response.rate_limits,
        response.opaque,
        explanation=response.explanation,
        sources=response.sources,
    )


def _tool_fragment(delta: Delta) -> str:
    fragment: dict[str, Any] = {"index": delta.index, "id": delta.id, "name": delta.name, "arguments": delta.text}
    return msgspec.json.encode({key: value for key, value in fragment.items() if value is not None}).decode()


def _params(request: LLMRequest, context: CallContext) -> dict[str, Any]:
    """What was asked for beside messages and tools, where it isn't the default; of a private call no words of the user's."""
    names = ["temperature", "max_tokens", "seed", "reasoning"]
    names += [] if context.private else ["stop", "tool_choice", "response_schema"]
    names += [] if context.private or context.quoting else ["extra"]
    return {name: value for name in names if (value := getattr(request, name)) not in (None, (), {})}


def _estimate_input(request: LLMRequest) -> int:
    """About how many tokens are sent: words, tools and schema."""
    tools = encoded_tools(request) if request.tools else ""
    schema = msgspec.json.encode(request.response_schema).decode() if request.response_schema else ""
    said = (text for message in request.messages for text in (message.text, message.opaque_text))
    return estimate_tokens(request.system or "", *said, tools, schema)


def encoded_tools(request: LLMRequest) -> str:
    """The tool schemas as the log keeps them."""
    return msgspec.json.encode(request.tools).decode()


def error_info(exc: TimelineError, *, private: bool = False) -> ErrorInfo:
    """An error as the log keeps it; of a private call without the provider's words, which may quote the prompt."""
    message = f"{exc.kind} (message not recorded)" if private else str(exc)
    if not isinstance(exc, ProviderError):
        return ErrorInfo(exc.kind, message)
    return ErrorInfo(exc.kind, message, exc.status, exc.code, exc.retryable, exc.retry_after, exc.request_id)


def interrupt_reason(exc: BaseException) -> InterruptReason:
    """Why a stream was stopped: `closed` by who read it (or a signal to end), else `sigint`."""
    asked_to_end = isinstance(exc, asyncio.CancelledError) and bool(exc.args) and exc.args[0] == "closed"
    return "closed" if isinstance(exc, GeneratorExit) or asked_to_end else "sigint"
