"""`timeline replay`: the answer again, from its events alone."""

from __future__ import annotations

import os
import signal
import time

import pytest
from support.answers import FOREVER, answer, batch, delta, event, refused, stream
from support.command import Backend, Home, Process

LONG = "# Title\n\nA paragraph with **bold** text.\n\n" + "".join(f"- item {number}\n" for number in range(20))


def ask(home: Home, backend: Backend, *pieces: str, **more: float) -> None:
    backend.says(answer(*pieces, **more))
    assert 0 == home.run("ask", "a question").code


def test_replay_prints_the_answer_again(home: Home, backend: Backend) -> None:
    pieces = [LONG[start : start + 7] for start in range(0, len(LONG), 7)]
    ask(home, backend, *pieces)

    result = home.run("replay", "last")

    assert 0 == result.code
    assert result.out.endswith(LONG)
    assert "a question" in result.out


def test_replay_needs_neither_the_server_nor_its_configuration(home: Home, backend: Backend) -> None:
    ask(home, backend, "Hello ", "world")
    (home.path / "config.yaml").unlink()

    result = home.run("replay", "last")

    assert (0, "Hello world") == (result.code, result.out.splitlines()[-1])
    assert 1 == len(backend.requests)


def test_replay_shows_how_each_turn_ended(home: Home, backend: Backend) -> None:
    ask(home, backend, "Hello")
    backend.says(refused(500, "boom"))
    home.run("ask", "-c", "second question")
    backend.says(stream("Half", FOREVER))
    process = home.start("ask", "-c", "third question")
    process.read_until("Half")
    process.send(signal.SIGINT)
    process.wait()
    backend.says(stream("Cut", delta(finish="length"), event("[DONE]")))
    home.run("ask", "-c", "fourth question")

    shown = home.run("replay", "last").out

    for text in ("Hello", "second question", "boom", "Half", "interrupted with Ctrl-C", "Cut", "cut off"):
        assert 1 == shown.count(text), text


def test_replay_writes_nothing(home: Home, backend: Backend) -> None:
    ask(home, backend, "Hello")
    before = home.events()

    for argv in ((), ("--speed", "100"), ("--json",), ("--events",)):
        assert 0 == home.run("replay", "last", *argv).code

    assert before == home.events()


def test_a_batch_answer_is_replayed_too(home: Home, backend: Backend) -> None:
    backend.says(batch("Hello world"))
    home.run("ask", "hi", "--no-stream")

    assert "Hello world" == home.run("replay", "last").out.splitlines()[-1]


def test_a_private_turn_shows_what_it_used_and_not_what_was_said(home: Home, backend: Backend) -> None:
    backend.says(answer("secret answer"))
    home.run("ask", "secret question", "--private")

    shown = home.run("replay", "last").out

    assert (False, True, True) == ("secret" in shown, "[not recorded]" in shown, "5↑ 2↓" in shown)


# ------------------------------------------------------------------ at a pace


def arrivals(process: Process) -> list[tuple[float, bytes]]:
    """What came when, in seconds since the first."""
    assert process.stdout is not None
    seen = []
    while data := os.read(process.stdout.fileno(), 4096):
        seen.append((time.monotonic(), data))
    process.wait()
    return [(moment - seen[0][0], data) for moment, data in seen]


def test_speed_plays_the_same_text_piece_by_piece(home: Home, backend: Backend) -> None:
    ask(home, backend, *(f"word{number} " for number in range(10)), pause=0.05)

    played = arrivals(home.start("replay", "last", "--speed", "1"))

    text = b"".join(data for _, data in played).decode()
    assert "".join(f"word{number} " for number in range(10)) in text
    assert len(played) >= 8


def test_a_higher_speed_ends_earlier(home: Home, backend: Backend) -> None:
    ask(home, backend, *(f"word{number} " for number in range(10)), pause=0.12)

    slow = home.start("replay", "last", "--speed", "1")
    fast = home.start("replay", "last", "--speed", "20")

    assert (0, None) == (fast.wait(), _poll(slow))
    assert 0 == slow.wait()


def _poll(process: Process) -> int | None:
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return process.wait()
    return None


@pytest.mark.parametrize("speed", ["0", "-1", "inf", "nan", "fast"])
def test_a_speed_that_makes_no_sense_is_refused(home: Home, backend: Backend, speed: str) -> None:
    ask(home, backend, "Hello")

    result = home.run("replay", "last", "--speed", speed)

    assert (2, "", 1) == (result.code, result.out, len(result.err.splitlines()))


def test_ctrl_c_ends_a_replay(home: Home, backend: Backend) -> None:
    ask(home, backend, *(f"word{number} " for number in range(10)), pause=0.05)
    process = home.start("replay", "last", "--speed", "0.1")
    process.read_until("word0")

    process.send(signal.SIGINT)

    assert 130 == process.wait(5)
    assert "Traceback" not in process.errors()


# ------------------------------------------------------------------ for programs


def test_json_has_every_turn(home: Home, backend: Backend) -> None:
    ask(home, backend, "Hello ", "world")

    session = home.run("replay", "last", "--json").json()

    (turn,) = session["turns"]
    assert (1, "a question") == (session["schema_version"], session["title"])
    assert ("a question", "Hello world", "completed", "stop") == (
        turn["prompt"],
        turn["answer"],
        turn["state"],
        turn["finish_reason"],
    )
    assert turn["time_to_first_token_seconds"] <= turn["duration_seconds"]


def test_events_are_the_log_line_by_line(home: Home, backend: Backend) -> None:
    ask(home, backend, "Hello ", "world")

    lines = home.run("replay", "last", "--events").lines()

    assert [(row["position"], row["event_id"], row["type"], row["digest"]) for row in home.events()] == [
        (line["position"], line["event_id"], line["type"], line["digest"]) for line in lines
    ]
    assert {1} == {line["schema_version"] for line in lines}
    assert [row["data"] for row in home.events()] == [line["data"] for line in lines]


def test_ask_prints_the_same_events_as_replay(home: Home, backend: Backend) -> None:
    backend.says(answer("Hello ", "world"))

    live = home.run("ask", "hi", "--events").lines()

    assert live == home.run("replay", "last", "--events").lines()
