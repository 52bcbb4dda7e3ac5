"""Whatever a server puts into its JSON, nothing but an error of the tree comes out of a parser."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.recordings import provider_for, request

from timeline.errors import ProviderError
from timeline.providers import Collector
from timeline.providers.failures import Complaint, Head, Speaker, error_from
from timeline.providers.http import whole_items
from timeline.providers.limits import rate_limits, retry_after

HEAD = Head(Speaker("x", "http://x", "set X"), 200, {"content-type": "x"}, 1_700_000_000_000_000, "m")
CALL = {"index": 0, "id": "c", "type": "function", "function": {"name": "n", "arguments": "{}"}}
DETAILS = {"cached_tokens": 1, "cache_write_tokens": 1}
OPENAI_USAGE = {
    "prompt_tokens": 3,
    "completion_tokens": 2,
    "total_tokens": 5,
    "prompt_tokens_details": DETAILS,
    "completion_tokens_details": {"reasoning_tokens": 1},
}
MESSAGE = {"content": "x", "reasoning": "y", "refusal": None, "tool_calls": [CALL], "function_call": CALL["function"]}
ANTHROPIC_USAGE = {
    "input_tokens": 1,
    "cache_creation_input_tokens": 2,
    "cache_read_input_tokens": 3,
    "cache_creation": {"ephemeral_5m_input_tokens": 1, "ephemeral_1h_input_tokens": 1},
    "output_tokens": 4,
    "output_tokens_details": {"thinking_tokens": 2},
}
BLOCKS = [
    {"type": "thinking", "thinking": "t", "signature": "s"},
    {"type": "text", "text": "x"},
    {"type": "tool_use", "id": "t", "name": "n", "input": {"a": 1}},
    {"type": "server_tool_use", "id": "t", "name": "n", "input": {}},
]
PAYLOADS: list[tuple[str, Any]] = [
    (
        "openai",
        {"choices": [{"index": 0, "delta": MESSAGE, "finish_reason": "stop"}], "usage": OPENAI_USAGE, "model": "m"},
    ),
    ("openai", {"choices": [{"message": MESSAGE, "finish_reason": "stop"}], "usage": OPENAI_USAGE, "model": "m"}),
    ("groq", {"choices": [], "x_groq": {"id": "r", "usage": OPENAI_USAGE, "error": None}}),
    ("openai", {"error": {"message": "m", "type": "t", "code": 500, "param": None}}),
    ("anthropic", {"type": "message_start", "message": {"model": "m", "usage": ANTHROPIC_USAGE}}),
    ("anthropic", {"type": "message", "model": "m", "content": BLOCKS, "stop_reason": "x", "usage": ANTHROPIC_USAGE}),
    ("anthropic", {"type": "content_block_start", "index": 0, "content_block": BLOCKS[2]}),
    (
        "anthropic",
        {"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": "{"}},
    ),
    ("anthropic", {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "x"}}),
    ("anthropic", {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": ANTHROPIC_USAGE}),
    ("anthropic", {"type": "error", "error": {"type": "overloaded_error", "message": "m"}, "request_id": "r"}),
    (
        "ollama",
        {
            "model": "m",
            "message": {
                "content": "x",
                "thinking": "y",
                "tool_calls": [{"function": {"name": "n", "arguments": {"a": 1}}}],
            },
            "done": True,
            "done_reason": "stop",
            "prompt_eval_count": 3,
            "eval_count": 2,
        },
    ),
    ("ollama", {"model": "m", "response": "x", "done": True, "done_reason": "stop"}),
    ("ollama", {"error": "no"}),
]
ODD = [None, True, -1, 10**30, 1e300, "", "x", [], [None], [[]], {}, {"a": {}}, {"type": None}]
VALUES = st.sampled_from(ODD) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every node."""
    found = [path]
    if isinstance(value, dict):
        children: Any = value.items()
    else:
        children = enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        found += places(child, (*path, key))
    return found


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    made = copy.deepcopy(value)
    node = made
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = new
    return made


def read(dialect: str, value: Any) -> None:
    parser, collector = provider_for(dialect).parser(HEAD, request()), Collector()
    try:
        for item in whole_items(parser, json.dumps(value).encode()):
            collector.add(item)
    except ProviderError:
        return
    response = collector.response()

    assert all(count >= 0 for count in (response.tokens_input, response.tokens_output))
    assert isinstance(response.content, str)
    assert all(isinstance(call.id, str) and isinstance(call.name, str) for call in response.tool_calls)
    assert isinstance(response.model, str)


@pytest.mark.parametrize(("dialect", "payload"), PAYLOADS)
def test_each_value_of_an_answer_may_be_any_other(dialect, payload):
    for path in places(payload):
        for value in ODD:
            read(dialect, replaced(payload, path, value))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_two_values_of_an_answer_may_be_anything(data):
    dialect, payload = data.draw(st.sampled_from(PAYLOADS))
    for _ in range(2):
        payload = replaced(payload, data.draw(st.sampled_from(places(payload))), data.draw(VALUES))
    read(dialect, payload)


@settings(max_examples=150, deadline=None)
@given(status=st.integers(300, 599) | st.just(200), value=VALUES)
def test_an_error_body_may_be_anything(status, value):
    for body in (
        value,
        {"error": value},
        {"error": {"message": value, "type": value, "code": value}},
        {"detail": value},
    ):
        complaint = Complaint.read(json.dumps(body).encode())
        error = error_from(HEAD.speaker, complaint, status=status, headers={}, now=HEAD.now)

        assert isinstance(error, ProviderError)
        assert isinstance(str(error), str)


@settings(max_examples=200, deadline=None)
@example(text="9" * 400)
@example(text="9" * 400 + "h")
@example(text="0001-01-01T00:00:00Z")
@example(text="Mon, 32 Foo 99999 99:99:99 GMT")
@given(text=st.text(max_size=30))
def test_headers_may_be_anything(text):
    wait = retry_after({"retry-after": text, "retry-after-ms": text}, text, HEAD.now)
    headers = {f"x-ratelimit-{field}-requests": text for field in ("limit", "remaining", "reset")}

    assert wait is None or wait >= 0
    assert len(rate_limits(headers, HEAD.now)) <= 1
