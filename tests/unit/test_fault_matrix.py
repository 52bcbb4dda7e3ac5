"""Every way to fail × stream or batch × before or after the first words: what is tried again, where else, and how it ends.

All of it is read from the log. `RULES` is the whole policy, a row a failure; each test holds every row against what
was recorded.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Any, Literal

import pytest
from support import answers
from support.answers import FOREVER, delta, refused
from support.faults import FAST, Bench, Outcome, bench, either, full_port
from support.loopback import CLOSE, RESET, Reply, free_port

from timeline.config import Retry, Routing
from timeline.events import RequestSent
from timeline.providers.waiting import Timeouts
from timeline.testing import ScriptedProvider

Rule = Literal["again", "next", "stop"]
"""Asked again, and then the next candidate; the next candidate at once; or the failure stands."""

IMPATIENT = Timeouts(connect=0.5, first_byte=0.5, between_chunks=0.5, total=0.5)
GOING_ON = Timeouts(between_chunks=0.5, total=0.5)
PATIENT = Timeouts()
RESTART = Routing(on_stream_error="restart")
ANSWER = either("Because.")


@pytest.fixture
async def calls(tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(tmp_path / "timeline.db") as made:
        yield made


# ------------------------------------------------------------------ before the first words


def status(number: int, message: str = "no", code: str | None = None, **headers: str) -> Reply:
    return refused(number, message, code, **{name.replace("_", "-"): value for name, value in headers.items()})


@dataclass
class Fault:
    """A failure, and what the rules make of it."""

    kind: str
    rule: Rule
    code: int
    reply: Reply

    @property
    def timeouts(self) -> Timeouts:
        """Silence is waited for briefly; on a busy machine all else may take its time."""
        return IMPATIENT if self.reply.before else GOING_ON if FOREVER in self.reply.body else PATIENT


STATUSES = {
    "400": Fault("invalid_request", "stop", 1, status(400)),
    "400, too long": Fault("context_too_long", "next", 1, status(400, "maximum context length is 8192 tokens")),
    "400, refused": Fault("content_refused", "stop", 1, status(400, "no", "content_policy_violation")),
    "401": Fault("authentication", "next", 4, status(401, "bad key", "invalid_api_key")),
    "402": Fault("quota_exhausted", "next", 1, status(402)),
    "403": Fault("permission", "next", 4, status(403)),
    "404": Fault("model_not_found", "next", 6, status(404)),
    "408": Fault("timeout", "again", 1, status(408)),
    "409": Fault("server", "again", 1, status(409)),
    "413": Fault("invalid_request", "stop", 1, status(413)),
    "422": Fault("invalid_request", "stop", 1, status(422)),
    "429, rate": Fault("rate_limited", "again", 5, status(429, "slow down", "rate_limit_exceeded")),
    "429, empty purse": Fault("quota_exhausted", "next", 1, status(429, "pay first", "insufficient_quota")),
    "498": Fault("overloaded", "again", 1, status(498)),
    "500": Fault("server", "again", 1, status(500)),
    "502, a page of a proxy": Fault("server", "again", 1, Reply([b"<html>Bad gateway</html>"], 502)),
    "503": Fault("overloaded", "again", 1, status(503)),
    "504": Fault("timeout", "again", 1, status(504)),
    "529": Fault("overloaded", "again", 1, status(529)),
    "500, not again": Fault("server", "next", 1, status(500, x_should_retry="false")),
    "429, not again": Fault("rate_limited", "next", 5, status(429, x_should_retry="false")),
    "409, again": Fault("server", "again", 1, status(409, x_should_retry="true")),
    "404, again": Fault("model_not_found", "again", 6, status(404, x_should_retry="true")),
    "400, again": Fault("invalid_request", "stop", 1, status(400, x_should_retry="true")),
    "401, again": Fault("authentication", "next", 4, status(401, x_should_retry="true")),
    "429, empty purse, again": Fault(
        "quota_exhausted", "next", 1, status(429, "pay", "insufficient_quota", x_should_retry="true", retry_after="1")
    ),
}

WIRE = {
    "reset": Fault("network", "again", 1, Reply([RESET], 0)),
    "closed without a word": Fault("network", "again", 1, Reply([CLOSE], 0)),
    "no first byte": Fault("timeout", "again", 1, Reply(before=FOREVER)),
    "not its format": Fault("bad_response", "again", 1, Reply([b"hello"])),
    "a web page": Fault("bad_response", "next", 1, Reply([b"<html>hello</html>"])),
    "nothing at all": Fault("broken_stream", "again", 1, Reply([])),
    "an error object": Fault("server", "again", 1, answers.stream(answers.error("it broke"))),
}
BATCH_WIRE = {
    **{name: fault for name, fault in WIRE.items() if name not in ("nothing at all", "an error object")},
    "nothing at all": Fault("bad_response", "again", 1, Reply([])),
    "half of it": Fault("bad_response", "again", 1, Reply([b'{"choices": [{"index"'], framing="length")),
    "reset half-way": Fault("network", "again", 1, Reply([b'{"choices": [', 0.01, RESET])),
    "closed half-way": Fault("network", "again", 1, Reply([b'{"choices": [', 0.01, CLOSE])),
    "silence half-way": Fault("timeout", "again", 1, Reply([b'{"choices": [', FOREVER])),
}


def expected(fault: Fault, *, alone: bool, mends: bool, said: str = "") -> tuple[list[str], int, list[int]]:
    """Trace, exit code and number of requests, of a candidate that fails (once, if it mends) and maybe another that doesn't."""
    failed = f"a: {fault.kind}{said}"
    if fault.rule == "stop" or (fault.rule == "next" and alone):
        return [failed], fault.code, [1] if alone else [1, 0]
    if fault.rule == "again" and mends:
        return [failed, "again", "a: answered"], 0, [2] if alone else [2, 0]
    tries = FAST.max_attempts if fault.rule == "again" else 1
    trace = [failed, *["again", failed] * (tries - 1)]
    if alone:
        return trace, fault.code, [tries]
    reason = f"{fault.kind}, {tries} attempts" if fault.rule == "again" else fault.kind
    if fault.kind == "context_too_long":
        reason = "the context is too short"
    return [*trace, f"a → b: {reason}", "b: answered"], 0, [tries, 1]


async def each(
    calls: Bench, faults: dict[str, Fault], call: Callable[[Fault], Coroutine[Any, Any, Outcome]]
) -> dict[str, Outcome]:
    """A call for each of them; those that wait in vain don't wait among all the others, who keep the machine busy."""
    loud = {name: call(fault) for name, fault in faults.items() if fault.timeouts is PATIENT}
    outcomes = await calls.together(loud)
    silent = {name: call(fault) for name, fault in faults.items() if name not in loud}
    return outcomes | await calls.together(silent)


def told(outcome: Outcome) -> tuple[list[str], int, list[int]]:
    return outcome.trace, outcome.code, outcome.requests


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "batch"])
@pytest.mark.parametrize(
    ("alone", "mends"), [(True, False), (True, True), (False, False)], ids=["for good", "once", "with another behind"]
)
async def test_what_follows_from_a_failure_before_the_first_words(
    calls: Bench, stream: bool, alone: bool, mends: bool
) -> None:
    faults = {**STATUSES, **(WIRE if stream else BATCH_WIRE)}

    def servers(fault: Fault) -> list[Any]:
        first = [fault.reply, ANSWER] if mends else [fault.reply]
        return [first] if alone else [first, ANSWER]

    outcomes = await each(
        calls, faults, lambda fault: calls.call(*servers(fault), stream=stream, timeouts=fault.timeouts)
    )

    wanted = {name: expected(fault, alone=alone, mends=mends) for name, fault in faults.items()}
    assert wanted == {name: told(outcome) for name, outcome in outcomes.items()}
    ended_well = {name for name, (_, code, _) in wanted.items() if code == 0}
    assert ended_well == {name for name, outcome in outcomes.items() if outcome.text == "Because."}
    # Full jitter: anything up to the ceiling, which doubles.
    assert all(wait <= FAST.max_delay for outcome in outcomes.values() for wait in outcome.waits)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "batch"])
async def test_an_address_where_nobody_answers_is_asked_again_and_then_the_next(calls: Bench, stream: bool) -> None:
    with full_port() as full:
        addresses = {"network": f"http://127.0.0.1:{free_port()}/v1", "timeout": f"http://127.0.0.1:{full}/v1"}
        outcomes = await calls.together(
            {
                kind: calls.call(address, ANSWER, stream=stream, timeouts=IMPATIENT)
                for kind, address in addresses.items()
            }
        )

    for kind, outcome in outcomes.items():
        trace = [f"a: {kind}", "again", f"a: {kind}", f"a → b: {kind}, 2 attempts", "b: answered"]
        assert (trace, 0, [1]) == told(outcome)


# ------------------------------------------------------------------ after the first words

BROKEN: dict[str, Fault] = {
    "reset": Fault("network", "again", 1, answers.stream("Hello ", "wor", 0.01, RESET)),
    "closed": Fault("broken_stream", "again", 1, answers.stream("Hello ", "wor", 0.01, CLOSE)),
    "no terminator": Fault("broken_stream", "again", 1, answers.stream("Hello ", "wor", framing="eof")),
    "silence": Fault("timeout", "again", 1, answers.stream("Hello ", "wor", FOREVER)),
    "malformed": Fault("bad_response", "again", 1, answers.stream("Hello ", "wor", b"data: {nonsense\n\n")),
    **{
        f"error object: {code}": Fault(
            kind, rule, exit_code, answers.stream("Hello ", "wor", answers.error("no", code))
        )
        for code, kind, rule, exit_code in (
            ("server_error", "server", "again", 1),
            ("overloaded_error", "overloaded", "again", 1),
            ("rate_limit_exceeded", "rate_limited", "again", 5),
            ("insufficient_quota", "quota_exhausted", "next", 1),
            ("invalid_api_key", "authentication", "next", 4),
            ("permission_error", "permission", "next", 4),
            ("invalid_request_error", "invalid_request", "stop", 1),
        )
    },
}
PARTIAL = " after some words"


async def test_an_answer_that_breaks_off_is_kept_and_nobody_else_is_asked(calls: Bench) -> None:
    outcomes = await each(calls, BROKEN, lambda fault: calls.call(fault.reply, ANSWER, timeouts=fault.timeouts))

    wanted = {name: ([f"a: {fault.kind}{PARTIAL}"], fault.code, [1, 0]) for name, fault in BROKEN.items()}
    assert wanted == {name: told(outcome) for name, outcome in outcomes.items()}
    assert dict.fromkeys(BROKEN, "Hello wor") == {name: outcome.shown for name, outcome in outcomes.items()}
    ends = [outcome.end for outcome in outcomes.values() if outcome.end]
    assert ["Hello wor"] * len(BROKEN) == [end.text for end in ends]


@pytest.mark.parametrize(
    ("alone", "mends"), [(True, False), (True, True), (False, False)], ids=["for good", "once", "with another behind"]
)
async def test_where_it_may_restart_the_same_rules_hold_as_before_the_first_words(
    calls: Bench, alone: bool, mends: bool
) -> None:
    def servers(fault: Fault) -> list[Any]:
        first = [fault.reply, ANSWER] if mends else [fault.reply]
        return [first] if alone else [first, ANSWER]

    outcomes = await each(
        calls, BROKEN, lambda fault: calls.call(*servers(fault), timeouts=fault.timeouts, routing=RESTART)
    )

    wanted = {name: expected(fault, alone=alone, mends=mends, said=PARTIAL) for name, fault in BROKEN.items()}
    assert wanted == {name: told(outcome) for name, outcome in outcomes.items()}
    for name, outcome in outcomes.items():
        trace, code, _ = wanted[name]
        said = ["Hello wor"] * sum(PARTIAL in line for line in trace) + (["Because."] if code == 0 else [])
        # What was taken back is said to be so; what stands in the end is whole, or all there is.
        assert "⟲".join(said) == outcome.shown, name
        assert (said[-1], said[-1]) == (outcome.text, outcome.end.text if outcome.end else None), name


async def test_what_nobody_was_shown_can_be_asked_again_without_taking_anything_back(calls: Bench) -> None:
    outcome = await calls.call([answers.stream("Hello ", CLOSE), ANSWER], shown=False)

    assert ["a: broken_stream after some words", "again", "a: answered"] == outcome.trace
    assert "⟲" not in outcome.shown
    assert outcome.end is not None
    assert "Because." == outcome.end.text


async def test_thoughts_and_calls_of_tools_are_words_too(calls: Bench) -> None:
    call = {"index": 0, "id": "1", "type": "function", "function": {"name": "add", "arguments": "{"}}
    for first in (delta(reasoning_content="Hm"), delta(tool_calls=[call])):
        outcome = await calls.call(answers.stream(first, 0.01, CLOSE), ANSWER)

        assert (1, [1, 0]) == (len(outcome.trace), outcome.requests)


# ------------------------------------------------------------------ how long is waited

WAITS: dict[str, tuple[Callable[[], Reply], tuple[float, float]]] = {
    "seconds": (lambda: status(429, retry_after="1"), (1, 1.01)),
    "a fraction": (lambda: status(503, retry_after="0.25"), (0.25, 0.26)),
    "milliseconds": (lambda: status(429, retry_after_ms="120"), (0.12, 0.13)),
    "milliseconds before seconds": (lambda: status(500, retry_after_ms="80", retry_after="9"), (0.08, 0.09)),
    "a date": (lambda: status(503, retry_after=formatdate(time.time() + 2, usegmt=True)), (0.9, 2.01)),
    "a date gone by": (lambda: status(503, retry_after=formatdate(time.time() - 60, usegmt=True)), (0, 0.002)),
    "words": (lambda: status(429, "Rate limit reached. Please try again in 150ms."), (0.15, 0.16)),
    "none": (lambda: status(429, retry_after="0"), (0, 0.002)),
    "less than none": (lambda: status(429, retry_after="-5"), (0, 0.002)),
    "nonsense": (lambda: status(429, retry_after="soon"), (0, 0.002)),
    "nothing": (lambda: status(429), (0, 0.002)),
    "with leave": (lambda: status(500, retry_after="0.1", x_should_retry="true"), (0.1, 0.11)),
}


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "batch"])
async def test_what_a_provider_asks_to_wait_is_waited_in_whatever_form_it_says_so(calls: Bench, stream: bool) -> None:
    outcomes = await calls.together(
        {
            name: calls.call([lambda _, reply=reply: reply(), ANSWER], stream=stream)
            for name, (reply, _) in WAITS.items()
        }
    )

    for name, (_, (least, most)) in WAITS.items():
        outcome = outcomes[name]
        (wait,) = outcome.waits
        assert least <= wait <= most, name
        assert wait <= outcome.seconds, name
        assert (0, [2]) == (outcome.code, outcome.requests), name


@pytest.mark.parametrize("headers", [{"retry_after": "31"}, {"retry_after_ms": "31000"}, {"retry_after": "9999999"}])
async def test_a_wait_beyond_the_deadline_goes_to_the_next_at_once(calls: Bench, headers: dict[str, str]) -> None:
    alone, followed = await calls.call(status(429, **headers)), await calls.call(status(429, **headers), ANSWER)

    assert (["a: rate_limited"], 5, [1]) == told(alone)
    assert (0, [1, 1], []) == (followed.code, followed.requests, followed.waits)
    assert "longer than the 30s that are left" in followed.trace[1]
    assert followed.seconds < 5


# ------------------------------------------------------------------ the deadline


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "batch"])
async def test_the_deadline_ends_a_call_that_hangs_before_its_first_byte(calls: Bench, stream: bool) -> None:
    outcome = await calls.call(Reply(before=FOREVER), stream=stream, timeout=0.2)

    assert (["a: timeout"], 1, [1]) == told(outcome)
    assert 0.2 <= outcome.seconds < 2
    assert "gave no answer within the 0.2 s of the call: raise --timeout" in str(outcome.error)


async def test_the_deadline_is_of_all_attempts_together(calls: Bench) -> None:
    slow = status(500)
    slow.before = 0.08

    outcome = await calls.call(slow, timeout=0.3, retry=Retry(max_attempts=50, base_delay=0.001))

    assert 1 <= len(outcome.data(RequestSent)) <= 4
    assert outcome.seconds < 2


async def test_the_deadline_is_over_with_the_first_words(calls: Bench) -> None:
    outcome = await calls.call(answers.answer("Be", "cause.", pause=1.2), timeout=1)

    assert (["a: answered"], "Because.") == (outcome.trace, outcome.text)


# ------------------------------------------------------------------ where else


async def test_a_prompt_that_is_too_long_goes_only_to_a_larger_context(calls: Bench) -> None:
    long = status(400, "maximum context length is 8192 tokens")

    larger = await calls.call(long, ANSWER, ANSWER, contexts=(8192, 4096, 32_768))
    smaller = await calls.call(long, ANSWER, contexts=(8192, 8192))

    assert (["a: context_too_long", "a → c: the context is too short", "c: answered"], 0, [1, 0, 1]) == told(larger)
    assert (["a: context_too_long"], 1, [1, 0]) == told(smaller)


async def test_refused_content_goes_elsewhere_only_where_the_settings_say_so(calls: Bench) -> None:
    refuses = status(400, "no", "content_policy_violation")

    outcome = await calls.call(refuses, ANSWER, routing=Routing(fallback_on_refusal=True))

    assert (["a: content_refused", "a → b: the content was refused", "b: answered"], 0, [1, 1]) == told(outcome)


async def test_at_the_end_of_the_chain_the_first_one_s_failure_is_told(calls: Bench) -> None:
    outcome = await calls.call(status(401, "bad key", "invalid_api_key"), status(404), status(500))

    assert ("authentication", 4, [1, 1, 2]) == (outcome.error and outcome.error.kind, outcome.code, outcome.requests)
    assert ["a → b: authentication", "b → c: model_not_found"] == [line for line in outcome.trace if "→" in line]


async def test_after_the_deadline_nobody_elsewhere_is_asked_only_what_runs_here(calls: Bench) -> None:
    hangs = Reply(before=FOREVER)
    here = ScriptedProvider((0.3, "Here."))

    elsewhere = await calls.call(hangs, ANSWER, timeout=0.3)
    both = await calls.call(hangs, ANSWER, here, retry=Retry(timeout=0.3))

    assert (["a: timeout"], 1, [1, 0]) == told(elsewhere)
    assert (["a: timeout", "a → c: timeout", "c: answered"], 0, [1, 0]) == told(both)


async def test_a_model_on_this_machine_may_take_its_time_unless_the_caller_says_how_much(calls: Bench) -> None:
    patient = await calls.call(ScriptedProvider((0.5, "Here.")), retry=Retry(timeout=0.2))
    bounded = await calls.call(ScriptedProvider((FOREVER, "Here.")), timeout=0.2)

    assert (["a: answered"], "Here.") == (patient.trace, patient.text)
    assert (["a: timeout"], 1) == (bounded.trace, bounded.code)


async def test_what_stands_in_has_the_time_that_the_caller_gave_the_first(calls: Bench) -> None:
    outcome = await calls.call(Reply(before=FOREVER), ScriptedProvider((0.3, "Here.")), timeout=0.6)

    assert (["a: timeout", "a → b: timeout", "b: answered"], "Here.") == (outcome.trace, outcome.text)


async def test_an_answer_that_begins_anew_has_the_whole_time_again(calls: Bench) -> None:
    broken = answers.stream("Hel", 1.2, "lo ", 0.01, CLOSE)

    outcome = await calls.call([broken, ANSWER], timeout=1, routing=RESTART)

    assert (["a: broken_stream after some words", "again", "a: answered"], "Because.") == (outcome.trace, outcome.text)
