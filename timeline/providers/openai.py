"""How OpenAI's `/chat/completions` is asked, and the many servers that took over its format.

Source: OpenAI's API reference, "Chat Completions" and "Models".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from timeline.providers.base import (
    Capabilities,
    LLMRequest,
    ModelInfo,
)
from timeline.providers.chat_format import chat_messages, is_strict, put_in_words
from timeline.providers.chat_parser import ChatParser
from timeline.providers.counters import count
from timeline.providers.http import Head, HTTPProvider, Parser, Timeouts

__all__ = ["OpenAIProvider"]

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
