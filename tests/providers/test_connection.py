"""Connections: pooled, given back, closed at once when nobody listens any more, and never through a proxy to oneself."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from contextlib import aclosing

import pytest
from support.loopback import Reply, Server
from support.recordings import KEY, request

from timeline.providers import Delta, OllamaProvider, OpenAIProvider, collect

CHUNK = {"choices": [{"index": 0, "delta": {"content": "word "}}], "model": "m"}
END = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
ANSWER = Reply.sse(CHUNK, END, "[DONE]")
BATCH = Reply.json({"choices": [{"message": {"content": "whole"}, "finish_reason": "stop"}]})


def endless() -> Reply:
    """Words without end, a hundred a second."""
    piece = Reply.sse(CHUNK).body[0]
    return Reply([part for _ in range(1000) for part in (piece, 0.01)])


async def test_a_connection_is_used_again_after_streams_and_whole_answers():
    async with Server([ANSWER, BATCH, ANSWER, Reply.json({"error": {}}, 500), ANSWER]) as server:
        provider = OpenAIProvider(KEY, server.url)
        await collect(provider.stream_request(request()))
        await provider.make_request(request())
        await collect(provider.stream_request(request()))
        with pytest.raises(Exception, match="500"):
            await provider.make_request(request())
        await collect(provider.stream_request(request()))
        await provider.aclose()

    assert [1] * 5 == [asked.connection for asked in server.requests]


async def test_parallel_requests_have_connections_of_their_own():
    async with Server(Reply([0.05, *ANSWER.body])) as server:
        provider = OpenAIProvider(KEY, server.url)
        await asyncio.gather(*(collect(provider.stream_request(request())) for _ in range(8)))
        await provider.aclose()

    assert 8 == server.connections


async def test_a_cancelled_stream_ends_the_generation():
    async with Server(endless()) as server:
        provider = OpenAIProvider(KEY, server.url)
        arrived = asyncio.Event()

        async def listen() -> None:
            async for _ in provider.stream_request(request()):
                arrived.set()

        task = asyncio.create_task(listen())
        await arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(server.requests[0].hung_up.wait(), 2)
        await provider.aclose()


async def test_a_closed_stream_ends_the_generation():
    async with Server(endless()) as server:
        provider = OpenAIProvider(KEY, server.url)
        async with aclosing(provider.stream_request(request())) as items:
            async for _ in items:
                break
        await asyncio.wait_for(server.requests[0].hung_up.wait(), 2)
        await provider.aclose()


async def test_a_request_that_is_cancelled_before_its_answer_ends_too():
    async with Server(Reply(before=30)) as server:
        provider = OpenAIProvider(KEY, server.url)
        for ask in (lambda: collect(provider.stream_request(request())), lambda: provider.make_request(request())):
            task = asyncio.create_task(ask())
            await server.asked.wait()
            server.asked.clear()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.wait_for(server.requests[-1].hung_up.wait(), 2)
        await provider.aclose()


async def test_a_stream_can_be_read_by_one_task_after_another():
    async with Server(Reply.sse(CHUNK, CHUNK, END, "[DONE]")) as server:
        provider = OpenAIProvider(KEY, server.url)
        items = provider.stream_request(request())
        first = await asyncio.create_task(anext(items))
        second = await asyncio.create_task(anext(items))
        await items.aclose()
        await provider.aclose()

    assert [Delta("word ")] * 2 == [first, second]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_provider_outlives_an_event_loop():
    async def ask(provider: OpenAIProvider) -> str:
        async with Server(ANSWER) as server:
            provider.point_at(server.url, KEY)
            return (await collect(provider.stream_request(request()))).content

    def twice() -> list[str]:
        provider = OpenAIProvider(KEY, "http://127.0.0.1:1")
        return [asyncio.run(ask(provider)), asyncio.run(ask(provider))]

    assert ["word ", "word "] == twice()
    # The connections ended with their loops, and nobody was left who could close them: let that be said here.
    gc.collect()


async def test_closing_twice_or_unused_does_no_harm():
    provider = OpenAIProvider(KEY)
    await provider.aclose()
    await provider.aclose()


async def test_warming_up_opens_the_connection_that_the_first_request_uses():
    async with Server([Reply(status=404, framing="length"), ANSWER]) as server:
        provider = OpenAIProvider(KEY, server.url)
        await provider.warm_up()
        await collect(provider.stream_request(request()))
        await provider.aclose()

    assert ["HEAD", "POST"] == [asked.method for asked in server.requests]
    assert "authorization" not in server.requests[0].headers
    assert 1 == server.connections


async def test_warming_up_a_server_that_is_away_is_left_for_the_first_request_to_tell():
    provider = OpenAIProvider(KEY, "http://127.0.0.1:1")
    await provider.warm_up("m")
    await provider.aclose()


async def test_the_proxy_of_the_environment_serves_all_but_this_machine(monkeypatch):
    async with Server(ANSWER) as proxy, Server(ANSWER) as here:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        for url in ("http://api.example.test/v1", here.url):
            provider = OpenAIProvider(KEY, url)
            await collect(provider.stream_request(request()))
            await provider.aclose()

    assert ["http://api.example.test/v1/chat/completions"] == [asked.path for asked in proxy.requests]
    assert ["/chat/completions"] == [asked.path for asked in here.requests]


@pytest.mark.parametrize(
    ("provider", "expected"),
    [
        (OpenAIProvider(None, "http://127.0.0.1:8080/v1"), False),
        (OpenAIProvider(None, "http://127.0.0.1:8080/v1", local=True), True),
        (OpenAIProvider(None, "http://[::1]:8080/v1", local=True), True),
        (OpenAIProvider(KEY, "https://api.example.com/v1", local=True), False),
        (OllamaProvider(), True),
        (OllamaProvider("http://192.0.2.7:11434"), False),
        (OllamaProvider("http://localhost:11434", local=False), False),
    ],
)
def test_what_runs_on_this_machine(provider, expected):
    assert expected is provider.local


def test_importing_providers_loads_no_http_client():
    code = (
        "import sys, timeline.providers\n"
        "from timeline.providers import *\n"
        "from timeline.providers import OpenAIProvider, LLMRequest\n"
        "OpenAIProvider('key-12345')\n"
        "print([m for m in ('httpx', 'httpcore', 'anyio') if m in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert "[]" == printed.strip()


def test_keys_are_told_apart_by_so_little_that_it_tells_nothing_of_them():
    one, other, none = (OpenAIProvider(key, base_url="http://127.0.0.1:9/v1") for key in (KEY, KEY + "x", None))

    assert one.key_mark == OpenAIProvider(f" {KEY} ", base_url="http://127.0.0.1:9/v1").key_mark
    assert 4 == len(one.key_mark or "")
    assert one.key_mark != other.key_mark
    assert none.key_mark is None
    one.point_at("http://127.0.0.1:9/v1", KEY + "x")
    assert other.key_mark == one.key_mark
