"""Killed or interrupted in each step of a pipeline turn: what was reached is recorded, and the session goes on from there."""

from __future__ import annotations

import json
import signal
import time

import pytest
from support.answers import FOREVER, answer, delta, event, stream, usage
from support.command import Backend, Home, Process
from support.loopback import Reply

ROUTE = json.dumps({"intent": "a sum", "tools": ["calculator"], "complexity": "low"})


def calling() -> Reply:
    function = {"name": "calculator", "arguments": '{"expression": "12*7"}'}
    call = delta(tool_calls=[{"index": 0, "id": "c1", "type": "function", "function": function}])
    return stream(call, delta(finish="tool_calls"), usage(), event("[DONE]"))


STEPS = {
    "route": [stream('{"intent', FOREVER)],
    "tool": [answer(ROUTE), calling(), stream("thinking", FOREVER)],
    "format": [answer(ROUTE), calling(), answer("I know."), stream("It is ", FOREVER)],
}
REACHED = {"route": ["open"], "tool": ["completed", "open"], "format": ["completed", "completed", "open"]}


def until_asked(process: Process, backend: Backend, count: int) -> None:
    """Wait until that many requests have come and the last one's first words are recorded."""
    for _ in range(600):
        if len(backend.requests) >= count:
            time.sleep(0.3)
            return
        time.sleep(0.02)
    raise AssertionError((len(backend.requests), process.errors()))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill", "ctrl-c"])
@pytest.mark.parametrize("step", STEPS)
def test_a_turn_that_ends_in_a_step_is_recorded_and_the_session_goes_on(
    home: Home, backend: Backend, step: str, number: int
) -> None:
    home.configure({"mode": "pipeline"})
    backend.says(*STEPS[step])
    process = home.start("ask", "What is 12*7?")
    until_asked(process, backend, len(STEPS[step]))
    process.send(number)
    code = process.wait(10)

    backend.says(answer(json.dumps({"intent": "a joke", "tools": [], "complexity": "low"})), answer("Knock."))
    again = home.run("ask", "-c", "Tell me a joke")

    assert (-9 if number == signal.SIGKILL else 130, 0, "Knock.\n") == (code, again.code, again.out)
    reason = "abandoned" if number == signal.SIGKILL else "sigint"
    assert [reason] == [item["data"]["reason"] for item in home.events("turn.interrupted")]
    assert [reason] == [item["data"]["reason"] for item in home.events("call.interrupted")]
    first, second = home.run("replay", "last", "--json").json()["turns"]
    assert (["interrupted", "completed"], REACHED[step]) == (
        [first["state"], second["state"]],
        [item["state"] for item in first["steps"]],
    )
    assert ["", "It is "][step == "format"] == first["answer"]
    assert 0 == home.run("store", "verify").code
