"""What the built-in model does with tools, whole: routed, run, and answered with what they found out."""

from __future__ import annotations

import contextlib
from contextlib import aclosing
from datetime import datetime
from pathlib import Path

import pytest

import timeline.config
from timeline import Event, Timeline, TurnEnd


async def asked(opened: Timeline, prompt: str, *, direct: bool = False, max_tokens: int = 16) -> tuple[list[str], str]:
    """The tools that returned something, and the answer."""
    tools, text = [], ""
    async with aclosing(opened.ask(prompt, direct=direct, max_tokens=max_tokens)) as items:
        async for item in items:
            if isinstance(item, Event) and item.type == "tool.returned":
                tools.append(item.data.name)
            elif isinstance(item, TurnEnd):
                assert item.error is None
                text = item.text
    return tools, text


@pytest.mark.model
async def test_the_right_tool_runs_and_its_fact_stands_in_the_answer(tmp_path: Path, models_dir: Path) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    (home / "models").symlink_to(models_dir)
    (work / "notes.txt").write_text("apples\nseven green umbrellas\nbread\n")
    config = timeline.config.load(environ={"TIMELINE_HOME": str(home), "HOME": str(tmp_path)}, cwd=work)
    with contextlib.chdir(work):
        async with Timeline.open(config=config) as opened:
            await asked(opened, "Why is rust red?", direct=True, max_tokens=2)
            days = {datetime.now().astimezone().strftime("%A")}
            product = await asked(opened, "What is 12*7?")
            day = await asked(opened, "what day is it today?")
            line = await asked(opened, "read notes.txt and tell me the second line")
            past = await asked(opened, "what did I ask you about rust?")
            joke, _ = await asked(opened, "Tell me a joke", max_tokens=2)
            days.add(datetime.now().astimezone().strftime("%A"))

    assert [["calculator"], ["clock"], ["read_file"], ["search_timeline"], []] == [
        product[0],
        day[0],
        line[0],
        past[0],
        joke,
    ]
    assert "84" in product[1]
    assert any(name in day[1] for name in days)
    assert "seven green umbrellas" in line[1]
    assert "Why is rust red" in past[1]
