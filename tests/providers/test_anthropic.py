"""Anthropic's format: blocks, thoughts with signatures, cumulative usage, structured output by generation."""

from __future__ import annotations

import json

import pytest
from support.loopback import Reply, Server
from support.recordings import KEY, recordings

from timeline.errors import Overloaded
from timeline.events import Source, Usage
from timeline.providers import (
    AnthropicProvider,
    Capabilities,
    Delta,
    Finish,
    ImagePart,
    LLMRequest,
    Message,
    ModelInfo,
    OpaquePart,
    TextPart,
    Tool,
    ToolCall,
    UsageReport,
    collect,
)
from timeline.providers.base import Besides
from timeline.providers.claude import generation

ANTHROPIC = AnthropicProvider(KEY)
WEATHER = Tool("weather", "The weather.", {"type": "object", "properties": {"city": {"type": "string"}}})
SCHEMA = {"type": "object", "properties": {"a": {"type": "object", "properties": {}}}, "required": ["a"]}
USER = [{"role": "user", "content": "hi"}]


def start(**usage):
    return {"type": "message_start", "message": {"model": "claude-x", "usage": usage}}


def block(index, **content):
    return {"type": "content_block_start", "index": index, "content_block": content}


def delta(index, kind, **fields):
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **fields}}


def stop(index):
    return {"type": "content_block_stop", "index": index}


def ending(reason="end_turn", **usage):
    return [{"type": "message_delta", "delta": {"stop_reason": reason}, "usage": usage}, {"type": "message_stop"}]


async def items_of(*payloads, asked=None, headers=None):
    async with Server(Reply.sse(*payloads, headers=headers)) as server:
        provider = AnthropicProvider(KEY, server.url)
        items = [item async for item in provider.stream_request(asked or LLMRequest("claude-x", USER))]
        await provider.aclose()
    return items


async def answer(*payloads, asked=None):
    async def replay():
        for item in items:
            yield item

    items = await items_of(*payloads, asked=asked)
    return await collect(replay())


# ------------------------------------------------------------------ what goes in


def test_a_plain_request():
    messages = [{"role": "system", "content": "Also be kind."}, *USER]
    body = ANTHROPIC.body(
        LLMRequest("claude-sonnet-4-5", messages, system="Be brief.", stop=["x"], seed=7), stream=True
    )

    assert {
        "model": "claude-sonnet-4-5",
        "max_tokens": 16384,
        "system": "Be brief.\n\nAlso be kind.",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        "stop_sequences": ("x",),
        "stream": True,
    } == body


async def test_key_and_version_on_the_wire():
    reply = Reply.json({"type": "message", "model": "m", "content": [], "stop_reason": "end_turn", "usage": {}})
    for given in ("", "/", "/v1", "/v1/", "/v1/messages"):
        async with Server(reply) as server:
            provider = AnthropicProvider(KEY, server.url + given)
            await provider.make_request(LLMRequest("m", USER))
            await provider.aclose()
        asked = server.requests[0]

        assert "/v1/messages" == asked.path
        assert (KEY, "2023-06-01") == (asked.headers["x-api-key"], asked.headers["anthropic-version"])
        assert "authorization" not in asked.headers


def test_roles_take_turns_and_results_stand_together():
    thought = {"type": "thinking", "thinking": "hm", "signature": "s1"}
    asked = LLMRequest(
        "m",
        (
            Message("user", "weather?"),
            Message("user", ""),
            Message(
                "assistant",
                (OpaquePart("anthropic", thought), OpaquePart("other", {"x": 1}), TextPart("")),
                tool_calls=(ToolCall("c1", "weather", {"city": "Bern"}), ToolCall("c2", "weather", {})),
            ),
            Message("tool", "sunny", tool_call_id="c1"),
            Message("tool", "", tool_call_id="c2", is_error=True),
            Message("user", "and?"),
        ),
    )

    assert [
        {"role": "user", "content": [{"type": "text", "text": "weather?"}]},
        {
            "role": "assistant",
            "content": [
                thought,
                {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Bern"}},
                {"type": "tool_use", "id": "c2", "name": "weather", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "sunny"}]},
                {
                    "type": "tool_result",
                    "tool_use_id": "c2",
                    "content": [{"type": "text", "text": "It failed."}],
                    "is_error": True,
                },
                {"type": "text", "text": "and?"},
            ],
        },
    ] == ANTHROPIC.body(asked, stream=False)["messages"]


def test_images_and_documents():
    asked = LLMRequest("m", (Message("user", (ImagePart("image/png", b"x"), ImagePart("application/pdf", b"y"))),))

    assert [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "eA=="}},
        {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "eQ=="}},
    ] == ANTHROPIC.body(asked, stream=False)["messages"][0]["content"]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("auto", {"type": "auto"}),
        ("none", {"type": "none"}),
        ("required", {"type": "any"}),
        ("weather", {"type": "tool", "name": "weather"}),
    ],
)
def test_tools_and_their_choice(choice, expected):
    body = ANTHROPIC.body(LLMRequest("m", USER, tools=[WEATHER], tool_choice=choice), stream=False)

    assert expected == body["tool_choice"]
    assert [{"name": "weather", "description": "The weather.", "input_schema": WEATHER.parameters}] == body["tools"]


@pytest.mark.parametrize(
    ("model", "reasoning"), [("claude-sonnet-4-5", "low"), ("claude-opus-5-5", None), ("claude-fable-5-1", None)]
)
def test_a_choice_that_would_be_refused_is_left_to_the_model(model, reasoning):
    for choice in ("required", "weather"):
        asked = LLMRequest(model, USER, tools=[WEATHER], tool_choice=choice, reasoning=reasoning)

        assert {"type": "auto"} == ANTHROPIC.body(asked, stream=False)["tool_choice"]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("claude-sonnet-4-5-20250929", (4, 5)),
        ("claude-sonnet-4-20250514", (4, 0)),
        ("claude-3-7-sonnet-latest", (3, 7)),
        ("claude-3-opus-20240229", (3, 0)),
        ("claude-opus-5", (5, 0)),
        ("anthropic/claude-haiku-4.5", (4, 5)),
        ("smollm2", None),
    ],
)
def test_the_generation_is_read_from_the_name(model, expected):
    assert expected == generation(model)


@pytest.mark.parametrize(
    ("model", "reasoning", "max_tokens", "expected"),
    [
        ("claude-opus-4-8", "high", None, {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}}),
        ("claude-opus-4-8", "none", None, {"thinking": {"type": "disabled"}}),
        ("claude-opus-4-7", None, None, {}),
        ("claude-sonnet-4-6", None, None, {"temperature": 1.0}),
        ("claude-fable-5", "none", None, {"output_config": {"effort": "low"}}),
        ("claude-sonnet-4-5", "low", None, {"thinking": {"type": "enabled", "budget_tokens": 2048}}),
        ("claude-sonnet-4-5", "high", 4096, {"thinking": {"type": "enabled", "budget_tokens": 2048}}),
        ("claude-sonnet-4-5", "high", 100, {"thinking": {"type": "enabled", "budget_tokens": 1024}}),
        ("claude-sonnet-4-5", "none", None, {"temperature": 1.0}),
        ("claude-3-haiku-20240307", "high", None, {"temperature": 1.0}),
    ],
)
def test_thoughts_are_asked_for_as_the_generation_knows_them(model, reasoning, max_tokens, expected):
    asked = LLMRequest(model, USER, reasoning=reasoning, max_tokens=max_tokens, temperature=1.5)
    body = ANTHROPIC.body(asked, stream=False)

    assert expected == {k: body[k] for k in ("thinking", "output_config", "temperature") if k in body}
    assert body["max_tokens"] > body.get("thinking", {}).get("budget_tokens", 0)


def test_a_schema_is_the_outputs_format_where_the_generation_knows_it():
    body = ANTHROPIC.body(LLMRequest("claude-sonnet-4-5", USER, response_schema=SCHEMA), stream=False)
    inner = {"type": "object", "properties": {}, "additionalProperties": False}

    assert {"type": "json_schema", "schema": {**SCHEMA, "properties": {"a": inner}, "additionalProperties": False}} == (
        body["output_config"]["format"]
    )


async def test_a_schema_is_a_tool_to_be_called_where_it_does_not():
    asked = LLMRequest("claude-3-5-haiku-latest", USER, response_schema=SCHEMA)
    body = ANTHROPIC.body(asked, stream=False)
    response = await answer(
        start(input_tokens=1),
        block(0, type="tool_use", id="t1", name="answer", input={}),
        delta(0, "input_json_delta", partial_json='{"a"'),
        delta(0, "input_json_delta", partial_json=":{}}"),
        stop(0),
        *ending("tool_use", output_tokens=4),
        asked=asked,
    )

    assert ({"type": "tool", "name": "answer"}, SCHEMA) == (body["tool_choice"], body["tools"][0]["input_schema"])
    assert ('{"a":{}}', (), "stop") == (response.content, response.tool_calls, response.finish_reason)


# ------------------------------------------------------------------ what comes out


@pytest.mark.parametrize("strange", [-1, 1e30, "9"])
async def test_a_strange_count_keeps_what_was_said_and_alone_is_no_report(strange):
    begun = [block(0, type="text", text=""), delta(0, "text_delta", text="x")]
    kept = await answer(start(input_tokens=9, output_tokens=1), *begun, *ending(output_tokens=strange))
    alone = await answer(start(input_tokens=strange, output_tokens=1), *begun, *ending(output_tokens=5))
    mended = await answer(start(input_tokens=strange), *begun, *ending(input_tokens=4, output_tokens=5))

    assert (Usage(9, output=1), True) == (kept.usage, kept.usage_reported)
    assert (Usage(), False) == (alone.usage, alone.usage_reported)
    assert Usage(4, output=5) == mended.usage


@pytest.mark.parametrize("kind", ["message_delta", "error", "message_stop"])
async def test_what_an_event_tells_beside_its_error_is_not_lost(kind):
    last = {"type": kind, "usage": {"output_tokens": 7}, "error": {"type": "overloaded_error", "message": "no"}}
    async with Server(Reply.sse(start(input_tokens=9), block(0, type="text", text="x"), last)) as server:
        provider = AnthropicProvider(KEY, server.url)
        stream = provider.stream_request(LLMRequest("claude-x", USER))
        items = [await anext(stream) for _ in range(3)]
        with pytest.raises(Overloaded):
            await anext(stream)
        await provider.aclose()

    assert [Usage(9), "x", Usage(9, output=7)] == [getattr(item, "text", None) or item.usage for item in items]


async def test_usage_is_overwritten_and_nulls_keep_what_was_said():
    split = {"ephemeral_5m_input_tokens": 30, "ephemeral_1h_input_tokens": 70}
    items = await items_of(
        start(
            input_tokens=2039,
            cache_creation_input_tokens=100,
            cache_read_input_tokens=5,
            cache_creation=split,
            output_tokens=1,
        ),
        *ending(
            input_tokens=10423,
            cache_creation_input_tokens=None,
            output_tokens=510,
            output_tokens_details={"thinking_tokens": 9},
        ),
    )
    first, last = (item for item in items if isinstance(item, UsageReport))

    assert Usage(2039, 5, 30, 70, 1) == first.usage
    assert Usage(10423, 5, 30, 70, 510, 9) == last.usage
    assert split == last.raw["cache_creation"]


async def test_what_summaries_and_advisors_used_is_told_besides():
    def step(kind, tokens, **more):
        return {"type": kind, "input_tokens": tokens, "output_tokens": 1, **more}

    steps = [step("compaction", 60385), step("message", 612), step("advisor_message", 2728, model="claude-y"), 7]
    items = await items_of(start(input_tokens=60385), *ending(input_tokens=612, output_tokens=9, iterations=steps))
    last = [item for item in items if isinstance(item, UsageReport)][-1]

    assert Usage(612, output=9) == last.usage
    assert (Besides(Usage(60385, output=1)), Besides(Usage(2728, output=1), "claude-y")) == last.besides


async def test_thoughts_with_signatures_are_kept_to_be_sent_back():
    response = await answer(
        start(),
        block(0, type="thinking", thinking="", signature=""),
        delta(0, "thinking_delta", thinking=""),
        delta(0, "thinking_delta", thinking="Let me "),
        {"type": "ping"},
        delta(0, "thinking_delta", thinking="see."),
        delta(0, "signature_delta", signature="sig1"),
        stop(0),
        block(1, type="redacted_thinking", data="enc"),
        stop(1),
        block(2, type="server_tool_use", id="s1", name="web_search", input={}),
        delta(2, "input_json_delta", partial_json=""),
        delta(2, "input_json_delta", partial_json='{"query":"x"}'),
        stop(2),
        block(3, type="web_search_tool_result", tool_use_id="s1", content=[]),
        stop(3),
        {"type": "something_new", "index": 3},
        block(4, type="tool_use", id="t1", name="weather", input={}),
        delta(4, "input_json_delta", partial_json=""),
        stop(4),
        *ending("tool_use"),
    )

    assert (
        OpaquePart("anthropic", {"type": "thinking", "thinking": "Let me see.", "signature": "sig1"}),
        OpaquePart("anthropic", {"type": "redacted_thinking", "data": "enc"}),
        OpaquePart("anthropic", {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"query": "x"}}),
        OpaquePart("anthropic", {"type": "web_search_tool_result", "tool_use_id": "s1", "content": []}),
    ) == response.opaque
    assert ("Let me see.", (ToolCall("t1", "weather", {}),), "tool_calls") == (
        response.reasoning,
        response.tool_calls,
        response.finish_reason,
    )


async def test_thoughts_that_nothing_signs_are_not_kept():
    response = await answer(
        start(), block(0, type="thinking", thinking="a"), delta(0, "thinking_delta", thinking="b"), stop(0), *ending()
    )

    assert ("ab", ()) == (response.reasoning, response.opaque)


async def test_a_block_of_the_servers_that_is_cut_off_is_kept_as_it_began():
    response = await answer(
        start(),
        block(0, type="server_tool_use", id="s1", name="web_search", input={}),
        delta(0, "input_json_delta", partial_json='{"que'),
        stop(0),
        *ending("max_tokens"),
    )

    assert ("length", {}) == (response.finish_reason, response.opaque[0].block["input"])


async def test_a_call_that_stands_in_the_messages_start_is_one():
    result = {"type": "code_execution_tool_result", "tool_use_id": "s1", "content": {"stdout": "1"}}
    call = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Bern"}}
    begun = {"model": "claude-x", "content": [result, call], "stop_reason": "tool_use", "usage": {"input_tokens": 3}}
    response = await answer(
        {"type": "message_start", "message": begun},
        block(0, type="tool_use", id="t2", name="weather", input={}),
        stop(0),
        {"type": "message_stop"},
    )

    assert (ToolCall("t1", "weather", {"city": "Bern"}), ToolCall("t2", "weather", {})) == response.tool_calls
    assert ("tool_calls", (OpaquePart("anthropic", result),)) == (response.finish_reason, response.opaque)
    assert Usage(3) == response.usage


async def test_a_call_that_comes_whole_and_is_never_stopped_has_its_arguments():
    call = block(0, type="tool_use", id="t1", name="weather", input={"city": "Bern"})
    response = await answer(start(), call, *ending("tool_use"))

    assert (ToolCall("t1", "weather", {"city": "Bern"}),) == response.tool_calls


@pytest.mark.parametrize(
    ("raw", "expected"), [("stop", "stop"), ("length", "length"), ("sensitive", "content_filter"), ("x", "unknown")]
)
async def test_the_words_of_servers_that_took_the_format_over(raw, expected):
    response = await answer(start(), block(0, type="text", text="x"), stop(0), *ending(raw))

    assert (expected, raw) == (response.finish_reason, response.raw_finish_reason)


async def test_the_pages_that_an_answer_cites_are_told():
    cited = [{"type": "web_search_result_location", "url": f"https://{name}", "title": name} for name in "aab"]
    streamed = await answer(
        start(),
        block(0, type="text", text="", citations=[]),
        *(delta(0, "citations_delta", citation=each) for each in cited),
        delta(0, "citations_delta", citation={"type": "char_location", "document_title": "c"}),
        delta(0, "text_delta", text="So it is."),
        stop(0),
        *ending(),
    )
    text = {"type": "text", "text": "So it is.", "citations": cited}
    async with Server(Reply.json({"type": "message", "content": [text], "stop_reason": "end_turn"})) as server:
        provider = AnthropicProvider(KEY, server.url)
        at_once = await provider.make_request(LLMRequest("claude-x", USER))
        await provider.aclose()

    for response in (streamed, at_once):
        assert (Source("https://a", "a"), Source("https://b", "b")) == response.sources
        assert "So it is." == response.content


async def test_no_page_that_an_answer_cites_repeats_the_key():
    text = {"type": "text", "text": "x", "citations": [{"url": f"https://a/?key={KEY}", "title": KEY}]}
    response = await answer(start(), block(0, **text), stop(0), *ending())

    assert (Source("https://a/?key=[key]", "[key]"),) == response.sources


async def test_why_it_refuses_is_told():
    details = {"type": "refusal", "category": "cyber", "explanation": "It was blocked\nunder the policy."}
    refusal = {"type": "message_delta", "delta": {"stop_reason": "refusal", "stop_details": details}, "usage": {}}
    streamed = await answer(start(), refusal, {"type": "message_stop"})
    whole = {"type": "message", "content": [], "stop_reason": "refusal", "stop_details": details, "usage": {}}
    async with Server(Reply.json(whole)) as server:
        provider = AnthropicProvider(KEY, server.url)
        at_once = await provider.make_request(LLMRequest("claude-x", USER))
        await provider.aclose()

    for response in (streamed, at_once):
        assert ("content_filter", "It was blocked under the policy.") == (response.finish_reason, response.explanation)


async def test_the_model_that_steps_in_for_another_is_the_one_that_answered():
    change = {"type": "fallback", "from": {"model": "claude-x"}, "to": {"model": "claude-y"}}
    response = await answer(start(), block(0, **change), stop(0), block(1, type="text", text="yes"), stop(1), *ending())

    assert ("claude-y", "yes") == (response.model, response.content)
    assert (OpaquePart("anthropic", change),) == response.opaque


async def test_calls_of_a_server_that_numbers_no_block_are_kept_apart():
    events = []
    for name in ("a", "b", "c"):
        events += [
            block(0, type="tool_use", id=name, name=name, input={}),
            delta(0, "input_json_delta", partial_json="{}"),
        ]
        events += [stop(0)]
    response = await answer(start(), *({**event, "index": 0} for event in events), *ending("tool_use"))

    assert ["a", "b", "c"] == [call.name for call in response.tool_calls]


async def test_events_without_data_keep_a_connection_alive():
    response = await answer(start(), "", block(0, type="text", text="x"), " ", stop(0), *ending())

    assert "x" == response.content


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("pause_turn", "pause"),
        ("refusal", "content_filter"),
        ("new_reason", "unknown"),
    ],
)
async def test_stop_reasons(raw, expected):
    response = await answer(start(), *ending(raw))

    assert (expected, raw) == (response.finish_reason, response.raw_finish_reason)


async def test_nothing_follows_the_finish():
    items = await items_of(start(), *ending(), "[DONE]", delta(0, "text_delta", text="late"))

    assert isinstance(items[-1], Finish)
    assert not any(isinstance(item, Delta) for item in items)


# ------------------------------------------------------------------ models


@pytest.mark.skipif(not recordings(), reason="the recordings aren't beside the repository")
async def test_recorded_lists_of_models_over_two_pages():
    old, new = (json.loads(r.body) for r in recordings() if r.id.startswith("anthropic/models-json-200"))
    async with Server([Reply.json({**new, "has_more": True}), Reply.json(old)]) as server:
        provider = AnthropicProvider(KEY, server.url)
        models = await provider.get_available_models()
        await provider.aclose()

    assert len(old["data"]) + len(new["data"]) == len(models)
    assert (
        ModelInfo(
            "claude-opus-5",
            "anthropic",
            context=1000000,
            max_output=128000,
            capabilities=Capabilities(tools=True, schema=True, images=True, reasoning=True),
        )
        == models[0]
    )
    assert ["/v1/models?limit=1000", f"/v1/models?limit=1000&after_id={new['last_id']}"] == [
        asked.path for asked in server.requests
    ]
