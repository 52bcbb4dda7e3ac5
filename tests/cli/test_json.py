"""The JSON that other programs rely on: every name that is promised is there, also when it went wrong."""

from __future__ import annotations

from typing import Any

import pytest
from support.answers import answer, batch, error, limited, stream
from support.command import Backend, Home

USAGE = {"input", "cache_read", "cache_write", "cache_write_1h", "output", "reasoning", "source"}
ASK = {
    "schema_version",
    "session_id",
    "turn_id",
    "answer",
    "provider",
    "model",
    "why",
    "fallback",
    "instead_of",
    "finish_reason",
    "sources",
    "usage",
    "cost",
    "time_to_first_token_seconds",
    "duration_seconds",
    "steps",
    "attempts",
}
STEP = {"kind", "state", "provider", "model", "tools", "usage", "cost"}
ROW = {
    "calls",
    "failed",
    "input",
    "cache_read",
    "cache_write",
    "output",
    "reasoning",
    "cost_usd",
    "unpriced",
    "estimated",
}


def check(value: dict[str, Any]) -> None:
    """All that `ask --json` promises."""
    assert set() == ASK - set(value)
    assert {*USAGE} == set(value["usage"])
    assert {"state", "usd"} == set(value["cost"])
    for step in value["steps"]:
        assert set() == STEP - set(step)
        assert {*USAGE} == set(step["usage"])
    for attempt in value["attempts"]:
        assert {"provider", "model", "why", "outcome", "error"} == set(attempt)


def test_ask_prints_one_object(home: Home, backend: Backend) -> None:
    backend.says(answer("Hello ", "world"))

    result = home.run("ask", "hi", "--json")

    value = result.json()
    check(value)
    assert (0, "") == (result.code, result.err)
    assert ("Hello world", "t", "m", "stop", 1) == (
        value["answer"],
        value["provider"],
        value["model"],
        value["finish_reason"],
        value["schema_version"],
    )
    assert (5, 2, "provider") == tuple(value["usage"][name] for name in ("input", "output", "source"))
    assert {"state": "free", "usd": 0.0} == value["cost"]
    assert [("answer", "completed")] == [(step["kind"], step["state"]) for step in value["steps"]]
    first = {"provider": "t", "model": "m", "why": "default route", "outcome": "completed", "error": None}
    assert [first] == value["attempts"]
    assert "error" not in value
    assert home.events("turn.started")[0]["turn_id"] == value["turn_id"]


def test_ask_prints_one_object_for_a_batch_answer(home: Home, backend: Backend) -> None:
    backend.says(batch("Hello"))

    value = home.run("ask", "hi", "--json", "--no-stream").json()

    check(value)
    assert "Hello" == value["answer"]


def test_ask_prints_one_object_for_a_private_answer(home: Home, backend: Backend) -> None:
    backend.says(answer("Hello ", "world"))

    value = home.run("ask", "hi", "--json", "--private").json()

    check(value)
    assert "Hello world" == value["answer"]


def test_a_failed_call_is_the_same_object_with_its_error(home: Home, backend: Backend) -> None:
    backend.says(limited())

    result = home.run("ask", "hi", "--json")

    value = result.json()
    check(value)
    assert (5, "") == (result.code, result.err)
    assert ("rate_limited", 5) == (value["error"]["kind"], value["error"]["exit_code"])
    assert "t is rate limiting" in value["error"]["message"]
    assert [("failed", "rate_limited")] == [(item["outcome"], item["error"]["kind"]) for item in value["attempts"]]
    assert ("", "none") == (value["answer"], value["usage"]["source"])


def test_half_an_answer_is_in_the_object(home: Home, backend: Backend) -> None:
    backend.says(stream("Half", error("it broke")))

    value = home.run("ask", "hi", "--json").json()

    check(value)
    assert ("Half", "server", "estimated") == (value["answer"], value["error"]["kind"], value["usage"]["source"])


def test_a_private_failure_says_why_on_the_screen_alone(home: Home, backend: Backend) -> None:
    backend.says(stream("Half", error("it broke on: secret question")))

    value = home.run("ask", "secret question", "--json", "--private").json()

    assert "it broke on: secret question" in value["error"]["message"]
    assert b"secret" not in home.bytes()


@pytest.mark.parametrize(
    ("argv", "code", "kind"),
    [
        (("ask", "hi", "-m", "nope:x"), 6, "not_found"),
        (("ask", "hi", "-m", "openai:gpt-4o"), 4, "missing_key"),
        (("ask", "hi", "--session", "nope"), 6, "not_found"),
        (("ask", "hi", "--events"), 2, "usage"),
        (("ask", "hi", "--bogus"), 2, "usage"),
        (("ask", ""), 2, "usage"),
        (("aks", "hi"), 2, "usage"),
        (("replay", "nope"), 6, "not_found"),
        (("report", "--since", "never"), 2, "usage"),
        (("sessions", "show", "nope"), 6, "not_found"),
        (("sessions", "nope"), 2, "usage"),
    ],
)
def test_errors_are_an_object_too(home: Home, backend: Backend, argv: tuple[str, ...], code: int, kind: str) -> None:
    backend.says(answer("Hello"))
    home.run("ask", "hi")

    result = home.run(*argv, "--json")

    value = result.json()
    assert (code, "") == (result.code, result.err)
    assert {"schema_version", "error"} == set(value)
    assert (kind, code) == (value["error"]["kind"], value["error"]["exit_code"])
    assert value["error"]["message"]


@pytest.mark.parametrize("by", ["day", "month", "model", "provider", "session"])
def test_report_prints_rows_and_totals(home: Home, backend: Backend, by: str) -> None:
    backend.says(answer("Hello"))
    home.run("ask", "hi")

    value = home.run("report", "--by", by, "--json").json()

    (row,) = value["rows"]
    assert set() == (ROW | {by}) - set(row)
    assert set() == ROW - set(value["totals"])
    assert (1, 5, 2, 0.0) == tuple(value["totals"][name] for name in ("calls", "input", "output", "cost_usd"))
