"""A batch that is killed, again and again, answers every prompt once."""

from __future__ import annotations

import json
import signal
import sqlite3
import time
from collections import Counter
from contextlib import suppress

import pytest
from support.answers import answer
from support.batch_service import OpenAIBatches
from support.command import Backend, Home
from support.loopback import Reply, Request

PROMPTS = 1000
KILLED_AT = (150, 420, 800)
AT_ONCE = 8


def answered(home: Home) -> int:
    """How many turns have their answer in the file."""
    with suppress(sqlite3.OperationalError):
        conn = sqlite3.connect(f"file:{home.store}?mode=ro", uri=True)
        try:
            return int(conn.execute("SELECT count(*) FROM turns WHERE state = 'completed'").fetchone()[0])
        finally:
            conn.close()
    return 0


@pytest.mark.slow
def test_a_thousand_prompts_killed_three_times_are_answered_once_each(home: Home, backend: Backend) -> None:
    def echo(request: Request) -> Reply:
        reply = answer("re: " + request.json()["messages"][-1]["content"])
        # In one write: this server shares its processor with what is tested.
        reply.body = [b"".join(reply.body)]  # type: ignore[arg-type]
        return reply

    backend.says(echo)
    prompts = [f"prompt {number}" for number in range(PROMPTS)]
    (home.work / "p.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    command = ("batch", "p.jsonl", "-n", str(AT_ONCE), "-o", "out.jsonl")
    for count in KILLED_AT:
        process = home.start(*command)
        while answered(home) < count:
            time.sleep(0.05)
        process.send(signal.SIGKILL)
        assert -signal.SIGKILL == process.wait()
        assert not (home.work / "out.jsonl").exists()

    last = home.run(*command, timeout=60)

    assert 0 == last.code, last.err
    lines = [json.loads(line) for line in (home.work / "out.jsonl").read_text().splitlines()]
    assert [f"re: {prompt}" for prompt in prompts] == [line["answer"] for line in lines]
    rows = home.events()
    item = {row["turn_id"]: row["data"]["item"] for row in rows if row["type"] == "turn.started"}
    completed = Counter(item[row["turn_id"]] for row in rows if row["type"] == "turn.completed")
    assert {1: PROMPTS} == Counter(completed.values())
    # Asked twice was only what a kill had left without an answer.
    abandoned = [row for row in rows if row["type"] == "turn.interrupted"]
    assert {"abandoned"} >= {row["data"]["reason"] for row in abandoned}
    assert len(abandoned) <= len(KILLED_AT) * AT_ONCE
    assert PROMPTS + len(abandoned) == len(item)
    assert len(backend.requests) <= len(item)
    home.end()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_provider_s_batch_outlives_its_process_and_is_fetched_by_the_next(
    home: Home, backend: Backend, number: int
) -> None:
    home.configure(local=False, api_key="key-12345")
    service = OpenAIBatches(polls=10**9)
    backend.says(service)
    prompts = [f"prompt {number}" for number in range(10)]
    (home.work / "p.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    command = ("batch", "p.jsonl", "--provider-batch", "--poll", "0.05", "-o", "out.jsonl")
    process = home.start(*command)
    while not any(service.looks.values()):
        time.sleep(0.05)
    process.send(number)
    assert (130 if number == signal.SIGINT else -number) == process.wait()
    if number == signal.SIGINT:
        assert "0 of 10 answered: the same command goes on; 10 are with the provider" in process.errors()

    # Whatever starts next takes nothing of it for abandoned.
    assert 0 == home.run("sessions", "list").code
    assert [] == home.events("turn.interrupted", "call.interrupted")

    service.polls = 1
    last = home.run(*command)

    assert 0 == last.code, last.err
    lines = [json.loads(line) for line in (home.work / "out.jsonl").read_text().splitlines()]
    assert [f"re: {prompt}" for prompt in prompts] == [line["answer"] for line in lines]
    assert 1 == len(service.batches)
    home.end()
