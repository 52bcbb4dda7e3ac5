"""Two rounds of tools with parallel calls, against servers of three dialects: what goes over the wire in each round, to the byte."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.loopback import Reply, Request, Server

from timeline.config import find_paths, load
from timeline.events import Event, ResponseCompleted
from timeline.projections.blocks import fold
from timeline.providers.pool import Providers
from timeline.runtime import Timeline

QUESTION = "What is 12*7, and 5+5? Then add both."
SYSTEM_BEGINS = "Use the tools"
ROUTE = json.dumps({"intent": "sums", "tools": ["calculator"], "complexity": "low"})
FIRST = [("c1", {"expression": "12*7"}), ("c2", {"expression": "5+5"})]
SECOND = [("c3", {"expression": "84+10"})]


def openai(text: str = "", calls: Any = ()) -> Reply:
    def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        return {"id": "x", "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

    wanted = [
        {"index": n, "id": id_, "type": "function", "function": {"name": "calculator", "arguments": json.dumps(args)}}
        for n, (id_, args) in enumerate(calls)
    ]
    said = [chunk({"content": text})] if text else [chunk({"tool_calls": [each]}) for each in wanted]
    usage = {"id": "x", "choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 5}}
    return Reply.sse(*said, chunk({}, "tool_calls" if calls else "stop"), usage, "[DONE]")


def anthropic(text: str = "", calls: Any = ()) -> Reply:
    usage = {"input_tokens": 10, "output_tokens": 1}
    events: list[dict[str, Any]] = [{"type": "message_start", "message": {"id": "x", "model": "m", "usage": usage}}]
    blocks: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
    if calls:
        blocks.append(
            (
                {"type": "thinking", "thinking": "", "signature": ""},
                [{"type": "thinking_delta", "thinking": "Sums."}, {"type": "signature_delta", "signature": "c2ln"}],
            )
        )
    if text:
        blocks.append(({"type": "text", "text": ""}, [{"type": "text_delta", "text": text}]))
    for id_, arguments in calls:
        begin = {"type": "tool_use", "id": id_, "name": "calculator", "input": {}}
        blocks.append((begin, [{"type": "input_json_delta", "partial_json": json.dumps(arguments)}]))
    for index, (block, deltas) in enumerate(blocks):
        events.append({"type": "content_block_start", "index": index, "content_block": block})
        events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": index})
    reason = "tool_use" if calls else "end_turn"
    events.append({"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {"output_tokens": 5}})
    events.append({"type": "message_stop"})
    body = [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events]
    return Reply(body, headers={"content-type": "text/event-stream"})


def ollama(text: str = "", calls: Any = ()) -> Reply:
    said = [{"model": "m", "message": {"role": "assistant", "content": text}, "done": False}] if text else []
    for _, arguments in calls:
        call = {"function": {"name": "calculator", "arguments": arguments}}
        said.append(
            {"model": "m", "message": {"role": "assistant", "content": "", "tool_calls": [call]}, "done": False}
        )
    end = {"model": "m", "message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop"}
    return Reply.ndjson(*said, {**end, "prompt_eval_count": 10, "eval_count": 5})


DIALECTS: dict[str, Callable[..., Reply]] = {"openai": openai, "anthropic": anthropic, "ollama": ollama}


class Conversation:
    """Plays one server through a whole turn."""

    def __init__(self, dialect: str) -> None:
        self._script = [
            DIALECTS[dialect](ROUTE),
            DIALECTS[dialect](calls=FIRST),
            DIALECTS[dialect](calls=SECOND),
            DIALECTS[dialect]("I know enough."),
            DIALECTS[dialect]("84 and 10, together 94."),
        ]
        self.bodies: list[bytes] = []

    def __call__(self, request: Request) -> Reply:
        if request.path == "/api/show":
            model = {"model_info": {"general.architecture": "llama", "llama.context_length": 4096}}
            return Reply.json({**model, "capabilities": ["completion", "tools"]})
        if request.path == "/api/tags":
            return Reply.json({"models": []})
        self.bodies.append(request.body)
        return self._script[len(self.bodies) - 1]


async def converse(tmp_path: Path, dialect: str) -> tuple[list[dict[str, Any]], list[bytes], list[Event]]:
    """The bodies that were sent, and what was recorded."""
    script = Conversation(dialect)
    async with Server(script) as server:
        url = server.url + ("/v1" if dialect == "openai" else "")
        entry = {"kind": dialect, "base_url": url, **({} if dialect == "ollama" else {"api_key": "key-0123456789"})}
        environ = {"TIMELINE_HOME": str(tmp_path / "home"), "HOME": str(tmp_path)}
        config = load(find_paths(environ, tmp_path), environ, tmp_path, {"llm_providers": {"p": entry}})
        async with Providers(config) as providers, Timeline.open(providers=providers) as timeline:
            seen = [item async for item in timeline.ask(QUESTION, model="p:m")]
            events = [event async for event in timeline.store.read()]
            assert "84 and 10, together 94." == seen[-1].text
            assert (await timeline.store.verify()).problem is None
    return [json.loads(body) for body in script.bodies], script.bodies, events


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_two_rounds_with_parallel_calls(tmp_path: Path, dialect: str) -> None:
    _, bodies, events = await converse(tmp_path, dialect)

    (turn,) = fold(events).turns
    route, tool, answer = turn.steps
    assert (1, 3, 1) == (len(route.attempts), len(tool.attempts), len(answer.attempts))
    assert ["calculator"] * 3 == [use.name for use in tool.tools]
    assert 5 == len(bodies)
    # The provider's own numbers, each counted once and in a step.
    usages = [event.data.usage for event in events if isinstance(event.data, ResponseCompleted)]
    of_steps = [attempt.usage for step in turn.steps for attempt in step.attempts]
    assert [(10, 5)] * 5 == [(usage.input, usage.output) for usage in usages]
    assert usages == of_steps


async def test_the_second_round_to_openai_is_this_to_the_byte(tmp_path: Path) -> None:
    bodies, raw, _ = await converse(tmp_path, "openai")

    first, second = bodies[1], bodies[2]
    call = {"type": "function", "function": {"name": "calculator"}}
    assert [
        *first["messages"],
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {**call, "id": "c1", "function": {"name": "calculator", "arguments": '{"expression":"12*7"}'}},
                {**call, "id": "c2", "function": {"name": "calculator", "arguments": '{"expression":"5+5"}'}},
            ],
        },
        {"role": "tool", "content": "12*7 = 84", "tool_call_id": "c1"},
        {"role": "tool", "content": "5+5 = 10", "tool_call_id": "c2"},
    ] == second["messages"]
    assert first["tools"] == second["tools"]
    assert raw[2] == msgspec.json.encode({**first, "messages": second["messages"]})


async def test_the_second_round_to_anthropic_is_this_to_the_byte(tmp_path: Path) -> None:
    bodies, raw, _ = await converse(tmp_path, "anthropic")

    first, second = bodies[1], bodies[2]
    assert [
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Sums.", "signature": "c2ln"},
                {"type": "tool_use", "id": "c1", "name": "calculator", "input": {"expression": "12*7"}},
                {"type": "tool_use", "id": "c2", "name": "calculator", "input": {"expression": "5+5"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "12*7 = 84"}]},
                {"type": "tool_result", "tool_use_id": "c2", "content": [{"type": "text", "text": "5+5 = 10"}]},
            ],
        },
    ] == second["messages"][-2:]
    assert first["messages"] == second["messages"][:-2]
    assert raw[2] == msgspec.json.encode({**first, "messages": second["messages"]})


async def test_the_second_round_to_ollama_is_this_to_the_byte(tmp_path: Path) -> None:
    bodies, raw, _ = await converse(tmp_path, "ollama")

    first, second = bodies[1], bodies[2]
    assistant, *results = second["messages"][len(first["messages"]) :]
    assert [{"expression": "12*7"}, {"expression": "5+5"}] == [
        call["function"]["arguments"] for call in assistant["tool_calls"]
    ]
    assert [("12*7 = 84", "calculator"), ("5+5 = 10", "calculator")] == [
        (result["content"], result["tool_name"]) for result in results
    ]
    assert raw[2] == msgspec.json.encode({**first, "messages": second["messages"]})
