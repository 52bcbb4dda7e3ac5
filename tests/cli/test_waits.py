"""Waits, retries, fallbacks and answers from the log as `ask` tells of them: on stderr, in JSON, and later in `replay`."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import re
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.answers import FOREVER, answer, refused, stream
from support.command import Backend, Home
from support.loopback import CLOSE, Reply, Request

BUSY = "overloaded, 2 attempts"


def configure(home: Home, **more: Any) -> None:
    """Two providers of the same server, the second one behind the first; two attempts at each."""
    entry = {"kind": "openai", "base_url": home.url, "models": ["m"], "local": False}
    routing = {"default": ["t:m", "u:m"], "fallback": None, **more.pop("routing_strategy", {})}
    settings = {
        "llm_providers": {"t": entry, "u": {**entry, "models": ["n"]}, **more.pop("llm_providers", {})},
        "routing_strategy": routing | {"default": more.pop("default", ["t:m", "u:n"])},
        "retry": {"max_attempts": 2, "base_delay": 0.01, **more.pop("retry", {})},
        "mode": "direct",
        **more,
    }
    (home.path / "config.yaml").write_text(json.dumps(settings))


def only(model: str, otherwise: Reply) -> Any:
    """Answers for that model, and something else for all others."""
    return lambda request: answer("Hello ", "world") if request.json()["model"] == model else otherwise


def test_a_long_wait_and_another_ones_answer_are_told_on_stderr(home: Home, backend: Backend) -> None:
    configure(home)
    backend.says(only("n", refused(503, "full", **{"retry-after": "1.1"})))

    result = home.run("ask", "hi")

    assert (0, "Hello world\n") == (result.code, result.out)
    again, instead, used = result.err.splitlines()
    assert ("retry 2 after 1.1s: overloaded, told to wait 1.1s", f"t:m → u:n: {BUSY}") == (again, instead)
    assert used.startswith("u:n · ")


def test_a_prompt_that_an_old_ollama_cut_is_told_at_once_and_in_replay(home: Home, backend: Backend) -> None:
    said = {"model": "m", "message": {"content": "Hello"}, "done": True, "prompt_eval_count": 2048, "eval_count": 1}
    configure(home, llm_providers={"ollama": {"base_url": home.url}})
    backend.says(lambda request: Reply.json(said if request.path == "/api/chat" else {}))
    prompt = home.path / "long.txt"
    prompt.write_text("word " * 8000)
    told = r"the prompt was cut to 2,048 of about 1\d,\d{3} tokens: shorten it"

    direct = home.run("ask", "-m", "ollama:m", "-f", str(prompt), "hi")
    home.run("ask", "-m", "ollama:m", "--pipeline", "-f", str(prompt), "hi")
    replayed = home.run("replay", "last")

    assert (0, "Hello\n") == (direct.code, direct.out)
    assert re.search(told, direct.err)
    assert re.search(told, " ".join((replayed.out + replayed.err).split()))


def test_a_short_wait_and_what_quiet_asked_not_to_hear_are_not_told(home: Home, backend: Backend) -> None:
    configure(home)
    backend.says(refused(503, "full"), answer("Hello"))
    brief = home.run("ask", "hi")
    backend.says(only("n", refused(404, "no such model")))
    quiet = home.run("ask", "hi", "-q")

    assert 1 == len(brief.err.splitlines())
    assert (0, "Hello world\n", "") == (quiet.code, quiet.out, quiet.err)


def test_json_says_who_was_wanted_and_why_it_wasn_t_that_one(home: Home, backend: Backend) -> None:
    configure(home)
    backend.says(only("n", refused(503, "full")))
    stood_in = home.run("ask", "hi", "--json").json()
    backend.says(answer("Hello"))
    wanted = home.run("ask", "hi", "-m", "u:n", "--json").json()

    assert ("u", "n", True) == (stood_in["provider"], stood_in["model"], stood_in["fallback"])
    assert [{"model": "t:m", "why": BUSY}] == stood_in["instead_of"]
    assert ["failed", "failed", "completed"] == [attempt["outcome"] for attempt in stood_in["attempts"]]
    assert (False, []) == (wanted["fallback"], wanted["instead_of"])


def test_where_the_first_one_s_key_is_missing_the_second_one_answers_and_it_is_said(
    home: Home, backend: Backend
) -> None:
    configure(home, default=["openai:gpt", "u:n"], llm_providers={"openai": {"models": ["gpt"]}})
    backend.says(answer("Hello"))

    result = home.run("ask", "hi")
    value = home.run("ask", "hi", "--json").json()

    assert (0, "Hello\n") == (result.code, result.out)
    assert "openai:gpt" in result.err.splitlines()[0]
    assert "OPENAI_API_KEY" in result.err.splitlines()[0]
    assert ["openai:gpt"] == [passed["model"] for passed in value["instead_of"]]


@pytest.mark.parametrize("options", [(), ("--no-stream",)], ids=["stream", "batch"])
def test_timeout_bounds_a_call_that_hangs(home: Home, backend: Backend, options: tuple[str, ...]) -> None:
    configure(home)
    backend.says(stream(before=FOREVER))
    begun = time.monotonic()

    result = home.run("ask", "hi", "--timeout", "0.5", *options)

    assert (1, "") == (result.code, result.out)
    assert "t:m gave no answer within the 0.5 s of the call: raise --timeout" in result.err
    assert ["timeout"] == [row["data"]["error"]["kind"] for row in home.events("call.failed")]
    assert time.monotonic() - begun < 10


def test_an_answer_that_begins_anew_says_so(home: Home, backend: Backend) -> None:
    configure(home, routing_strategy={"on_stream_error": "restart"})
    backend.says(stream("Hello ", "wor", CLOSE), answer("Good morning"))
    piped = home.run("ask", "hi")
    backend.says(stream("Hello ", "wor", CLOSE), answer("Good morning"))
    value = home.run("ask", "hi", "--json").json()

    assert (0, "Hello wor\nGood morning\n") == (piped.code, piped.out)
    assert "that answer broke off: it begins anew" in piped.err
    assert ("Good morning", ["failed", "completed"]) == (
        value["answer"],
        [attempt["outcome"] for attempt in value["attempts"]],
    )
    replayed = home.run("replay", "last").out
    assert "Good morning" in replayed


@pytest.mark.parametrize("options", [("--direct",), ("--direct", "-q"), ("--pipeline",)], ids=" ".join)
def test_an_answer_that_does_not_fit_the_schema_is_not_on_standard_output(
    home: Home, backend: Backend, options: tuple[str, ...]
) -> None:
    configure(home, routing_strategy={"query_routing": "t:m"})
    route = [answer('{"tools": [], "complexity": "low"}')] if "--pipeline" in options else []
    backend.says(*route, answer('{"nome": ', '"Rex"}'), answer('{"name": "Rex", ', '"age": 3}'))

    result = home.run("ask", *options, "--schema", "name, age int", "A dog")

    assert (0, '{"name": "Rex", "age": 3}\n') == (result.code, result.out)
    assert "that answer did not fit the schema: it is asked for once more" in result.err
    assert "broke off" not in result.err


def test_the_last_answer_that_does_not_fit_the_schema_is_shown_and_fails(home: Home, backend: Backend) -> None:
    configure(home)
    backend.says(answer('{"nome": "Rex"}'), answer('{"nom": "Rex"}'))

    result = home.run("ask", "-q", "--schema", "name", "A dog")

    assert (1, '{"nom": "Rex"}\n') == (result.code, result.out)
    assert "the answer does not fit the schema" in result.err


def test_an_answer_with_a_schema_that_breaks_off_begins_anew_on_standard_output(home: Home, backend: Backend) -> None:
    configure(home, routing_strategy={"on_stream_error": "restart"})
    backend.says(stream('{"na', CLOSE), answer('{"name": "Rex"}'))

    result = home.run("ask", "--schema", "name", "A dog")

    assert (0, '{"name": "Rex"}\n') == (result.code, result.out)
    assert "that answer broke off: it begins anew" in result.err


# ------------------------------------------------------------------ from the log


def test_cache_asks_once_and_the_log_answers_from_then_on(home: Home, backend: Backend) -> None:
    configure(home, prices={"t:m": {"input_per_million": 1000, "output_per_million": 1000}})
    backend.says(answer("Hello ", "world"))

    first = home.run("ask", "hi", "--cache", "--json").json()
    second = home.run("ask", "hi", "--cache", "--json").json()
    shown = home.run("ask", "hi", "--cache")
    replayed = home.run("replay", "last", "--json").json()
    drawn = home.run("replay", "last")

    assert 1 == len(backend.requests)
    assert (0, "Hello world\n") == (shown.code, shown.out)
    assert ["Hello world"] * 3 == [first["answer"], second["answer"], replayed["turns"][0]["answer"]]
    assert ["cached"] == [attempt["outcome"] for attempt in second["attempts"]]
    assert (0.007, 0) == (first["cost"]["usd"], second["cost"]["usd"] or 0)
    assert ("t", "m", "stop") == (second["provider"], second["model"], second["finish_reason"])
    assert "Hello world" in drawn.out
    assert [7_000_000] * 2 == [row["data"]["saved_nano_usd"] for row in home.events("call.cache_hit")]


def test_no_cache_asks_anew_whatever_the_settings_say(home: Home, backend: Backend) -> None:
    configure(home, cache={"enabled": True})
    backend.says(answer("Hello"))

    for options in ((), (), ("--no-cache",)):
        assert 0 == home.run("ask", "hi", "--temperature", "0", *options).code

    assert 2 == len(backend.requests)


def test_a_conversation_that_is_equal_word_for_word_goes_on_from_the_log(home: Home, backend: Backend) -> None:
    configure(home)
    backend.says(lambda request: answer(f"{len(request.json()['messages'])} messages"))

    answers = []
    for _ in range(2):
        answers.append(home.run("ask", "hi", "--cache", "-q").out)
        answers += [home.run("ask", "-c", "more", "--cache", "-q").out for _ in range(2)]

    assert ["1 messages\n", "3 messages\n", "5 messages\n"] * 2 == answers
    assert 3 == len(backend.requests)


def test_forgetting_the_source_leaves_a_borrowed_answer_not_recorded_and_nothing_breaks(
    home: Home, backend: Backend
) -> None:
    configure(home)
    backend.says(answer("Secret ", "words"))
    home.run("ask", "one", "--cache")
    source = home.run("sessions", "list", "--json").json()["sessions"][0]["id"]
    home.run("ask", "one", "--cache")

    assert 0 == home.run("sessions", "forget", source, "--yes").code

    replayed = home.run("replay", "last")
    assert (0, False) == (replayed.code, "Secret" in replayed.out)
    assert 0 == home.run("ask", "-c", "two").code
    assert (0, 3) == (home.run("ask", "one", "--cache").code, len(backend.requests))


# ------------------------------------------------------------------ stopped while it waits


def waits(home: Home, backend: Backend, *argv: str) -> Any:
    """A call that was told to come again in half a minute."""
    backend.says(refused(503, "full", **{"retry-after": "30"}))
    process = home.start("ask", "first question", *argv)
    _recorded(home, "call.retry_scheduled")
    return process


def _recorded(home: Home, type_: str, count: int = 1) -> None:
    for _ in range(1000):
        if home.store.exists() and "events" in home.tables() and len(home.events(type_)) >= count:
            return
        time.sleep(0.02)
    raise AssertionError(home.types())


def test_ctrl_c_ends_a_wait_at_once_and_is_recorded(home: Home, backend: Backend) -> None:
    configure(home)
    process = waits(home, backend)

    process.send(signal.SIGINT)

    assert 130 == process.wait(5)
    assert ["sigint"] == [row["data"]["reason"] for row in home.events("turn.interrupted")]
    assert "retry 2 after 30" in process.errors()
    home.end()


def test_kill_during_the_wait_for_a_retry_leaves_a_log_that_is_right_at_the_next_start(
    home: Home, backend: Backend
) -> None:
    configure(home)
    process = waits(home, backend)
    process.send(signal.SIGKILL)
    process.wait()

    backend.says(answer("Hello"))
    assert 0 == home.run("sessions", "list").code

    _only_the_turn_was_open(home)
    assert 0 == home.run("ask", "-c", "second", "-m", "u:n").code
    assert ("user", "second") == backend.messages()[-1]
    home.end()


def test_kill_during_the_wait_for_a_limit_leaves_a_log_that_is_right_at_the_next_start(
    home: Home, backend: Backend
) -> None:
    entry = {"kind": "openai", "base_url": home.url, "models": ["m"], "max_concurrent": 1}
    configure(home, llm_providers={"t": entry}, default="t:m")
    backend.says(stream("Hel", FOREVER), answer("Hello"))
    holds = home.start("ask", "the one")
    holds.read_until("Hel")
    process = home.start("ask", "first question")
    _recorded(home, "rate_limit.waited")
    process.send(signal.SIGKILL)
    process.wait()
    holds.send(signal.SIGINT)
    holds.wait()

    # Whoever is gone holds no place in the queue.
    begun = time.monotonic()
    assert 0 == home.run("ask", "second").code
    assert time.monotonic() - begun < 10
    assert ["sigint", "abandoned"] == [row["data"]["reason"] for row in home.events("turn.interrupted")]
    home.end()


def _only_the_turn_was_open(home: Home) -> None:
    (turn,) = home.events("turn.interrupted")
    assert "abandoned" == turn["data"]["reason"]
    # The attempt had ended before: it failed.
    assert [] == home.events("call.interrupted")
    with home.connect() as conn:
        assert [] == conn.execute("SELECT * FROM attempts WHERE state = 'open'").fetchall()
        assert [] == conn.execute("SELECT * FROM turns WHERE state = 'open'").fetchall()


# ------------------------------------------------------------------ many processes, one request

PROCESSES = 20
FEWER = 8
WORDS = tuple(f"word{number} " for number in range(20))
WHOLE = "".join(WORDS)


def _json(home: Home, count: int) -> list[Any]:
    return [home.start("ask", "the same", "--cache", "--json") for _ in range(count)]


@pytest.mark.slow
def test_twenty_processes_with_one_request_make_it_once(home: Home, backend: Backend) -> None:
    configure(home)
    backend.says(answer(*WORDS, pause=0.1))

    ended = [(process.wait(60), json.loads(process.rest())) for process in _json(home, PROCESSES)]

    assert [(0, WHOLE)] * PROCESSES == [(code, value["answer"]) for code, value in ended]
    assert 1 == len(backend.requests)
    assert (1, PROCESSES - 1) == (len(home.events("request.sent")), len(home.events("call.cache_hit")))
    home.end()


@pytest.mark.slow
def test_when_the_one_is_killed_another_takes_over_and_all_get_the_whole_answer(home: Home, backend: Backend) -> None:
    configure(home)

    def says(request: Request) -> Reply:
        return stream("Hello ", "wor", FOREVER) if len(backend.requests) < 2 else answer(*WORDS, pause=0.05)

    backend.says(says)
    processes = _json(home, FEWER - 2)
    _recorded(home, "request.sent")
    plain = [home.start("ask", "the same", "--cache") for _ in range(2)]
    for process in plain:
        process.read_until("wor")
    _recorded(home, "turn.started", FEWER)
    (sent,) = home.events("request.sent")
    first = sent["data"]["owner"]["pid"]

    next(process for process in processes if process.pid == first).send(signal.SIGKILL)

    others = [process for process in processes if process.pid != first]
    ended = [(process.wait(60), json.loads(process.rest())) for process in others]
    assert [(0, WHOLE)] * (FEWER - 3) == [(code, value["answer"]) for code, value in ended]
    # One of them asked, with the same words; the others followed it.
    assert 2 == len(backend.requests)
    for process in plain:
        assert (0, f"\n{WHOLE}\n") == (process.wait(60), process.rest())
        assert "that answer broke off: it begins anew" in process.errors()
    assert 0 == home.run("sessions", "list").code
    home.end()


@contextmanager
def watching(path: Path) -> Iterator[Callable[[], None]]:
    """What waits until somebody opens a file once more; see inotify(7)."""
    libc, IN_OPEN = ctypes.CDLL(None), 0x20  # noqa: N806  its name there
    watch = libc.inotify_init()
    assert libc.inotify_add_watch(watch, os.fsencode(path), IN_OPEN) > 0

    def wait() -> None:
        assert select.select([watch], [], [], 20)[0], f"nobody opened {path}"
        os.read(watch, 4096)

    yield wait
    os.close(watch)


def test_ctrl_c_ends_the_wait_for_who_makes_the_store(home: Home, backend: Backend) -> None:
    path = home.path / "timeline.db.lock"
    with path.open("w") as lock, watching(path) as opened:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = home.start("ask", "hi")
        # The first time to make it, the others to lock it: again and again.
        for _ in range(3):
            opened()
        process.send(signal.SIGINT)

        assert (130, []) == (process.wait(5), backend.requests)

    backend.says(answer("Hello"))
    assert 0 == home.run("ask", "hi").code
