"""Groq: OpenAI's format with its own word for the answer's length, for reasoning and for structured output.

Source: Groq's API reference, "Chat completions", "Reasoning" and "Structured outputs". `x_groq` is
read by `ChatParser`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from timeline.providers.base import LLMRequest
from timeline.providers.chat_format import put_in_words
from timeline.providers.openai import OpenAIProvider
from timeline.providers.waiting import Timeouts

__all__ = ["GroqProvider"]

_TAKES_SCHEMA = re.compile(r"gpt-oss|kimi-k2|llama-4|safeguard", re.IGNORECASE)
_KEEPS_SCHEMA = re.compile(r"gpt-oss-\d", re.IGNORECASE)
_SPEAKS_ITS_THOUGHTS = re.compile(r"qwen-?3|qwq|deepseek-r1", re.IGNORECASE)
_TAKES_EFFORT = re.compile(r"gpt-oss", re.IGNORECASE)


class GroqProvider(OpenAIProvider):
    """Groq.

    Args:
        api_key: From https://console.groq.com/keys.
        base_url: With `/openai/v1`, which is added where the path is empty.
        name: As configured.
        local: For a stand-in on this machine.
        timeouts: See `Timeouts`.
        headers: Further request headers.
        ca_file: PEM file of certificate authorities to trust.

    Raises:
        ConfigError: The address, the key or a header can't be used.
    """

    key_variable: ClassVar[str | None] = "GROQ_API_KEY"
    default_host: ClassVar[str | None] = "api.groq.com"

    def __init__(
        self,
        api_key: str | None = None,
        base_url: str = "https://api.groq.com/openai/v1",
        *,
        name: str = "groq",
        local: bool = False,
        timeouts: Timeouts = Timeouts(),  # noqa: B008 - frozen
        headers: Mapping[str, str] | None = None,
        ca_file: str | None = None,
    ) -> None:
        super().__init__(api_key, base_url, name=name, local=local, timeouts=timeouts, headers=headers, ca_file=ca_file)

    def prefix(self, path: str) -> str:
        """Groq's own clients are given the host alone."""
        return super().prefix(path) or "/openai/v1"

    @property
    def max_tokens_field(self) -> str:
        """The new name."""
        return "max_completion_tokens"

    def adapt(self, body: dict[str, Any], request: LLMRequest) -> None:
        """Reasoning and structured output differ from model to model."""
        if _SPEAKS_ITS_THOUGHTS.search(request.model):
            # Unless told otherwise these put their thoughts into the answer.
            body["reasoning_format"] = "parsed"
        if request.reasoning is not None and not _TAKES_EFFORT.search(request.model):
            # Qwen and others only know on and off.
            body["reasoning_effort"] = "none" if request.reasoning == "none" else "default"
            body["reasoning_format"] = "parsed"
        elif request.reasoning == "none":
            body["reasoning_effort"] = "low"
        if request.response_schema is not None:
            _constrain(body, request, request.response_schema)


def _constrain(body: dict[str, Any], request: LLMRequest, schema: dict[str, Any]) -> None:
    """Structured output goes with neither tools nor a stream, and is only promised by some models."""
    if request.tools or not _TAKES_SCHEMA.search(request.model):
        # At most JSON is promised; the schema is put to the model in words.
        put_in_words(body, schema)
        body["response_format"] = None if request.tools else {"type": "json_object"}
    elif not _KEEPS_SCHEMA.search(request.model):
        body["response_format"]["json_schema"]["strict"] = False
    if body["response_format"] is not None and body["stream"]:
        # The whole answer is taken where a stream was asked for.
        body["stream"], body["stream_options"] = False, None
