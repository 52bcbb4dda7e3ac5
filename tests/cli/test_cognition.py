"""Turns with cognition on the command line: replayed, at a pace, one of them, and followed while another process records them."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import time
from pathlib import Path

import pytest
from support.answers import FOREVER, stream
from support.cognition import Story, percent_and_day
from support.command import Backend, Home, Process
from support.stores import opened
from support.terminal import ESCAPE, Terminal

TREE = """\
⚙ Cognition  1.9s  412↑ 61↓  free
  ├ route   embedded:smollm2  0.3s  188↑ 14↓  tools: calculator, clock (low)
  ├ tool    calculator(0.15*240) = 36 · clock() = Sunday 2026-11-22
  └ format  embedded:smollm2  0.9s  224↑ 47↓
"""
QUESTION = "❯ What is 15% of 240, and what day is it?\n"
SAID = "15 % of 240 is 36, and today is Sunday.\n"


class Recording:
    """Appends a story to a home's store, as another process would."""

    def __init__(self, home: Home, story: Story) -> None:
        self._path: Path = home.store
        self._story = story
        self._done = 0

    def until(self, type_: str | None = None) -> None:
        """Record what comes up to and with the next event of that type; without one, all that is left."""
        rest = [new.data.type for new in self._story.new[self._done :]]
        end = self._done + (rest.index(type_) + 1 if type_ else len(rest))

        async def record() -> None:
            async with opened(self._path, synchronous="normal") as store:
                await store.append(self._story.new[self._done : end], contents=self._story.bodies)

        asyncio.run(record())
        self._done = end


@pytest.fixture
def told(home: Home) -> Home:
    """A home whose one session is the example that everybody knows."""
    Recording(home, percent_and_day()).until()
    return home


def test_a_turn_is_drawn_with_its_steps(told: Home) -> None:
    result = told.run("replay", "last", env={"COLUMNS": "100"})

    assert (0, QUESTION + TREE + SAID, "") == (result.code, result.out, result.err)
    assert result.out in told.run("sessions", "show", "last", env={"COLUMNS": "100"}).out


def test_without_its_steps_a_line_sums_it_up(told: Home) -> None:
    result = told.run("replay", "last", "--no-show-cognition")

    assert f"{QUESTION}  embedded:smollm2 · 1.9s · 412↑ 61↓ · free\n{SAID}" == result.out


@pytest.mark.parametrize(("argv", "env"), [(("--ascii",), {}), ((), {"TERM": "dumb"})], ids=["asked for", "dumb"])
def test_ascii_where_nothing_else_will_do(told: Home, argv: tuple[str, ...], env: dict[str, str]) -> None:
    result = told.run("replay", "last", *argv, env=env)

    assert (0, True) == (result.code, result.out.isascii())
    assert "* Cognition  1.9s  412 in 61 out  free\n  | route   embedded:smollm2" in result.out


def test_a_sign_that_the_output_does_not_know_is_replaced_not_a_traceback(home: Home) -> None:
    Recording(home, percent_and_day(["Наука"])).until()

    result = home.run("replay", "last", env={"PYTHONIOENCODING": "latin-1"})

    assert (0, "", b"?????") == (result.code, result.err, result.raw.splitlines()[-1])
    assert b"* Cognition  1.9s  412 in 61 out  free" in result.raw.splitlines()
    told = home.run("sessions", "show", "last", "--json", env={"PYTHONIOENCODING": "latin-1"})
    assert "Наука" == json.loads(told.raw)["turns"][0]["answer"]


@pytest.mark.parametrize("columns", [60, 100])
def test_a_terminal_shows_the_tree_within_its_width(told: Home, columns: int) -> None:
    with Terminal(told, "replay", "last", columns=columns) as terminal:
        assert 0 == terminal.wait()
        drawn = [re.sub(r"\x1b\[[\d;?]*[a-z]", "", line) for line in terminal.raw.decode().split("\r\n")]
    if columns == 100:
        assert (QUESTION + TREE + SAID).splitlines() == [line.rstrip() for line in drawn][:-1]
    assert max(map(len, drawn)) <= columns


def test_json_tells_all_of_the_tools(told: Home) -> None:
    (turn,) = told.run("replay", "last", "--json").json()["turns"]

    route, tool, _ = turn["steps"]
    assert {"intent": "question", "tools": ["calculator", "clock"], "complexity": "low"} == route["decision"]
    assert {
        "name": "calculator",
        "arguments": {"expression": "0.15*240"},
        "result": "36",
        "state": "completed",
        "error": None,
        "duration_seconds": 0.001,
    } == tool["tools"][0]
    assert ("clock", {}, "Sunday 2026-11-22") == tuple(
        tool["tools"][1][name] for name in ("name", "arguments", "result")
    )


# ------------------------------------------------------------------ one turn


def three_turns(home: Home) -> None:
    story = Story()
    for number in (1, 2, 3):
        story.ask(f"question {number}", mode="direct").step("answer").call(f"answer {number}").done(0.3).answered(0.3)
    Recording(home, story).until()


def test_one_turn_alone(home: Home) -> None:
    three_turns(home)

    drawn = home.run("replay", "last", "--turn", "2").out
    turns = home.run("replay", "last", "--turn", "2", "--json").json()["turns"]
    types = [line["type"] for line in home.run("replay", "last", "--turn", "2", "--events").lines()]

    assert (["question 2"], ["answer 2"]) == (re.findall(r"question \d", drawn), re.findall(r"answer \d", drawn))
    assert ["answer 2"] == [turn["answer"] for turn in turns]
    assert ("turn.started", "turn.completed", 7) == (types[0], types[-1], len(types))


@pytest.mark.parametrize("argv", [(), ("--json",), ("--events",)])
def test_a_turn_that_is_not_there_is_not_found(home: Home, argv: tuple[str, ...]) -> None:
    three_turns(home)

    result = home.run("replay", "last", "--turn", "4", *argv)

    assert 6 == result.code
    assert "the session has 3 turns, and no number 4" in result.out + result.err


# ------------------------------------------------------------------ at a pace


def paced() -> Story:
    """A turn that takes 2.4 s by its events."""
    story = Story().ask("How long?")
    story.step("route").wait(0.5).call("calculator", seconds=0.3).routed("calculator")
    story.step("tool").tool("calculator", {"expression": "1+1"}, "2", seconds=0.4).done(0.4)
    story.step("format").send().says(*(f"word{number} " for number in range(10)), gap=0.12).ends((5, 5), 1.2)
    return story.done(1.2).answered(2.4)


def test_at_a_pace_a_terminal_shows_step_after_step_and_ends_as_replay_does(home: Home) -> None:
    Recording(home, paced()).until()
    with Terminal(home, "replay", "last", "--speed", "2") as terminal:
        assert 0 == terminal.wait()
        assert not terminal.cursor_hidden
        played, drawn = terminal.lines, ESCAPE.sub(b"", terminal.raw).decode()
    # Each was the last line for a while; a machine that is busy may leave a short one out.
    places = [drawn.index(sign) for sign in ("└ route", "└ format", "word0 word1")]
    assert sorted(places) == places
    with Terminal(home, "replay", "last") as terminal:
        assert 0 == terminal.wait()
        assert terminal.lines == played


def test_ctrl_c_at_a_pace_shows_the_rest_at_once(home: Home) -> None:
    Recording(home, paced()).until()
    with Terminal(home, "replay", "last", "--speed", "0.2") as terminal:
        terminal.wait_for("└ route")
        terminal.type("\x03")
        assert 130 == terminal.wait(10)
        assert not terminal.cursor_hidden
        assert "word0 word1" in terminal.text
        assert "Traceback" not in terminal.text


def test_in_a_pipe_the_answer_keeps_its_pace(home: Home) -> None:
    Recording(home, paced()).until()
    began = time.monotonic()
    process = home.start("replay", "last", "--speed", "4")
    process.read_until("word0")
    first = time.monotonic() - began
    process.rest()

    assert 0 == process.wait()
    assert first >= 1.1 / 4
    assert time.monotonic() - began >= 2.2 / 4


# ------------------------------------------------------------------ while it happens


def test_follow_shows_a_running_turn_and_ends_with_it(home: Home) -> None:
    recording = Recording(home, percent_and_day())
    recording.until("tool.called")

    with Terminal(home, "replay", "last", "--follow", columns=100) as terminal:
        terminal.wait_for("calculator(0.15*240)")
        assert "= 36" not in terminal.text
        recording.until("tool.returned")
        terminal.wait_for("calculator(0.15*240) = 36")
        recording.until("chunk.received")
        terminal.wait_for(SAID.strip())
        recording.until()

        assert 0 == terminal.wait(10)
        followed = terminal.lines
        assert not terminal.cursor_hidden
    with Terminal(home, "replay", "last", columns=100) as terminal:
        terminal.wait()
        assert terminal.lines == followed


def test_follow_waits_for_the_next_turn_where_none_is_open(home: Home) -> None:
    story = percent_and_day()
    Recording(home, story).until()
    done = len(story.new)
    story.ask("And tomorrow?").step("format").call("Monday.").done(0.3).answered(0.4)
    recording = Recording(home, story)
    recording._done = done

    with Terminal(home, "replay", "last", "-f", columns=100) as terminal:
        terminal.wait_for("waiting for the next one")
        assert SAID.strip() in terminal.text
        recording.until()
        assert 0 == terminal.wait(10)
        assert 1 == terminal.text.count("And tomorrow?")
        assert "Monday." in terminal.text


def test_follow_in_a_pipe_draws_what_replay_draws(home: Home) -> None:
    recording = Recording(home, percent_and_day())
    recording.until("step.started")
    process = home.start("replay", "last", "--follow", env={"COLUMNS": "100"})
    seen = process.read_until("what day is it?")
    recording.until()
    seen += process.rest()

    assert (0, QUESTION + TREE + SAID) == (process.wait(10), seen)


def test_follow_prints_events_as_they_are_recorded(home: Home) -> None:
    recording = Recording(home, percent_and_day())
    recording.until("tool.called")
    process = home.start("replay", "last", "--follow", "--events")
    seen = process.read_until("tool.called")
    recording.until("tool.returned")
    seen += process.read_until("tool.returned")
    recording.until()
    seen += process.rest()

    assert 0 == process.wait(10)
    assert home.types() == re.findall(r'"type":"([\w.]+)"', seen)


def test_ctrl_c_ends_following_and_says_that_it_still_runs(home: Home) -> None:
    Recording(home, percent_and_day()).until("tool.called")
    with Terminal(home, "replay", "last", "--follow") as terminal:
        terminal.wait_for("calculator(0.15*240)")
        terminal.type("\x03")
        assert 130 == terminal.wait(10)
        assert not terminal.cursor_hidden
        assert 1 == terminal.text.count("⚙ Cognition")
        assert "still running" in terminal.text


def test_follow_ends_when_the_process_that_ran_the_turn_was_killed(home: Home, backend: Backend) -> None:
    backend.says(stream("Half an ", "answer", FOREVER))
    asking: Process = home.start("ask", "a question")
    asking.read_until("Half an answer")
    with Terminal(home, "replay", "last", "--follow") as terminal:
        terminal.wait_for("Half an answer")
        asking.send(signal.SIGKILL)
        asking.wait()
        assert 0 == terminal.wait(20)
        assert "its process ended without warning" in terminal.text


@pytest.mark.parametrize("argv", [("--speed", "1"), ("--turn", "1"), ("--json",)])
def test_following_and_looking_back_are_two_things(told: Home, argv: tuple[str, ...]) -> None:
    result = told.run("replay", "last", "--follow", *argv)

    assert 2 == result.code
    assert f"--follow shows what happens now, and {argv[0]} what has happened" in result.out + result.err


def test_a_direct_turn_is_followed_to_its_interruption(home: Home, backend: Backend) -> None:
    backend.says(stream("Hello ", "world", FOREVER))
    asking = home.start("ask", "a question")
    asking.read_until("Hello world")
    with Terminal(home, "replay", "last", "--follow") as terminal:
        terminal.wait_for("Hello world")
        asking.send(signal.SIGINT)
        assert 0 == terminal.wait(20)
        assert 1 == terminal.text.count("Hello world")
        assert "interrupted with Ctrl-C" in terminal.text
    asking.rest()
    assert 130 == asking.wait()


def test_an_interrupted_command_prints_its_events_to_the_last(home: Home, backend: Backend) -> None:
    backend.says(stream("Hello ", "world", FOREVER))
    asking = home.start("ask", "a question", "--events")
    seen = asking.read_until("request.sent")
    while "world" not in home.recorded():
        time.sleep(0.05)
    asking.send(signal.SIGINT)
    seen += asking.rest()

    assert 130 == asking.wait()
    assert home.types() == re.findall(r'"type":"([\w.]+)"', seen)
    assert "turn.interrupted" == home.types()[-1]


def test_a_fact_that_the_answer_lacked_is_replayed_under_it(home: Home) -> None:
    story = Story().ask("What is 12*7?").step("tool").tool("calculator", {"expression": "12*7"}, "84").done(0.1)
    story.step("format").call("A lot.").done(0.3, decision={"appended": "84"}).answered(0.5)
    Recording(home, story).until()

    for argv in ((), ("--speed", "100")):
        assert home.run("replay", "last", *argv).out.endswith("\nA lot.\n\n→ 84\n")
    assert "A lot.\n\n→ 84" == home.run("replay", "last", "--json").json()["turns"][0]["answer"]
