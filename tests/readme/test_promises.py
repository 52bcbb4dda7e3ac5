"""Every promise under "What you can rely on" in README.md, as a test of the same name."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.answers import FOREVER, answer, delta, error, event, limited, refused, stream, usage
from support.command import TERMINAL, Backend, Home
from support.loopback import Reply

from timeline.errors import AuthenticationFailed

ROOT = Path(__file__).parents[2]
SECRET = "sk-live-0123456789abcdefghijklmnop"


def limited_for(seconds: str) -> Reply:
    """Too many requests, for a while."""
    return refused(429, "Rate limit reached", "rate_limit_exceeded", **{"retry-after": seconds})


def promises() -> list[str]:
    """The bold first sentence of each bullet."""
    section = (ROOT / "README.md").read_text().split("## What you can rely on")[1].split("\n## ")[0]
    return re.findall(r"^- \*\*(.+?)\.\*\*", section, flags=re.MULTILINE)


@pytest.mark.parametrize("promise", promises())
def test_promise_has_a_test_of_its_name(promise: str) -> None:
    name = "test_" + re.sub(r"\W+", "_", promise.lower()).strip("_")

    assert name in globals()


def test_the_program_prints_the_answer_and_raises_what_failed(
    home: Home, backend: Backend, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    for name, value in home.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(home.work)
    backend.says(answer("Rayleigh ", "scattering"), refused(401, "no such key", "invalid_api_key"))
    exec(program, {})

    assert "Rayleigh scattering" == capsys.readouterr().out
    with pytest.raises(AuthenticationFailed):
        exec(program, {})


def test_every_outcome_is_recorded(home: Home, backend: Backend) -> None:
    # One home for all: each outcome is one more call of the same log.
    backend.says(answer("one ", "two"))
    codes = [home.run("ask", "success").code]
    backend.says(stream("one ", "two", FOREVER))
    process = home.start("ask", "Ctrl-C")
    process.read_until("two")
    process.send(signal.SIGINT)
    codes.append(process.wait())
    backend.says(stream("one ", "two", error()))
    codes.append(home.run("ask", "an error in the stream").code)
    backend.says(answer("one ", *["two "] * 200, pause=0.01))
    process = home.start("ask", "a closed pipe")
    process.read_until("one")
    assert process.stdout is not None
    process.stdout.close()
    codes.append(process.wait())
    quiet = process.errors()
    backend.says(limited())
    codes.append(home.run("ask", "a rate limit").code)

    ends = home.events(*TERMINAL)

    assert [0, 130, 1, 141, 5] == codes
    assert ["response.completed", "call.interrupted", "call.failed", "call.interrupted", "call.failed"] == [
        end["type"] for end in ends
    ]
    texts = [home.recorded(call_id=end["call_id"]) for end in ends]
    assert ["one two", "one two", "one two"] == texts[:3]
    assert texts[3].startswith("one ")
    assert ("", "") == (texts[4], quiet)


def test_a_kill_loses_a_tenth_of_a_second_at_most(home: Home, backend: Backend) -> None:
    words = [f"word{number} " for number in range(400)]
    backend.says(answer(*words, pause=0.01))
    process = home.start("ask", "count")
    process.read_until("word50 ")
    shown_before = time.monotonic()
    while time.monotonic() < shown_before + 0.3:
        process.read_until(" ")
    process.send(signal.SIGKILL)
    process.wait()

    with home.connect() as conn:
        open_calls = conn.execute("SELECT count(*) FROM attempts WHERE state = 'open'").fetchone()[0]
    recorded = home.recorded()
    verified = home.run("store", "verify")

    assert 1 == open_calls
    assert "word50 " in recorded
    assert 0 == verified.code
    assert ("call.interrupted", "abandoned") == (home.end()["type"], home.end()["data"]["reason"])
    assert recorded in home.run("replay", "last").out


@pytest.mark.slow
def test_many_processes_share_one_file(home: Home, backend: Backend) -> None:
    backend.says(answer("fine ", "here"))

    # Fifty at once, and fifty more: tests/crash/test_many_processes.py.
    with ThreadPoolExecutor(15) as pool:
        results = list(pool.map(lambda number: home.run("ask", f"question {number}", timeout=100), range(15)))

    assert [(0, "fine here\n")] * 15 == [(result.code, result.out) for result in results], [
        result.err for result in results if result.code
    ]
    assert 15 == len(home.events("response.completed"))
    assert 0 == home.run("store", "verify").code


def test_the_log_can_only_grow(home: Home, backend: Backend) -> None:
    backend.says(answer("kept"))
    home.run("ask", "hi")
    before = home.events()
    others = "event_id || 'x', session_id, version + 100, type, v, recorded_at, turn_id, step_id, call_id"
    attacks = [
        "DELETE FROM events",
        "UPDATE events SET data = '{}' WHERE position = 1",
        "UPDATE events SET recorded_at = 0",
        "INSERT OR REPLACE INTO events SELECT * FROM events WHERE position = 2",
        f"REPLACE INTO events SELECT 1, {others}, '{{}}', digest FROM events WHERE position = 1",
        f"INSERT INTO events SELECT position + 100, {others}, data, digest FROM events WHERE position = 1",
    ]

    for attack in attacks:
        with home.connect() as conn, pytest.raises(sqlite3.IntegrityError, match="append-only"):
            conn.execute(attack)

    assert before == home.events()


def test_a_flipped_byte_is_found(home: Home, backend: Backend) -> None:
    backend.says(answer("The truth"))
    home.run("ask", "hi")
    (chunk,) = home.events("chunk.received")[-1:]

    raw = home.store.read_bytes()
    assert 1 == raw.count(b'"The truth"')
    home.store.write_bytes(raw.replace(b'"The truth"', b'"The trutH"'))
    result = home.run("store", "verify")

    assert 1 == result.code
    assert f"position {chunk['position']}:" in result.err


def test_replay_needs_nothing_but_the_log(home: Home, backend: Backend) -> None:
    backend.says(answer("The ", "answer"))
    home.run("ask", "The question")
    asked = len(backend.requests)
    (home.path / "config.yaml").unlink()

    result = home.run("replay", "last")

    assert 0 == result.code
    assert "❯ The question" in result.out
    assert "The answer\n" in result.out
    assert asked == len(backend.requests)


def test_read_models_can_be_thrown_away(home: Home, backend: Backend) -> None:
    backend.says(answer("a"), limited_for("0.1"), answer("b", tokens=None))
    for _ in range(3):
        home.run("ask", "hi")
    tables = ("sessions", "turns", "steps", "attempts", "usage", "projections")

    def contents() -> dict[str, list[tuple[object, ...]]]:
        with home.connect() as conn:
            return {
                table: [tuple(row) for row in conn.execute(f"SELECT * FROM {table} ORDER BY 1, 2")] for table in tables
            }

    before = contents()
    with home.connect() as conn:
        for table in ("sessions", "turns", "usage"):
            conn.execute(f"DELETE FROM {table}")
        conn.commit()
    damaged = contents()
    result = home.run("store", "rebuild")

    assert before != damaged
    assert 0 == result.code
    assert before == contents()


def test_tokens_are_the_provider_s_own(home: Home, backend: Backend) -> None:
    backend.says(answer("x", tokens=(1234, 567)), answer("some text", tokens=None))
    counted = home.run("ask", "--json", "hi").json()["usage"]
    estimated = home.run("ask", "--json", "hi").json()["usage"]

    assert (1234, 567, "provider") == (counted["input"], counted["output"], counted["source"])
    assert "estimated" == estimated["source"]
    assert 1 == home.run("report", "--json").json()["totals"]["estimated"]


def test_unknown_prices_are_never_shown_as_zero(home: Home, backend: Backend) -> None:
    home.configure(local=False)
    backend.says(answer("x"))
    result = home.run("ask", "--json", "hi")
    report = home.run("report")
    totals = home.run("report", "--json").json()["totals"]

    assert {"state": "unpriced", "usd": None} == result.json()["cost"]
    assert "?" in report.out
    assert "$0" not in report.out
    assert (None, 1) == (totals["cost_usd"], totals["unpriced"])


def test_money_is_never_spent_by_surprise(home: Home) -> None:
    (home.path / "config.yaml").unlink()
    keys = {"OPENAI_API_KEY": SECRET, "ANTHROPIC_API_KEY": SECRET, "GROQ_API_KEY": SECRET}

    result = home.run("config", "show", "--json", env=keys)

    # The route of a question without -m, and what may be asked without being named.
    shown = result.out
    assert 0 == result.code
    assert "embedded:smollm2" in shown
    assert "openai" not in shown
    assert "anthropic" not in shown
    assert "groq" not in shown


def test_keys_are_written_nowhere(home: Home, backend: Backend) -> None:
    home.configure(api_key="${MY_KEY}")
    backend.says(answer("x"), limited())
    results = [home.run("ask", "--events", "hi", env={"MY_KEY": SECRET}) for _ in range(2)]
    results += [home.run(*command, env={"MY_KEY": SECRET}) for command in (("config", "show"), ("replay", "last"))]

    assert f"Bearer {SECRET}" == backend.requests[0].headers["authorization"]
    assert SECRET.encode() not in home.bytes()
    for result in results:
        assert SECRET not in result.out + result.err
    modes = {path.name: path.stat().st_mode & 0o777 for path in home.path.glob("timeline.db*")}
    assert set(modes.values()) == {0o600}


def test_private_means_private(home: Home, backend: Backend, tmp_path: Path) -> None:
    attached = tmp_path / "confidential-name.txt"
    attached.write_text("confidential-file")
    backend.says(answer("confidential-answer"))

    result = home.run("ask", "--private", "-s", "confidential-system", "-f", str(attached), "confidential-prompt")

    assert (0, "confidential-answer\n") == (result.code, result.out)
    assert b"confidential" not in home.bytes()
    assert 2 == home.run("report", "--json").json()["totals"]["output"]


def test_forgetting_is_final(home: Home, backend: Backend) -> None:
    backend.says(answer("an unforgettable-answer"))
    home.run("ask", "an unforgettable-prompt")
    before = home.run("report", "--json").json()["totals"]
    assert b"unforgettable" in home.bytes()

    result = home.run("sessions", "forget", "last", "--yes")

    assert 0 == result.code
    assert b"unforgettable" not in home.bytes()
    assert before == home.run("report", "--json").json()["totals"]
    assert 0 == home.run("store", "verify").code


def test_standard_output_carries_the_answer_alone(home: Home, backend: Backend) -> None:
    backend.says(answer("only this"))

    result = home.run("ask", "hi")

    assert "only this\n" == result.out
    assert "t:m" in result.err
    assert 1 == home.run("ask", "--json", "hi").json()["schema_version"]


def test_a_mistyped_command_never_becomes_a_paid_prompt(home: Home, backend: Backend) -> None:
    result = home.run("aks", "Why is the sky blue?")

    assert 2 == result.code
    assert "aks" in result.err
    assert [] == backend.requests
    assert not home.store.exists()


def test_a_tool_s_fact_is_never_garbled(home: Home, backend: Backend) -> None:
    route = json.dumps({"intent": "a sum", "tools": ["calculator"], "complexity": "low"})
    function = {"name": "calculator", "arguments": '{"expression": "12*7"}'}
    call = delta(tool_calls=[{"index": 0, "id": "c1", "type": "function", "function": function}])
    calling = stream(call, delta(finish="tool_calls"), usage(), event("[DONE]"))
    backend.says(answer(route), calling, answer("I know enough."), answer("It is 82."))

    result = home.run("ask", "--pipeline", "What is 12*7?")
    replayed = home.run("replay", "last")

    assert (0, "It is 82.\n\n→ calculator: 84\n") == (result.code, result.out)
    assert result.out in replayed.out


def test_a_budget_holds_however_many_ask_at_once(home: Home, backend: Backend) -> None:
    price = {"t:m": {"input_per_million": 0, "output_per_million": 1000}}
    budgets = [{"name": "careful", "limit_usd": 0.03, "window": "total"}]
    home.configure({"prices": price, "budgets": budgets}, local=False, api_key="k")
    backend.says(answer("ten tokens", tokens=(5, 10), pause=0.1))

    with ThreadPoolExecutor(8) as many:
        codes = list(many.map(lambda _: home.run("ask", "--max-tokens", "10", "hi").code, range(8)))

    assert ([0] * 3 + [3] * 5, 3) == (sorted(codes), len(backend.requests))


def test_an_equal_request_is_made_once(home: Home, backend: Backend) -> None:
    backend.says(answer("one ", "two", pause=0.2))

    with ThreadPoolExecutor(5) as many:
        outs = list(many.map(lambda _: home.run("ask", "--cache", "hi").out, range(5)))
    later = home.run("ask", "--cache", "hi", "--json").json()

    assert (["one two\n"] * 5, "one two", 1) == (outs, later["answer"], len(backend.requests))
    assert 0 == later["usage"]["output"]


def test_what_can_pass_is_waited_out(home: Home, backend: Backend) -> None:
    home.configure({"retry": {"base_delay": 0.01}})
    backend.says(refused(503), limited_for("0.2"), answer("there"))

    result = home.run("ask", "hi")

    assert (0, "there\n", 3) == (result.code, result.out, len(backend.requests))
    assert ["request.sent", "call.failed", "call.retry_scheduled"] * 2 + ["request.sent"] == [
        item["type"]
        for item in home.events()
        if item["type"] in ("request.sent", "call.failed", "call.retry_scheduled")
    ]


def test_a_batch_asks_nothing_twice(home: Home, backend: Backend, tmp_path: Path) -> None:
    lines = tmp_path / "prompts.jsonl"
    lines.write_text("".join(json.dumps({"id": str(n), "prompt": f"prompt {n}"}) + "\n" for n in range(5)))
    backend.says(answer("yes"))

    first, second = (home.run("batch", str(lines)) for _ in range(2))

    assert ([0, 0], 5) == ([first.code, second.code], len(backend.requests))
    assert ["0", "1", "2", "3", "4"] == [line["id"] for line in second.lines()]
    assert first.out == second.out
