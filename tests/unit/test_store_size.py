"""What an answer takes of the file: a size, so it may be asserted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

from support.stores import opened

from timeline.cognition.processor import CognitionProcessor
from timeline.cognition.turn import Ask, always
from timeline.events import Clock, SessionStarted
from timeline.llm.manager import LLMManager
from timeline.llm.router import Candidate
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
)
from timeline.store import this_process

LLM_BYTES = 11_264
"""What llm 0.36 takes for the text of such an answer (benchmarks/storage.py)."""
ANSWERS = 24
WORDS = [
    "the",
    "sky",
    "seems",
    "blue",
    "since",
    "air",
    "scatters",
    "short",
    "waves",
    "of",
    "light",
    "far",
    "more",
    "than",
    "long",
    "ones",
]


class FiveHundredTokens(LLMProvider):
    """Answers at once with 500 tokens of about 4.4 characters, another text each time."""

    name = "fast"

    def __init__(self) -> None:
        self.asked = 0

    async def make_request(self, request: LLMRequest) -> LLMResponse:
        raise AssertionError

    async def stream_request(self, request: LLMRequest) -> AsyncIterator[Item]:
        self.asked += 1
        for index in range(500):
            yield Delta(" " + WORDS[(index * self.asked + index // 7) % len(WORDS)][:4])
        raw = {"prompt_tokens": 11, "completion_tokens": 500, "prompt_tokens_details": {"cached_tokens": 0}}
        yield UsageReport(Usage(11, output=500), raw)
        yield Finish("stop", "stop", "model-2026-01-01", "req_0123456789abcdef")

    async def get_available_models(self) -> list[ModelInfo]:
        return []


async def test_a_500_token_answer_takes_no_more_of_the_file_than_llm_takes_for_its_text(tmp_path: Path) -> None:
    path, clock, provider = tmp_path / "timeline.db", Clock(), FiveHundredTokens()
    sizes = []
    for number in range(ANSWERS):
        async with opened(path) as store:
            prompt = f"Question {number}: why does the sky look blue in the day and red at dusk?"
            first = SessionStarted("0.1.0", this_process(), prompt)
            ask = Ask(prompt, always(Candidate("t", "model", "asked for")), clock.uuid7(), first)
            manager = LLMManager(store, clock, lambda _: provider)
            async for _ in CognitionProcessor(store, manager, clock, lambda _: provider).run(ask):
                pass
        sizes.append(path.stat().st_size)

    assert LLM_BYTES > (sizes[-1] - sizes[0]) / (ANSWERS - 1)
