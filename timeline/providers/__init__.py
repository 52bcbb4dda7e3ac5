"""The public names of the providers, each loaded when it is first asked for: naming one never loads httpx."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "AnthropicProvider": "anthropic",
    "Besides": "base",
    "Capabilities": "base",
    "Collector": "base",
    "Delta": "base",
    "EmbeddedProvider": "embedded",
    "Finish": "base",
    "FinishReason": "base",
    "GroqProvider": "groq",
    "ImagePart": "base",
    "Item": "base",
    "LLMProvider": "base",
    "LLMRequest": "base",
    "LLMResponse": "base",
    "Message": "base",
    "ModelInfo": "base",
    "OllamaProvider": "ollama",
    "OpaquePart": "base",
    "OpenAIProvider": "openai",
    "Part": "base",
    "RateLimit": "base",
    "Source": "base",
    "TextPart": "base",
    "Timeouts": "waiting",
    "Tool": "base",
    "ToolCall": "base",
    "Usage": "base",
    "UsageReport": "base",
    "collect": "base",
}

__all__ = sorted(_HOME)  # noqa: PLE0605 - a list of the names above


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
