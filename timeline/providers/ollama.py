"""Ollama's own `/api/chat`: JSON lines, whole tool calls, and a context that has to be asked for.

Source: Ollama's API reference, "Generate a chat completion", "Show model information", "List local models".
Its `/v1` imitation of OpenAI's format can't set the context's length and cuts long prompts without a word.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, ClassVar

import msgspec
from msgspec import Struct

from timeline.errors import ModelNotFound, ProviderError
from timeline.events import Usage
from timeline.providers.address import is_loopback
from timeline.providers.base import (
    UNREADABLE,
    Capabilities,
    Delta,
    Finish,
    FinishReason,
    ImagePart,
    Item,
    LLMRequest,
    Message,
    ModelInfo,
    UsageReport,
    utf8,
)
from timeline.providers.counters import count, is_told
from timeline.providers.failures import Complaint
from timeline.providers.framing import Framer, NDJSONFramer
from timeline.providers.http import Head, HTTPProvider, Parser
from timeline.providers.reach import is_cloud
from timeline.providers.waiting import Timeouts

__all__ = ["ChatLineParser", "OllamaProvider"]


# ------------------------------------------------------------------ what comes out


class _Function(Struct, gc=False):
    name: Any = None
    arguments: Any = None


class _ToolCall(Struct, gc=False):
    id: Any = None
    function: _Function | None = None


class _Message(Struct, gc=False):
    content: Any = None
    thinking: Any = None
    tool_calls: list[_ToolCall] | None = None


class _Line(Struct, gc=False):
    message: _Message | None = None
    response: Any = None
    thinking: Any = None
    done: bool = False
    error: Any = None
    model: str | None = None
    remote_host: Any = None


_decode = msgspec.json.Decoder(_Line).decode

_FINISH: dict[str, FinishReason] = {"stop": "stop", "length": "length", "load": "stop", "unload": "stop"}
_NOT_USAGE = frozenset({"message", "response", "thinking", "context", "model", "created_at", "done", "done_reason"})


class ChatLineParser:
    """One answer in Ollama's format, as lines or whole; a `done` line has the totals.

    Args:
        head: The response's.
        remote: Where models are noted that turn out to run on another machine.
    """

    __slots__ = ("_calls", "_head", "_remote", "done")

    def __init__(self, head: Head, remote: set[str]) -> None:
        self.done = False
        self._head = head
        self._remote = remote
        self._calls = 0

    def items(self, payload: bytes) -> Iterable[Item]:
        """The items of one line; see `Parser.items`."""
        if self.done:
            return ()
        try:
            line = _decode(payload)
        except UnicodeDecodeError:
            return self.items(utf8(payload))
        except UNREADABLE:
            raise self._head.bad(payload, what="what is no line of its format") from None
        if line.error is not None:
            raise self._head.error(Complaint.of(msgspec.json.decode(utf8(payload))))
        message = line.message
        if message is None:
            # `/api/generate` answers beside a message.
            if line.response is None and not line.done:
                if line.model is not None:
                    return ()
                raise self._head.bad(payload, what="what is no line of its format")
            message = _Message(line.response, line.thinking)
        items: list[Item] = []
        if message.thinking and isinstance(message.thinking, str):
            items.append(Delta(message.thinking, "reasoning"))
        if message.content and isinstance(message.content, str):
            items.append(Delta(message.content))
        if message.tool_calls:
            items += self._tool_calls(message.tool_calls)
        if line.done:
            items += self._finish(line, payload)
        return items

    def end(self) -> Iterable[Item]:
        """At end of file; see `Parser.end`."""
        if not self.done:
            raise self._head.broken()
        return ()

    def _tool_calls(self, calls: list[_ToolCall]) -> Iterable[Item]:
        """Each call comes whole, and older versions number none of them."""
        for call in calls:
            function = call.function or _Function()
            arguments = function.arguments
            text = arguments if isinstance(arguments, str) else msgspec.json.encode(arguments or {}).decode()
            number, self._calls = self._calls, self._calls + 1
            call_id = call.id if isinstance(call.id, str) and call.id else f"call_{number}"
            yield Delta(text, "tool_call", number, call_id, function.name if isinstance(function.name, str) else "")

    def _finish(self, line: _Line, payload: bytes) -> Iterable[Item]:
        self.done = True
        if line.remote_host:
            self._remote.add(self._head.model)
        totals = msgspec.json.decode(utf8(payload))
        raw = {key: value for key, value in totals.items() if key not in _NOT_USAGE}
        if is_told(raw, "prompt_eval_count", "eval_count"):
            # A zero is left out, so a missing one of the two is zero.
            yield UsageReport(Usage(input=count(raw, "prompt_eval_count"), output=count(raw, "eval_count")), raw)
        raw_reason = totals.get("done_reason")
        if not isinstance(raw_reason, str):
            raw_reason = None
        reason = _FINISH.get(raw_reason, "unknown") if raw_reason else "stop"
        yield Finish(
            "tool_calls" if self._calls and reason == "stop" else reason,
            raw_reason=raw_reason,
            model=line.model,
            request_id=self._head.request_id,
            rate_limits=self._head.rate_limits,
            provider=self._head.speaker.name,
        )


# ------------------------------------------------------------------ what goes in

LEAST_CONTEXT = 8192
"""Fewest tokens of context that are asked for, where the model has them."""
_ANSWER_ROOM = 2048
_CHARACTERS_PER_TOKEN = 3
_TOKENS_PER_IMAGE = 1024


class Shown(Struct, frozen=True):
    """What `/api/show` says of a model.

    Args:
        context: The longest context it was made for, in tokens.
        abilities: `completion`, `tools`, `thinking`, `vision`, …; None where the server is too old to tell.
        remote: It runs on another machine.
    """

    context: int | None = None
    abilities: frozenset[str] | None = None
    remote: bool = False

    @classmethod
    def read(cls, shown: Any) -> Shown:
        """From the decoded answer."""
        if not isinstance(shown, dict):
            return cls()
        info, abilities = shown.get("model_info"), shown.get("capabilities")
        lengths = [
            value
            for key, value in (info if isinstance(info, dict) else {}).items()
            if key.endswith(".context_length") and isinstance(value, int) and value > 0
        ]
        return cls(
            context=lengths[0] if lengths else None,
            abilities=frozenset(map(str, abilities)) if isinstance(abilities, list) else None,
            remote=bool(shown.get("remote_host") or shown.get("remote_model")),
        )

    @property
    def capabilities(self) -> Capabilities | None:
        """The same in our words."""
        if self.abilities is None:
            return None
        return Capabilities(
            tools="tools" in self.abilities,
            schema=True,
            images="vision" in self.abilities,
            reasoning="thinking" in self.abilities,
        )


def context_for(request: LLMRequest, longest: int) -> int:
    """How much context to ask for: a power of two that holds prompt and answer with room to spare.

    The whole of what a model can do is not asked for: the server sets its memory aside ahead of
    use, and 128 Ki tokens of an 8 B model take 16 GiB. Powers of two, because another length loads
    the model anew. A prompt that turns out to be longer is refused, not cut (`truncate: false`).

    Args:
        request: What will be sent.
        longest: The model's own limit, in tokens.
    """
    characters = len(request.system or "") + sum(len(m.text) for m in request.messages)
    extras = (request.tools, request.response_schema, [m.tool_calls for m in request.messages])
    characters += sum(len(msgspec.json.encode(extra)) for extra in extras if extra)
    images = sum(
        isinstance(p, ImagePart) for m in request.messages if not isinstance(m.content, str) for p in m.content
    )
    need = characters // _CHARACTERS_PER_TOKEN + images * _TOKENS_PER_IMAGE + (request.max_tokens or _ANSWER_ROOM)
    return min(max(LEAST_CONTEXT, 1 << (need - 1).bit_length()), longest)


def _message(message: Message) -> dict[str, Any]:
    plain: dict[str, Any] = {"role": message.role, "content": message.text}
    if not isinstance(message.content, str):
        images = [base64.b64encode(p.data).decode("ascii") for p in message.content if isinstance(p, ImagePart)]
        if images:
            plain["images"] = images
    if message.tool_calls:
        plain["tool_calls"] = [
            {"id": call.id, "function": {"index": index, "name": call.name, "arguments": call.arguments}}
            for index, call in enumerate(message.tool_calls)
        ]
    if message.role == "tool":
        plain |= {"tool_name": message.name, "tool_call_id": message.tool_call_id}
    return {key: value for key, value in plain.items() if value is not None}


class OllamaProvider(HTTPProvider):
    """Ollama on this machine or another.

    Args:
        base_url: Without `/api`.
        name: As configured.
        local: False where a loopback address leads to another machine.
        timeouts: See `Timeouts`.
        headers: Further request headers, e.g. `authorization` for ollama.com.
        ca_file: PEM file of certificate authorities to trust.
        keep_alive: How long a model stays loaded after use: seconds, or a duration like `10m`; -1 for ever.

    Raises:
        ConfigError: The address or a header can't be used.
    """

    framer: ClassVar[type[Framer]] = NDJSONFramer
    # Older versions don't know `truncate: false`.
    cuts_prompts: ClassVar[bool] = True
    capabilities: ClassVar[Capabilities] = Capabilities(tools=True, schema=True, images=True, reasoning=True)

    def __init__(
        self,
        base_url: str = "http://localhost:11434",
        *,
        name: str = "ollama",
        local: bool = True,
        timeouts: Timeouts = Timeouts(),  # noqa: B008 - frozen
        headers: Mapping[str, str] | None = None,
        ca_file: str | None = None,
        keep_alive: str | float | None = None,
    ) -> None:
        self._keep_alive = keep_alive
        self._shown: dict[str, Shown] = {}
        self._remote: set[str] = set()
        self._digests: dict[str, str] = {}
        super().__init__(None, base_url, name=name, local=local, timeouts=timeouts, headers=headers, ca_file=ca_file)

    def prefix(self, path: str) -> str:
        """Addresses are also written with the `/v1` or `/api` of its two interfaces."""
        return path.removesuffix("/v1").removesuffix("/api")

    @property
    def key_advice(self) -> str:
        """Here it signs in itself, for the models in its cloud; elsewhere the key is a header."""
        if is_loopback(self.host):
            return "run 'ollama signin'"
        return f"set headers: {{authorization: 'Bearer …'}} of {self.name} in the configuration"

    @property
    def unreachable_advice(self) -> str:
        """What to do when no connection can be had."""
        return "start it with 'ollama serve'" if is_loopback(self.host) else "check the network and base_url"

    def is_local(self, model: str) -> bool:
        """Whether `model` is computed on this machine: cloud models only look as if they were."""
        return self.local and not (is_cloud(model) or model in self._remote)

    def model_digest(self, model: str) -> str | None:
        """That of the tag, which a later `pull` moves; known once the models were listed or this one was asked."""
        return self._digests.get(model) or self._digests.get(f"{model}:latest")

    def auth_headers(self) -> dict[str, str]:
        """None."""
        return {}

    def path(self, request: LLMRequest, *, stream: bool) -> str:  # noqa: ARG002 - one path for all
        """The native endpoint."""
        return "/api/chat"

    def parser(self, head: Head, request: LLMRequest) -> Parser:  # noqa: ARG002 - one format for all
        """For lines and whole answers alike."""
        return ChatLineParser(head, self._remote)

    async def prepare(self, request: LLMRequest | None) -> None:
        """Learn once what the model can do and its name stands for; where that fails, the request itself will tell why."""
        if request is not None and request.model not in self._shown:
            with suppress(ProviderError):
                await self._show(request.model)
                await self._tags()

    def body(self, request: LLMRequest, *, stream: bool) -> dict[str, Any]:
        """The request in Ollama's words; `extra` has the last one, its `options` are added to ours."""
        shown = self._shown.get(request.model, Shown())
        messages = [{"role": "system", "content": request.system}] if request.system is not None else []
        options: dict[str, Any] = {
            "temperature": request.temperature,
            "num_predict": request.max_tokens,
            "stop": request.stop or None,
            "seed": request.seed,
            "num_ctx": context_for(request, shown.context) if shown.context else None,
        }
        body: dict[str, Any] = {
            "model": request.model,
            "messages": [*messages, *map(_message, request.messages)],
            "stream": stream,
            "truncate": False,
            "keep_alive": self._keep_alive,
            "think": _think(request, shown),
            "format": request.response_schema,
        }
        if request.tools and request.tool_choice != "none":
            body["tools"] = [
                {
                    "type": "function",
                    "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters},
                }
                for tool in request.tools
                # It knows no choice of a tool: naming one leaves it the only one.
                if request.tool_choice in (None, "auto", "required", tool.name)
            ]
        body.update(request.extra)
        options |= request.extra.get("options") or {}
        body["options"] = {key: value for key, value in options.items() if value is not None} or None
        return {key: value for key, value in body.items() if value is not None}

    async def get_available_models(self) -> list[ModelInfo]:
        """What has been pulled (`/api/tags`), each with what `/api/show` says of it."""
        found = await self._tags()
        gate = asyncio.Semaphore(8)

        async def describe(entry: dict[str, Any]) -> ModelInfo:
            name = _name(entry)
            shown = Shown()
            async with gate:
                # Where it fails, the list is still worth having.
                with suppress(ProviderError):
                    shown = await self._show(name)
            return ModelInfo(
                name,
                self.name,
                context=shown.context,
                local=self.is_local(name),
                digest=self._digests.get(name),
                capabilities=shown.capabilities,
            )

        return list(await asyncio.gather(*map(describe, found)))

    async def warm_up(self, model: str | None = None) -> None:
        """Load the model, or only open the connection; what goes wrong is left for the first request to meet.

        Raises:
            ModelNotFound: It hasn't been pulled.
        """
        if model is None:
            await super().warm_up()
            return
        try:
            await self.make_request(LLMRequest(model, ()))
        except ModelNotFound:
            raise
        except ProviderError:
            return

    async def _tags(self) -> list[dict[str, Any]]:
        """What has been pulled; what the names stand for is kept."""
        value = await self.get_json("/api/tags")
        entries = value.get("models") if isinstance(value, dict) else None
        entries = entries if isinstance(entries, list) else []
        found = [entry for entry in entries if isinstance(entry, dict) and _name(entry)]
        for entry in found:
            if entry.get("remote_host") or entry.get("remote_model"):
                self._remote.add(_name(entry))
            if isinstance(digest := entry.get("digest"), str):
                self._digests[_name(entry)] = digest
        return found

    async def _show(self, model: str) -> Shown:
        shown = Shown.read(await self.get_json("/api/show", {"model": model}))
        self._shown[model] = shown
        if shown.remote:
            self._remote.add(model)
        return shown


def _name(entry: dict[str, Any]) -> str:
    return str(entry.get("model") or entry.get("name") or "")


def _think(request: LLMRequest, shown: Shown) -> bool | str | None:
    """Whether to think; a model that can't refuses to be asked, and gpt-oss knows degrees."""
    if request.reasoning is None or (shown.abilities is not None and "thinking" not in shown.abilities):
        return None
    if request.reasoning == "none":
        return False
    return request.reasoning if "gpt-oss" in request.model else True
