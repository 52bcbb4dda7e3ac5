"""OpenAI's `/chat/completions`, as OpenAI and the many servers that took over its format speak it.

Source: OpenAI's API reference, "Chat Completions"; what compatible servers do differently stands
where it is dealt with.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

import msgspec
from msgspec import Struct

from timeline.providers.base import (
    UNREADABLE,
    Capabilities,
    Delta,
    Finish,
    FinishReason,
    Item,
    LLMRequest,
    ModelInfo,
    OpaquePart,
    UsageReport,
    up_to,
    utf8,
)
from timeline.providers.chat_format import Kept, chat_messages, is_strict, put_in_words
from timeline.providers.counters import chat_usage, count
from timeline.providers.failures import Complaint
from timeline.providers.fragments import Fragments
from timeline.providers.http import Head, HTTPProvider, Parser, Timeouts
from timeline.providers.repetition import Repetition
from timeline.providers.sources import Sources

__all__ = ["ChatParser", "OpenAIProvider"]


# ------------------------------------------------------------------ what comes out

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
        self._sources = Sources()
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


# ------------------------------------------------------------------ what goes in

_GPT = re.compile(r"gpt-(\d)(?:\.(\d+))?(?!\d)(?!.*chat)")
_ALWAYS_REASONS = re.compile(r"o\d")
_FIRST_REASONING = (5, 0)
_FIRST_REASONING_UNASKED = (5, 5)
"""Models after 5.0 can be told not to reason, and up to here they don't unless told to."""
_ENDPOINT = "/chat/completions"
_OWN_HOSTS = ("openai.com", ".openai.azure.com", ".cognitiveservices.azure.com")


def takes_temperature(model: str, reasoning: str | None) -> bool:
    """Whether a model of OpenAI's own takes another temperature than its own: only one that doesn't reason does."""
    found = _GPT.match(model)
    version = (int(found[1]), int(found[2] or 0)) if found else (0, 0)
    if version < _FIRST_REASONING:
        return not _ALWAYS_REASONS.match(model)
    if version == _FIRST_REASONING or "-pro" in model or "codex" in model:
        return False
    return reasoning == "none" or (reasoning is None and version < _FIRST_REASONING_UNASKED)


class OpenAIProvider(HTTPProvider):
    """OpenAI, or any server that speaks its format.

    Args:
        api_key: None for servers that need none.
        base_url: Up to and including `/v1`.
        name: As configured.
        local: The server computes on this machine (counts on a loopback address only), so its answers are free.
        timeouts: See `Timeouts`.
        headers: Further request headers.
        ca_file: PEM file of certificate authorities to trust.

    Raises:
        ConfigError: The address, the key or a header can't be used.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(tools=True, schema=True, images=True, reasoning=True)
    key_variable: ClassVar[str | None] = "OPENAI_API_KEY"
    default_host: ClassVar[str | None] = "api.openai.com"

    def __init__(
        self,
        api_key: str | None = None,
        base_url: str = "https://api.openai.com/v1",
        *,
        name: str = "openai",
        local: bool = False,
        timeouts: Timeouts = Timeouts(),  # noqa: B008 - frozen
        headers: Mapping[str, str] | None = None,
        ca_file: str | None = None,
    ) -> None:
        super().__init__(api_key, base_url, name=name, local=local, timeouts=timeouts, headers=headers, ca_file=ca_file)

    def prefix(self, path: str) -> str:
        """Addresses are also written with the endpoint's own path."""
        return path.removesuffix(_ENDPOINT)

    def auth_headers(self) -> dict[str, str]:
        """The bearer token."""
        return {} if self._api_key is None else {"authorization": f"Bearer {self._api_key}"}

    def path(self, request: LLMRequest, *, stream: bool) -> str:  # noqa: ARG002 - one path for all
        """The one endpoint."""
        return _ENDPOINT

    def parser(self, head: Head, request: LLMRequest) -> Parser:  # noqa: ARG002 - one format for all
        """For chunks and whole answers alike."""
        return ChatParser(head)

    def body(self, request: LLMRequest, *, stream: bool) -> dict[str, Any]:
        """The request in OpenAI's words; `extra` has the last one, and None there takes a field out."""
        body: dict[str, Any] = {"model": request.model, "messages": chat_messages(request, self.name), "stream": stream}
        if stream:
            body["stream_options"] = {"include_usage": True}
        if request.max_tokens is not None:
            body[self.max_tokens_field] = request.max_tokens
        if request.temperature is not None:
            body["temperature"] = request.temperature
        if request.stop:
            body["stop"] = request.stop
        if request.seed is not None:
            body["seed"] = request.seed
        if request.reasoning is not None:
            body["reasoning_effort"] = request.reasoning
        if request.tools:
            body["tools"] = [
                {
                    "type": "function",
                    "function": {"name": t.name, "description": t.description, "parameters": t.parameters},
                }
                for t in request.tools
            ]
            if request.tool_choice in ("auto", "none", "required"):
                body["tool_choice"] = request.tool_choice
            elif request.tool_choice is not None:
                body["tool_choice"] = {"type": "function", "function": {"name": request.tool_choice}}
        if request.response_schema is not None:
            schema = request.response_schema
            name = re.sub(r"[^a-zA-Z0-9_-]", "_", str(schema.get("title") or "answer"))[:64]
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": name, "schema": schema, "strict": is_strict(schema)},
            }
        self.adapt(body, request)
        body.update(request.extra)
        return {key: value for key, value in body.items() if value is not None}

    @property
    def max_tokens_field(self) -> str:
        """OpenAI takes the new name for all its models; other servers know the old one."""
        return "max_completion_tokens" if self._is_openai else "max_tokens"

    def adapt(self, body: dict[str, Any], request: LLMRequest) -> None:
        """Change the body to what this very server wants."""
        if self.host == "api.mistral.ai":
            # It tells usage unasked, and refuses what it doesn't know.
            body.pop("stream_options", None)
            body["random_seed"] = body.pop("seed", None)
        elif self.host == "api.deepseek.com":
            for message in body["messages"]:
                if "tool_calls" in message:
                    # It refuses calls without the thoughts before them, and none are thoughts too.
                    message.setdefault("reasoning_content", "")
            if request.response_schema is not None:
                body["response_format"] = {"type": "json_object"}
                put_in_words(body, request.response_schema)
        if not self._is_openai:
            return
        if request.tools or not body["stream"] or self.host != self.default_host:
            pass
        else:
            body["stream_options"]["include_obfuscation"] = False
        if not takes_temperature(request.model, request.reasoning):
            # Reasoning models answer any other than their own with 400 unsupported_value.
            body.pop("temperature", None)
        if request.reasoning == "none":
            found = _GPT.match(request.model)
            if _ALWAYS_REASONS.match(request.model):
                body["reasoning_effort"] = "low"
            elif found is not None and found[1] == "5" and not found[2]:
                body["reasoning_effort"] = "minimal"

    @property
    def _is_openai(self) -> bool:
        return self.host == "api.openai.com" or self.host.endswith(_OWN_HOSTS)

    async def get_available_models(self) -> list[ModelInfo]:
        """The server's `GET /models`, with what it says about context and output sizes."""
        await self.prepare(None)
        value = await self.get_json("/models")
        entries = value.get("data") if isinstance(value, dict) else value
        return [
            self.model_info(entry)
            for entry in (entries if isinstance(entries, list) else ())
            if isinstance(entry, dict) and isinstance(entry.get("id"), str) and entry.get("active") is not False
        ]

    def model_info(self, entry: dict[str, Any]) -> ModelInfo:
        """One entry of the list; OpenRouter, Groq, vLLM and llama-server each name the context in their own way."""
        meta, top = entry.get("meta"), entry.get("top_provider")
        contexts = [
            *(count(entry, n) for n in ("context_window", "context_length", "max_model_len", "max_context_length")),
            *(count(meta, name) for name in ("n_ctx", "n_ctx_train")),
        ]
        outputs = (count(entry, "max_completion_tokens"), count(top, "max_completion_tokens"))
        return ModelInfo(
            entry["id"],
            self.name,
            context=next(filter(None, contexts), None),
            max_output=next(filter(None, outputs), None),
            local=self.local,
            capabilities=_abilities(entry),
        )


def _abilities(entry: dict[str, Any]) -> Capabilities | None:
    """What a model can do, where its entry in the list tells: OpenRouter's and Mistral's do."""
    asked, told, built = entry.get("supported_parameters"), entry.get("capabilities"), entry.get("architecture")
    if isinstance(asked, list):
        takes = built.get("input_modalities") if isinstance(built, dict) else None
        return Capabilities(
            tools="tools" in asked,
            schema="structured_outputs" in asked,
            images=isinstance(takes, list) and "image" in takes,
            reasoning="reasoning" in asked,
        )
    if isinstance(told, dict) and "function_calling" in told:
        tools, images, reasoning = (told.get(name) is True for name in ("function_calling", "vision", "reasoning"))
        return Capabilities(tools=tools, schema=True, images=images, reasoning=reasoning)
    return None
