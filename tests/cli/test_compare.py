"""`ask -m a -m b`: several models asked at once, each whole, each recorded, and compared."""

from __future__ import annotations

import re
import signal
import time

from support.answers import FOREVER, answer, delta, error, event, refused, stream
from support.command import Backend, Home
from support.loopback import Reply
from support.terminal import Terminal


def by_model(**replies: Reply) -> object:
    """A reply for each model."""
    return lambda request: replies[request.json()["model"]]


def both(home: Home, backend: Backend, **replies: Reply) -> None:
    home.configure(models=list(replies))
    backend.says(by_model(**replies))  # type: ignore[arg-type]


def test_answers_stand_one_after_the_other_in_a_pipe_in_the_order_of_the_models(home: Home, backend: Backend) -> None:
    both(home, backend, a=answer("From ", "a", before=0.4), b=answer("From b\n", tokens=(7, 3)))

    result = home.run("ask", "-m", "t:a", "-m", "t:b", "Who?")

    assert (0, "From a\n\nFrom b\n") == (result.code, result.out), result.err
    first, second, head, of_a, of_b = result.err.splitlines()
    assert ("❯ t:a", "❯ t:b") == (first, second)
    assert ["model", "tokens", "cost", "first", "time", "session"] == head.split()
    assert ["t:a", "5↑", "2↓", "free"] == of_a.split()[:4]
    assert ["t:b", "7↑", "3↓", "free"] == of_b.split()[:4]
    home.end()
    # At once: the one that answers at once doesn't wait for the other.
    assert ["b", "a"] == [
        next(sent["data"]["model"] for sent in home.events("request.sent") if sent["call_id"] == row["call_id"])
        for row in home.events("response.completed")
    ]


def test_each_has_a_session_and_continue_goes_on_with_the_first_model(home: Home, backend: Backend) -> None:
    both(home, backend, a=answer("From a"), b=answer("From b"))
    home.run("ask", "-m", "t:a", "-m", "t:b", "Who?")
    assert 2 == len(home.events("session.started"))

    home.run("ask", "-c", "and?")

    assert [("user", "Who?"), ("assistant", "From a"), ("user", "and?")] == backend.messages()


def test_json_holds_an_answer_for_each(home: Home, backend: Backend) -> None:
    both(home, backend, a=answer("From a"), b=refused(400, "no such thing"))

    result = home.run("ask", "--json", "-m", "t:a", "-m", "t:b", "Who?")

    assert 1 == result.code
    good, bad = result.json()["answers"]
    assert ("t:a", "From a", "a", 5) == (good["asked_for"], good["answer"], good["model"], good["usage"]["input"])
    assert ("t:b", "", "invalid_request", 1) == (
        bad["asked_for"],
        bad["answer"],
        bad["error"]["kind"],
        bad["error"]["exit_code"],
    )
    assert "error" not in good


def test_the_sources_of_each_are_listed_below_the_answers(home: Home, backend: Backend) -> None:
    pages = event({"choices": [], "search_results": [{"url": "https://a.example"}]})
    both(home, backend, a=stream("From a", pages, delta(finish="stop")), b=answer("From b"))

    result = home.run("ask", "-m", "t:a", "-m", "t:b", "Who?", "--private")
    as_json = home.run("ask", "-m", "t:a", "-m", "t:b", "Who?", "--private", "--json")

    assert ["… t:a: its sources", "  [1] https://a.example"] == result.err.splitlines()[2:4]
    assert [[{"url": "https://a.example", "title": None}], []] == [
        each["sources"] for each in as_json.json()["answers"]
    ]
    assert b"a.example" not in home.bytes()


def test_one_that_fails_takes_none_of_the_others_answer(home: Home, backend: Backend) -> None:
    both(home, backend, a=refused(401, "bad key"), b=answer("From b"))

    result = home.run("ask", "-m", "t:a", "-m", "t:b", "Who?")

    assert (4, "From b\n") == (result.code, result.out)
    assert "t:a gave no answer:" in result.err
    assert "refused the key" in result.err


def test_what_broke_off_is_said_to_be_a_part_and_the_next_answer_stands_apart(home: Home, backend: Backend) -> None:
    both(home, backend, a=stream("From", error()), b=refused(400), c=answer("From c"))

    result = home.run("ask", "-m", "t:a", "-m", "t:b", "-m", "t:c", "Who?")

    assert (1, "From\n\nFrom c\n") == (result.code, result.out)
    assert "t:a gave only a part of an answer:" in result.err


def test_where_nobody_can_be_asked_nothing_is_written_but_why(home: Home) -> None:
    models = ("openai:gpt-4o", "anthropic:claude-haiku-4-5")

    result = home.run("ask", "-m", models[0], "-m", models[1], "Who?")

    assert (4, "") == (result.code, result.out)
    first, *told = result.err.splitlines()
    assert f"❯ {models[0]}" == first
    assert [f"{model} gave no answer:" for model in models] == told[::2]
    assert ["Error: "] * 2 == [line[:7] for line in told[1::2]]


def test_an_answer_of_nothing_is_said_to_be_one(home: Home, backend: Backend) -> None:
    both(home, backend, a=answer(), b=stream("From b", delta(finish="length"), event("[DONE]")))
    argv = ("ask", "-m", "t:a", "-m", "t:b", "Who?")

    result = home.run(*argv)

    assert 0 == result.code
    assert [
        "… t:a: the model answered with nothing (finish reason: stop)",
        "… t:b: cut off: the limit of tokens was reached",
    ] == [line for line in result.err.splitlines() if line.startswith("…")]
    assert "…" not in home.run(*argv, "-q").err


def test_a_model_that_means_nothing_is_said_before_anybody_is_asked(home: Home, backend: Backend) -> None:
    both(home, backend, a=answer("From a"))

    result = home.run("ask", "-m", "t:a", "-m", "nobody:b", "Who?")

    assert (6, "", []) == (result.code, result.out, backend.requests)


def test_several_models_do_not_go_on_with_one_session(home: Home, backend: Backend) -> None:
    result = home.run("ask", "-c", "-m", "t:a", "-m", "t:b", "Who?")

    assert (2, "Error: --continue goes with one model, not with 2: name one with -m\n") == (result.code, result.err)


def test_ctrl_c_ends_all_of_them_and_both_are_recorded(home: Home, backend: Backend) -> None:
    both(home, backend, a=stream("From a", FOREVER), b=stream("From b", FOREVER))
    process = home.start("ask", "-m", "t:a", "-m", "t:b", "Who?")
    process.read_until("From a")
    while len(home.events("chunk.received")) < 2:
        time.sleep(0.02)
    process.send(signal.SIGINT)

    assert 130 == process.wait()
    interrupted = home.events("turn.interrupted")
    assert ["sigint"] * 2 == [row["data"]["reason"] for row in interrupted]
    # Both can be found again, and what they used is told as far as it is known.
    assert 2 == len(re.findall(r"^t:[ab] +~\d+↑ ~\d+↓  free ", process.errors(), re.MULTILINE))
    lines = process.errors().splitlines()
    assert {row["session_id"][:13] for row in interrupted} == {
        line.split()[-1] for line in lines if line[:3] in ("t:a", "t:b")
    }
    hints = [f"✗ interrupted and recorded: timeline replay {row['session_id'][:13]}" for row in interrupted]
    assert sorted(hints) == sorted(lines[-2:])
    home.end()


def test_on_a_terminal_both_are_seen_side_by_side_while_they_come_and_whole_at_the_end(
    home: Home, backend: Backend
) -> None:
    words = [f"{name}{number:03}" for name in "ab" for number in range(120)]
    long_a, long_b = (" ".join(word for word in words if word[0] == name) for name in "ab")
    both(home, backend, a=answer(long_a, " end", pause=1.0), b=answer(long_b, " end", pause=1.0))

    with Terminal(home, "ask", "-m", "t:a", "-m", "t:b", "Who?", columns=80, rows=16) as terminal:
        terminal.wait_for("a119")
        assert "b119" in "\n".join(terminal.lines)
        assert 0 == terminal.wait()
        text = terminal.text

    for word in words:
        assert 1 == text.count(word), word


def test_events_of_all_are_told(home: Home, backend: Backend) -> None:
    both(home, backend, a=answer("From a"), b=answer("From b"))

    lines = home.run("ask", "--events", "-m", "t:a", "-m", "t:b", "Who?").lines()

    assert 2 == len({line["session_id"] for line in lines})
    assert 2 == [line["type"] for line in lines].count("turn.completed")
