"""What a server of OpenAI's format says, as replies for `support.loopback`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from support.loopback import CLOSE, RESET, Reply

__all__ = [
    "FOREVER",
    "answer",
    "batch",
    "broken",
    "delta",
    "error",
    "event",
    "limited",
    "refused",
    "reset",
    "stream",
    "usage",
]

FOREVER = 3600.0
"""Seconds that no test waits: the client has to end it."""

SSE = {"content-type": "text/event-stream"}


def event(value: dict[str, Any] | str) -> bytes:
    """One server-sent event."""
    return f"data: {value if isinstance(value, str) else json.dumps(value)}\n\n".encode()


def delta(text: str | None = None, *, finish: str | None = None, **more: Any) -> bytes:
    """A chunk with one delta."""
    body = {} if text is None else {"content": text}
    return event(
        {"id": "chat-1", "model": "m-2026", "choices": [{"index": 0, "delta": body | more, "finish_reason": finish}]}
    )


def usage(prompt: int = 5, completion: int = 2, **details: int) -> bytes:
    """The chunk that tells the tokens."""
    counts: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": completion}
    if "cached" in details:
        counts["prompt_tokens_details"] = {"cached_tokens": details["cached"]}
    if "reasoning" in details:
        counts["completion_tokens_details"] = {"reasoning_tokens": details["reasoning"]}
    return event({"id": "chat-1", "model": "m-2026", "choices": [], "usage": counts})


def stream(*pieces: Any, **more: Any) -> Reply:
    """Anything: str becomes a delta, bytes are sent as they are, numbers are pauses in seconds."""
    return Reply([delta(piece) if isinstance(piece, str) else piece for piece in pieces], headers=SSE, **more)


def answer(*texts: str, pause: float = 0.0, tokens: tuple[int, int] | None = (5, 2), **more: Any) -> Reply:
    """A whole answer; `pause` seconds before each delta but the first, `tokens` None for no usage."""
    pieces: list[Any] = []
    for text in texts:
        pieces += [pause, text] if pause and pieces else [text]
    end = [delta(finish="stop"), *([usage(*tokens)] if tokens else []), event("[DONE]")]
    return stream(*pieces, *end, **more)


def batch(text: str, *, tokens: tuple[int, int] | None = (5, 2)) -> Reply:
    """A whole answer in one JSON object."""
    value: dict[str, Any] = {
        "id": "chat-1",
        "model": "m-2026",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
    }
    if tokens:
        value["usage"] = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}
    return Reply.json(value)


def error(message: str = "The server had an error", code: str = "server_error") -> bytes:
    """An error object within a stream."""
    return event({"error": {"message": message, "type": code, "code": code}})


def refused(status: int, message: str = "no", code: str | None = None, **headers: str) -> Reply:
    """A response that says no."""
    return Reply.json({"error": {"message": message, "type": code or "error", "code": code}}, status, headers)


def limited() -> Reply:
    """Too many requests."""
    return refused(429, "Rate limit reached for requests", "rate_limit_exceeded", **{"retry-after": "7"})


def broken(*texts: str, how: Sequence[object] = (CLOSE,)) -> Reply:
    """Half a stream."""
    return stream(*texts, *how)


def reset(*texts: str) -> Reply:
    """Half a stream, ended by a TCP reset."""
    return stream(*texts, RESET)
