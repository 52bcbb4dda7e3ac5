"""OpenAI's format: what is sent, and the many ways of servers that took it over."""

from __future__ import annotations

import json

import msgspec
import pytest
from support.loopback import Reply, Server
from support.recordings import KEY, recordings

from timeline.errors import BadResponse, BrokenStream, ProviderError
from timeline.events import RateLimit, Source, Usage
from timeline.providers import (
    Capabilities,
    ImagePart,
    LLMRequest,
    Message,
    ModelInfo,
    OpaquePart,
    OpenAIProvider,
    TextPart,
    Tool,
    ToolCall,
    collect,
)
from timeline.providers.chat_format import is_strict

WEATHER = Tool("weather", "The weather.", {"type": "object", "properties": {"city": {"type": "string"}}})
ELSEWHERE = OpenAIProvider(None, "http://127.0.0.1:8080/v1")
HERE = OpenAIProvider(KEY)


def chunk(delta=None, finish=None, **more):
    return {"choices": [{"index": 0, "delta": delta or {}, "finish_reason": finish}], **more}


def fragment(index=None, call_id=None, name=None, arguments=None):
    call = {"function": {"arguments": arguments}}
    if index is not None:
        call["index"] = index
    if call_id is not None:
        call["id"] = call_id
    if name is not None:
        call["function"]["name"] = name
    return chunk({"tool_calls": [call]})


async def answer(*payloads, headers=None, model="m"):
    async with Server(Reply.sse(*payloads, headers=headers)) as server:
        provider = OpenAIProvider(KEY, server.url)
        try:
            return await collect(provider.stream_request(LLMRequest(model, ())))
        finally:
            await provider.aclose()


# ------------------------------------------------------------------ what goes in


def test_a_plain_request():
    body = HERE.body(LLMRequest("gpt-4o", [{"role": "user", "content": "hi"}], system="Be brief."), stream=True)

    assert {
        "model": "gpt-4o",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}],
        "stream": True,
        "stream_options": {"include_usage": True, "include_obfuscation": False},
    } == body


def test_messages_and_stop_are_taken_as_callers_write_them():
    calls = (ToolCall("c1", "a", {"x": 1}),)
    messages = [{"role": "assistant", "content": None, "tool_calls": calls}, Message("user", "hi")]
    asked = LLMRequest(model="m", messages=messages, stop="END")

    assert ((Message("assistant", tool_calls=calls), Message("user", "hi")), ("END",)) == (asked.messages, asked.stop)
    for wrong in ("hi", 7, [{"role": "user", "content": 7}], [{"role": "nobody"}]):
        with pytest.raises(msgspec.ValidationError):
            LLMRequest(model="m", messages=wrong)


def test_every_parameter_in_its_place():
    asked = LLMRequest(
        "gpt-4o",
        [{"role": "user", "content": "hi"}],
        temperature=0.5,
        max_tokens=9,
        stop=["a", "b"],
        seed=7,
        reasoning="low",
        extra={"user": "u", "seed": None},
    )

    assert {
        "model": "gpt-4o",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": False,
        "max_completion_tokens": 9,
        "temperature": 0.5,
        "stop": ("a", "b"),
        "reasoning_effort": "low",
        "user": "u",
    } == HERE.body(asked, stream=False)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://api.openai.com/v1", "max_completion_tokens"),
        ("https://eu.api.openai.com/v1", "max_completion_tokens"),
        ("https://x.openai.azure.com/openai/v1", "max_completion_tokens"),
        ("http://127.0.0.1:8080/v1", "max_tokens"),
        ("https://openrouter.ai/api/v1", "max_tokens"),
    ],
)
def test_the_answers_length_goes_by_the_name_the_server_knows(url, name):
    body = OpenAIProvider(KEY, url).body(LLMRequest("m", (), max_tokens=9), stream=True)

    assert {name: 9} == {key: value for key, value in body.items() if key.startswith("max_")}


@pytest.mark.parametrize(
    ("model", "reasoning", "expected"),
    [
        ("gpt-4o", None, 0.0),
        ("gpt-35-turbo", None, 0.0),
        ("gpt-5", None, None),
        ("gpt-5-mini", None, None),
        ("o3-mini", None, None),
        ("gpt-5-chat-latest", None, 0.0),
        ("gpt-5.1", None, 0.0),
        ("gpt-5.1", "low", None),
        ("gpt-5.4-mini", "none", 0.0),
        ("gpt-5.2-pro", None, None),
        ("gpt-5.5", None, None),
        ("gpt-5.5", "none", 0.0),
    ],
)
def test_reasoning_models_are_spared_a_temperature_they_refuse(model, reasoning, expected):
    asked = LLMRequest(model, (), temperature=0.0, reasoning=reasoning)

    assert expected == HERE.body(asked, stream=False).get("temperature")
    assert 0.0 == ELSEWHERE.body(asked, stream=False)["temperature"]


@pytest.mark.parametrize(
    ("model", "expected"), [("o4-mini", "low"), ("gpt-5-nano", "minimal"), ("gpt-5.1", "none"), ("gpt-4o", "none")]
)
def test_models_that_always_reason_are_asked_for_the_least_of_it(model, expected):
    assert expected == HERE.body(LLMRequest(model, (), reasoning="none"), stream=False)["reasoning_effort"]


def test_services_are_spared_fields_they_refuse():
    asked = LLMRequest("m", (), seed=7, response_schema={"type": "object", "properties": {"a": {}}})
    mistral = OpenAIProvider(KEY, "https://api.mistral.ai/v1").body(asked, stream=True)
    deepseek = OpenAIProvider(KEY, "https://api.deepseek.com/v1").body(asked, stream=True)

    assert 7 == mistral["random_seed"]
    assert {"seed", "stream_options"}.isdisjoint(mistral)
    assert {"type": "json_object"} == deepseek["response_format"]
    assert '"properties":{"a":{}}' in deepseek["messages"][0]["content"]


def test_tools_and_their_choice():
    body = HERE.body(LLMRequest("m", (), tools=[WEATHER], tool_choice="weather"), stream=False)

    assert [
        {
            "type": "function",
            "function": {"name": "weather", "description": "The weather.", "parameters": WEATHER.parameters},
        }
    ] == body["tools"]
    assert {"type": "function", "function": {"name": "weather"}} == body["tool_choice"]
    for word in ("auto", "none", "required"):
        assert word == HERE.body(LLMRequest("m", (), tools=[WEATHER], tool_choice=word), stream=False)["tool_choice"]


def test_results_of_parallel_calls_are_sent_back():
    asked = LLMRequest(
        "m",
        (
            Message("user", "weather?"),
            Message(
                "assistant",
                (OpaquePart("anthropic", {"type": "thinking"}), TextPart("Let me see.")),
                tool_calls=(
                    ToolCall("c1", "weather", {"city": "Bern"}),
                    ToolCall("c2", "weather", {"_invalid": '{"ci'}),
                ),
            ),
            Message("tool", "sunny", tool_call_id="c1", name="weather"),
            Message("tool", "unknown city", tool_call_id="c2", name="weather", is_error=True),
        ),
    )

    assert [
        {"role": "user", "content": "weather?"},
        {
            "role": "assistant",
            "content": "Let me see.",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Bern"}'}},
                {"id": "c2", "type": "function", "function": {"name": "weather", "arguments": '{"_invalid":"{\\"ci"}'}},
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        {"role": "tool", "tool_call_id": "c2", "content": "unknown city"},
    ] == HERE.body(asked, stream=False)["messages"]


async def test_thoughts_and_signatures_go_back_with_the_calls_to_who_sent_them():
    sign = {"google": {"thought_signature": "s1"}}
    call = {"index": 0, "id": "c1", "function": {"name": "a", "arguments": "{}"}, "extra_content": sign}
    response = await answer(
        chunk({"reasoning_content": "hm"}), chunk({"reasoning_content": "m"}), chunk({"tool_calls": [call]}), "[DONE]"
    )
    back = Message("assistant", (*response.opaque, TextPart("x")), response.tool_calls)
    sent = HERE.body(LLMRequest("m", [back]), stream=True)["messages"][0]
    elsewhere = OpenAIProvider(KEY, name="other").body(LLMRequest("m", [back]), stream=True)["messages"][0]

    assert ("hmm", sign) == (sent["reasoning_content"], sent["tool_calls"][0]["extra_content"])
    assert {"role", "content", "tool_calls"} == elsewhere.keys()
    assert "extra_content" not in elsewhere["tool_calls"][0]
    assert () == (await answer(chunk({"reasoning_content": "hm", "content": "x"}, "stop"))).opaque


async def test_a_signature_that_comes_alone_ahead_of_its_call_goes_back_with_it():
    signs = [chunk({"tool_calls": [{"index": number, "extra_content": {"sign": number}}]}) for number in (0, 1)]
    begun = [fragment(number, f"c{number}", "a", "{}") for number in (0, 1)]

    response = await answer(signs[0], begun[0], signs[1], begun[1], "[DONE]")

    assert {"extra_content": {"0": {"sign": 0}, "1": {"sign": 1}}} == response.opaque[0].block
    assert ["c0", "c1"] == [call.id for call in response.tool_calls]


async def test_openrouters_thoughts_go_back_with_the_calls_joined_as_it_sent_them():
    def thought(text, **more):
        return {"type": "reasoning.text", "index": 0, "text": text, "signature": None, **more}

    secret = {"type": "reasoning.encrypted", "index": 0, "data": "enc"}
    response = await answer(
        chunk({"reasoning": "Let me ", "reasoning_details": [thought("Let me ")]}),
        chunk({"reasoning": "see.", "reasoning_details": [thought("see."), "?", thought(None, signature="s1")]}),
        chunk({"reasoning_details": [secret]}),
        chunk({"reasoning_details": [{**secret, "id": "c1"}]}),
        fragment(0, "c1", "a", "{}"),
        "[DONE]",
    )
    back = Message("assistant", response.opaque, response.tool_calls)
    sent = HERE.body(LLMRequest("m", [back]), stream=True)["messages"][0]

    assert [thought("Let me see.", signature="s1"), secret, {**secret, "id": "c1"}] == sent["reasoning_details"]
    assert "Let me see." == response.reasoning


async def test_claudes_thoughts_by_way_of_litellm_go_back_with_the_calls():
    def thought(text, signature=None):
        return {"type": "thinking", "thinking": text, "signature": signature}

    pieces = (
        thought("Let me "),
        thought("see."),
        thought("", "s1"),
        thought("More", "s2"),
        {"type": "redacted_thinking"},
    )
    response = await answer(
        *(chunk({"reasoning_content": piece.get("thinking"), "thinking_blocks": [piece]}) for piece in pieces),
        fragment(0, "c1", "a", "{}"),
        "[DONE]",
    )
    back = Message("assistant", response.opaque, response.tool_calls)
    sent = HERE.body(LLMRequest("m", [back]), stream=True)["messages"][0]

    assert [thought("Let me see.", "s1"), thought("More", "s2"), {"type": "redacted_thinking"}] == sent[
        "thinking_blocks"
    ]


def test_deepseek_is_told_of_thoughts_even_where_there_were_none():
    messages = [Message("user", "hi"), Message("assistant", "", (ToolCall("c1", "a", {}),))]
    body = OpenAIProvider(KEY, "https://api.deepseek.com/v1").body(LLMRequest("m", messages), stream=True)

    assert [None, ""] == [message.get("reasoning_content") for message in body["messages"]]


def test_images_are_sent_as_data_urls():
    asked = LLMRequest("m", (Message("user", (TextPart("what?"), ImagePart("image/png", b"\x89PNG"))),))

    assert [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "what?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw=="}},
            ],
        }
    ] == HERE.body(asked, stream=False)["messages"]


def test_a_schema_is_strict_where_it_keeps_the_rules_for_it():
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    body = HERE.body(LLMRequest("m", (), response_schema={**schema, "title": "My answer!"}), stream=False)

    assert {"name": "My_answer_", "schema": {**schema, "title": "My answer!"}, "strict": True} == body[
        "response_format"
    ]["json_schema"]
    assert not is_strict({**schema, "required": []})
    assert not is_strict({key: value for key, value in schema.items() if key != "additionalProperties"})
    assert not is_strict({**schema, "properties": {"a": {"type": "object"}}})
    assert not is_strict({"anyOf": [schema, {"type": "object"}]})
    assert is_strict({"anyOf": [schema, {"type": "null"}]})


async def test_key_and_headers_on_the_wire():
    async with Server(Reply.sse(chunk({"content": "x"}, "stop"), "[DONE]")) as server:
        provider = OpenAIProvider(KEY, server.url + "/v1/", headers={"OpenAI-Project": "p"})
        await collect(provider.stream_request(LLMRequest("m", ())))
        await provider.aclose()
    asked = server.requests[0]

    assert ("POST", "/v1/chat/completions") == (asked.method, asked.path)
    assert (f"Bearer {KEY}", "p", "application/json") == (
        asked.headers["authorization"],
        asked.headers["openai-project"],
        asked.headers["content-type"],
    )


# ------------------------------------------------------------------ what comes out


@pytest.mark.parametrize(
    ("payloads", "usage"),
    [
        (
            (chunk({"content": "x"}, "stop", usage={"prompt_tokens": 5, "completion_tokens": 2}), "[DONE]"),
            Usage(5, output=2),
        ),
        (
            (
                chunk({"content": "x"}, usage={"prompt_tokens": 5, "completion_tokens": 1}),
                chunk({}, "stop", usage={"prompt_tokens": 5, "completion_tokens": 2}),
                chunk({}, usage=None),
                "[DONE]",
            ),
            Usage(5, output=2),
        ),
        (
            (chunk(usage={"prompt_tokens": 5, "completion_tokens": 2}), chunk({"content": "x"}, "stop"), "[DONE]"),
            Usage(5, output=2),
        ),
        ((chunk({"content": "x"}, "stop"), "[DONE]"), None),
        (
            (
                chunk(
                    {"content": "x"},
                    "stop",
                    usage={
                        "prompt_tokens": 10,
                        "completion_tokens": 8,
                        "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 3},
                        "completion_tokens_details": {"reasoning_tokens": 6},
                    },
                ),
            ),
            Usage(3, cache_read=4, cache_write=3, output=8, reasoning=6),
        ),
        (
            (chunk({}, "stop", usage={"prompt_tokens": 9, "completion_tokens": 1, "prompt_cache_hit_tokens": 8}),),
            Usage(1, cache_read=8, output=1),
        ),
        (
            (
                chunk(
                    {},
                    "stop",
                    usage={
                        "prompt_tokens": 9,
                        "completion_tokens": 1,
                        "total_tokens": 15,
                        "completion_tokens_details": {"reasoning_tokens": 5},
                    },
                ),
            ),
            Usage(9, output=6, reasoning=5),
        ),
        (
            (chunk({}, "stop", usage={"prompt_tokens": None, "completion_tokens": 1, "prompt_tokens_details": None}),),
            Usage(0, output=1),
        ),
        (
            (
                {
                    "choices": [
                        {
                            "delta": {},
                            "finish_reason": "stop",
                            "usage": {"prompt_tokens": 9, "completion_tokens": 1, "cached_tokens": 4},
                        }
                    ]
                },
            ),
            Usage(5, cache_read=4, output=1),
        ),
        (
            (
                chunk(
                    {},
                    "stop",
                    model="models/gemini-2.5-flash",
                    usage={"prompt_tokens": 9, "completion_tokens": 7, "total_tokens": 52},
                ),
            ),
            Usage(9, output=43, reasoning=36),
        ),
        ((chunk({}, "stop", usage={"input_tokens": 9, "output_tokens": 1}),), Usage(9, output=1)),
        (
            (
                chunk(
                    {},
                    "length",
                    usage={
                        "prompt_tokens": 9,
                        "completion_tokens": 7,
                        "prompt_tokens_details": {"cached_tokens": 2, "cache_creation_input_tokens": 3},
                        "completion_tokens_details": {"reasoning_tokens": 8},
                    },
                ),
            ),
            Usage(4, cache_read=2, cache_write=3, output=7, reasoning=7),
        ),
        (
            (
                chunk(
                    {},
                    "stop",
                    usage={
                        "prompt_tokens": 9,
                        "completion_tokens": 7,
                        "prompt_tokens_details": {"cached_tokens": 2, "cache_creation_tokens": 3},
                    },
                ),
            ),
            Usage(4, cache_read=2, cache_write=3, output=7),
        ),
        ((chunk({"content": "x"}, "stop", usage="none"),), None),
    ],
    ids=[
        "with the finish",
        "on every chunk",
        "ahead",
        "never",
        "details",
        "deepseek",
        "xai",
        "nulls",
        "moonshot",
        "gemini",
        "other names",
        "dashscope's cache, and more thoughts than tokens",
        "litellm's cache",
        "no usage",
    ],
)
async def test_usage_wherever_it_stands(payloads, usage):
    response = await answer(*payloads)

    assert (usage or Usage(), usage is not None) == (response.usage, response.usage_reported)


@pytest.mark.parametrize("strange", [-1, 1_000_000_001, 1e30, "9", True, [9]], ids=str)
@pytest.mark.parametrize("name", ["prompt_tokens", "completion_tokens"])
async def test_what_can_be_no_count_is_no_report(name, strange):
    counters = {"prompt_tokens": 9, "completion_tokens": 2, name: strange}
    response = await answer(chunk({"content": "x"}, "stop", usage=counters))

    assert ("x", Usage(), False, None) == (
        response.content,
        response.usage,
        response.usage_reported,
        response.raw_usage,
    )


async def test_a_report_without_any_count_is_none():
    assert not (await answer(chunk({"content": "x"}, "stop", usage={"cost": 0.1}))).usage_reported


async def test_a_report_with_a_strange_detail_counts():
    told = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": -5}}

    assert Usage(9, output=2) == (await answer(chunk({"content": "x"}, "stop", usage=told))).usage


async def test_a_strange_count_leaves_the_sound_report_before_it():
    sound, strange = {"prompt_tokens": 9, "completion_tokens": 2}, {"prompt_tokens": 9, "completion_tokens": -2}
    response = await answer(chunk({"content": "x"}, usage=sound), chunk({}, "stop", usage=strange))

    assert (Usage(9, output=2), sound) == (response.usage, response.raw_usage)


async def test_the_pages_that_an_answer_names_are_told_once_each_in_their_order():
    cited = {"type": "url_citation", "url_citation": {"url": "https://a", "title": "A", "start_index": 0}}
    other = {"type": "url_citation", "url_citation": {"url": "https://b", "title": None}}
    noted = await answer(chunk({"annotations": [cited]}), chunk({"annotations": [other, cited, 7]}, "stop"))
    found = [{"url": "https://a", "title": "A", "date": "2025-01-01"}, {"url": ""}, {"title": "none"}]
    listed = [chunk({"content": "x [1]"}, end, citations=["https://a"], search_results=found) for end in (None, "stop")]
    tool = {"type": "search", "search_results": {"results": [{"url": "https://a", "title": "A"}]}}
    ran = chunk({"content": "x", "executed_tools": [tool]}, "stop")

    assert (Source("https://a", "A"), Source("https://b")) == noted.sources
    assert (Source("https://a", "A"),) == (await answer(*listed)).sources == (await answer(ran)).sources
    assert (Source("https://a"),) == (await answer(chunk({"content": "x"}, "stop", citations=["https://a", 7]))).sources
    assert () == (await answer(chunk({"content": "x", "annotations": "?"}, "stop", citations="?"))).sources


async def test_no_source_repeats_the_key_plain_or_as_addresses_spell_it():
    key = "sk/a+b="
    found = [{"url": f"https://a/?key={key}", "title": f"for {key}"}, {"url": "https://b/sk%2Fa%2Bb%3D"}]
    async with Server(Reply.sse(chunk({"content": "x"}, "stop", search_results=found))) as server:
        provider = OpenAIProvider(key, server.url)
        response = await collect(provider.stream_request(LLMRequest("m", ())))
        await provider.aclose()

    assert (Source("https://a/?key=[key]", "for [key]"), Source("https://b/[key]")) == response.sources


async def test_the_tier_of_service_that_the_answer_was_given_in_is_told_with_its_usage():
    used = {"prompt_tokens": 9, "completion_tokens": 1}

    assert "flex" == (await answer(chunk({}, "stop", usage=used, service_tier="flex"))).tier
    assert [None, None] == [
        (await answer(chunk({}, "stop", usage=used, **more))).tier for more in ({}, {"service_tier": 7})
    ]


async def test_thoughts_of_gemini_are_counted_where_the_answer_names_no_model():
    counted = chunk({}, "stop", usage={"prompt_tokens": 9, "completion_tokens": 7, "total_tokens": 52})

    assert Usage(9, output=43, reasoning=36) == (await answer(counted, model="gemini-2.5-flash")).usage
    assert Usage(9, output=7) == (await answer({**counted, "model": "x"}, model="gemini-2.5-flash")).usage


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("content_filter", "content_filter"),
        ("function_call", "tool_calls"),
        ("eos", "stop"),
        ("STOP", "stop"),
        ("eos_token", "stop"),
        ("stop_sequence", "stop"),
        ("tool_use", "tool_calls"),
        ("MAX_TOKENS", "length"),
        ("sensitive", "content_filter"),
        ("refusal", "content_filter"),
        ("model_context_window_exceeded", "length"),
        ("PROHIBITED_CONTENT", "content_filter"),
        ("content_filter: RECITATION", "content_filter"),
        ("function_call_filter: MALFORMED_FUNCTION_CALL", "unknown"),
        ("something", "unknown"),
    ],
)
async def test_finish_reasons(raw, expected):
    response = await answer(chunk({"content": "x"}), chunk({}, raw), "[DONE]")

    assert (expected, raw) == (response.finish_reason, response.raw_finish_reason)


async def test_reasoning_is_text_of_its_own_kind():
    both = chunk({"reasoning_content": "think", "reasoning": "think"})
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "ing"}]}, {"type": "text", "text": "an"}]
    response = await answer(both, chunk({"content": parts}), chunk({"content": "swer"}, "stop"), "[DONE]")

    assert ("thinking", "answer") == (response.reasoning, response.content)


async def test_a_refusal_is_told_as_text():
    response = await answer(chunk({"content": None, "refusal": "I "}), chunk({"refusal": "can't."}, "stop"), "[DONE]")

    assert "I can't." == response.content


CALLS = (ToolCall("c1", "a", {"x": 1}), ToolCall("c2", "b", {}))


@pytest.mark.parametrize(
    "payloads",
    [
        [
            fragment(0, "c1", "a", ""),
            fragment(0, arguments='{"x"'),
            fragment(0, arguments=":1}"),
            fragment(1, "c2", "b", ""),
            chunk({}, "tool_calls"),
        ],
        [
            fragment(0, "c1", "a", ""),
            fragment(1, "c2", "b", "{}"),
            fragment(0, arguments='{"x":1}'),
            chunk({}, "tool_calls"),
        ],
        [
            fragment(0, "c1", "a", '{"x":'),
            fragment(0, "c1", "a", "1}"),
            fragment(1, "c2", "b", None),
            chunk({}, "stop"),
        ],
        [fragment(0, "c1", "a", '{"x":1}'), fragment(0, "c2", "b", "{}"), chunk({}, "stop"), chunk({}, "stop")],
        [
            fragment(None, "c1", "a", '{"x":'),
            fragment(None, None, None, "1}"),
            fragment(None, "c2", "b", ""),
            chunk({}, "stop"),
        ],
        [fragment(None, "c1", "a", {"x": 1}), fragment(None, "c2", "b", {})],
        [fragment(3, "c1", "a", '{"x":1}'), fragment(5, "c2", "b", "{}"), chunk({}, "tool_calls")],
        [
            fragment(1, "c1", "a", ""),
            fragment(1, arguments='{"x":'),
            fragment(4, "c2", "b", ""),
            fragment(1, arguments="1}"),
            fragment(4, arguments="{}"),
            chunk({}, "tool_calls"),
        ],
        [fragment(0, None, "a", '{"x":'), fragment(0, "c1", None, "1}"), fragment(1, "c2", "b", "{}")],
        [
            fragment(None, "c1", "a", ""),
            fragment(None, "c2", "b", ""),
            chunk({"tool_calls": [{"function": {"arguments": text}} for text in ('{"x":1}', "{}")]}),
        ],
        [
            chunk({"tool_calls": {"index": 0, "id": "c1", "function": {"name": "a", "arguments": '{"x":1}'}}}),
            chunk({"tool_calls": {"index": 1, "id": "c2", "function": {"name": "b", "arguments": "{}"}}}),
        ],
    ],
    ids=[
        "in pieces",
        "interleaved",
        "id and name repeated",
        "all numbered 0",
        "no number",
        "objects, no finish",
        "gaps",
        "in pieces, numbered like Anthropic's blocks",
        "id after the name",
        "pieces told apart by their place alone",
        "no list",
    ],
)
async def test_parallel_tool_calls_however_they_are_told(payloads):
    response = await answer(*payloads, "[DONE]")

    assert (CALLS, "tool_calls") == (response.tool_calls, response.finish_reason)


@pytest.mark.parametrize(
    "delta",
    [
        {"function_call": {}},
        {"function_call": {"name": None, "arguments": None}, "tool_calls": []},
        {"tool_calls": [{"index": 0, "function": {"arguments": ""}}]},
    ],
)
async def test_a_call_of_nothing_is_none(delta):
    response = await answer(chunk({"content": "x", **delta}), chunk(delta, "stop"), "[DONE]")

    assert ((), "stop") == (response.tool_calls, response.finish_reason)


async def test_whole_calls_of_one_chunk_that_share_a_number_are_told_apart():
    calls = [{"index": 0, "id": "", "function": {"name": "a", "arguments": f'{{"x":{n}}}'}} for n in (1, 2)]
    response = await answer(chunk({"tool_calls": calls}), chunk({}, "stop"), "[DONE]")

    assert [("a", {"x": 1}), ("a", {"x": 2})] == [(call.name, call.arguments) for call in response.tool_calls]


async def test_a_stream_that_ends_with_the_whole_message_says_it_once():
    whole = {"choices": [{"message": {"content": "xy"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 3}}
    response = await answer(chunk({"content": "x"}), chunk({"content": "y"}, "stop"), whole, "[DONE]")

    assert ("xy", "stop", Usage(3)) == (response.content, response.finish_reason, response.usage)


async def test_calls_cut_off_by_length_are_no_finished_calls():
    response = await answer(fragment(0, "c1", "a", '{"x'), chunk({}, "length"), "[DONE]")

    assert ("length", {"_invalid": '{"x'}) == (response.finish_reason, response.tool_calls[0].arguments)


async def test_other_choices_than_the_first_are_left_out():
    both = {"choices": [{"index": 1, "delta": {"content": "no"}}, {"index": 0, "delta": {"content": "yes"}}]}
    response = await answer(both, chunk({}, "stop"), "[DONE]")

    assert "yes" == response.content


async def test_azure_begins_with_a_chunk_without_choices():
    first = {"id": "", "model": "", "choices": [], "prompt_filter_results": [{"prompt_index": 0}]}
    response = await answer(first, chunk({"content": "x"}, "stop", model="gpt-4o"), "[DONE]")

    assert ("x", "gpt-4o") == (response.content, response.model)


async def test_a_finish_reason_is_an_end_too_and_without_one_there_is_none():
    assert "x" == (await answer(chunk({"content": "x"}, "stop"))).content
    with pytest.raises(BrokenStream):
        await answer(chunk({"content": "x"}))


async def test_a_whole_answer_that_is_none():
    for body in ({}, {"choices": []}, {"choices": None}, {"object": "list"}):
        async with Server(Reply.json(body)) as server:
            provider = OpenAIProvider(KEY, server.url)
            with pytest.raises(BadResponse):
                await provider.make_request(LLMRequest("m", ()))
            await provider.aclose()


async def test_a_stream_where_a_whole_answer_was_asked_for():
    async with Server(Reply.sse(chunk({"content": "x"}), chunk({}, "stop"), "[DONE]")) as server:
        provider = OpenAIProvider(KEY, server.url)
        response = await provider.make_request(LLMRequest("m", ()))
        await provider.aclose()

    assert "x" == response.content


async def test_what_a_chunk_tells_beside_its_error_is_not_lost():
    last = chunk({"content": "y"}, usage={"prompt_tokens": 9, "completion_tokens": 2}, error={"code": 502})
    async with Server(Reply.sse(chunk({"content": "x"}), last, "[DONE]")) as server:
        provider = OpenAIProvider(KEY, server.url)
        stream = provider.stream_request(LLMRequest("m", ()))
        items = [await anext(stream) for _ in range(3)]
        with pytest.raises(ProviderError) as caught:
            await anext(stream)
        await provider.aclose()

    assert 502 == caught.value.status
    assert ["x", "y", Usage(9, output=2)] == [getattr(item, "text", None) or item.usage for item in items]


async def test_an_error_with_a_good_status_is_an_error():
    async with Server(Reply.json({"error": {"message": "no", "code": 429}})) as server:
        provider = OpenAIProvider(KEY, server.url)
        with pytest.raises(ProviderError) as caught:
            await provider.make_request(LLMRequest("m", ()))
        await provider.aclose()

    assert ("rate_limited", 429) == (caught.value.kind, caught.value.status)


@pytest.mark.parametrize(
    ("choice", "kind", "status"),
    [
        ({"finish_reason": "error", "error": {"code": 502, "message": "The upstream is gone"}}, "server", 502),
        ({"finish_reason": "error"}, "server", 200),
        ({"finish_reason": "insufficient_system_resource"}, "overloaded", 200),
        ({"finish_reason": "stop", "native_finish_reason": "network_error"}, "server", 200),
    ],
)
async def test_a_choice_that_ends_in_an_error_is_one(choice, kind, status):
    started, ended = chunk({"content": "x"}), {"choices": [{"index": 0, "delta": {"content": ""}, **choice}]}
    with pytest.raises(ProviderError) as streamed:
        await answer(started, ended, "[DONE]")
    async with Server(Reply.json({"choices": [{"message": {"content": "x"}, **choice}]})) as server:
        provider = OpenAIProvider(KEY, server.url)
        with pytest.raises(ProviderError) as whole:
            await provider.make_request(LLMRequest("m", ()))
        await provider.aclose()

    for error in (streamed.value, whole.value):
        assert (kind, status, True) == (error.kind, error.status, error.retryable)


@pytest.mark.parametrize(
    ("payload", "kind", "said"),
    [
        ({"object": "error", "message": "boom", "type": "InternalServerError", "code": 500}, "server", "boom"),
        ({"object": "error", "message": "no such", "code": 404}, "model_not_found", "no such"),
        ({"message": "Unauthorized", "code": 401}, "authentication", "Unauthorized"),
        ({"detail": "Too many", "status": 429}, "rate_limited", "Too many"),
        (
            {"choices": None, "usage": {"total_tokens": 0}, "base_resp": {"status_code": 1004, "status_msg": "login"}},
            "authentication",
            "login",
        ),
    ],
)
async def test_an_error_that_is_not_called_one_is_no_empty_answer(payload, kind, said):
    with pytest.raises(ProviderError, match=said) as streamed:
        await answer(payload, "[DONE]")
    async with Server(Reply.json(payload)) as server:
        provider = OpenAIProvider(KEY, server.url)
        with pytest.raises(ProviderError, match=said) as whole:
            await provider.make_request(LLMRequest("m", ()))
        await provider.aclose()

    assert kind == streamed.value.kind == whole.value.kind


async def test_events_without_data_keep_a_connection_alive():
    response = await answer("", chunk({"content": "x"}), " ", chunk({}, "stop"), "[DONE]")

    assert "x" == response.content


async def test_request_id_and_limits_come_with_the_answer():
    response = await answer(
        chunk({"content": "x"}, "stop"),
        "[DONE]",
        headers={"x-request-id": "req_1", "x-ratelimit-limit-tokens": "9", "x-ratelimit-remaining-tokens": "8"},
    )

    assert ("req_1", (RateLimit("tokens", 9, 8),)) == (response.request_id, response.rate_limits)


# ------------------------------------------------------------------ models


async def test_models_with_what_each_server_tells_of_them():
    entries = [
        {"id": "plain"},
        {"id": "groq", "context_window": 8192, "max_completion_tokens": 4096, "active": True},
        {"id": "gone", "active": False},
        {"id": "vllm", "max_model_len": 4096},
        {"id": "router", "context_length": 9, "top_provider": {"max_completion_tokens": 3}},
        {"id": "llama", "meta": {"n_ctx": 4096, "n_ctx_train": 40960}},
        {"id": "odd", "context_window": True, "context_length": -1, "max_completion_tokens": "many"},
        {
            "id": "openrouter",
            "architecture": {"input_modalities": ["text", "image"]},
            "supported_parameters": ["tools", "structured_outputs", "temperature"],
        },
        {"id": "mistral", "capabilities": {"completion_chat": True, "function_calling": True, "vision": False}},
        {"no": "id"},
        7,
    ]
    async with Server(Reply.json({"data": entries})) as server:
        provider = OpenAIProvider(KEY, server.url, name="x", local=True)
        models = await provider.get_available_models()
        await provider.aclose()

    assert [
        ModelInfo("plain", "x", local=True),
        ModelInfo("groq", "x", context=8192, max_output=4096, local=True),
        ModelInfo("vllm", "x", context=4096, local=True),
        ModelInfo("router", "x", context=9, max_output=3, local=True),
        ModelInfo("llama", "x", context=4096, local=True),
        ModelInfo("odd", "x", local=True),
        ModelInfo("openrouter", "x", local=True, capabilities=Capabilities(tools=True, schema=True, images=True)),
        ModelInfo("mistral", "x", local=True, capabilities=Capabilities(tools=True, schema=True)),
    ] == models
    assert ("GET", "/models") == (server.requests[0].method, server.requests[0].path)


async def test_an_error_where_a_list_of_models_should_be():
    async with Server(Reply.json({"error": "Unexpected endpoint or method. (GET /models)"})) as server:
        provider = OpenAIProvider(KEY, server.url)
        with pytest.raises(ProviderError, match="Unexpected endpoint"):
            await provider.get_available_models()
        await provider.aclose()


@pytest.mark.skipif(not recordings(), reason="the recordings aren't beside the repository")
async def test_a_recorded_list_of_models():
    body = next(r.body for r in recordings() if r.id.startswith("llamacpp/models-json-200"))
    async with Server(Reply([body], framing="length")) as server:
        provider = OpenAIProvider(None, server.url)
        models = await provider.get_available_models()
        await provider.aclose()

    assert [(json.loads(body)["data"][0]["id"], 4096)] == [(model.id, model.context) for model in models]
