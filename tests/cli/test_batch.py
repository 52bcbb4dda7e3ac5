"""`timeline batch`: every prompt answered once and given back in its order, whatever stops it in between."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.answers import FOREVER, answer, delta, event, refused, stream
from support.command import Backend, Home, Result
from support.loopback import Reply, Request
from support.terminal import Terminal


def asked(request: Request) -> str:
    """The prompt of a request."""
    return str(request.json()["messages"][-1]["content"])


def echo(request: Request) -> Reply:
    """`re: ` and the prompt."""
    return answer("re: ", asked(request))


def write(home: Home, *lines: Any, name: str = "p.jsonl") -> Path:
    path = home.work / name
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def answers(result: Result) -> list[str]:
    return [line["answer"] for line in result.lines()]


def ended(home: Home) -> list[dict[str, Any]]:
    return [row["data"] for row in home.events("batch.ended")]


# ------------------------------------------------------------------ what comes out


def test_answers_come_in_the_order_of_the_prompts_not_of_their_ends(home: Home, backend: Backend) -> None:
    def slow_first(request: Request) -> Reply:
        return answer("slow", before=0.4) if asked(request) == "one" else echo(request)

    backend.says(slow_first)
    write(home, {"prompt": "one", "id": "a"}, "two", {"prompt": "three", "id": 3}, "two")

    result = home.run("batch", "p.jsonl")

    assert 0 == result.code, result.err
    assert 1 == len(result.err.splitlines())
    assert ["slow", "re: two", "re: three", "re: two"] == answers(result)
    assert [("a", 1), (None, 2), (3, 3), (None, 4)] == [(line["id"], line["line"]) for line in result.lines()]
    assert 4 == len(backend.requests)
    assert "4 of 4 answered" in result.err
    home.end()
    line = result.lines()[0]
    assert (1, "t", "m", "stop") == tuple(
        line[name] for name in ("schema_version", "provider", "model", "finish_reason")
    )
    assert (5, 2, "provider") == tuple(line["usage"][name] for name in ("input", "output", "source"))
    assert {"state": "free", "usd": 0.0} == line["cost"]
    assert line["duration_seconds"] > 0.3
    assert "error" not in line
    turns = [(row["session_id"], row["turn_id"]) for row in home.events("turn.started")]
    assert sorted(turns) == sorted((line["session_id"], line["turn_id"]) for line in result.lines())


def test_each_line_names_the_sources_of_its_answer_also_of_one_of_the_cache(home: Home, backend: Backend) -> None:
    pages = event({"choices": [], "search_results": [{"url": "https://a.example"}]})
    backend.says(stream("re: one", pages, delta(finish="stop")))
    write(home, "one", "one")

    result = home.run("batch", "p.jsonl", "-n", "1", "--cache")

    assert (0, 1) == (result.code, len(backend.requests)), result.err
    assert [[{"url": "https://a.example", "title": None}]] * 2 == [line["sources"] for line in result.lines()]


def test_a_line_s_own_options_are_asked_for_and_the_command_s_where_it_has_none(home: Home, backend: Backend) -> None:
    backend.says(echo)
    write(home, {"prompt": "one", "system": "Own", "max_tokens": 5, "temperature": 0, "seed": 1}, {"prompt": "two"})

    home.run("batch", "p.jsonl", "-s", "Common", "--max-tokens", "9", "--temperature", "1", "--seed", "4", "-n", "1")

    bodies = [request.json() for request in backend.requests]
    assert ["Own", "Common"] == [body["messages"][0]["content"] for body in bodies]
    assert [(0, 1), (1, 4)] == [(body["temperature"], body["seed"]) for body in bodies]
    assert [5, 9] == [body.get("max_completion_tokens", body.get("max_tokens")) for body in bodies]


# ------------------------------------------------------------------ going on


def test_what_is_answered_is_not_asked_again(home: Home, backend: Backend) -> None:
    backend.says(echo)
    write(home, "one", "two", "one")
    first = home.run("batch", "p.jsonl")
    backend.says(echo)

    again = home.run("batch", "p.jsonl")

    assert (0, []) == (again.code, backend.requests)
    assert first.raw == again.raw
    assert "3 of 3 answered (3 before) · nothing was asked: --fresh asks all again" in again.err

    write(home, "zero", "two", "one", "one", "one")

    result = home.run("batch", "p.jsonl", "-q")

    assert "" == result.err
    assert ["re: zero", "re: two", "re: one", "re: one", "re: one"] == answers(result)
    assert ["one", "zero"] == sorted(asked(request) for request in backend.requests)
    assert 1 == len(home.events("session.started"))


def test_standard_input_goes_on_by_what_it_says(home: Home, backend: Backend) -> None:
    backend.says(echo)

    for _ in range(2):
        assert ["re: one", "re: two"] == answers(home.run("batch", "-", stdin='"one"\n"two"\n'))

    assert 2 == len(backend.requests)


# ------------------------------------------------------------------ failures


def test_what_fails_stops_no_other_and_is_asked_again(home: Home, backend: Backend) -> None:
    def bad(request: Request) -> Reply:
        return refused(400, "the prompt is odd") if asked(request) == "two" else echo(request)

    backend.says(bad)
    write(home, "one", "two", "three")

    result = home.run("batch", "p.jsonl")

    assert 1 == result.code
    assert ["re: one", "", "re: three"] == answers(result)
    error = result.lines()[1]["error"]
    assert ("invalid_request", 400, 1) == (error["kind"], error["status"], error["exit_code"])
    assert "the prompt is odd" in error["message"]
    assert "2 of 3 answered · 1 failed: the same command asks them again" in result.err
    assert [{"answered": 2, "failed": 1}] == ended(home)

    backend.says(echo)
    again = home.run("batch", "p.jsonl")

    assert (0, ["re: one", "re: two", "re: three"]) == (again.code, answers(again))
    assert ["two"] == [asked(request) for request in backend.requests]


def test_why_prompts_failed_is_told_once_for_each_reason(home: Home, backend: Backend) -> None:
    def bad(request: Request) -> Reply:
        return echo(request) if asked(request) == "0" else refused(400, f"odd {int(asked(request)) % 7}")

    backend.says(bad)
    write(home, *map(str, range(22)))

    result = home.run("batch", "p.jsonl", "-q")

    *told, others, summary = result.err.splitlines()
    assert 1 == result.code
    assert 5 == len(told)
    assert [3] * 5 == [int(line.split(" × invalid_request: ")[0]) for line in told]
    assert "6 × other reasons: each line of the answers has its own" == others
    assert summary.startswith("1 of 22 answered · 21 failed")


@pytest.mark.parametrize("way", [(), ("--provider-batch",)])
def test_what_fails_wholly_for_one_reason_ends_with_the_code_of_it(home: Home, way: Sequence[str]) -> None:
    write(home, "one", "two")

    result = home.run("batch", "p.jsonl", "-m", "openai:gpt-4o", "-o", "out.jsonl", *way)

    assert 4 == result.code
    assert 1 == result.err.count("OPENAI_API_KEY")
    if not way:
        assert result.err.startswith("2 × missing_key: ")


def test_reasons_that_mean_different_codes_end_with_1(home: Home, backend: Backend) -> None:
    backend.says(lambda request: refused(401 if asked(request) == "one" else 400))
    write(home, "one", "two")

    assert 1 == home.run("batch", "p.jsonl", "-n", "2").code


def test_fail_fast_asks_no_more_after_a_failure(home: Home, backend: Backend) -> None:
    backend.says(echo, refused(400), echo)
    write(home, *map(str, range(20)))

    result = home.run("batch", "p.jsonl", "-n", "1", "--fail-fast", "-o", "out.jsonl")

    assert (1, 2) == (result.code, len(backend.requests))
    assert not (home.work / "out.jsonl").exists()
    assert 2 == len((home.work / "out.jsonl.partial").read_text().splitlines())
    assert [{"answered": 1, "failed": 1, "reason": "failed"}] == ended(home)


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["none.jsonl"], 6, "there is no file none.jsonl"),
        (["."], 2, ". can't be read"),
        (["bad.jsonl"], 2, "line 2 of bad.jsonl is no prompt"),
        (["p.jsonl", "--max-cost", "lots"], 2, "'lots' is no amount of US dollars"),
        (["p.jsonl", "-o", "p.jsonl"], 2, "p.jsonl holds the prompts"),
        (["p.jsonl", "-o", "."], 2, "is a folder"),
        (["p.jsonl", "-o", "no/such/folder"], 2, "no/such/folder can't be written"),
    ],
)
def test_what_can_not_work_is_said_before_anything_is_asked(
    home: Home, backend: Backend, argv: Sequence[str], code: int, said: str
) -> None:
    write(home, "one")
    (home.work / "bad.jsonl").write_text('"one"\nnonsense\n')

    result = home.run("batch", *argv)

    assert (code, "") == (result.code, result.out)
    assert said in result.err
    assert 1 == len(result.err.strip().splitlines())
    assert [] == backend.requests


# ------------------------------------------------------------------ stopping


def hang_on(*prompts: str) -> Any:
    """Answers all but those, of which it says a word and no more."""
    return lambda request: stream("a word", FOREVER) if asked(request) in prompts else echo(request)


def wait_until_recorded(home: Home, type_: str, count: int) -> None:
    deadline = time.monotonic() + 20
    while not home.store.exists() or "events" not in home.tables() or len(home.events(type_)) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_ctrl_c_records_what_was_under_way_and_the_same_command_goes_on(home: Home, backend: Backend) -> None:
    backend.says(hang_on("2", "4"))
    write(home, *map(str, range(6)))
    process = home.start("batch", "p.jsonl", "-n", "2", "-o", "out.jsonl")
    wait_until_recorded(home, "turn.completed", 3)
    wait_until_recorded(home, "chunk.received", 5)
    process.send(signal.SIGINT)

    assert 130 == process.wait()
    assert "stopped with 3 of 6 answered: the same command goes on" in process.errors()
    home.end()
    assert ["sigint"] * 2 == [row["data"]["reason"] for row in home.events("turn.interrupted")]
    assert [{"answered": 3, "failed": 0, "reason": "sigint"}] == ended(home)
    assert not (home.work / "out.jsonl").exists()

    backend.says(echo)
    again = home.run("batch", "p.jsonl", "-o", "out.jsonl")

    assert 0 == again.code, again.err
    lines = [json.loads(line) for line in (home.work / "out.jsonl").read_text().splitlines()]
    assert [f"re: {number}" for number in range(6)] == [line["answer"] for line in lines]
    assert ["2", "4", "5"] == sorted(asked(request) for request in backend.requests)
    assert not (home.work / "out.jsonl.partial").exists()


def test_a_reader_that_has_enough_ends_it_silently(home: Home, backend: Backend) -> None:
    backend.says(lambda request: answer("x" * 70_000))
    write(home, *map(str, range(40)))
    process = home.start("batch", "p.jsonl", "-n", "2")
    assert process.stdout is not None
    os.read(process.stdout.fileno(), 100)
    process.stdout.close()

    assert 128 + signal.SIGPIPE == process.wait()
    assert "" == process.errors()
    assert len(backend.requests) < 40
    home.end()


def test_a_second_process_does_not_ask_the_same_batch(home: Home, backend: Backend) -> None:
    backend.says(hang_on("one"))
    write(home, "one")
    process = home.start("batch", "p.jsonl", "-o", "out.jsonl")
    wait_until_recorded(home, "chunk.received", 1)

    second = home.run("batch", "p.jsonl", "-o", "out.jsonl")

    assert (2, 1) == (second.code, len(backend.requests))
    assert f"process {process.pid} is asking this batch: wait for its end, or give this one a --name" in second.err


def test_a_bar_shows_how_far_it_is_on_a_terminal_and_leaves_the_summary(home: Home, backend: Backend) -> None:
    backend.says(hang_on("2"))
    write(home, *map(str, range(3)))

    with Terminal(home, "batch", "p.jsonl", "-n", "1", "-o", "out.jsonl", columns=90, rows=10) as terminal:
        terminal.wait_for("2/3")
        terminal.type("\x03")
        assert 130 == terminal.wait()
        assert "2/3" not in terminal.text
        assert "stopped with 2 of 3 answered: the same command goes on" in terminal.text


def test_a_full_disk_is_said_and_nothing_more_is_asked(home: Home, backend: Backend) -> None:
    backend.says(lambda request: answer("x" * 70_000))
    write(home, *map(str, range(40)))
    with Path("/dev/full").open("w") as full:
        process = home.start("batch", "p.jsonl", "-n", "1", stdout=full)
        assert 1 == process.wait()

    assert "the output can't be written (No space left on device)" in process.errors()
    assert len(backend.requests) < 40
    assert ["closed"] == [end["reason"] for end in ended(home)]
