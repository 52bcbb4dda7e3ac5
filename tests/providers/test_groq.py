"""Groq's own ways within OpenAI's format."""

from __future__ import annotations

import pytest
from support.loopback import Reply, Server
from support.recordings import KEY

from timeline.events import Usage
from timeline.providers import GroqProvider, LLMRequest, UsageReport, collect

GROQ = GroqProvider(KEY)
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False}


def test_the_address_may_leave_out_the_path():
    assert "http://127.0.0.1:9/openai/v1" == GroqProvider(KEY, "http://127.0.0.1:9").base_url
    assert "http://127.0.0.1:9/v1" == GroqProvider(KEY, "http://127.0.0.1:9/v1").base_url
    assert "http://127.0.0.1:9/v1" == GroqProvider(KEY, "http://127.0.0.1:9/v1/chat/completions").base_url


def test_the_answers_length_goes_by_the_new_name():
    body = GROQ.body(LLMRequest("llama-3.3-70b-versatile", (), max_tokens=5), stream=True)

    assert {"model": "llama-3.3-70b-versatile", "messages": [], "stream": True, "max_completion_tokens": 5} | {
        "stream_options": {"include_usage": True}
    } == body


@pytest.mark.parametrize(
    ("model", "reasoning", "expected"),
    [
        ("openai/gpt-oss-20b", "high", {"reasoning_effort": "high"}),
        ("openai/gpt-oss-20b", "none", {"reasoning_effort": "low"}),
        ("qwen/qwen3-32b", "high", {"reasoning_effort": "default", "reasoning_format": "parsed"}),
        ("qwen/qwen3-32b", "none", {"reasoning_effort": "none", "reasoning_format": "parsed"}),
        ("qwen/qwen3-32b", None, {"reasoning_format": "parsed"}),
        ("llama-3.3-70b-versatile", None, {}),
    ],
)
def test_reasoning_is_asked_for_as_the_model_knows_it(model, reasoning, expected):
    body = GROQ.body(LLMRequest(model, (), reasoning=reasoning), stream=True)

    assert expected == {key: value for key, value in body.items() if key.startswith("reasoning")}


def test_a_schema_is_put_in_words_to_models_that_only_know_json():
    body = GROQ.body(LLMRequest("llama-3.3-70b-versatile", (), response_schema=SCHEMA), stream=False)

    assert {"type": "json_object"} == body["response_format"]
    assert '"required":["a"]' in body["messages"][0]["content"]
    for model, strict in (
        ("openai/gpt-oss-20b", True),
        ("openai/gpt-oss-safeguard-20b", False),
        ("moonshotai/kimi-k2-instruct", False),
    ):
        body = GROQ.body(LLMRequest(model, (), response_schema=SCHEMA), stream=False)
        assert strict is body["response_format"]["json_schema"]["strict"]


@pytest.mark.parametrize("model", ["openai/gpt-oss-20b", "llama-3.3-70b-versatile"])
async def test_an_answer_of_a_schema_is_asked_for_in_one_piece(model):
    asked = LLMRequest(model, (), response_schema=SCHEMA)
    whole = {"choices": [{"message": {"content": '{"a":"b"}'}, "finish_reason": "stop"}]}
    async with Server(Reply.json(whole)) as server:
        provider = GroqProvider(KEY, server.url)
        response = await collect(provider.stream_request(asked))
        await provider.aclose()
    sent = server.requests[0].json()

    assert ('{"a":"b"}', False) == (response.content, sent["stream"])
    assert "stream_options" not in sent


def test_a_schema_beside_tools_is_put_in_words_alone():
    tool = {"name": "f", "description": "f", "parameters": {"type": "object"}}
    body = GROQ.body(LLMRequest("openai/gpt-oss-20b", (), tools=[tool], response_schema=SCHEMA), stream=True)

    assert "response_format" not in body
    assert '"required":["a"]' in body["messages"][0]["content"]
    assert body["stream"]


async def test_the_same_usage_in_three_places_is_counted_once():
    usage = {"queue_time": 0.1, "prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
    finish = {
        "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}],
        "x_groq": {"id": "req_9", "usage": usage},
    }
    payloads = [{**finish, "usage": usage}, {"choices": [], "usage": usage}, "[DONE]"]
    async with Server(Reply.sse(*payloads)) as server:
        provider = GroqProvider(KEY, server.url)
        items = [item async for item in provider.stream_request(LLMRequest("m", ()))]
        response = await collect(provider.stream_request(LLMRequest("m", ())))
        await provider.aclose()

    assert [UsageReport(Usage(9, output=2), usage)] == [item for item in items if isinstance(item, UsageReport)]
    assert "req_9" == response.request_id
