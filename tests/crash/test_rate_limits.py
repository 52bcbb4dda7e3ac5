"""Many processes at a provider that lets few requests through: what one of them learns, all obey."""

from __future__ import annotations

import json

import pytest
from support.command import Backend, Home
from support.limited import Limiter, served

PROCESSES, QUESTIONS = 8, 2
LIMIT, WINDOW = 5, 2_000_000


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "reset"), [("fixed", "full"), ("sliding", "next")])
def test_eight_processes_at_five_requests_per_two_seconds_are_refused_in_the_first_window_alone(
    home: Home, backend: Backend, kind: str, reset: str
) -> None:
    settings = json.loads((home.path / "config.yaml").read_text()) | {"retry": {"max_attempts": 4}}
    (home.path / "config.yaml").write_text(json.dumps(settings))
    server = Limiter(LIMIT, WINDOW, kind, reset)
    backend.says(served(server))
    # Each asks one question after the other, as a batch with one worker does.
    lines = "".join(f'{{"prompt": "question {number}"}}\n' for number in range(QUESTIONS))
    (home.path / "questions.jsonl").write_text(lines)

    batch = ("batch", str(home.path / "questions.jsonl"), "--concurrency", "1")
    processes = [
        home.start(*batch, "--name", f"batch {n}", "-o", str(home.path / f"answers {n}.jsonl"))
        for n in range(PROCESSES)
    ]

    assert [0] * PROCESSES == [process.wait(90) for process in processes], [process.errors() for process in processes]
    assert PROCESSES * QUESTIONS == len(server.taken)
    # A window and the time in which the first answers come: then all know the limit.
    assert [] == [at - server.taken[0] for at in server.refused if at > server.taken[0] + 1.5 * WINDOW]
    home.end()
