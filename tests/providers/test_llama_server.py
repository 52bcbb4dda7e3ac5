"""Two adapters against a real server with a real model: llama.cpp's own, which speaks OpenAI's and Anthropic's format.

Its Anthropic endpoint takes no schema, so that structured output is asked for in OpenAI's alone.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing

import httpx
import pytest

from timeline.errors import AuthenticationFailed, ContextTooLong
from timeline.events import Usage
from timeline.providers import AnthropicProvider, Delta, Finish, LLMRequest, OpenAIProvider, UsageReport, collect

pytestmark = [pytest.mark.model, pytest.mark.slow]

QUESTION = "Name three colours of the rainbow."
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 5}, "population": {"type": "integer", "maximum": 9}},
    "required": ["city", "population"],
    "additionalProperties": False,
}


@pytest.fixture
async def provider(llama_server):
    made = OpenAIProvider(llama_server.key, f"{llama_server.url}/v1", name="llama", local=True)
    yield made
    await made.aclose()


@pytest.fixture
async def anthropic(llama_server):
    made = AnthropicProvider(llama_server.key, llama_server.url, name="llama", local=True)
    yield made
    await made.aclose()


@pytest.fixture(params=["openai", "anthropic"])
def either(request, provider, anthropic):
    return anthropic if request.param == "anthropic" else provider


def asking(text=QUESTION, **more):
    return LLMRequest(
        model="smollm2",
        messages=[{"role": "user", "content": text}],
        **{"max_tokens": 6, "temperature": 0.0, "seed": 1, **more},
    )


async def raw(llama_server, **more):
    """The same question, asked without any adapter."""
    body = {
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 6,
        "temperature": 0.0,
        "seed": 1,
        "cache_prompt": False,
        **more,
    }
    async with httpx.AsyncClient(trust_env=False, timeout=120) as client:
        headers = {"authorization": f"Bearer {llama_server.key}"}
        return await client.post(f"{llama_server.url}/v1/chat/completions", json=body, headers=headers)


async def test_a_stream_gives_the_text_tokens_and_finish_that_the_server_reports(provider, llama_server):
    told = (await raw(llama_server)).json()
    items = [item async for item in provider.stream_request(asking(extra={"cache_prompt": False}))]
    deltas = [item for item in items if isinstance(item, Delta)]
    reports = [item for item in items if isinstance(item, UsageReport)]

    assert told["choices"][0]["message"]["content"] == "".join(delta.text for delta in deltas)
    assert len(deltas) > 3
    assert Usage(input=told["usage"]["prompt_tokens"], output=told["usage"]["completion_tokens"]) == reports[-1].usage
    assert told["usage"] == reports[-1].raw
    assert isinstance(items[-1], Finish)
    assert told["choices"][0]["finish_reason"] == items[-1].raw_reason
    assert "smollm2" == items[-1].model


async def test_the_tokens_reported_are_those_the_engine_timed(provider, llama_server):
    response = await raw(llama_server, stream=True, stream_options={"include_usage": True})
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: {")]
    timings = [chunk["timings"] for line in lines if (chunk := json.loads(line)).get("timings")][-1]
    answer = await collect(provider.stream_request(asking(extra={"cache_prompt": False})))

    assert timings["prompt_n"] == answer.tokens_input
    assert timings["predicted_n"] == answer.tokens_output


async def test_batch_and_stream_agree(either):
    batch = await either.make_request(asking())
    streamed = await collect(either.stream_request(asking()))

    assert streamed.content == batch.content
    assert streamed.tokens_input == batch.tokens_input
    assert streamed.tokens_output == batch.tokens_output
    assert streamed.finish_reason == batch.finish_reason


async def test_anthropics_format_counts_the_tokens_that_openais_does(provider, anthropic):
    for ask in (lambda made: made.make_request(asking()), lambda made: collect(made.stream_request(asking()))):
        told, counted = await ask(provider), await ask(anthropic)

        assert told.content == counted.content
        assert told.tokens_input == counted.tokens_input
        assert told.tokens_output == counted.tokens_output


async def test_prompt_tokens_from_the_cache_are_counted_apart(provider, either):
    first = await provider.make_request(asking(extra={"cache_prompt": False}))
    second = await either.make_request(asking())

    assert 0 == first.usage.cache_read
    assert 0 < second.usage.cache_read
    assert first.usage.input == second.usage.input + second.usage.cache_read


async def test_an_answer_follows_its_schema_streamed_and_whole(provider):
    request = asking("Paris", response_schema=SCHEMA, max_tokens=200)
    for answer in (await provider.make_request(request), await collect(provider.stream_request(request))):
        value = json.loads(answer.content)

        assert {"city", "population"} == set(value)
        assert isinstance(value["population"], int)
        assert "stop" == answer.finish_reason


async def test_an_answer_cut_off_says_so(either):
    answer = await collect(either.stream_request(asking(max_tokens=3)))

    assert ("length", 3) == (answer.finish_reason, answer.tokens_output)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_prompt_over_the_context_is_refused_with_both_numbers(either, stream):
    request = asking("word " * 3000)
    with pytest.raises(
        ContextTooLong, match=r"\(30\d\d tokens\) exceeds the available context size \(2048 tokens\)"
    ) as caught:
        await (collect(either.stream_request(request)) if stream else either.make_request(request))

    assert not caught.value.retryable


async def test_a_wrong_key_is_refused_and_not_repeated(llama_server):
    provider = OpenAIProvider("sk-some-other-key", f"{llama_server.url}/v1", name="llama")
    with pytest.raises(AuthenticationFailed) as caught:
        await provider.make_request(asking())
    await provider.aclose()

    assert "sk-some-other-key" not in f"{caught.value!r} {caught.value}"


async def test_the_models_and_their_context_are_listed(provider):
    [model] = await provider.get_available_models()

    assert ("smollm2", 2048, True) == (model.id, model.context, model.local)


async def until(llama_server, *, processing):
    while (await asyncio.to_thread(lambda: llama_server.slot))["is_processing"] is not processing:  # noqa: ASYNC110
        await asyncio.sleep(0.02)


ENDLESS = {"max_tokens": 1800, "extra": {"ignore_eos": True}}


async def test_closing_the_stream_stops_the_generation(either, llama_server):
    async with aclosing(either.stream_request(asking("Count to ten thousand.", **ENDLESS))) as items:
        async for item in items:
            if isinstance(item, Delta):
                break
        await until(llama_server, processing=True)
    await until(llama_server, processing=False)

    assert llama_server.slot["n_prompt_tokens"] < 1000  # Those of the prompt and those generated.


async def test_cancelling_the_task_stops_the_generation(either, llama_server):
    task = asyncio.create_task(collect(either.stream_request(asking("Count to ten thousand.", **ENDLESS))))
    await until(llama_server, processing=True)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(llama_server, processing=False)

    assert llama_server.slot["n_prompt_tokens"] < 1000  # Those of the prompt and those generated.


async def test_two_at_once_both_get_their_answer(either):
    first, second = await asyncio.gather(
        collect(either.stream_request(asking())), either.make_request(asking("Say hello."))
    )

    assert first.content
    assert second.content
