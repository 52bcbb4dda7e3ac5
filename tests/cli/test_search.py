"""`timeline search`: what a person finds again, and how it is shown."""

from __future__ import annotations

import datetime as dt
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.answers import FOREVER, answer, error, stream
from support.command import Backend, Home, Zygote

TODAY = dt.datetime.now().astimezone().date()


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote, running_backend: Backend) -> Iterator[Home]:
    """Two sessions, two models; a private turn, a failed one, one that was stopped."""
    path: Path = tmp_path_factory.mktemp("used") / "home"
    with Home(path, zygote, running_backend.url) as home:
        running_backend.says(answer("Read the book.", "\n\nBeware of the borrow checker."), answer("A private reply"))
        home.run("ask", "How do I learn Rust?")
        home.run("ask", "-c", "--private", "my private question")
        running_backend.says(answer("A language by Google."), stream("Goroutines are li", error()))
        home.run("ask", "What is Go?", "-m", "t:big")
        home.run("ask", "-c", "What are goroutines?", "-m", "t:big")
        running_backend.says(stream("Half an ", "answer", FOREVER))
        process = home.start("ask", "stop me")
        process.read_until("answer")
        process.send(signal.SIGINT)
        process.wait()
        yield home


def found(home: Home, *argv: str) -> list[str]:
    return [turn["prompt"] for turn in home.run("search", *argv, "--json").json()["found"]]


def test_a_turn_is_shown_with_its_session_time_model_and_passages(used: Home) -> None:
    session = used.events("session.started")[0]["session_id"]

    result = used.run("search", "rust", "checker")

    head, prompt, passage = result.out.splitlines()
    assert (0, "") == (result.code, result.err)
    assert head.startswith(f"{session[:13]}  {TODAY}")
    assert head.endswith("t:m  How do I learn Rust?")
    assert ["❯ How do I learn Rust?", "  Read the book. Beware of the borrow checker."] == [prompt, passage]


def test_json_has_the_whole_texts_and_marks_the_words(used: Home) -> None:
    value = used.run("search", '"borrow checker"', "--json").json()

    (turn,) = value["found"]
    assert 1 == value["schema_version"]
    assert ("How do I learn Rust?", "Read the book.\n\nBeware of the borrow checker.") == (
        turn["prompt"],
        turn["answer"],
    )
    assert "assistant" == turn["role"]
    assert "**borrow checker**" in turn["snippet"]
    assert ("t", "m", False, str) == (turn["provider"], turn["model"], turn["partial"], type(turn["turn_id"]))
    assert abs(time.time() - turn["at"]) < 600


def test_answers_cut_short_are_found_and_private_ones_are_not(used: Home) -> None:
    assert ["What are goroutines?"] == found(used, "goroutines", "li*")
    assert [] == found(used, "private")


def test_filters(used: Home) -> None:
    every = ("--since", "today", "--until", "today", "-m", "t:big", "--session", "what is go?")

    assert ["What are goroutines?", "What is Go?"] == sorted(found(used, "what", *every, "-n", "0"))
    assert 1 == len(found(used, "what", *every, "--limit", "1"))
    for none in (("--since", "2999-01-01"), ("--until", "1d"), ("--model", "t:m"), ("--session", "stop me")):
        assert [] == found(used, "google", *none)


def test_fewer_words_than_asked_for_are_said_to_be_fewer(used: Home) -> None:
    result = used.run("search", "what did I ask you about rust?")

    assert "no turn has all of these words; these have some\n" == result.err
    assert "❯ How do I learn Rust?" in result.out


def test_nothing_found_is_an_exit_code_and_a_sentence(used: Home) -> None:
    result = used.run("search", "haskell")
    as_json = used.run("search", "haskell", "--json")

    assert (6, "", 1) == (result.code, result.out, len(result.err.splitlines()))
    assert "nothing was found for 'haskell'" in result.err
    assert (6, [], "") == (as_json.code, as_json.json()["found"], as_json.err)


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (("", '"', "?!"), 2),
        ((), 2),
        (("rust", "--limit", "-1"), 2),
        (("rust", "--since", "someday"), 2),
        (("rust", "--session", "nope"), 6),
        (('AND (" OR rus*" NEAR( :^',), 6),
    ],
)
def test_what_can_t_be_searched_for_is_one_sentence(used: Home, argv: tuple[str, ...], code: int) -> None:
    result = used.run("search", *argv)

    assert (code, "", 1) == (result.code, result.out, len(result.err.splitlines()))


def test_words_stand_out_on_a_terminal_and_what_others_wrote_steers_nothing(home: Home, backend: Backend) -> None:
    backend.says(answer("red \x1b]0;title\x07 green"))
    home.run("ask", "colours")

    plain = home.run("search", "green")
    coloured = home.run("search", "green", env={"FORCE_COLOR": "1"})

    assert "green" in plain.out
    assert "\x1b[1;33mgreen\x1b[0m" in coloured.out
    assert "\x1b]0;" not in coloured.out


def test_without_a_store_there_is_nothing_to_search(home: Home) -> None:
    result = home.run("search", "anything")

    assert (6, "") == (result.code, result.out)
    assert "there is no store" in result.err


def test_a_forgotten_session_is_found_no_more(home: Home, backend: Backend) -> None:
    backend.says(answer("an answer"))
    home.run("ask", "a question")
    home.run("sessions", "forget", "last", "--yes")

    assert (6, b"question" in home.bytes()) == (home.run("search", "question").code, False)
