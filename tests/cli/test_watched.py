"""A turn with cognition while it runs, as `ask` shows it: on a terminal, half on one, and in pipes."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from support.answers import FOREVER, answer, delta, event, refused, stream, usage
from support.command import Backend, Home
from support.stores import opened
from support.terminal import ESCAPE, Terminal
from support.watched import STORIES

ANSWER = "15 % of 240 is 36, and today is Sunday.\n"
STEPS = """\
route: embedded:smollm2  0.3s  188↑ 14↓  tools: calculator, clock (low)
tool: calculator(0.15*240) = 36  clock() = Sunday 2026-11-22
format: embedded:smollm2  0.9s  224↑ 47↓
"""


def watch(home: Home, *argv: str, **options: Any) -> Terminal:
    """A made-up turn on a terminal; see `support.watched`."""
    return Terminal(home, "support.watched", *argv, **options)


def piped(home: Home, *argv: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one in pipes."""
    result = home.run("support.watched", *argv)
    return result.code, result.out, result.err


def drawn_for_good(raw: bytes) -> bytes:
    """What followed the last frame."""
    return raw.rpartition(b"\x1b[?2026l")[2].rpartition(b"\x1b[2K")[2]


# ------------------------------------------------------------------ on a terminal


@pytest.mark.parametrize(("columns", "argv"), [(60, ()), (100, ("--ascii",))], ids=["unicode", "ascii"])
def test_what_stands_there_at_the_end_is_what_replay_draws(home: Home, columns: int, argv: tuple[str, ...]) -> None:
    story = STORIES["two tools"]()

    async def record() -> None:
        async with opened(home.store, synchronous="normal") as store:
            await store.append(story.new, contents=story.bodies)

    asyncio.run(record())
    with watch(home, *argv, "--pause", "0.03", columns=columns) as terminal:
        assert 0 == terminal.wait(), terminal.text
        live = drawn_for_good(terminal.raw)
        assert not terminal.cursor_hidden
        screen = terminal.lines
    with Terminal(home, "replay", "last", *argv, columns=columns) as terminal:
        assert 0 == terminal.wait()
        question, _, replayed = terminal.raw.partition(b"\r\n")
        again = terminal.lines

    assert b"what day is it" in question
    # Live, the session to go on with is told at the end.
    said, _, hint = live[:-2].rpartition(b"\r\n")
    assert replayed == said + b"\r\n"
    assert b"session 0193b3f0-0000" in hint
    assert [line for line in again[1:] if line] == [line for line in screen if line][:-1]


def test_each_step_is_seen_while_it_runs(home: Home) -> None:
    with watch(home, "--pause", "0.1", "--stop-at", "step.completed") as terminal:
        terminal.wait_for("└ route")
        terminal.wait_for("188↑ 14↓")
        first = re.search(r"route +(\S) embedded", terminal.text)
        # The spinner turns while nothing comes.
        terminal.wait_for("")
        seen = {first.group(1) if first else ""}
        for _ in range(20):
            terminal.read(0.1)
            seen |= set(re.findall(r"route +(\S) embedded", terminal.text))
        assert len(seen) > 3


def test_an_answer_longer_than_the_screen_stands_there_whole(home: Home) -> None:
    with watch(home, "--story", "long", "--pause", "0.002", columns=60, rows=12) as terminal:
        assert 0 == terminal.wait()
        assert [f"w{number:03}" for number in range(300)] == re.findall(r"w\d{3}", terminal.text)
        assert 1 == terminal.text.count("⚙ Cognition")
        assert "shown at the end" not in terminal.text
        assert b"shown at the end" in terminal.raw


@pytest.mark.parametrize("at", ["request.sent", "tool.returned", "response.completed", "turn.completed"])
def test_ctrl_c_at_any_moment_gives_the_terminal_back(home: Home, at: str) -> None:
    with watch(home, "--pause", "0.02", "--stop-at", at) as terminal:
        terminal.wait_for("⚙ Cognition")
        terminal.read(0.3)
        terminal.type("\x03")
        assert 130 == terminal.wait(20)
        assert not terminal.cursor_hidden
        assert 1 == terminal.text.count("⚙ Cognition")
        assert "Traceback" not in terminal.text
        # No frame was left half drawn.
        assert terminal.raw.count(b"\x1b[?2026h") == terminal.raw.count(b"\x1b[?2026l")


@pytest.mark.parametrize(("columns", "rows"), [(120, 40), (60, 8)])
def test_a_window_that_is_resized_breaks_nothing(home: Home, columns: int, rows: int) -> None:
    with watch(home, "--story", "long", "--pause", "0.004", columns=100, rows=24) as terminal:
        terminal.wait_for("w040")
        terminal.resize(columns, rows)
        assert 0 == terminal.wait()
        words = re.findall(r"w\d{3}", drawn_for_good(terminal.raw).decode())
        assert [f"w{number:03}" for number in range(300)] == words
        assert not terminal.cursor_hidden


def test_text_that_no_longer_counts_is_gone(home: Home) -> None:
    with watch(home, "--story", "taken back", "--pause", "0.1") as terminal:
        terminal.wait_for("Half of an")
        assert 0 == terminal.wait()
        assert ["The whole answer."] == [line for line in terminal.lines if line.startswith(("The", "Half"))]
        assert "taken back: openai:gpt-5 had said 'Half of an '" in terminal.text


def test_an_error_is_told_once(home: Home) -> None:
    with watch(home, "--story", "failed", columns=100) as terminal:
        assert 5 == terminal.wait()
        assert ["✗ openai is busy (429): ask again"] == [line for line in terminal.lines if line.startswith("✗")]


def test_a_dumb_terminal_gets_lines(home: Home) -> None:
    with watch(home, env={"TERM": "dumb"}, columns=100) as terminal:
        assert 0 == terminal.wait()
        assert [] == ESCAPE.findall(terminal.raw)
        assert "route: embedded:smollm2  0.3s  188 in 14 out" in terminal.text
        assert ANSWER.strip() in terminal.text


# ------------------------------------------------------------------ in pipes


def test_pipes_get_the_answer_and_a_line_a_step_beside_it(home: Home) -> None:
    code, out, err = piped(home)

    assert (0, ANSWER) == (code, out)
    assert f"{STEPS}embedded:smollm2 · 1.9s · 412↑ 61↓ · free · session 0193b3f0-0000\n" == err


def test_in_one_file_with_stderr_the_answer_ends_its_line(home: Home, tmp_path: Path) -> None:
    with (tmp_path / "both").open("w+b") as both, Path(os.devnull).open("rb") as nothing:
        streams = [nothing.fileno(), both.fileno(), both.fileno()]
        _, wait = home.fork("support.watched", streams=streams)
        assert 0 == wait(30)
    lines = (tmp_path / "both").read_text().splitlines()

    assert ANSWER.splitlines()[-1] in lines
    assert [line for line in lines if "format:" in line] == [line for line in lines if line.startswith("format:")]


def test_quiet_says_nothing_beside_the_answer(home: Home) -> None:
    assert (0, ANSWER, "") == piped(home, "--quiet")


def test_without_cognition_one_line_sums_it_up(home: Home) -> None:
    code, out, err = piped(home, "--no-show-cognition")

    assert (0, ANSWER) == (code, out)
    assert "embedded:smollm2 · 1.9s · 412↑ 61↓ · free · session 0193b3f0-0000\n" == err


def test_a_long_wait_is_told_when_it_begins(home: Home) -> None:
    _, out, err = piped(home, "--story", "taken back")

    assert out.endswith("The whole answer.\n")
    assert "retry 2 after 1.2s: openai broke off\n" in err
    assert err.index("begins anew") < err.index("format:")


@pytest.mark.parametrize("argv", [(), ("--plain",)])
def test_half_on_a_terminal_the_tree_is_drawn_once_at_the_end(home: Home, argv: tuple[str, ...]) -> None:
    ours, theirs = pty.openpty()
    with tempfile.TemporaryFile() as file:
        command = ("support.watched", *argv, "--pause", "0.02")
        _, wait = home._zygote.start(command, home.env, home.work, [theirs, file.fileno(), theirs], terminal=True)
        code = wait(30)
        file.seek(0)
        out = file.read().decode()
    os.close(theirs)
    seen = b""
    while True:
        try:
            seen += os.read(ours, 65536)
        except OSError:
            break
    os.close(ours)

    last = ESCAPE.sub(b"", drawn_for_good(seen)).decode().replace("\r", "")
    assert (0, ANSWER) == (code, out)
    assert re.fullmatch(r"\s*⚙ Cognition  1\.9s .*\n  ├ route .*\n(.*\n)+session 0193b3f0-0000\n", last)


# ------------------------------------------------------------------ of a real command


ROUTED = answer('{"intent": "arithmetic", "tools": ["calculator"], "complexity": "low"}')
CALLED = stream(
    delta(
        tool_calls=[{"index": 0, "id": "c1", "function": {"name": "calculator", "arguments": '{"expression": "12*7"}'}}]
    ),
    delta(finish="tool_calls"),
    usage(9, 3),
    event("[DONE]"),
)


def asked(home: Home, columns: int, *, stop_after: str | None = None) -> tuple[list[str], bytes, int]:
    """What `ask` leaves on a terminal: its lines, the bytes drawn for good, and the exit code."""
    with Terminal(home, "ask", "--pipeline", "What is 12*7?", columns=columns) as terminal:
        if stop_after:
            terminal.wait_for(stop_after)
            terminal.type("\x03")
        code = terminal.wait()
        assert not terminal.cursor_hidden
        return [line for line in terminal.lines if line], drawn_for_good(terminal.raw), code


@pytest.mark.parametrize(
    ("columns", "replies", "stop_after", "exit_code", "shown"),
    [
        (100, (ROUTED, CALLED, answer("Done."), answer("It is ", "84.", pause=0.1)), None, 0, "It is 84."),
        (60, (ROUTED, CALLED, answer("Done."), answer("It is ", "a lot.")), None, 0, "→"),
        (
            100,
            (ROUTED, CALLED, answer("Done."), stream("It is ", "84", FOREVER)),
            "It is 84",
            130,
            "interrupted with Ctrl-C",
        ),
        (100, (ROUTED, stream(FOREVER)), "└ tool", 130, "interrupted with Ctrl-C"),
        (60, (ROUTED, CALLED, answer("Done."), refused(400, "no such thing")), None, 1, "no such thing"),
    ],
    ids=["answered", "a fact is missing", "interrupted in the answer", "interrupted in a tool step", "refused"],
)
def test_what_ask_leaves_on_a_terminal_replay_draws_again(
    *,
    home: Home,
    backend: Backend,
    columns: int,
    replies: tuple[Any, ...],
    stop_after: str | None,
    exit_code: int,
    shown: str,
) -> None:
    backend.says(*replies)

    lines, live, code = asked(home, columns, stop_after=stop_after)
    with Terminal(home, "replay", "last", columns=columns) as terminal:
        assert 0 == terminal.wait()
        _, _, replayed = terminal.raw.partition(b"\r\n")
        again = [line for line in terminal.lines if line]

    said, _, hint = live[:-2].rpartition(b"\r\n")
    assert (exit_code, True) == (code, any(shown in line for line in lines))
    assert (replayed, b"session 01") == (said + b"\r\n", ESCAPE.sub(b"", hint)[:10])
    assert again[1:] == lines[:-1]
