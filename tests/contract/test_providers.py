"""Our own providers pass the suite that plugins have to pass, each against a server that speaks its format."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.answers import FOREVER
from support.command import Backend
from support.loopback import Reply, Request, free_port

from timeline.errors import NetworkError
from timeline.providers import (
    AnthropicProvider,
    Delta,
    EmbeddedProvider,
    GroqProvider,
    LLMProvider,
    LLMRequest,
    Message,
    OllamaProvider,
    OpenAIProvider,
    Tool,
)
from timeline.testing import ProviderContract, ScriptedProvider

KEY = "test-key-123456"
NOWHERE = f"http://127.0.0.1:{free_port()}"
TOOL = Tool("weather", "The weather.", {"type": "object", "properties": {"city": {"type": "string"}}})
WEATHER = LLMRequest("m", [Message("user", "How is the weather in Oslo?")], tools=[TOOL])
ARGUMENTS = '{"city":"Oslo"}'


class Spoken(ProviderContract):
    """A provider behind HTTP; `speak` is its server."""

    model = "m"
    patience = 20.0

    @pytest.fixture(autouse=True)
    def _serve(self, backend: Backend) -> Iterator[None]:
        self.backend = backend
        self.url = backend.url.removesuffix("/v1")
        backend.says(self._reply)
        yield
        backend.says()

    def tool_request(self) -> LLMRequest:
        return WEATHER

    async def wait_until_stopped(self) -> None:
        gone = self.backend.requests[-1].hung_up
        while not gone.is_set():  # noqa: ASYNC110  it belongs to the loop of the server's thread
            await asyncio.sleep(0.01)

    def _reply(self, request: Request) -> Reply:
        if request.method == "GET":
            return Reply.json({"data": [{"id": "m"}, {"id": "n"}], "models": [{"model": "m"}, {"model": "n"}]})
        body = request.json()
        if body["model"] != "m":
            return Reply.json({"error": {"message": "no such model", "type": "not_found_error"}}, 404)
        begun, rest = self.speak(body, stream=body.get("stream", False), tool="tools" in body)
        if "Count" not in str(body.get("messages")):
            return _reply(self, [*begun, *rest])
        return _reply(self, [*begun, FOREVER]) if body["stream"] else Reply.json({}, before=FOREVER)

    def speak(self, body: dict[str, Any], *, stream: bool, tool: bool) -> tuple[list[Any], list[Any]]:
        """The answer's payloads, those that come at once and those that follow; not streamed, the one body."""
        raise NotImplementedError


def _reply(suite: Spoken, payloads: list[Any]) -> Reply:
    if len(payloads) == 1:
        return Reply.json(payloads[0])
    framed = Reply.ndjson if isinstance(suite, TestOllama) else Reply.sse
    reply = framed(*(payload for payload in payloads if payload is not FOREVER))
    reply.body = [*reply.body, FOREVER] if FOREVER in payloads else reply.body
    return reply


class TestOpenAI(Spoken):
    def provider(self) -> LLMProvider:
        return OpenAIProvider(KEY, f"{self.url}/v1")

    def unreachable(self) -> LLMProvider:
        return OpenAIProvider(KEY, f"{NOWHERE}/v1")

    def speak(self, body, *, stream, tool):
        call = {"index": 0, "id": "c", "type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}
        said = {"content": None, "tool_calls": [call]} if tool else {"content": "Hello."}
        reason, usage = "tool_calls" if tool else "stop", {"prompt_tokens": 5, "completion_tokens": 2}
        if not stream:
            choice = {"index": 0, "message": said, "finish_reason": reason}
            return [{"model": "m", "choices": [choice], "usage": usage}], []
        return [{"model": "m", "choices": [{"index": 0, "delta": said}]}], [
            {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]},
            {"choices": [], "usage": usage},
            "[DONE]",
        ]


class TestGroq(TestOpenAI):
    def provider(self) -> LLMProvider:
        return GroqProvider(KEY, f"{self.url}/openai/v1")

    def unreachable(self) -> LLMProvider:
        return GroqProvider(KEY, NOWHERE)


class TestAnthropic(Spoken):
    def provider(self) -> LLMProvider:
        return AnthropicProvider(KEY, self.url)

    def unreachable(self) -> LLMProvider:
        return AnthropicProvider(KEY, NOWHERE)

    def speak(self, body, *, stream, tool):
        reason, usage = "tool_use" if tool else "end_turn", {"input_tokens": 5, "output_tokens": 2}
        block = (
            {"type": "tool_use", "id": "c", "name": "weather", "input": {}} if tool else {"type": "text", "text": ""}
        )
        piece = (
            {"type": "input_json_delta", "partial_json": ARGUMENTS}
            if tool
            else {"type": "text_delta", "text": "Hello."}
        )
        if not stream:
            block |= {"input": {"city": "Oslo"}} if tool else {"text": "Hello."}
            return [{"type": "message", "model": "m", "content": [block], "stop_reason": reason, "usage": usage}], []
        return [
            {"type": "message_start", "message": {"model": "m", "usage": usage}},
            {"type": "content_block_start", "index": 0, "content_block": block},
            {"type": "content_block_delta", "index": 0, "delta": piece},
        ], [
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": usage},
            {"type": "message_stop"},
        ]


class TestOllama(Spoken):
    def provider(self) -> LLMProvider:
        return OllamaProvider(self.url)

    def unreachable(self) -> LLMProvider:
        return OllamaProvider(NOWHERE)

    def speak(self, body, *, stream, tool):
        if "messages" not in body or not body["messages"]:
            # What the model is, or a request that only loads it.
            return [{"model": "m", "model_info": {}, "done": True}], []
        call = {"function": {"name": "weather", "arguments": {"city": "Oslo"}}}
        said = {"content": "", "tool_calls": [call]} if tool else {"content": "Hello."}
        totals = {"done": True, "done_reason": "stop", "prompt_eval_count": 5, "eval_count": 2}
        if not stream:
            return [{"model": "m", "message": said, **totals}], []
        return [{"model": "m", "message": said, "done": False}], [{"model": "m", "message": {"content": ""}, **totals}]


class TestScripted(ProviderContract):
    patience = 20.0

    def provider(self) -> LLMProvider:
        def answer(request: LLMRequest) -> list[Any]:
            if request == self.long_request():
                return ["One", FOREVER, "two"]
            return [Delta(ARGUMENTS, "tool_call", 0, "c", "weather")] if request.tools else ["Hel", "lo."]

        return ScriptedProvider(answer)

    def unreachable(self) -> LLMProvider:
        return ScriptedProvider([NetworkError("there is nobody: try again")])

    def tool_request(self) -> LLMRequest:
        return WEATHER


class Kept(EmbeddedProvider):
    """Loads its models for another one too, and leaves it to that one to end them."""

    def __init__(self, other: EmbeddedProvider, models_dir: Path) -> None:
        super().__init__(models_dir=models_dir)
        self._engines = other._engines

    async def aclose(self) -> None:
        pass


@pytest.mark.model
@pytest.mark.slow
class TestEmbedded(ProviderContract):
    model = "smollm2"
    patience = 20.0
    closes = False

    @pytest.fixture(autouse=True)
    def _loaded(self, models_dir: Path, loaded_model: EmbeddedProvider) -> None:
        self.folder = models_dir
        self.loaded = loaded_model

    def provider(self) -> LLMProvider:
        return EmbeddedProvider(models_dir=self.folder) if self.closes else Kept(self.loaded, self.folder)

    def unreachable(self) -> LLMProvider:
        return EmbeddedProvider({"smollm2": str(self.folder / "no-such.gguf")}, models_dir=self.folder)

    def request(self) -> LLMRequest:
        return LLMRequest(self.model, (Message("user", "Say hello."),), max_tokens=6)

    def test_it_warms_up_and_closes(self) -> None:
        self.closes = True
        super().test_it_warms_up_and_closes()
