"""What an answer in OpenAI's format says, streamed or whole, as OpenAI and the many servers that took it over write it.

Source: OpenAI's API reference, "Chat Completions"; what compatible servers do differently stands
where it is dealt with.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import msgspec
from msgspec import Struct

from timeline.providers.base import (
    UNREADABLE,
    Delta,
    Finish,
    FinishReason,
    Item,
    OpaquePart,
    UsageReport,
    up_to,
    utf8,
)
from timeline.providers.chat_format import Kept
from timeline.providers.counters import chat_usage
from timeline.providers.failures import Complaint, Head
from timeline.providers.fragments import Fragments
from timeline.providers.repetition import Repetition
from timeline.providers.sources import Sources

__all__ = ["ChatParser"]

# Values are `Any` where servers differ in type: a typed field would refuse the whole chunk.


class _Function(Struct, gc=False):
    name: Any = None
    arguments: Any = None
    input: Any = None


class _ToolCall(Struct, gc=False):
    index: int | None = None
    id: Any = None
    function: _Function | None = None
    custom: _Function | None = None
    extra_content: Any = None


class _Message(Struct, gc=False):
    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    reasoning_details: Any = None
    thinking_blocks: Any = None
    refusal: Any = None
    tool_calls: list[_ToolCall] | _ToolCall | None = None
    function_call: _Function | None = None
    annotations: Any = None
    executed_tools: Any = None


class _Choice(Struct, gc=False):
    index: int | None = None
    delta: _Message | None = None
    message: _Message | None = None
    finish_reason: Any = None
    native_finish_reason: Any = None
    usage: Any = None
    error: Any = None


class _Groq(Struct, gc=False):
    id: Any = None
    usage: dict[str, Any] | None = None
    error: Any = None


class _Chunk(Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: Any = None
    error: Any = None
    model: str | None = None
    service_tier: Any = None
    citations: Any = None
    search_results: Any = None
    x_groq: _Groq | None = None


_decode = msgspec.json.Decoder(_Chunk).decode

_FINISH: dict[str, FinishReason] = {
    "stop": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "end_turn": "stop",
    "length": "length",
    "max_tokens": "length",
    "model_length": "length",
    "model_context_window_exceeded": "length",
    "tool_calls": "tool_calls",
    "tool_use": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
    "safety": "content_filter",
    "sensitive": "content_filter",
    "refusal": "content_filter",
    "blocklist": "content_filter",
    "prohibited_content": "content_filter",
    "recitation": "content_filter",
    "spii": "content_filter",
}
_FAILED = ("error", "insufficient_system_resource", "network_error")
"""Finish reasons of answers that a failure ended: OpenRouter's and Mistral's, DeepSeek's, Zhipu's."""


def _meaning(raw: str) -> FinishReason:
    """A finish reason in any server's words; Gemini's says in the same breath why: `content_filter: RECITATION`."""
    return _FINISH.get(raw.partition(":")[0].strip().lower(), "unknown")


class ChatParser:
    """One answer in OpenAI's format, as chunks or whole: a message differs from a delta by its field's name alone."""

    __slots__ = (
        "_calls",
        "_head",
        "_kept",
        "_message",
        "_model",
        "_raw_reason",
        "_repetition",
        "_request_id",
        "_sources",
        "_streamed",
        "_usage",
        "done",
    )

    def __init__(self, head: Head) -> None:
        self.done = False
        self._head = head
        self._calls = Fragments()
        self._kept = Kept()
        self._message = self._streamed = False
        self._model: str | None = None
        self._raw_reason: str | None = None
        self._repetition = Repetition()
        self._request_id = head.request_id
        self._sources = Sources(head.speaker.secrets)
        self._usage: dict[str, Any] | None = None

    def items(self, payload: bytes) -> Iterable[Item]:  # noqa: C901, PLR0912 - a call per chunk less
        """The items of one chunk, or of a whole answer; see `Parser.items`."""
        if text := self._repetition.text(payload):
            return (Delta(text),)
        try:
            chunk = _decode(payload)
        except UnicodeDecodeError:
            return self.items(utf8(payload))
        except UNREADABLE:
            stripped = payload.strip()
            if stripped == b"[DONE]":
                return self._finish()
            if not stripped:
                return ()
            raise self._head.bad(payload, what="what is no chunk of its format") from None
        items: list[Item] = []
        if chunk.choices:
            for choice in chunk.choices:
                if choice.index:
                    continue
                delta = choice.delta
                if delta is not None:
                    self._streamed = True
                elif not self._streamed:
                    # After deltas it is MiniMax's repetition of them all.
                    delta = choice.message
                    self._message = delta is not None
                if delta is not None:
                    if delta.reasoning_content or delta.reasoning:
                        _add_text(items, delta.reasoning_content or delta.reasoning, "reasoning")
                        if isinstance(delta.reasoning_content, str):
                            self._kept.thoughts.append(delta.reasoning_content)
                    if delta.reasoning_details or delta.thinking_blocks:
                        self._kept.add_details(delta.reasoning_details)
                        self._kept.add_blocks(delta.thinking_blocks)
                    content = delta.content
                    if content:
                        if content.__class__ is str:
                            items.append(Delta(content))
                            self._repetition.learn(payload, content, _only_text)
                        else:
                            _add_text(items, content, "text")
                    if delta.refusal:
                        _add_text(items, delta.refusal, "text")
                    if delta.tool_calls or delta.function_call or delta.annotations or delta.executed_tools:
                        self._read_calls(delta, items)
                if choice.finish_reason:
                    self._read_reason(choice, chunk)
        elif chunk.error is None:
            self._read_strange(payload)
        if chunk.citations or chunk.search_results:
            self._sources.list(chunk.search_results or chunk.citations)
        if self._model is None:
            self._model = chunk.model or None
        if chunk.usage or chunk.error is not None or chunk.x_groq is not None:
            return self._read_rest(chunk, items)
        return items

    def end(self) -> Iterable[Item]:
        """At end of file; see `Parser.end`."""
        if self.done:
            return ()
        if self._raw_reason is None and not self._message:
            raise self._head.broken()
        return self._finish()

    def _read_calls(self, delta: _Message, items: list[Item]) -> None:
        """The tools that are to be called, and the sources that tools of the server's found."""
        if delta.tool_calls:
            items += filter(None, map(self._call, _told_apart(delta.tool_calls)))
        if delta.function_call is not None:
            items += filter(None, (self._call(_ToolCall(0, None, delta.function_call)),))
        self._sources.add([delta.annotations, delta.executed_tools])

    def _call(self, call: _ToolCall) -> Delta | None:
        """A fragment of a tool call."""
        function = call.function or call.custom or _Function()
        call_id = call.id if isinstance(call.id, str) else None
        name = function.name if isinstance(function.name, str) else None
        arguments = function.arguments if function.arguments is not None else function.input
        if not isinstance(arguments, str):
            arguments = "" if arguments is None else msgspec.json.encode(arguments).decode()
        delta = self._calls.delta(call.index, call_id, name, arguments)
        if call.extra_content is not None:
            # Where it is all that the fragment tells, its call is still to begin.
            self._kept.extras[str(len(self._calls) if delta is None else delta.index)] = call.extra_content
        return delta

    def _read_reason(self, choice: _Choice, chunk: _Chunk) -> None:
        """Why the answer ended. Moonshot's usage stands beside it, and OpenRouter's error."""
        if not isinstance(choice.finish_reason, str):
            return
        self._raw_reason = choice.finish_reason
        chunk.usage = chunk.usage or choice.usage
        # OpenRouter says `stop` even where the network to its upstream broke.
        failed = [each for each in (choice.finish_reason, choice.native_finish_reason) if each in _FAILED]
        if failed and not chunk.error:
            chunk.error = choice.error or {"code": failed[-1]}

    def _read_rest(self, chunk: _Chunk, items: list[Item]) -> Iterable[Item]:
        usage, error, groq = chunk.usage, chunk.error, chunk.x_groq
        if groq is not None:
            usage = usage or groq.usage
            error = groq.error if error is None else error
            if self._request_id is None and isinstance(groq.id, str):
                self._request_id = groq.id
        if usage and usage != self._usage and isinstance(usage, dict):
            self._usage = usage
            read = chat_usage(usage, chunk.model or self._model or self._head.model)
            tier = chunk.service_tier if isinstance(chunk.service_tier, str) else None
            items += () if read is None else (UsageReport(read, usage, tier),)
        if not error:
            return items
        failure = self._head.error(Complaint.of({"error": error}))
        if not items:
            raise failure
        # What the chunk told besides, its usage above all, counts all the same.
        return up_to(failure, items)

    def _read_strange(self, payload: bytes) -> None:
        """What has no choices: often an error that doesn't stand under that name, as vLLM's and MiniMax's."""
        value = msgspec.json.decode(utf8(payload))
        base = value.get("base_resp")
        failed = isinstance(base, dict) and bool(base.get("status_code"))
        if failed or (
            "choices" not in value and (value.get("object") == "error" or {"message", "detail"} & value.keys())
        ):
            raise self._head.error(Complaint.of(value))

    def _finish(self) -> Iterable[Item]:
        if self.done:
            return ()
        self.done = True
        raw = self._raw_reason
        reason = _meaning(raw) if raw else "unknown"
        # Compatible servers say `stop` after calls; `length` stays, since it cut the arguments.
        if self._calls and reason in ("stop", "unknown"):
            reason = "tool_calls"
        return (
            Finish(
                reason,
                raw_reason=raw,
                model=self._model,
                request_id=self._request_id,
                rate_limits=self._head.rate_limits,
                provider=self._head.speaker.name,
                opaque=self._opaque(),
                sources=self._sources.all(),
            ),
        )

    def _opaque(self) -> tuple[OpaquePart, ...]:
        block = self._kept.block()
        return (OpaquePart(self._head.speaker.name, block),) if block and self._calls else ()


def _only_text(payload: bytes) -> str | None:
    """The text of a chunk that tells nothing but text, of the first answer of several."""
    chunk = _decode(payload)
    choices = chunk.choices or []
    if chunk.usage or chunk.error is not None or chunk.x_groq is not None or len(choices) != 1:
        return None
    choice = choices[0]
    told = {} if choice.delta is None else msgspec.structs.asdict(choice.delta)
    told = {name: value for name, value in told.items() if value}
    if choice.index or choice.finish_reason or told.keys() != {"content"} or not isinstance(told["content"], str):
        return None
    return told["content"]


def _told_apart(calls: list[_ToolCall] | _ToolCall) -> list[_ToolCall]:
    """The calls of one chunk, numbered anew where their server does so wrongly or not at all.

    Gemini has sent whole parallel calls all with number 0 and no ids: then the numbers mean nothing. Bare pieces of
    arguments go to the calls in their order. Hugging Face's server makes no list of its one call.
    """
    if isinstance(calls, _ToolCall):
        return [calls]
    if len(calls) < 2:  # noqa: PLR2004 - one stands for itself
        return calls
    numbers: set[int | None] = set()
    named = [bool(call.function is not None and call.function.name) for call in calls]
    bare = not any(named) and all(call.index is None and not call.id for call in calls)
    for place, call in enumerate(calls):
        if bare:
            call.index = place
        elif call.index in numbers and named[place]:
            call.index = None
        numbers.add(call.index)
    return calls


def _add_text(items: list[Item], content: Any, kind: Literal["text", "reasoning"]) -> None:
    """Text as a string, or as a list of parts, thinking among them with parts of its own (Mistral)."""
    if isinstance(content, str):
        items.append(Delta(content, kind))
    for part in content if isinstance(content, list) else ():
        if isinstance(part, dict):
            if part.get("text"):
                _add_text(items, part["text"], kind)
            if part.get("thinking"):
                _add_text(items, part["thinking"], "reasoning")
