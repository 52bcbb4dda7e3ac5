"""Every end of a call is recorded: its terminal event, the text so far, and the exit code that tells it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
from support import answers
from support.answers import FOREVER, answer, batch, broken, delta, event, limited, refused, reset, stream, usage
from support.command import Backend, Home, Process
from support.loopback import Reply, free_port

EXIT_PIPE = 141
HELLO = (*(f"word{number} " for number in range(2000)),)


def reason(home: Home) -> tuple[str, str]:
    """How the call ended, and why it was interrupted; the turn says the same."""
    end = home.end()
    (turn,) = home.events("turn.interrupted")
    assert turn["data"]["reason"] == end["data"]["reason"]
    return end["type"], end["data"]["reason"]


def error(home: Home) -> dict[str, Any]:
    """The error of the failed call; step and turn failed with the same."""
    end = home.end()
    assert "call.failed" == end["type"]
    assert [end["data"]["error"]] * 2 == [row["data"]["error"] for row in home.events("step.failed", "turn.failed")]
    return end["data"]["error"]


def started(home: Home, backend: Backend, *argv: str, fresh: bool = False) -> Process:
    """A call that has shown `Hello wor` and waits for more."""
    backend.says(stream("Hello ", "wor", FOREVER))
    process = home.start("ask", "hi", *argv, fresh=fresh)
    process.read_until("wor")
    return process


# ------------------------------------------------------------------ the five


def test_a_success_is_recorded(home: Home, backend: Backend) -> None:
    backend.says(answer("Hello ", "world"))

    result = home.run("ask", "hi", fresh=True)

    assert (0, "Hello world\n") == (result.code, result.out)
    # The line of what was used, and nothing that an interpreter says at its end.
    assert re.fullmatch(r"t:m · .* · session [0-9a-f-]+\n", result.err)
    end = home.end()
    assert "response.completed" == end["type"]
    assert ({"input": 5, "output": 2}, "provider") == (end["data"]["usage"], end["data"]["usage_source"])
    assert "Hello world" == home.recorded()


def test_ctrl_c_in_mid_stream_is_recorded(home: Home, backend: Backend) -> None:
    process = started(home, backend, fresh=True)

    process.send(signal.SIGINT)

    assert 130 == process.wait()
    # What it used, as after an error, and how to see it.
    used, told = process.errors().splitlines()
    assert re.fullmatch(r"t:m · [0-9.]+m?s · ~\d+↑ ~\d+↓ · free", used)
    assert re.fullmatch(r"✗ interrupted and recorded: timeline replay [0-9a-f-]+", told)
    assert ("call.interrupted", "sigint") == reason(home)
    assert "Hello wor" == home.recorded()


@pytest.mark.parametrize(
    ("argv", "lines"),
    [((), 1), (("--pipeline",), 1), (("--no-stream", "--ascii"), 1), (("--quiet",), 0), (("--json",), 0)],
)
def test_ctrl_c_says_how_to_see_what_was_recorded(
    home: Home, backend: Backend, argv: tuple[str, ...], lines: int
) -> None:
    backend.says(stream("Hello ", "wor", FOREVER))
    process = home.start("ask", "hi", *argv)
    while not backend.requests:
        time.sleep(0.05)
    process.send(signal.SIGINT)

    assert 130 == process.wait()
    said = re.findall(r"^[✗x] interrupted and recorded: timeline (replay [0-9a-f-]+)$", process.errors(), re.MULTILINE)
    assert lines == len(said)
    assert lines == len(re.findall(r"~\d+(?:↑| in) ~\d+(?:↓| out)", process.errors()))
    for words in said:
        assert "interrupted with Ctrl-C" in home.run(*words.split()).out


def test_an_error_object_in_the_stream_is_recorded(home: Home, backend: Backend) -> None:
    backend.says(stream("Hello ", "wor", answers.error("it broke")))

    result = home.run("ask", "hi")

    assert (1, "Hello wor\n") == (result.code, result.out)
    assert ("server", "server_error", True) == tuple(error(home)[name] for name in ("kind", "code", "retryable"))
    assert home.end()["data"]["partial"]
    assert "Hello wor" == home.recorded()
    assert "it broke" in result.err.splitlines()[-1]


def test_too_many_requests_are_recorded(home: Home, backend: Backend) -> None:
    backend.says(limited())

    result = home.run("ask", "hi", fresh=True)

    assert (5, "") == (result.code, result.out)
    assert ("rate_limited", 429, 7.0) == tuple(error(home)[name] for name in ("kind", "status", "retry_after"))
    assert result.err.startswith("Error: t is rate limiting (429)")
    assert 1 == len(result.err.splitlines())


def test_a_closed_pipe_is_silent_and_recorded(home: Home, backend: Backend) -> None:
    backend.says(answer(*HELLO, pause=0.002))

    shell = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m timeline_cli ask hi | head -c 5; exit ${{PIPESTATUS[0]}}"],
        env=home.env,
        cwd=home.work,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )

    assert (EXIT_PIPE, b"word0", b"") == (shell.returncode, shell.stdout, shell.stderr)
    assert ("call.interrupted", "closed") == reason(home)
    assert home.recorded().startswith("word0 ")


# ------------------------------------------------------------------ stopped by someone


@pytest.mark.parametrize(
    ("number", "code", "why"),
    [(signal.SIGINT, 130, "sigint"), (signal.SIGTERM, 143, "closed"), (signal.SIGHUP, 129, "closed")],
    ids=["SIGINT", "SIGTERM", "SIGHUP"],
)
def test_a_signal_ends_it_quickly_and_is_recorded(
    home: Home, backend: Backend, number: signal.Signals, code: int, why: str
) -> None:
    process = started(home, backend)

    process.send(number)

    assert code == process.wait(5)
    assert ("call.interrupted", why) == reason(home)
    assert "Hello wor" == home.recorded()
    assert "Traceback" not in process.errors()


@pytest.mark.parametrize(
    "argv", [("replay", "last"), ("sessions", "show", "last"), ("search", "word1"), ("sessions", "list")]
)
def test_whoever_looks_at_a_part_alone_ends_what_is_shown_silently(
    home: Home, backend: Backend, argv: tuple[str, ...]
) -> None:
    backend.says(answer(*HELLO))
    home.run("ask", "hi")
    reading, writing = os.pipe()
    os.close(reading)
    process = home.start(*argv, stdout=writing)
    os.close(writing)

    assert (EXIT_PIPE, "") == (process.wait(), process.errors())


def test_an_interrupted_call_marks_its_usage_as_an_estimate(home: Home, backend: Backend) -> None:
    process = started(home, backend)

    process.send(signal.SIGINT)
    process.wait()

    data = home.end()["data"]
    assert {"input": 1, "output": 3} == data["usage"]
    # Omitted, which means the default: an estimate.
    assert "estimated" == data.get("usage_source", "estimated")


def test_a_second_ctrl_c_right_after_the_first_loses_nothing(home: Home, backend: Backend) -> None:
    process = started(home, backend)

    process.send(signal.SIGINT)
    process.send(signal.SIGINT)

    assert 130 == process.wait(5)
    assert ("call.interrupted", "sigint") == reason(home)
    assert "Hello wor" == home.recorded()
    assert "Traceback" not in process.errors()


@pytest.mark.parametrize("pause", [0.001, 0.01, 0.03])
def test_an_impatient_second_ctrl_c_loses_nothing(home: Home, backend: Backend, pause: float) -> None:
    process = started(home, backend)

    process.send(signal.SIGINT)
    time.sleep(pause)
    if not _ended(process):
        process.send(signal.SIGINT)

    assert 130 == process.wait(5)
    assert ("call.interrupted", "sigint") == reason(home)
    assert "Hello wor" == home.recorded()
    assert "Traceback" not in process.errors()


def _ended(process: Process) -> bool:
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_ctrl_c_before_the_first_byte_is_recorded(home: Home, backend: Backend) -> None:
    asked: list[object] = []
    backend.says(lambda request: asked.append(request) or stream(before=FOREVER))
    process = home.start("ask", "hi")
    while not asked:
        time.sleep(0.01)

    process.send(signal.SIGINT)

    assert 130 == process.wait(5)
    assert ("call.interrupted", "sigint") == reason(home)
    assert [] == home.events("chunk.received")


def test_ctrl_c_while_a_batch_answer_is_awaited_is_recorded(home: Home, backend: Backend) -> None:
    asked: list[object] = []
    backend.says(lambda request: asked.append(request) or stream(before=FOREVER))
    process = home.start("ask", "hi", "--no-stream")
    while not asked:
        time.sleep(0.01)

    process.send(signal.SIGINT)

    assert 130 == process.wait(5)
    assert ("call.interrupted", "sigint") == reason(home)


@pytest.mark.parametrize("form", ["--json", "--events"])
def test_ctrl_c_is_recorded_whatever_the_output(home: Home, backend: Backend, form: str) -> None:
    backend.says(stream("Hello ", "wor", FOREVER))
    process = home.start("ask", "hi", form)
    while "Hello wor" not in (home.recorded() if home.store.exists() and "events" in home.tables() else ""):
        time.sleep(0.02)

    process.send(signal.SIGINT)

    assert 130 == process.wait(5)
    assert ("call.interrupted", "sigint") == reason(home)


def test_a_reader_that_closes_the_events_is_recorded(home: Home, backend: Backend) -> None:
    backend.says(answer(*HELLO, pause=0.002))
    process = home.start("ask", "hi", "--events")
    process.read_until("request.sent")

    assert process.stdout is not None
    process.stdout.close()

    assert (EXIT_PIPE, "") == (process.wait(), process.errors())
    assert ("call.interrupted", "closed") == reason(home)


def test_output_closed_before_the_start_is_recorded(home: Home, backend: Backend) -> None:
    backend.says(answer("Hello ", "world"))
    process = home.start("ask", "hi")
    assert process.stdout is not None
    process.stdout.close()

    assert (EXIT_PIPE, "") == (process.wait(), process.errors())
    assert home.end()["type"] in ("call.interrupted", "response.completed")


def test_the_server_sees_the_client_go(home: Home, backend: Backend) -> None:
    process = started(home, backend)

    process.send(signal.SIGINT)
    process.wait()

    (request,) = backend.requests
    for _ in range(100):
        if request.hung_up.is_set():
            break
        time.sleep(0.01)
    assert request.hung_up.is_set()


# ------------------------------------------------------------------ failed

FAILURES: dict[str, tuple[Reply, int, str, int | None]] = {
    "bad-request": (refused(400, "no"), 1, "invalid_request", 400),
    "context": (refused(400, "maximum context length", "context_length_exceeded"), 1, "context_too_long", 400),
    "unauthorized": (refused(401, "bad key", "invalid_api_key"), 4, "authentication", 401),
    "forbidden": (refused(403, "not yours"), 4, "permission", 403),
    "no-model": (refused(404, "no such model", "model_not_found"), 6, "model_not_found", 404),
    "quota": (refused(429, "pay first", "insufficient_quota"), 1, "quota_exhausted", 429),
    "server": (refused(500, "boom"), 1, "server", 500),
    "overloaded": (refused(503, "full"), 1, "overloaded", 503),
    "no-stream": (Reply([b"<html>hello</html>"]), 1, "bad_response", 200),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_refusal_is_one_sentence_and_recorded(home: Home, backend: Backend, name: str) -> None:
    reply, code, kind, status = FAILURES[name]
    backend.says(reply)

    result = home.run("ask", "hi")

    assert (code, "") == (result.code, result.out)
    assert (kind, status) == (error(home)["kind"], error(home)["status"])
    assert [f"Error: {error(home)['message']}"] == result.err.splitlines()
    assert not home.end()["data"].get("partial", False)


BROKEN: dict[str, tuple[Reply, str]] = {
    "half-a-stream": (broken("Hello ", "wor"), "broken_stream"),
    "no-terminator": (stream("Hello ", "wor", framing="eof"), "broken_stream"),
    "reset": (reset("Hello ", "wor"), "network"),
    "malformed": (stream("Hello ", "wor", b"data: {nonsense\n\n"), "bad_response"),
    "silence": (stream("Hello ", "wor", FOREVER), "timeout"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_stream_that_breaks_keeps_what_came(home: Home, backend: Backend, name: str) -> None:
    reply, kind = BROKEN[name]
    home.configure(timeouts={"between_chunks": 0.4})
    backend.says(reply)

    result = home.run("ask", "hi")

    assert (1, "Hello wor\n") == (result.code, result.out)
    assert kind == error(home)["kind"]
    assert "Hello wor" == home.recorded()
    data = home.end()["data"]
    assert (True, {"input": 1, "output": 3}, "estimated") == (data["partial"], data["usage"], data["usage_source"])
    assert f"Error: {error(home)['message']}" == result.err.splitlines()[-1]


def test_a_server_that_isn_t_there_is_recorded(home: Home, backend: Backend) -> None:
    home.configure(base_url=f"http://127.0.0.1:{free_port()}/v1")

    result = home.run("ask", "hi")

    assert 1 == result.code
    assert "network" == error(home)["kind"]
    assert [f"Error: {error(home)['message']}"] == result.err.splitlines()
    assert "connection refused" in result.err


@pytest.mark.parametrize("options", [(), ("--no-stream",)], ids=["stream", "batch"])
def test_a_first_byte_that_never_comes_is_recorded(home: Home, backend: Backend, options: tuple[str, ...]) -> None:
    home.configure(timeouts={"first_byte": 0.3, "total": 0.3})
    backend.says(stream(before=FOREVER))

    result = home.run("ask", "hi", *options)

    assert 1 == result.code
    assert "timeout" == error(home)["kind"]
    assert [f"Error: {error(home)['message']}"] == result.err.splitlines()


# ------------------------------------------------------------------ told otherwise


def test_a_batch_answer_is_recorded_as_one_chunk(home: Home, backend: Backend) -> None:
    backend.says(batch("Hello world"))

    result = home.run("ask", "hi", "--no-stream")

    assert (0, "Hello world\n") == (result.code, result.out)
    assert [["Hello world"]] == [row["data"]["texts"] for row in home.events("chunk.received")]
    assert (False, False) == (backend.requests[0].json()["stream"], home.events("request.sent")[0]["data"]["stream"])
    assert "response.completed" == home.end()["type"]


def test_a_refused_batch_request_is_recorded(home: Home, backend: Backend) -> None:
    backend.says(refused(500, "boom"))

    result = home.run("ask", "hi", "--no-stream")

    assert (1, "server") == (result.code, error(home)["kind"])


@pytest.mark.parametrize("options", [(), ("--no-stream",)], ids=["stream", "batch"])
def test_tokens_that_nobody_reported_are_estimated_and_marked(
    home: Home, backend: Backend, options: tuple[str, ...]
) -> None:
    backend.says(batch("Hello world!", tokens=None) if options else answer("Hello ", "world!", tokens=None))

    result = home.run("ask", "hi", *options)

    data = home.end()["data"]
    assert ({"input": 1, "output": 3}, "estimated") == (data["usage"], data["usage_source"])
    assert "raw_usage" not in data
    assert "~1↑ ~3↓" in result.err


def test_reported_tokens_are_kept_verbatim_and_normalised(home: Home, backend: Backend) -> None:
    backend.says(stream("Hi", delta(finish="stop"), usage(10, 7, cached=4, reasoning=3), answers.event("[DONE]")))

    home.run("ask", "hi")

    data = home.end()["data"]
    assert {"input": 6, "cache_read": 4, "output": 7, "reasoning": 3} == data["usage"]
    assert 10 == data["raw_usage"]["prompt_tokens"]


def test_reasoning_goes_to_stderr_and_is_recorded_as_such(home: Home, backend: Backend) -> None:
    thoughts = (delta(reasoning_content="think "), delta(reasoning_content="hard"))
    backend.says(stream(*thoughts, "Answer", delta(finish="stop"), usage(), answers.event("[DONE]")))

    result = home.run("ask", "hi")

    assert ("Answer\n", "think hard") == (result.out, result.err.splitlines()[0])
    assert ("Answer", "think hard") == (home.recorded(), home.recorded("reasoning"))


@pytest.mark.parametrize("form", [("--direct",), ("--pipeline",)])
@pytest.mark.parametrize("finish", ["stop", "whatever"])
def test_an_answer_of_nothing_says_so(home: Home, backend: Backend, form: tuple[str, ...], finish: str) -> None:
    backend.says(stream(delta(finish=finish), usage(5, 0), answers.event("[DONE]")))
    reason = "stop" if finish == "stop" else "unknown"
    says = f"the model answered with nothing (finish reason: {reason})"

    result, quiet, as_json = (home.run("ask", "hi", *form, *further) for further in ((), ("-q",), ("--json",)))

    assert (0, "", 1) == (result.code, result.out, result.err.count(says)), result.err
    assert (0, "", "") == (quiet.code, quiet.out, quiet.err)
    assert (0, "", "") == (as_json.code, as_json.json()["answer"], as_json.err)
    assert 1 == home.run("replay", "last").out.count(says)


def test_quiet_shows_the_answer_alone(home: Home, backend: Backend) -> None:
    backend.says(stream(delta(reasoning_content="hm"), "Answer", delta(finish="stop"), answers.event("[DONE]")))

    result = home.run("ask", "hi", "-q")

    assert ("Answer\n", "") == (result.out, result.err)


def test_an_answer_cut_off_by_the_limit_says_so(home: Home, backend: Backend) -> None:
    backend.says(stream("Hel", delta(finish="length"), answers.event("[DONE]")))

    result = home.run("ask", "hi")

    assert (0, "Hel\n", "length") == (result.code, result.out, home.end()["data"]["finish_reason"])
    assert "… cut off: the limit of tokens was reached" in result.err.splitlines()
    assert "length" == home.run("ask", "hi", "--json").json()["finish_reason"]


def test_tokens_told_beside_an_error_are_recorded_with_it(home: Home, backend: Backend) -> None:
    counted = {"prompt_tokens": 9, "completion_tokens": 2}
    backend.says(stream("Hello", event({"choices": [], "usage": counted, "error": {"message": "gone", "code": 502}})))

    assert 1 == home.run("ask", "hi").code

    data = home.end()["data"]
    assert ({"input": 9, "output": 2}, "provider") == (data["usage"], data["usage_source"])


def test_a_number_that_is_no_count_is_estimated(home: Home, backend: Backend) -> None:
    backend.says(answer("Hello", tokens=(-5, 2)))

    assert 0 == home.run("ask", "hi").code

    assert "estimated" == home.end()["data"]["usage_source"]


# ------------------------------------------------------------------ a server that breaks every stream off


def test_the_question_is_asked_where_no_route_comes_to_its_end(home: Home, backend: Backend) -> None:
    home.configure({"mode": "pipeline", "retry": {"base_delay": 0.01}})
    backend.says(broken("Hello ", "wor"))

    for number in range(1, 4):
        result = home.run("ask", "Tell me a joke")

        # The route twice, then the question, of which a part came.
        assert (1, "Hello wor\n", 3 * number) == (result.code, result.out, len(backend.requests))
        assert ("user", "Tell me a joke") == backend.messages()[-1]
