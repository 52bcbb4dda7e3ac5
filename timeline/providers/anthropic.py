"""How Anthropic's `/v1/messages` is asked: a conversation in blocks, whose roles take turns.

Source: Anthropic's API reference, "Messages", "Structured outputs" and "Models".
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, ClassVar

from timeline.providers.base import (
    Capabilities,
    ImagePart,
    LLMRequest,
    Message,
    ModelInfo,
    OpaquePart,
    TextPart,
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
from timeline.providers.counters import count
from timeline.providers.http import Head, HTTPProvider, Parser
from timeline.providers.messages_parser import MessagesParser
from timeline.providers.waiting import Timeouts

__all__ = ["AnthropicProvider"]

VERSION = "2023-06-01"


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
