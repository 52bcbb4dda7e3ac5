"""Searching the timeline: what was found is told with its time, and the best prompt is the fact."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from msgspec import Struct

from timeline.cognition.builtin.past import SearchTimeline
from timeline.cognition.tools import Workspace
from timeline.errors import ToolError, UsageError

AT = 1_780_000_000_000_000


class Turn(Struct, frozen=True):
    at: int
    title: str | None
    prompt: str
    answer: str


def workspace(*turns: Turn) -> tuple[Workspace, list[tuple[str, int]]]:
    asked: list[tuple[str, int]] = []

    async def search(query: str, limit: int) -> Sequence[Turn]:
        asked.append((query, limit))
        if query == "*":
            msg = "there is no word"
            raise UsageError(msg)
        return turns[:limit]

    return Workspace(Path(), search=search), asked


async def test_turns_that_were_found_are_told() -> None:
    here, asked = workspace(
        Turn(AT, "Rust", "What is\nownership in rust?", "Every value " + "has " * 500 + "an owner."),
        Turn(AT, None, "and rust?", ""),
    )

    result = await SearchTimeline().run({"query": "rust"}, here)

    first, second = result.text.split("\n\n")
    assert ', conversation "Rust", the user asked: What is ownership in rust?\nThe answer was: Every value has' in first
    assert first.endswith("has…")
    assert len(first) < 1_000
    assert second.endswith(", the user asked: and rust?")
    assert "What is ownership in rust?" == result.fact
    assert [("rust", 5)] == asked


async def test_nothing_found_is_said() -> None:
    result = await SearchTimeline().run({"query": "rust", "limit": 2}, workspace()[0])

    assert ("Nothing was found in earlier conversations about 'rust'.", None) == (result.text, result.fact)


async def test_a_search_that_cant_be_made_is_the_tools_error() -> None:
    with pytest.raises(ToolError, match="there is no word"):
        await SearchTimeline().run({"query": "*"}, workspace()[0])
    with pytest.raises(ToolError, match="can be searched here"):
        await SearchTimeline().run({"query": "rust"}, Workspace(Path()))
