"""The vendors' own clients read the same recordings as we do (needs the `sdk` extra)."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest
from support.loopback import Reply, Server
from support.recordings import KEY, Recording, answers, provider_for, request

from timeline.providers import LLMResponse, collect
from timeline.providers.base import parse_arguments

VENDORS = ("openai", "anthropic", "groq", "ollama")
# Importing some of them, only to find that another is missing, takes seconds.
if missing := [name for name in VENDORS if find_spec(name) is None]:
    pytest.skip(f"not installed: {', '.join(missing)}", allow_module_level=True)
openai, anthropic, groq, ollama = map(import_module, VENDORS)

pytestmark = pytest.mark.skipif(not answers("sse"), reason="the recordings aren't beside the repository")
ASKED = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def cases(*dialects: str, framing: str) -> pytest.MarkDecorator:
    chosen = [r for r in answers(framing) if r.dialect in dialects and b"event: error" not in r.body]
    if dialects == ("anthropic",):
        # A gateway adds OpenAI's terminator, at which Anthropic's client breaks.
        chosen = [r for r in chosen if b"[DONE]" not in r.body]
    return pytest.mark.parametrize("recording", chosen, ids=[r.id for r in chosen])


def replaying(recording: Recording) -> Server:
    reply = Reply([recording.body], headers=recording.wire_headers)
    return Server(lambda asked: Reply.json({}, 404) if asked.path == "/api/show" else reply)


def client_of(vendor: Any, server: Server) -> Any:
    """A vendor's client. It reads no certificates, which takes longer than all the rest and serves nobody without TLS."""
    http = {openai.AsyncOpenAI: openai, groq.AsyncGroq: groq, anthropic.AsyncAnthropic: anthropic}[vendor]
    return vendor(api_key=KEY, base_url=server.url, http_client=http.DefaultAsyncHttpxClient(verify=False))


async def ours(recording: Recording, url: str) -> LLMResponse:
    provider = provider_for(recording.dialect, url)
    try:
        if recording.framing == "json":
            return await provider.make_request(request())
        return await collect(provider.stream_request(request()), provider=provider.name)
    finally:
        await provider.aclose()


def calls(response: LLMResponse) -> list[tuple[str, Any]]:
    return [(call.name, call.arguments) for call in response.tool_calls]


class Joined:
    """Chunks of OpenAI's format, joined as its documentation does."""

    def __init__(self) -> None:
        self.text, self.model, self.finish, self.usage = "", None, None, None
        self.calls: dict[int, list[str]] = {}

    def add(self, chunk: Any) -> None:
        self.model = self.model or chunk.model
        self.usage = chunk.usage or self.usage
        for choice in chunk.choices or ():
            piece = getattr(choice, "delta", None) or choice.message
            self.text += (piece.content or "") + (getattr(piece, "refusal", None) or "")
            for number, call in enumerate(piece.tool_calls or ()):
                function = getattr(call, "function", None) or call.custom
                made = self.calls.setdefault(getattr(call, "index", number), ["", ""])
                made[0] = made[0] or function.name or ""
                made[1] += getattr(function, "arguments", None) or getattr(function, "input", None) or ""
            if legacy := getattr(piece, "function_call", None):
                self.calls[0] = [legacy.name, legacy.arguments]
            self.finish = choice.finish_reason or self.finish

    def agrees(self, response: LLMResponse) -> None:
        assert (self.text, self.model, self.finish) == (response.content, response.model, response.raw_finish_reason)
        assert [(name, parse_arguments(text)) for _, (name, text) in sorted(self.calls.items())] == calls(response)
        assert response.usage_reported is (self.usage is not None)
        if self.usage is not None:
            assert (self.usage.prompt_tokens, self.usage.completion_tokens) == (
                response.tokens_input,
                response.tokens_output,
            )
            details = getattr(self.usage, "prompt_tokens_details", None)
            assert ((details and details.cached_tokens) or 0) == response.usage.cache_read


@cases("openai", framing="sse")
async def test_openai_streams(recording):
    joined = Joined()
    async with replaying(recording) as server, client_of(openai.AsyncOpenAI, server) as client:
        async for chunk in await client.chat.completions.create(**ASKED, stream=True):
            joined.add(chunk)
        joined.agrees(await ours(recording, server.url))


@cases("openai", framing="json")
async def test_openai_bodies(recording):
    joined = Joined()
    async with replaying(recording) as server, client_of(openai.AsyncOpenAI, server) as client:
        joined.add(await client.chat.completions.create(**ASKED))
        joined.agrees(await ours(recording, server.url))


@cases("groq", framing="sse")
async def test_groq_streams(recording):
    joined = Joined()
    async with replaying(recording) as server, client_of(groq.AsyncGroq, server) as client:
        async for chunk in await client.chat.completions.create(**ASKED, stream=True):
            joined.add(chunk)
            joined.usage = (chunk.x_groq and chunk.x_groq.usage) or joined.usage
        joined.agrees(await ours(recording, server.url))


@cases("groq", framing="json")
async def test_groq_bodies(recording):
    joined = Joined()
    async with replaying(recording) as server, client_of(groq.AsyncGroq, server) as client:
        joined.add(await client.chat.completions.create(**ASKED))
        joined.agrees(await ours(recording, server.url))


def message_agrees(message: Any, response: LLMResponse) -> None:
    blocks = message.content
    assert (message.model, message.stop_reason) == (response.model, response.raw_finish_reason)
    assert "".join(block.text for block in blocks if block.type == "text") == response.content
    assert "".join(block.thinking for block in blocks if block.type == "thinking") == response.reasoning
    assert [(block.name, block.input) for block in blocks if block.type == "tool_use"] == calls(response)
    kept = [part.block["type"] for part in response.opaque]
    assert [block.type for block in blocks if block.type not in ("text", "tool_use")] == kept
    usage = message.usage
    assert (
        usage.input_tokens,
        usage.cache_read_input_tokens or 0,
        usage.cache_creation_input_tokens or 0,
        usage.output_tokens,
    ) == (
        response.usage.input,
        response.usage.cache_read,
        response.usage.cache_write + response.usage.cache_write_1h,
        response.usage.output,
    )


@cases("anthropic", framing="sse")
async def test_anthropic_streams(recording):
    async with replaying(recording) as server, client_of(anthropic.AsyncAnthropic, server) as client:
        async with client.messages.stream(**ASKED, max_tokens=9) as stream:
            message = await stream.get_final_message()
        message_agrees(message, await ours(recording, server.url))


@cases("anthropic", framing="json")
async def test_anthropic_bodies(recording):
    async with replaying(recording) as server, client_of(anthropic.AsyncAnthropic, server) as client:
        message = await client.messages.create(**ASKED, max_tokens=9)
        message_agrees(message, await ours(recording, server.url))


@cases("ollama", framing="ndjson")
async def test_ollama_streams(recording):
    async with replaying(recording) as server:
        client = ollama.AsyncClient(host=server.url, verify=False)
        if recording.path == "/api/generate":
            lines = [line async for line in await client.generate(model="m", prompt="hi", stream=True)]
        else:
            lines = [line async for line in await client.chat(**ASKED, stream=True)]
        await client._client.aclose()
        lines_agree(lines, await ours(recording, server.url))


@cases("ollama", framing="json")
async def test_ollama_bodies(recording):
    async with replaying(recording) as server:
        client = ollama.AsyncClient(host=server.url, verify=False)
        if recording.path == "/api/generate":
            whole = await client.generate(model="m", prompt="hi")
        else:
            whole = await client.chat(**ASKED)
        await client._client.aclose()
        lines_agree([whole], await ours(recording, server.url))


def lines_agree(lines: list[Any], response: LLMResponse) -> None:
    messages = [getattr(line, "message", None) or line for line in lines]
    text = [getattr(m, "content", None) or getattr(m, "response", None) or "" for m in messages]
    made = [c.function for m in messages for c in getattr(m, "tool_calls", None) or ()]
    last = lines[-1]
    assert "".join(text) == response.content
    assert "".join(getattr(m, "thinking", None) or "" for m in messages) == response.reasoning
    assert [(function.name, dict(function.arguments)) for function in made] == calls(response)
    assert (last.model, last.done_reason) == (response.model, response.raw_finish_reason)
    assert (last.prompt_eval_count or 0, last.eval_count or 0) == (response.tokens_input, response.tokens_output)
