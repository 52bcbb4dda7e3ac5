"""A turn with cognition at its end, live and replayed: one drawing, cell by cell and word for word.

After a change that is meant, `TIMELINE_UPDATE_GOLDEN=1 pytest tests/golden` writes `cognition.txt` anew; look at it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cognition import Story, percent_and_day
from support.screens import Screen
from timeline_cli.blocks import draw_turn
from timeline_cli.live import Together
from timeline_cli.signs import ascii_only

from timeline import events as e
from timeline.llm.manager import Superseded
from timeline.projections.blocks import fold
from timeline.providers.base import Delta

PATH = Path(__file__).parent / "cognition.txt"
CLAUDE = ("openrouter", "anthropic/claude-sonnet-4.5-20250929")
BUSY = e.ErrorInfo("rate_limited", "openai is busy (429): ask again in 30 s, or another model with -m", 429)


def no_tool() -> Story:
    story = Story().ask("Tell me a joke")
    story.step("route").call("no tool", tokens=(120, 3), source="estimated").routed(complexity="medium")
    story.skip("tool", "no tool is needed")
    story.step("format").call("# A joke\n\n- a horse walks in\n- **why** the long face?\n", seconds=2.2)
    return story.done(2.3, reason="the 3 oldest turns were left out").answered(2.7)


def troubles() -> Story:
    """All that a step can tell."""
    paid = e.Cost("priced", 4_200_000)
    story = Story().ask("Read notes.txt, and what the web says")
    story.step("route").call("?!", model=CLAUDE, cost=paid)
    story.routed("read_file", complexity="high", degraded=True, reason="the model's choice was malformed twice")
    story.step("tool").call("", model=CLAUDE, tokens=(900, 40), cost=paid, seconds=1.4)
    story.tool("read_file", {"path": "notes.txt", "first": 2}, "second line\nthird line, which is much longer " * 9)
    story.tool(
        "fetch_url", {"url": "http://127.0.0.1/" + "x" * 80}, error="127.0.0.1 is no public address: it isn't fetched"
    )
    story.done(1.5)
    story.step("format").add(e.RateLimitWaited("openai", "gpt-5", "requests", 3_200_000)).send(("openai", "gpt-5"))
    story.says("The sec").add(
        e.CallFailed(1, BUSY, 500_000, True, e.Usage(900, output=2), "estimated", e.Cost("unpriced"))
    )
    story.add(e.CallRetryScheduled(1, 800_000, "busy")).add(e.CallRerouted("openai:gpt-5", "embedded:smollm2", "busy"))
    story.add(e.BudgetAlerted("monthly", "2026-11", 8_000_000_000, 0, 10_000_000_000, 80))
    story.send(attempt=2, again=True).says("The second ", "line.", attempt=2).ends((910, 5), 0.7, attempt=2)
    return story.done(5.5).answered(7.4)


def failed() -> Story:
    story = Story().ask("Why?").step("route").send(("openai", "gpt-5")).add(e.CallFailed(1, BUSY, 500_000))
    return story.add(e.StepFailed(BUSY, 510_000)).add(e.TurnFailed(BUSY, 520_000))


def interrupted() -> Story:
    story = Story().ask("What is 15% of 240?")
    story.step("route").call("calculator").routed("calculator")
    story.step("tool").tool("calculator", {"expression": "0.15*240"}, "36").tool("fetch_url", {"url": "http://x/"})
    return story.add(e.TurnInterrupted("sigint", 1_200_000))


def cut_short() -> Story:
    story = Story().ask("Why?").step("route").call("no tool").routed().step("format").send().says("Because ", "of")
    story.add(e.CallInterrupted(1, "sigint", e.Usage(120, output=2), "estimated", e.Cost("free"), 900_000))
    return story.add(e.TurnInterrupted("sigint", 1_200_000))


def read_again() -> Story:
    story = percent_and_day()
    story.ask("What is 15% of 240, and what day is it?")
    hit = e.CallCacheHit("call00000002", 1_500_000, 1, "openai", "gpt-5", "stop")
    story.step("format").add(hit, call_id="again").done(0.001)
    story._ids["call_id"] = "again"
    return story.answered(0.002)


STORIES = {
    "two tools": percent_and_day,
    "no tool": no_tool,
    "troubles": troubles,
    "a failed turn": failed,
    "interrupted in a tool": interrupted,
    "interrupted in the answer": cut_short,
    "read again": read_again,
}
LOOKS = {
    "60 columns": {"columns": 60},
    "100 columns": {"columns": 100},
    "60 columns, ASCII": {"columns": 60, "ascii": True},
    "60 columns, colours": {"columns": 60, "color": True},
}


@pytest.fixture(autouse=True)
def unicode_again() -> Iterator[None]:
    yield
    ascii_only(False)


def screen(look: str, rows: int = 24) -> Screen:
    options = LOOKS[look]
    ascii_only(bool(options.get("ascii")))
    return Screen(int(options["columns"]), rows, color="256" if options.get("color") else None)  # type: ignore[arg-type]


def live(story: Story, on: Screen, *, pause: float = 0.0) -> str:
    """Watch the story's last turn while it happens; the bytes that were drawn for good."""

    async def watch() -> str:
        first = max(n for n, event in enumerate(story.events) if event.type == "turn.started")
        view = Together(on.console, on.console, hint=False)
        view.learn({})
        for number, event in enumerate(story.events):
            if number < first:
                view._folding.add(event)
                continue
            answers = view.turn is not None and view.turn.steps and view.turn.steps[-1].kind == "format"
            if isinstance(event.data, e.RequestSent) and event.data.attempt > 1:
                view.superseded(Superseded())
            if isinstance(event.data, e.ChunkReceived) and answers:
                for text in event.data.texts:
                    view.delta(Delta(text))
                    await asyncio.sleep(pause)
            if isinstance(event.data, e.CallCacheHit):
                view.delta(Delta("15 % of 240 is 36, and today is Sunday."))
            view.event(event)
            if view.wanted:
                view.learn({ref: story.contents[ref] for ref in view.wanted})
            await asyncio.sleep(pause)
        view.stop()
        start = on.tell()
        view.end(None)
        return on.getvalue()[start:]

    return asyncio.run(watch())


def replayed(story: Story, on: Screen) -> str:
    turn = fold(story.events).turns[-1]
    draw_turn(on.console, turn, story.contents)
    return on.getvalue()


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("name", STORIES)
def test_a_turn_is_replayed_byte_for_byte_as_it_stood_at_its_end(name: str, look: str) -> None:
    told, again = screen(look), screen(look)
    story = STORIES[name]()

    drawn, expected = live(story, told), replayed(story, again)

    question, _, reply = expected.partition("\n")
    assert story.contents[fold(story.events).turns[-1].prompt or ""] in question
    assert reply == drawn
    # What was redrawn before left nothing on the screen.
    assert again.cells[1:] == told.cells


def test_the_drawings_are_those_of_the_golden_file() -> None:
    text = ""
    for look in LOOKS:
        for name, tell in STORIES.items():
            drawn = replayed(tell(), screen(look))
            lines = drawn.replace("\x1b", "␛").splitlines()
            text += f"--- {name}, {look}\n" + "".join(f"{line.rstrip()}\n" for line in lines) + "\n"
    if os.environ.get("TIMELINE_UPDATE_GOLDEN"):
        PATH.write_text(text)

    assert PATH.read_text() == text


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("name", STORIES)
def test_no_line_is_wider_than_the_screen(name: str, look: str) -> None:
    on = screen(look)
    on.console.width = 1000
    wide = Screen(1000, 50, color=None)  # type: ignore[arg-type]
    turn = fold((story := STORIES[name]()).events).turns[-1]
    wide.console.width = int(LOOKS[look]["columns"])
    draw_turn(wide.console, turn, story.contents)

    tree = [line for line in wide.lines if line.startswith(("⚙", "*", "  "))]
    assert max(map(len, tree)) <= int(LOOKS[look]["columns"])


def test_ascii_draws_nothing_else() -> None:
    for tell in STORIES.values():
        assert replayed(tell(), screen("60 columns, ASCII")).isascii()


@pytest.mark.parametrize(("columns", "rows"), [(60, 6), (60, 24), (100, 10), (100, 24)])
def test_a_long_answer_stands_there_once_and_whole(columns: int, rows: int) -> None:
    words = [f"w{number:03}" for number in range(300)]
    story = percent_and_day([word + ("\n\n" if number % 20 == 19 else " ") for number, word in enumerate(words)])
    told, again = Screen(columns, rows), Screen(columns, rows)

    drawn, expected = live(story, told, pause=0.001), replayed(story, again)

    assert expected.partition("\n")[2] == drawn
    assert again.lines[1:] == told.lines
    # While it came its end was always in sight.
    assert any("shown at the end" in frame for frame in told.frames)


# ------------------------------------------------------------------ beside others


async def begun(on: Screen) -> Together:
    """A turn that is under way."""
    view = Together(on.console, on.console, hint=False)
    for event in percent_and_day().events:
        if event.type == "tool.called":
            break
        view.event(event)
    await asyncio.sleep(0.06)
    return view


async def test_what_is_told_meanwhile_stands_above_the_tree() -> None:
    on = screen("60 columns")
    view = await begun(on)
    on.console.print("something else")
    await asyncio.sleep(0.15)

    assert ("something else", True) == (on.lines[0], on.lines[1].startswith("⚙ Cognition"))
    view.stop()
    assert ["something else"] == on.lines


async def test_a_progress_bar_is_drawn_with_the_tree() -> None:
    from rich.progress import Progress

    on = screen("60 columns")
    view = await begun(on)
    with Progress(console=on.console, transient=True, auto_refresh=False) as bars:
        bars.add_task("the model", total=10)
        await asyncio.sleep(0.15)
        assert [True, True] == [on.lines[0].startswith("⚙ Cognition"), on.lines[-1].startswith("the model")]
    await asyncio.sleep(0.15)
    assert not any("the model" in line for line in on.lines)
    view.stop()
    assert [] == on.lines


async def test_whoever_asks_the_user_something_has_the_screen_alone() -> None:
    on = screen("60 columns")
    view = await begun(on)
    with view.aside():
        await asyncio.sleep(0.15)
        assert [] == on.lines
        on.write("Write the file? [y/N] y\n")
    await asyncio.sleep(0.15)

    assert ("Write the file? [y/N] y", True) == (on.lines[0], on.lines[1].startswith("⚙ Cognition"))
    view.stop()


async def test_a_terminal_that_is_gone_is_told_to_whoever_shows_the_next_thing() -> None:
    class Gone(Screen):
        gone = False

        def write(self, text: str) -> int:
            if self.gone:
                raise OSError(5, "Input/output error")
            return super().write(text)

    on = Gone(60, 24)
    view = await begun(on)
    on.gone = True
    await asyncio.sleep(0.2)

    with pytest.raises(OSError, match="Input/output"):
        view.delta(Delta("more"))
    view.stop()
