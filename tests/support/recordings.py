"""Recorded HTTP exchanges with real providers, and what their bodies plainly say.

`said` is written apart from the providers and in another way: it reads a whole body at
once, one `json.loads` per event, and knows nothing of streams. The recordings lie beside
the repository; where they are missing, tests that need them skip.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timeline.providers import AnthropicProvider, GroqProvider, LLMRequest, LLMResponse, OllamaProvider, OpenAIProvider
from timeline.providers.failures import Head, Speaker
from timeline.providers.http import HTTPProvider

__all__ = ["FOLDER", "Recording", "Said", "answers", "provider_for", "recordings", "said", "told"]

FOLDER = Path(__file__).resolve().parents[2].parent / "shared" / "recordings"
KEY = "test-key-123456"


@dataclass(frozen=True)
class Recording:
    """One exchange; `dialect` is the format of its answer."""

    id: str
    dialect: str
    framing: str
    path: str
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def wire_headers(self) -> dict[str, str]:
        """Those that still hold for the decoded body."""
        gone = ("content-encoding", "content-length", "transfer-encoding", "connection")
        return {name: value for name, value in self.headers.items() if name not in gone}

    def head(self) -> Head:
        return Head(Speaker(self.dialect, "http://x", "set KEY"), self.status, self.headers, 1_700_000_000_000_000, "m")


def recordings() -> list[Recording]:
    """All of them, or none where the folder is missing."""
    return [_read(path) for path in sorted(FOLDER.glob("*/*.json"))]


def answers(framing: str) -> list[Recording]:
    """The good answers of models with this framing (`sse`, `ndjson` or `json`)."""
    return [r for r in recordings() if r.status == 200 and r.framing == framing and r.dialect != "other"]


def _read(path: Path) -> Recording:
    raw = json.loads(path.read_text())
    where, response = raw["request"]["path"], raw["response"]
    if where.endswith("/messages"):
        dialect = "anthropic"
    elif where.endswith("/chat/completions"):
        dialect = "groq" if raw["provider"] == "groq" else "openai"
    elif where in ("/api/chat", "/api/generate"):
        dialect = "ollama"
    else:
        dialect = "other"
    return Recording(
        f"{path.parent.name}/{path.stem}",
        dialect,
        raw["framing"],
        where,
        response["status"],
        response["headers"],
        response["body"].encode(),
    )


def provider_for(dialect: str, base_url: str | None = None) -> HTTPProvider:
    """A provider that speaks the dialect."""
    where = {} if base_url is None else {"base_url": base_url}
    match dialect:
        case "anthropic":
            return AnthropicProvider(KEY, **where)
        case "groq":
            return GroqProvider(KEY, **where)
        case "ollama":
            return OllamaProvider(**where)
    return OpenAIProvider(KEY, **where)


def request(model: str = "m") -> LLMRequest:
    return LLMRequest(model, [{"role": "user", "content": "hi"}])


# ------------------------------------------------------------------ what a body says


@dataclass
class Said:
    """What an answer says, as plain values."""

    text: str = ""
    reasoning: str = ""
    calls: list[tuple[str | None, str, Any]] = field(default_factory=list)
    finish: str = "unknown"
    usage: dict[str, int] | None = None
    model: str | None = None


def told(response: LLMResponse) -> Said:
    """A response as the same plain values; an id that the provider made up is left out."""
    usage = response.usage
    return Said(
        response.content,
        response.reasoning,
        [
            (None if call.id.startswith("call_") and len(call.id) < 8 else call.id, call.name, call.arguments)
            for call in response.tool_calls
        ],
        response.finish_reason,
        {name: getattr(usage, name) for name in _COUNTERS} if response.usage_reported else None,
        response.model or None,
    )


_COUNTERS = ("input", "cache_read", "cache_write", "cache_write_1h", "output", "reasoning")


def said(recording: Recording) -> Said:
    text = recording.body.decode()
    if recording.framing == "sse":
        events = list(_events(text))
    elif recording.framing == "ndjson":
        events = [json.loads(line) for line in text.splitlines() if line.strip()]
    else:
        events = [json.loads(text)]
    match recording.dialect:
        case "anthropic":
            return _anthropic(events)
        case "ollama":
            return _ollama(events)
    return _openai(events)


def _events(text: str) -> Iterator[Any]:
    for line in text.split("\n"):
        if line.startswith("data:") and line[5:].strip() != "[DONE]":
            yield json.loads(line[5:])


def _arguments(text: str) -> Any:
    try:
        value = json.loads(text) if text.strip() else {}
    except ValueError:
        return {"_invalid": text}
    return value if isinstance(value, dict) else {"_invalid": text}


def _usage(input: int, cache_read: int, cache_write: int, hour: int, output: int, reasoning: int) -> dict[str, int]:  # noqa: A002
    return dict(zip(_COUNTERS, (input, cache_read, cache_write, hour, output, reasoning), strict=True))


def _openai(events: list[Any]) -> Said:
    out, calls, raw = Said(), {}, None
    finish = None
    for event in events:
        out.model = out.model or event.get("model")
        raw = event.get("usage") or (event.get("x_groq") or {}).get("usage") or raw
        for choice in event.get("choices") or []:
            if choice.get("index", 0) != 0:
                continue
            piece = choice.get("delta") or choice.get("message") or {}
            out.text += (piece.get("content") or "") + (piece.get("refusal") or "")
            out.reasoning += piece.get("reasoning_content") or piece.get("reasoning") or ""
            for number, call in enumerate(piece.get("tool_calls") or []):
                made = calls.setdefault(call.get("index", number), [None, "", ""])
                function = call.get("function") or call.get("custom")
                made[0] = made[0] or call.get("id") or None
                made[1] = made[1] or function.get("name") or ""
                made[2] += function.get("arguments") or function.get("input") or ""
            if legacy := piece.get("function_call"):
                made = calls.setdefault(0, [None, "", ""])
                made[1] = made[1] or legacy.get("name") or ""
                made[2] += legacy.get("arguments") or ""
            finish = choice.get("finish_reason") or finish
    out.calls = [(i, name, _arguments(arguments)) for _, (i, name, arguments) in sorted(calls.items())]
    out.finish = {"function_call": "tool_calls", None: "unknown"}.get(finish, finish)
    if out.calls and out.finish in ("stop", "unknown"):
        out.finish = "tool_calls"
    if raw:
        cached = (raw.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        written = (raw.get("prompt_tokens_details") or {}).get("cache_write_tokens") or 0
        reasoning = (raw.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
        out.usage = _usage(
            raw["prompt_tokens"] - cached - written, cached, written, 0, raw["completion_tokens"], reasoning
        )
    return out


_ANTHROPIC_FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "refusal": "content_filter",
    "pause_turn": "pause",
}


def _anthropic(events: list[Any]) -> Said:
    out, raw, blocks, stop = Said(), {}, {}, None
    if events[0]["type"] == "message":
        message = events[0]
        blocks, raw, stop, out.model = (
            dict(enumerate(message["content"])),
            message["usage"],
            message["stop_reason"],
            message["model"],
        )
    for event in events:
        match event["type"]:
            case "message_start":
                out.model = event["message"]["model"]
                raw = {**event["message"]["usage"]}
            case "content_block_start":
                blocks[event["index"]] = {**event["content_block"], "json": ""}
            case "content_block_delta":
                block, delta = blocks[event["index"]], event["delta"]
                for name in ("text", "thinking"):
                    if name in delta:
                        block[name] = block.get(name, "") + delta[name]
                block["json"] += delta.get("partial_json", "")
            case "message_delta":
                stop = event["delta"]["stop_reason"]
                raw = {**raw, **{k: v for k, v in event["usage"].items() if v is not None}}
    for block in blocks.values():
        out.text += block["text"] if block["type"] == "text" else ""
        out.reasoning += block["thinking"] if block["type"] == "thinking" else ""
        if block["type"] == "tool_use":
            arguments = json.loads(block["json"]) if block.get("json") else block["input"]
            out.calls.append((block["id"], block["name"], arguments))
    out.finish = _ANTHROPIC_FINISH[stop]
    hour = (raw.get("cache_creation") or {}).get("ephemeral_1h_input_tokens") or 0
    thinking = (raw.get("output_tokens_details") or {}).get("thinking_tokens") or 0
    written = raw.get("cache_creation_input_tokens") or 0
    out.usage = _usage(
        raw["input_tokens"],
        raw.get("cache_read_input_tokens") or 0,
        written - hour,
        hour,
        raw["output_tokens"],
        thinking,
    )
    return out


def _ollama(events: list[Any]) -> Said:
    out = Said()
    for event in events:
        message = event.get("message") or {"content": event.get("response"), "thinking": event.get("thinking")}
        out.text += message.get("content") or ""
        out.reasoning += message.get("thinking") or ""
        for call in message.get("tool_calls") or []:
            out.calls.append((call.get("id"), call["function"]["name"], call["function"]["arguments"]))
        out.model = event["model"]
        if event["done"]:
            out.finish = event.get("done_reason") or "stop"
            out.usage = _usage(event.get("prompt_eval_count", 0), 0, 0, 0, event.get("eval_count", 0), 0)
    if out.calls and out.finish == "stop":
        out.finish = "tool_calls"
    return out
