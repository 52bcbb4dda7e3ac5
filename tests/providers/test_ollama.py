"""Ollama's own format: a context that is asked for, whole calls, totals without zeros, models that only look local."""

from __future__ import annotations

import pytest
from support.loopback import Reply, Request, Server

from timeline.errors import AuthenticationFailed, ModelNotFound
from timeline.events import Usage
from timeline.providers import (
    Capabilities,
    ImagePart,
    LLMRequest,
    Message,
    ModelInfo,
    OllamaProvider,
    TextPart,
    Tool,
    ToolCall,
    collect,
)
from timeline.providers.ollama import context_for

USER = [{"role": "user", "content": "hi"}]
WEATHER = Tool("weather", "The weather.", {"type": "object", "properties": {"city": {"type": "string"}}})
DONE = {
    "model": "m",
    "message": {"role": "assistant", "content": ""},
    "done": True,
    "done_reason": "stop",
    "eval_count": 2,
}


def show(context=32768, abilities=("completion", "tools", "thinking"), **more):
    info = {"general.architecture": "qwen3", "qwen3.context_length": context, "qwen3.embedding_length": 1024}
    return {"model_info": info, "capabilities": list(abilities), **more}


class Ollama:
    """Answers by path, as Ollama does."""

    def __init__(self, *lines, shown=None, tags=()):
        self.lines, self.shown, self.tags = lines or (DONE,), shown, tags

    def __call__(self, request: Request) -> Reply:
        if request.path == "/api/show":
            return Reply.json({"error": "model not found"}, 404) if self.shown is None else Reply.json(self.shown)
        if request.path == "/api/tags":
            return Reply.json({"models": list(self.tags)})
        if not request.json().get("stream", True):
            return Reply.json(self.lines[-1])
        return Reply.ndjson(*self.lines)


async def ask(ollama, asked=None, *, suffix="", **options):
    """The response, and the body of the chat request."""
    async with Server(ollama) as server:
        provider = OllamaProvider(server.url + suffix, **options)
        response = await collect(provider.stream_request(asked or LLMRequest("m", USER)))
        await provider.aclose()
    chat = [request for request in server.requests if request.path == "/api/chat"]

    assert 1 == len(chat)
    return response, chat[0].json()


# ------------------------------------------------------------------ what goes in


async def test_a_plain_request_asks_for_the_context_it_needs_and_forbids_cutting():
    _, body = await ask(Ollama(shown=show(4096)), LLMRequest("m", USER, system="Be brief."))

    assert {
        "model": "m",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}],
        "stream": True,
        "truncate": False,
        "options": {"num_ctx": 4096},
    } == body


@pytest.mark.parametrize("suffix", ["", "/", "/api", "/v1"])
async def test_the_address_may_be_that_of_either_interface(suffix):
    response, _ = await ask(Ollama(shown=show()), suffix=suffix)

    assert "stop" == response.finish_reason


async def test_every_parameter_in_its_place():
    asked = LLMRequest(
        "m",
        USER,
        temperature=0.5,
        max_tokens=9,
        stop=["x"],
        seed=7,
        tools=[WEATHER],
        response_schema={"type": "object"},
        reasoning="none",
        extra={"options": {"num_ctx": 512, "top_k": 3}},
    )
    _, body = await ask(Ollama(shown=show()), asked, keep_alive="10m")

    assert {"temperature": 0.5, "num_predict": 9, "stop": ["x"], "seed": 7, "num_ctx": 512, "top_k": 3} == body[
        "options"
    ]
    assert ({"type": "object"}, False, "10m") == (body["format"], body["think"], body["keep_alive"])
    assert "weather" == body["tools"][0]["function"]["name"]


@pytest.mark.parametrize(
    ("choice", "expected"), [(None, 1), ("auto", 1), ("required", 1), ("weather", 1), ("other", 0), ("none", None)]
)
async def test_a_choice_of_tool_leaves_out_the_others(choice, expected):
    _, body = await ask(Ollama(shown=show()), LLMRequest("m", USER, tools=[WEATHER], tool_choice=choice))

    assert expected == (len(body["tools"]) if "tools" in body else None)


@pytest.mark.parametrize(
    ("model", "abilities", "reasoning", "expected"),
    [
        ("qwen3", ("thinking",), "high", True),
        ("qwen3", ("thinking",), None, None),
        ("llama3", (), "high", None),
        ("gpt-oss:20b", ("thinking",), "high", "high"),
        ("gpt-oss:20b", ("thinking",), "none", False),
    ],
)
async def test_thinking_is_asked_of_models_that_can(model, abilities, reasoning, expected):
    _, body = await ask(Ollama(shown=show(abilities=abilities)), LLMRequest(model, USER, reasoning=reasoning))

    assert expected == body.get("think")


async def test_messages_with_images_calls_and_results():
    asked = LLMRequest(
        "m",
        (
            Message("user", (TextPart("what?"), ImagePart("image/png", b"x"))),
            Message("assistant", "", tool_calls=(ToolCall("c1", "weather", {"city": "Bern"}),)),
            Message("tool", "sunny", tool_call_id="c1", name="weather"),
        ),
    )
    _, body = await ask(Ollama(shown=show()), asked)

    assert [
        {"role": "user", "content": "what?", "images": ["eA=="]},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "c1", "function": {"index": 0, "name": "weather", "arguments": {"city": "Bern"}}}],
        },
        {"role": "tool", "content": "sunny", "tool_name": "weather", "tool_call_id": "c1"},
    ] == body["messages"]


@pytest.mark.parametrize(
    ("characters", "longest", "expected"),
    [(2, 131072, 8192), (2, 2048, 2048), (60_000, 131072, 32768), (600_000, 131072, 131072)],
)
def test_the_context_is_a_power_of_two_within_what_the_model_can(characters, longest, expected):
    assert expected == context_for(LLMRequest("m", [{"role": "user", "content": "x" * characters}]), longest)


async def test_a_model_is_looked_up_once_and_a_server_that_cannot_tell_is_asked_all_the_same():
    for shown, lookups in ((show(), 1), (None, 2)):
        async with Server(Ollama(shown=shown)) as server:
            provider = OllamaProvider(server.url)
            for _ in range(2):
                await collect(provider.stream_request(LLMRequest("m", USER)))
            await provider.aclose()

        assert lookups == sum(request.path == "/api/show" for request in server.requests)


# ------------------------------------------------------------------ what comes out


async def test_calls_in_several_lines_come_whole_and_are_numbered():
    def line(**message):
        return {"model": "m", "message": {"role": "assistant", "content": "", **message}, "done": False}

    response, _ = await ask(
        Ollama(
            line(thinking="hm"),
            line(tool_calls=[{"function": {"name": "a", "arguments": {"x": 1}}}]),
            line(tool_calls=[{"id": "c2", "function": {"index": 1, "name": "b", "arguments": {}}}]),
            DONE,
            shown=show(),
        )
    )

    assert (ToolCall("call_0", "a", {"x": 1}), ToolCall("c2", "b", {})) == response.tool_calls
    assert ("tool_calls", "stop", "hm") == (response.finish_reason, response.raw_finish_reason, response.reasoning)


@pytest.mark.parametrize(
    ("totals", "usage"),
    [
        ({"prompt_eval_count": 9, "eval_count": 2, "eval_duration": 7}, Usage(9, output=2)),
        ({"eval_count": 2}, Usage(output=2)),
        ({"prompt_eval_count": 9}, Usage(9)),
        ({}, None),
        ({"prompt_eval_count": -1, "eval_count": 2}, None),
        ({"prompt_eval_count": 9, "eval_count": "2"}, None),
    ],
)
async def test_totals_without_zeros(totals, usage):
    last = {key: value for key, value in DONE.items() if key != "eval_count"} | totals
    response, _ = await ask(Ollama(last, shown=show()))

    assert (usage or Usage(), usage is not None, totals if usage else None) == (
        response.usage,
        response.usage_reported,
        response.raw_usage,
    )


async def test_a_line_that_tells_of_progress_alone_says_nothing():
    progress = {"model": "m", "completed": 1, "total": 4, "done": False}
    response, _ = await ask(Ollama(progress, {**progress, "message": None}, DONE, shown=show()))

    assert ("", "stop") == (response.content, response.finish_reason)


async def test_a_model_in_the_cloud_that_nobody_signed_in_for_says_how():
    refused = Reply.json({"error": "unauthorized", "signin_url": "https://ollama.com/connect?key=1"}, 401)
    async with Server(refused) as server:
        provider = OllamaProvider(server.url)
        with pytest.raises(AuthenticationFailed) as caught:
            await provider.make_request(LLMRequest("gpt-oss:120b-cloud", USER))
        await provider.aclose()

    assert "ollama refused the key (401): run 'ollama signin' (it said: unauthorized)" == str(caught.value)
    assert "authorization" in OllamaProvider("https://ollama.com").key_advice


async def test_done_reasons():
    for raw, expected in (("stop", "stop"), ("length", "length"), (None, "stop"), ("new", "unknown")):
        response, _ = await ask(Ollama({**DONE, "done_reason": raw}, shown=show()))

        assert (expected, raw) == (response.finish_reason, response.raw_finish_reason)


# ------------------------------------------------------------------ models


async def test_models_with_digest_context_and_abilities_and_which_are_local():
    tags = [
        {"name": "qwen3:4b", "model": "qwen3:4b", "digest": "abc"},
        {
            "name": "gpt-oss:120b-cloud",
            "digest": "def",
            "remote_host": "https://ollama.com:443",
            "remote_model": "gpt-oss",
        },
    ]
    async with Server(Ollama(shown=show(), tags=tags)) as server:
        provider = OllamaProvider(server.url)
        models = await provider.get_available_models()
        await provider.aclose()
    told = Capabilities(tools=True, schema=True, reasoning=True)

    assert [
        ModelInfo("qwen3:4b", "ollama", context=32768, local=True, digest="abc", capabilities=told),
        ModelInfo("gpt-oss:120b-cloud", "ollama", context=32768, local=False, digest="def", capabilities=told),
    ] == models


async def test_a_model_that_only_looks_local_is_known_by_its_name_its_description_or_its_answer():
    async with Server(Ollama({**DONE, "remote_host": "https://ollama.com:443"}, shown=show())) as server:
        provider = OllamaProvider(server.url)
        before = provider.is_local("m")
        await collect(provider.stream_request(LLMRequest("m", USER)))
        after = provider.is_local("m")
        await provider.aclose()
    async with Server(Ollama(shown=show(remote_model="big"))) as server:
        described = OllamaProvider(server.url)
        await collect(described.stream_request(LLMRequest("m", USER)))
        await described.aclose()

    assert (True, False) == (before, after)
    assert not described.is_local("m")
    assert not described.is_local("gpt-oss:120b-cloud")
    assert described.is_local("qwen3:4b")


@pytest.mark.parametrize(
    ("tags", "digest"),
    [([{"model": "m:latest", "digest": "46e0"}], "46e0"), (7, None), ([7, {"model": "m", "digest": 7}], None)],
)
async def test_what_a_name_stands_for_is_looked_up_once_ahead_of_the_first_answer(tags, digest):
    def answers(request: Request) -> Reply:
        return Reply.json({"models": tags}) if request.path == "/api/tags" else Ollama(shown=show())(request)

    async with Server(answers) as server:
        provider = OllamaProvider(server.url)
        digests = []
        for _ in range(2):
            await collect(provider.stream_request(LLMRequest("m", USER)))
            digests.append(provider.model_digest("m"))
        await provider.aclose()

    assert ["/api/show", "/api/tags", "/api/chat", "/api/chat"] == [request.path for request in server.requests]
    assert [digest, digest] == digests


async def test_warming_up_loads_the_model_and_tells_if_there_is_none():
    tags = [{"model": "m:latest", "digest": "46e0"}]
    async with Server(Ollama({**DONE, "done_reason": "load"}, shown=show(), tags=tags)) as server:
        provider = OllamaProvider(server.url, keep_alive=-1)
        await provider.warm_up("m")
        await provider.aclose()

    assert ("46e0", None) == (provider.model_digest("m"), provider.model_digest("n"))
    assert ([], -1, False) == tuple(server.requests[-1].json()[key] for key in ("messages", "keep_alive", "stream"))
    async with Server(Reply.json({"error": "model 'm' not found"}, 404)) as server:
        provider = OllamaProvider(server.url)
        with pytest.raises(ModelNotFound, match="doesn't know m"):
            await provider.warm_up("m")
        await provider.aclose()
    await OllamaProvider("http://127.0.0.1:1").warm_up("m")
