"""A provider for timeline that says back what it is told."""

from collections.abc import AsyncIterator

from timeline.providers.base import (
    Delta,
    Finish,
    Item,
    LLMProvider,
    LLMRequest,
    LLMResponse,
    ModelInfo,
    Usage,
    UsageReport,
    collect,
)


class EchoProvider(LLMProvider):
    local = True

    def __init__(self, *, name: str = "echo", prefix: str = "") -> None:
        self.name = name
        self.prefix = prefix

    async def stream_request(self, request: LLMRequest) -> AsyncIterator[Item]:
        words = (self.prefix + request.messages[-1].text).split()
        for index, word in enumerate(words):
            yield Delta(f" {word}" if index else word)
        yield UsageReport(Usage(input=len(words), output=len(words)), raw={"words": len(words)})
        yield Finish("stop", model=request.model)

    async def make_request(self, request: LLMRequest) -> LLMResponse:
        return await collect(self.stream_request(request), provider=self.name, model=request.model)

    async def get_available_models(self) -> list[ModelInfo]:
        return [ModelInfo("parrot", self.name)]
