"""What goes wrong at a provider, as the log tells it: one request, what had come, and exactly one end of the right kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.loopback import CLOSE, RESET, Reply, Server, free_port

from timeline import Event, Timeline, TurnEnd
from timeline.config import find_paths, load
from timeline.events import CallFailed, ChunkReceived, ResponseCompleted
from timeline.providers.pool import Providers

DIALECTS = ["openai", "groq", "anthropic", "ollama"]
SSE = {"content-type": "text/event-stream"}
TAGS = Reply.json({"models": []})
SHOW = Reply.json({"model_info": {"general.architecture": "a", "a.context_length": 4096}, "capabilities": []})
ANTHROPIC_START = b'data: {"type":"message_start","message":{"model":"m","usage":{"input_tokens":3}}}\n\n'
BEGINNING = {
    "openai": b'data: {"choices":[{"index":0,"delta":{"content":"Hel"}}],"model":"m"}\n\n',
    "groq": b'data: {"choices":[{"index":0,"delta":{"content":"Hel"}}],"model":"m"}\n\n',
    "anthropic": ANTHROPIC_START
    + b'data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}\n\n'
    + b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hel"}}\n\n',
    "ollama": b'{"model":"m","message":{"role":"assistant","content":"Hel"},"done":false}\n',
}
IN_STREAM = {
    "openai": b'data: {"error":{"message":"it broke","type":"server_error","code":null}}\n\n',
    "groq": b'event: error\ndata: {"error":{"message":"it broke","type":"server_error","status_code":500}}\n\n',
    "anthropic": b'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"it broke"}}\n\n',
    "ollama": b'{"error":"it broke"}\n',
}
MALFORMED = dict.fromkeys(DIALECTS, b"data: {malformed\n\n") | {"ollama": b"{malformed\n"}

BEFORE = [
    (400, "invalid_request", False),
    (401, "authentication", False),
    (403, "permission", False),
    (404, "model_not_found", False),
    (429, "rate_limited", True),
    (500, "server", True),
    (502, "server", True),
    (503, "overloaded", True),
    (529, "overloaded", True),
]
AFTER = [
    ("error", "server"),
    ("malformed", "bad_response"),
    ("closed", "broken_stream"),
    ("reset", "network"),
    ("end", "broken_stream"),
    ("silence", "timeout"),
]


async def events_of(tmp_path: Path, dialect: str, url: str, *, stream: bool = True) -> list[Event]:
    """What a question to that server leaves in the log; checks that the log says what the caller was told."""
    environ = {"TIMELINE_HOME": str(tmp_path)}
    limits = {"connect": 2, "first_byte": 0.5, "between_chunks": 0.5, "total": 2}
    entry: dict[str, Any] = {"kind": dialect, "base_url": url, "timeouts": limits}
    entry |= {} if dialect == "ollama" else {"api_key": "key-0123456789"}
    settings = {
        "llm_providers": {"p": entry},
        "retry": {"max_attempts": 1},
        "mode": "direct",
        "routing_strategy": {"fallback": None},
    }
    config = load(find_paths(environ, tmp_path), environ, tmp_path, settings)
    async with Providers(config) as providers, Timeline.open(providers=providers) as timeline:
        seen = [item async for item in timeline.ask("hi", model="p:m", stream=stream)]
        session = await timeline.find("last")
        events = [event async for event in timeline.store.read(session_id=session)]
        assert (await timeline.store.verify()).problem is None
    assert events == [item for item in seen if isinstance(item, Event)]
    (end,) = [item for item in seen if isinstance(item, TurnEnd)]
    (failed,) = [event.data for event in events if isinstance(event.data, CallFailed)]
    assert end.error is not None
    assert (end.error.kind, str(end.error)) == (failed.error.kind, failed.error.message)
    assert [] == [event for event in events if isinstance(event.data, ResponseCompleted)]
    assert ["call.failed", "step.failed", "turn.failed"] == [event.type for event in events[-3:]]
    assert 1 == [event.type for event in events].count("request.sent")
    return events


async def completed_of(tmp_path: Path, url: str) -> ResponseCompleted:
    """How a question to a server of Anthropic's format ends well."""
    environ = {"TIMELINE_HOME": str(tmp_path)}
    settings = {"llm_providers": {"p": {"kind": "anthropic", "base_url": url, "api_key": "key-0123456789"}}}
    config = load(find_paths(environ, tmp_path), environ, tmp_path, settings)
    async with Providers(config) as providers, Timeline.open(providers=providers) as timeline:
        seen = [item async for item in timeline.ask("hi", model="p:m", direct=True)]
    (completed,) = [e.data for e in seen if isinstance(e, Event) and isinstance(e.data, ResponseCompleted)]
    return completed


def failure(events: list[Event]) -> CallFailed:
    (failed,) = [event.data for event in events if isinstance(event.data, CallFailed)]
    return failed


def text(events: list[Event]) -> str:
    return "".join(text for event in events if isinstance(event.data, ChunkReceived) for text in event.data.texts)


def replies(dialect: str, *further: Reply) -> list[Reply]:
    return [SHOW, TAGS, *further] if dialect == "ollama" else list(further)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "batch"])
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(("status", "kind", "retryable"), BEFORE)
async def test_a_refusal_is_recorded_with_its_status(
    tmp_path: Path, dialect: str, status: int, kind: str, retryable: bool, stream: bool
) -> None:
    said = {"error": "said so"} if dialect == "ollama" else {"error": {"message": "said so", "type": "x"}}
    async with Server(replies(dialect, Reply.json(said, status, {"retry-after": "1.5"}))) as server:
        failed = failure(await events_of(tmp_path, dialect, server.url, stream=stream))

    assert (kind, status, retryable, False) == (
        failed.error.kind,
        failed.error.status,
        failed.error.retryable,
        failed.partial,
    )
    assert "said so" in failed.error.message
    assert (1.5 if retryable else failed.error.retry_after) == failed.error.retry_after


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(("fault", "kind"), AFTER)
async def test_what_came_before_a_fault_is_kept(tmp_path: Path, dialect: str, fault: str, kind: str) -> None:
    ending: dict[str, list[Any]] = {
        "error": [IN_STREAM[dialect]],
        "malformed": [MALFORMED[dialect]],
        "closed": [CLOSE],
        "reset": [0.1, RESET],
        "end": [],
        "silence": [5.0],
    }
    body = [BEGINNING[dialect], *ending[fault]]
    async with Server(replies(dialect, Reply(body, headers=SSE if dialect != "ollama" else {}))) as server:
        events = await events_of(tmp_path, dialect, server.url)

    failed = failure(events)
    assert (kind, True, "Hel") == (failed.error.kind, failed.partial, text(events))
    assert "estimated" == failed.usage_source or failed.usage is not None


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_refused_connection_is_recorded(tmp_path: Path, dialect: str) -> None:
    failed = failure(await events_of(tmp_path, dialect, f"http://127.0.0.1:{free_port()}"))

    assert ("network", True, False) == (failed.error.kind, failed.error.retryable, failed.partial)


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_no_first_byte_in_time_is_recorded(tmp_path: Path, dialect: str) -> None:
    async with Server(replies(dialect, Reply([b"x"], before=5.0))) as server:
        failed = failure(await events_of(tmp_path, dialect, server.url))

    assert ("timeout", True, False) == (failed.error.kind, failed.error.retryable, failed.partial)


@pytest.mark.parametrize("end", [CLOSE, IN_STREAM["anthropic"]], ids=["broken", "error"])
async def test_what_came_of_an_answer_of_claude_is_estimated_where_it_told_no_count_of_it(tmp_path, end):
    start = ANTHROPIC_START.replace(
        b'"input_tokens":3', b'"input_tokens":16,"cache_read_input_tokens":4,"output_tokens":1'
    )
    words = BEGINNING["anthropic"].removeprefix(ANTHROPIC_START).replace(b"Hel", b"word " * 40)
    async with Server(Reply([start, words, 0.02, end], headers=SSE)) as server:
        events = await events_of(tmp_path, "anthropic", server.url)

    (failed,) = [event.data for event in events if isinstance(event.data, CallFailed)]
    assert ("estimated", 16, 4) == (failed.usage_source, failed.usage.input, failed.usage.cache_read)
    assert failed.usage.output >= 40


async def test_a_count_of_claude_stands_where_its_answer_breaks_off_behind_it(tmp_path):
    start = ANTHROPIC_START.replace(b'"input_tokens":3', b'"input_tokens":16,"output_tokens":1')
    count = b'data: {"type":"message_delta","delta":{},"usage":{"output_tokens":1}}\n\n'
    async with Server(Reply([start, count, IN_STREAM["anthropic"]], headers=SSE)) as server:
        events = await events_of(tmp_path, "anthropic", server.url)

    (failed,) = [event.data for event in events if isinstance(event.data, CallFailed)]
    assert ("provider", 16, 1) == (failed.usage_source, failed.usage.input, failed.usage.output)


async def test_an_answer_of_claude_that_was_never_counted_is_estimated(tmp_path):
    start = ANTHROPIC_START.replace(b'"input_tokens":3', b'"input_tokens":16,"output_tokens":1')
    words = BEGINNING["anthropic"].removeprefix(ANTHROPIC_START).replace(b"Hel", b"word " * 40)
    end = b'data: {"type":"message_delta","delta":{"stop_reason":"end_turn"}}\n\ndata: {"type":"message_stop"}\n\n'
    async with Server(Reply([start, words, end], headers=SSE)) as server:
        completed = await completed_of(tmp_path, server.url)

    assert ("estimated", 16) == (completed.usage_source, completed.usage.input)
    assert completed.usage.output >= 40
