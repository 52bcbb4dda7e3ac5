"""Fifty processes at once on one file: every one succeeds, and the file is whole."""

from __future__ import annotations

from collections import Counter

import pytest
from support.answers import answer
from support.command import Backend, Home, Process
from support.loopback import Reply, Request

MANY = 50


def echo(request: Request) -> Reply:
    """Answers a question with its own words, so that a mixed-up answer shows."""
    question = request.json()["messages"][-1]["content"]
    return answer("You asked: ", question)


def ask(home: Home, first: int, count: int, *, fresh: bool = False) -> None:
    """So many questions by as many processes at once; all succeed, each with its own answer."""
    processes = [home.start("ask", f"question {first + number}", fresh=fresh) for number in range(count)]
    outcomes = [(process.rest(), process.wait(60), process.errors()) for process in processes]

    expected = [(f"You asked: question {first + number}\n", 0) for number in range(count)]
    assert expected == [outcome[:2] for outcome in outcomes], [outcome for outcome in outcomes if outcome[1]]


def check(home: Home, sessions: int) -> None:
    verified = home.run("store", "verify", "--json").json()
    assert (True, sessions) == (verified["ok"], verified["sessions"])
    assert sessions == len(home.run("sessions", "list", "--limit", "0", "--json").json()["sessions"])
    assert {"response.completed": sessions} == dict(
        Counter(row["type"] for row in home.events("response.completed", "call.failed", "call.interrupted"))
    )
    assert sessions == home.run("report", "--json").json()["totals"]["calls"]
    home.end()


@pytest.mark.slow
def test_fifty_processes_at_once_on_a_fresh_home_and_again_on_the_file(home: Home, backend: Backend) -> None:
    backend.says(echo)

    ask(home, 0, MANY)
    check(home, MANY)
    ask(home, MANY, MANY)
    check(home, 2 * MANY)


@pytest.mark.slow
def test_whole_interpreters_at_once_on_a_fresh_home(home: Home, backend: Backend) -> None:
    backend.says(echo)

    ask(home, 0, 3, fresh=True)
    check(home, 3)


def test_one_session_takes_turns_of_many_processes(home: Home, backend: Backend) -> None:
    backend.says(echo)
    home.run("ask", "question 0")

    processes: list[Process] = [home.start("ask", "-c", f"question {number}") for number in range(1, 9)]

    assert [0] * 8 == [process.wait(60) for process in processes]
    (session,) = home.run("sessions", "list", "--json").json()["sessions"]
    assert 9 == session["turns"]
    versions = [row["version"] for row in home.events()]
    assert list(range(1, len(versions) + 1)) == versions
    assert {f"You asked: question {number}" for number in range(9)} == {
        turn["answer"] for turn in home.run("replay", "last", "--json").json()["turns"]
    }


def test_readers_are_not_in_the_way(home: Home, backend: Backend) -> None:
    backend.says(echo)
    home.run("ask", "question 0")

    asking = [home.start("ask", f"question {number}") for number in range(6)]
    looking = [home.start(*argv) for argv in (("report",), ("sessions", "list"), ("replay", "last")) * 2]
    caring = [home.start("store", "rebuild"), home.start("store", "verify")]

    assert [0] * 14 == [process.wait(60) for process in (*asking, *looking, *caring)]
    check(home, 7)
