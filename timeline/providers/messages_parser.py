"""What an answer in Anthropic's format says, streamed or whole: content in blocks, usage that is overwritten as it grows.

Source: Anthropic's API reference, "Messages", "Streaming messages" and "Extended thinking".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import msgspec
from msgspec import Struct

from timeline.events import Usage
from timeline.providers.base import (
    UNREADABLE,
    Besides,
    Delta,
    Finish,
    FinishReason,
    Item,
    OpaquePart,
    UsageReport,
    up_to,
    utf8,
)
from timeline.providers.counters import count, is_count, is_told
from timeline.providers.failures import Complaint, Head
from timeline.providers.repetition import Repetition
from timeline.providers.sources import Sources

__all__ = ["MessagesParser"]


class _Delta(Struct, gc=False):
    type: str | None = None
    text: Any = None
    partial_json: Any = None
    thinking: Any = None
    signature: Any = None
    citation: Any = None
    content: Any = None
    stop_reason: Any = None
    stop_details: Any = None


class _Event(Struct, gc=False):
    type: str | None = None
    index: int = 0
    delta: _Delta | None = None
    content_block: dict[str, Any] | None = None
    message: dict[str, Any] | None = None
    usage: dict[str, Any] | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Event).decode

_FINISH: dict[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "pause_turn": "pause",
    "compaction": "pause",
    "refusal": "content_filter",
    # In the words of servers that took its format over.
    "stop": "stop",
    "length": "length",
    "sensitive": "content_filter",
    "content_filter": "content_filter",
}


_COUNTED = ("input_tokens", "output_tokens")


def read_usage(raw: Mapping[str, Any]) -> Usage:
    """Anthropic's counters: `input_tokens` leaves the cache out already, and `output_tokens` includes thinking."""
    split, details = raw.get("cache_creation"), raw.get("output_tokens_details")
    written = count(raw, "cache_creation_input_tokens")
    hour = count(split, "ephemeral_1h_input_tokens")
    written = max(written, hour + count(split, "ephemeral_5m_input_tokens"))
    return Usage(
        input=count(raw, "input_tokens"),
        cache_read=count(raw, "cache_read_input_tokens"),
        cache_write=written - hour,
        cache_write_1h=hour,
        output=count(raw, "output_tokens"),
        reasoning=count(details, "thinking_tokens"),
    )


def read_besides(raw: Mapping[str, Any]) -> tuple[Besides, ...]:
    """What summaries of the conversation and advisors used, which is in none of the answer's counters.

    Source: its API reference, "Messages", `usage.iterations`.
    """
    steps = raw.get("iterations")
    return tuple(
        Besides(read_usage(step), _text(step.get("model")))
        for step in (steps if isinstance(steps, list) else ())
        if isinstance(step, dict) and step.get("type") in ("compaction", "advisor_message")
    )


def _text(value: Any) -> str | None:
    return value if value and isinstance(value, str) else None


class MessagesParser:
    """One answer in Anthropic's format, as events or whole.

    Args:
        head: The response's.
        answer_tool: The tool whose arguments are the answer's text, where a schema was put as a tool.
    """

    __slots__ = (
        "_answer_tool",
        "_begun",
        "_blocks",
        "_calls",
        "_details",
        "_head",
        "_joined",
        "_model",
        "_raw_reason",
        "_repetition",
        "_sources",
        "_usage",
        "done",
    )

    def __init__(self, head: Head, answer_tool: str | None = None) -> None:
        self.done = False
        self._head = head
        self._answer_tool = answer_tool
        self._begun = False
        self._blocks: dict[int, dict[str, Any]] = {}
        self._joined: dict[int, list[str]] = {}
        self._calls: dict[int, int] = {}
        self._details: Any = None
        self._model: str | None = None
        self._raw_reason: str | None = None
        self._repetition = Repetition()
        self._sources = Sources(head.speaker.secrets)
        self._usage: dict[str, Any] = {}

    def items(self, payload: bytes) -> Iterable[Item]:  # noqa: PLR0911 - a call per event less
        """The items of one event, or of a whole message; see `Parser.items`."""
        if self.done:
            return ()
        if text := self._repetition.text(payload):
            return (Delta(text),)
        try:
            event = _decode(payload)
        except UnicodeDecodeError:
            return self.items(utf8(payload))
        except UNREADABLE:
            if payload.strip() in (b"[DONE]", b""):
                return ()
            raise self._head.bad(payload, what="what is no event of its format") from None
        delta = event.delta
        if delta is not None and event.type == "content_block_delta":
            if delta.text.__class__ is str and delta.type == "text_delta":
                if not delta.text:
                    return ()
                self._repetition.learn(payload, delta.text, _only_text)
                return (Delta(delta.text),)
            return self._grow(event.index, delta)
        if event.error is None:
            return self._other(event, payload)
        # What the event tells besides, its usage above all, counts all the same.
        failure = self._head.error(Complaint.of(msgspec.json.decode(utf8(payload))))
        return up_to(failure, self._overwrite(event.usage))

    def end(self) -> Iterable[Item]:
        """At end of file; see `Parser.end`."""
        if self.done:
            return ()
        if self._raw_reason is None:
            raise self._head.broken()
        return self._finish()

    def _other(self, event: _Event, payload: bytes) -> Iterable[Item]:
        """An event that isn't a piece of a block."""
        match event.type:
            case "content_block_start" if event.content_block is not None:
                return self._start(event.index, event.content_block)
            case "content_block_stop":
                return self._stop(event.index)
            case "message_start" if event.message is not None:
                return self._begin(event.message, begun=True)
            case "message_delta":
                if event.delta is not None:
                    self._raw_reason = _text(event.delta.stop_reason) or self._raw_reason
                    self._details = event.delta.stop_details or self._details
                return self._overwrite(event.usage)
            case "message_stop":
                return self._finish()
            case "message":
                return self._whole(msgspec.json.decode(utf8(payload)))
            case "error":
                raise self._head.error(Complaint.of(msgspec.json.decode(utf8(payload))))
            case None:
                raise self._head.bad(payload, what="what is no event of its format")
        return ()

    def _whole(self, message: dict[str, Any]) -> Iterable[Item]:
        items = [*self._begin(message)]
        self._raw_reason = _text(message.get("stop_reason")) or ""
        self._details = message.get("stop_details")
        return [*items, *self._finish()]

    def _begin(self, message: dict[str, Any], *, begun: bool = False) -> Iterable[Item]:
        """What a message tells of itself: all, or what stands before a stream's first block.

        A tool that is called from within the code that the server runs comes so, with the reason for the stop.
        """
        items: list[Item] = []
        self._model = _text(message.get("model")) or self._model
        content = message.get("content")
        blocks = [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []
        if blocks:
            self._raw_reason = _text(message.get("stop_reason"))
        for index, block in enumerate(blocks, -len(blocks)):
            items += self._start(index, block)
            items += self._stop(index)
        items += self._overwrite(message.get("usage"), begun=begun)
        return items

    def _start(self, index: int, block: dict[str, Any]) -> Iterable[Item]:
        self._blocks[index] = block
        self._joined[index] = []
        self._sources.add(block.get("citations"))
        match block.get("type"):
            case "text":
                return (Delta(text),) if (text := _text(block.get("text"))) else ()
            case "thinking":
                return (Delta(text, "reasoning"),) if (text := _text(block.get("thinking"))) else ()
            case "tool_use":
                if block.get("name") == self._answer_tool:
                    return ()
                number = self._calls[index] = max(self._calls.values(), default=-1) + 1
                return (Delta("", "tool_call", number, _text(block.get("id")), _text(block.get("name"))),)
            case "fallback":
                # From here on another model answers than the one that was asked.
                to = block.get("to")
                self._model = (_text(to.get("model")) if isinstance(to, dict) else None) or self._model
        return ()

    def _grow(self, index: int, delta: _Delta) -> Iterable[Item]:
        """A piece of a block that isn't text of the answer."""
        block = self._blocks.setdefault(index, {"type": "text"})
        if delta.type == "input_json_delta" and isinstance(delta.partial_json, str):
            self._joined.setdefault(index, []).append(delta.partial_json)
            return self._arguments(index, block, delta.partial_json)
        if delta.type == "thinking_delta" and isinstance(delta.thinking, str):
            self._joined.setdefault(index, []).append(delta.thinking)
            return (Delta(delta.thinking, "reasoning"),) if delta.thinking else ()
        if delta.type == "signature_delta" and isinstance(delta.signature, str):
            block["signature"] = str(block.get("signature") or "") + delta.signature
        elif delta.type == "citations_delta":
            self._sources.add(delta.citation)
        elif delta.type == "compaction_delta" and isinstance(delta.content, str):
            block["content"] = str(block.get("content") or "") + delta.content
        return ()

    def _arguments(self, index: int, block: dict[str, Any], text: str) -> Iterable[Item]:
        if not text or block.get("type") != "tool_use":
            return ()
        number = self._calls.get(index)
        return (Delta(text) if number is None else Delta(text, "tool_call", number),)

    def _stop(self, index: int) -> Iterable[Item]:
        """The block is whole: its thoughts and input are what the pieces said, or what it began with."""
        block, text = self._blocks.get(index), "".join(self._joined.pop(index, ()))
        if block is None:
            return ()
        if block.get("type") == "thinking":
            block["thinking"] = str(block.get("thinking") or "") + text
        if "input" not in block:
            return ()
        if not text:
            return self._arguments(index, block, msgspec.json.encode(block["input"]).decode() if block["input"] else "")
        if block.get("type") != "tool_use":
            # An answer at its limit of tokens can end within the input.
            with suppress(*UNREADABLE):
                block["input"] = msgspec.json.decode(text)
        return ()

    def _overwrite(self, usage: Any, *, begun: bool = False) -> Iterable[Item]:
        """Counters overwrite; a null, missing or strange one keeps what `message_start` said.

        What that says of the output is no count of it, until another event has one.
        """
        if not isinstance(usage, dict):
            return ()
        merged = {**self._usage, **{key: value for key, value in usage.items() if value is not None}}
        for key in _COUNTED:
            if is_count(self._usage.get(key)) and not is_count(merged[key]):
                merged[key] = self._usage[key]
        begun = begun or (self._begun and not is_count(usage.get("output_tokens")))
        if merged == self._usage and begun == self._begun:
            return ()
        self._usage, self._begun = merged, begun
        tier = _text(merged.get("service_tier"))
        if not is_told(merged, *_COUNTED):
            return ()
        return (UsageReport(read_usage(merged), merged, tier, read_besides(merged), begun),)

    def _finish(self) -> list[Item]:
        self.done = True
        items = [item for index in list(self._joined) for item in self._stop(index)]
        reason = _FINISH.get(self._raw_reason or "", "unknown")
        if reason == "tool_calls" and not self._calls:
            reason = "stop"  # The tool was the schema's.
        elif reason == "unknown" and self._calls:
            reason = "tool_calls"
        explanation = _text(self._details.get("explanation")) if isinstance(self._details, dict) else None
        items.append(
            Finish(
                reason,
                raw_reason=self._raw_reason or None,
                model=self._model,
                request_id=self._head.request_id,
                rate_limits=self._head.rate_limits,
                provider=self._head.speaker.name,
                opaque=tuple(
                    OpaquePart("anthropic", block) for _, block in sorted(self._blocks.items()) if _kept(block)
                ),
                explanation=None if explanation is None else self._head.speaker.quote(explanation),
                sources=self._sources.all(),
            )
        )
        return items


def _only_text(payload: bytes) -> str | None:
    """The text of an event that tells nothing but a piece of text."""
    event = _decode(payload)
    if event.type != "content_block_delta" or event.delta is None or event.delta.type != "text_delta":
        return None
    return event.delta.text if isinstance(event.delta.text, str) else None


def _kept(block: dict[str, Any]) -> bool:
    """Whether a block goes back unchanged: all but text, calls, and thoughts that nothing signs."""
    match block.get("type"):
        case "text" | "tool_use":
            return False
        case "thinking":
            return bool(block.get("signature"))
    return True
