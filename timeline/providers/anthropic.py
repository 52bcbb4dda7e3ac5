"""Anthropic's `/v1/messages`: content in blocks, usage that is overwritten as it grows, thinking with signatures.

Source: Anthropic's API reference, "Messages", "Streaming messages", "Extended thinking", "Structured outputs"
and "Models".
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, ClassVar

import msgspec
from msgspec import Struct

from timeline.events import Usage
from timeline.providers.base import (
    UNREADABLE,
    Besides,
    Capabilities,
    Delta,
    Finish,
    FinishReason,
    ImagePart,
    Item,
    LLMRequest,
    Message,
    ModelInfo,
    OpaquePart,
    TextPart,
    UsageReport,
    up_to,
    utf8,
)
from timeline.providers.claude import (
    ANSWER_TOOL,
    chooses_itself,
    constrain,
    default_max_tokens,
    named,
    schema_as_tool,
    takes_temperature,
    think,
)
from timeline.providers.counters import count, is_count, is_told
from timeline.providers.failures import Complaint
from timeline.providers.http import Head, HTTPProvider, Parser
from timeline.providers.repetition import Repetition
from timeline.providers.sources import Sources
from timeline.providers.waiting import Timeouts

__all__ = ["AnthropicProvider", "MessagesParser"]

VERSION = "2023-06-01"


# ------------------------------------------------------------------ what comes out


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
        self._blocks: dict[int, dict[str, Any]] = {}
        self._joined: dict[int, list[str]] = {}
        self._calls: dict[int, int] = {}
        self._details: Any = None
        self._model: str | None = None
        self._raw_reason: str | None = None
        self._repetition = Repetition()
        self._sources = Sources()
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
                return self._begin(event.message)
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

    def _begin(self, message: dict[str, Any]) -> Iterable[Item]:
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
        items += self._overwrite(message.get("usage"))
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

    def _overwrite(self, usage: Any) -> Iterable[Item]:
        """Counters overwrite; a null, missing or strange one keeps what `message_start` said."""
        if not isinstance(usage, dict):
            return ()
        merged = {**self._usage, **{key: value for key, value in usage.items() if value is not None}}
        for key in _COUNTED:
            if is_count(self._usage.get(key)) and not is_count(merged[key]):
                merged[key] = self._usage[key]
        if merged == self._usage:
            return ()
        self._usage = merged
        tier = _text(merged.get("service_tier"))
        if not is_told(merged, *_COUNTED):
            return ()
        return (UsageReport(read_usage(merged), merged, tier, read_besides(merged)),)

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


# ------------------------------------------------------------------ what goes in


def conversation(request: LLMRequest) -> tuple[str, list[dict[str, Any]]]:
    """System prompt and messages: roles take turns, results of parallel calls stand in one message, nothing is empty."""
    system = [request.system] if request.system else []
    turns: list[dict[str, Any]] = []
    for message in request.messages:
        if message.role == "system":
            system.append(message.text)
            continue
        role = "assistant" if message.role == "assistant" else "user"
        blocks = _blocks(message)
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        elif blocks:
            turns.append({"role": role, "content": blocks})
    if turns and turns[-1]["role"] == "assistant" and turns[-1]["content"][-1].get("type") == "text":
        turns[-1]["content"][-1]["text"] = turns[-1]["content"][-1]["text"].rstrip()
    return "\n\n".join(filter(None, system)), turns


def _blocks(message: Message) -> list[dict[str, Any]]:
    content = (TextPart(message.content),) if isinstance(message.content, str) else message.content
    blocks: list[dict[str, Any]] = []
    for part in content:
        match part:
            case TextPart(text=text) if text:
                blocks.append({"type": "text", "text": text})
            case ImagePart(media_type=media_type, data=data):
                kind = "document" if media_type == "application/pdf" else "image"
                encoded = base64.b64encode(data).decode("ascii")
                source = {"type": "base64", "media_type": media_type, "data": encoded}
                blocks.append({"type": kind, "source": source})
            case OpaquePart(provider="anthropic", block=block):
                blocks.append(block)
    if message.role == "tool":
        if message.is_error and not blocks:
            # It refuses an error that says nothing.
            blocks.append({"type": "text", "text": "It failed."})
        result: dict[str, Any] = {"type": "tool_result", "tool_use_id": message.tool_call_id or "", "content": blocks}
        return [{**result, "is_error": True} if message.is_error else result]
    blocks += [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments} for call in message.tool_calls
    ]
    return blocks


class AnthropicProvider(HTTPProvider):
    """Anthropic, or any server that speaks its format.

    Args:
        api_key: From https://console.anthropic.com/settings/keys.
        base_url: With or without `/v1`.
        name: As configured.
        local: The server computes on this machine (counts on a loopback address only), so its answers are free.
        timeouts: See `Timeouts`.
        headers: Further request headers, e.g. `anthropic-beta`.
        ca_file: PEM file of certificate authorities to trust.

    Raises:
        ConfigError: The address, the key or a header can't be used.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(tools=True, schema=True, images=True, reasoning=True)
    key_variable: ClassVar[str | None] = "ANTHROPIC_API_KEY"
    default_host: ClassVar[str | None] = "api.anthropic.com"

    def __init__(
        self,
        api_key: str | None = None,
        base_url: str = "https://api.anthropic.com",
        *,
        name: str = "anthropic",
        local: bool = False,
        timeouts: Timeouts = Timeouts(),  # noqa: B008 - frozen
        headers: Mapping[str, str] | None = None,
        ca_file: str | None = None,
    ) -> None:
        super().__init__(api_key, base_url, name=name, local=local, timeouts=timeouts, headers=headers, ca_file=ca_file)

    def prefix(self, path: str) -> str:
        """Its own clients are given the address without `/v1`, others' with it."""
        path = path.removesuffix("/messages")
        return path if path.endswith("/v1") else f"{path}/v1"

    def auth_headers(self) -> dict[str, str]:
        """The key in a header of its own, and the version of the API."""
        headers = {"anthropic-version": VERSION}
        return headers if self._api_key is None else {**headers, "x-api-key": self._api_key}

    def path(self, request: LLMRequest, *, stream: bool) -> str:  # noqa: ARG002 - one path for all
        """The one endpoint."""
        return "/messages"

    def parser(self, head: Head, request: LLMRequest) -> Parser:
        """For events and whole messages alike."""
        return MessagesParser(head, ANSWER_TOOL if schema_as_tool(request) else None)

    def body(self, request: LLMRequest, *, stream: bool) -> dict[str, Any]:
        """The request in Anthropic's words; there is no seed. `extra` has the last one, and None there takes a field out."""
        system, messages = conversation(request)
        body: dict[str, Any] = {
            "model": request.model,
            "max_tokens": request.max_tokens or default_max_tokens(request.model),
            "messages": messages,
            "stream": stream,
        }
        if system:
            body["system"] = system
        if request.temperature is not None and takes_temperature(request.model):
            # Others go up to 2.
            body["temperature"] = min(request.temperature, 1.0)
        if request.stop:
            body["stop_sequences"] = request.stop
        if request.tools:
            body["tools"] = [
                {"name": tool.name, "description": tool.description, "input_schema": tool.parameters}
                for tool in request.tools
            ]
            if request.tool_choice is not None:
                body["tool_choice"] = _TOOL_CHOICES.get(request.tool_choice) or named(request.tool_choice)
        thinks = think(body, request)
        if (thinks or chooses_itself(request.model)) and request.tool_choice not in (None, "none"):
            # A model that thinks can't be made to call a tool.
            body["tool_choice"] = _TOOL_CHOICES["auto"] if request.tools else None
        if request.response_schema is not None:
            constrain(body, request, request.response_schema, thinks=thinks)
        body.update(request.extra)
        return {key: value for key, value in body.items() if value is not None}

    async def get_available_models(self) -> list[ModelInfo]:
        """All pages of `GET /v1/models`, with what they say about sizes and abilities."""
        await self.prepare(None)
        models: list[ModelInfo] = []
        after = ""
        while True:
            page = await self.get_json(f"/models?limit=1000{after}")
            entries = page.get("data") if isinstance(page, dict) else None
            models += [self._model(entry) for entry in entries or () if isinstance(entry, dict) and entry.get("id")]
            last = page.get("last_id") if isinstance(page, dict) and page.get("has_more") else None
            if not last or not entries:
                return models
            after = f"&after_id={last}"

    def _model(self, entry: dict[str, Any]) -> ModelInfo:
        told = entry.get("capabilities")
        abilities = None
        if isinstance(told, dict):
            abilities = Capabilities(
                tools=True,
                schema=_supported(told, "structured_outputs"),
                images=_supported(told, "image_input"),
                reasoning=_supported(told, "thinking"),
            )
        return ModelInfo(
            str(entry["id"]),
            self.name,
            context=count(entry, "max_input_tokens") or None,
            max_output=count(entry, "max_tokens") or None,
            local=self.local,
            capabilities=abilities,
        )


def _supported(told: dict[str, Any], name: str) -> bool:
    return isinstance(told.get(name), dict) and told[name].get("supported") is True


_TOOL_CHOICES = {"auto": {"type": "auto"}, "none": {"type": "none"}, "required": {"type": "any"}}
