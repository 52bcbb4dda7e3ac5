"""kill -9 at any moment: the file stays whole, what was on the screen stays in it, and the next start ends what was left open."""

from __future__ import annotations

import asyncio
import os
import random
import selectors
import shutil
import signal
import sqlite3
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from support.answers import FOREVER, answer, stream
from support.command import Backend, Home, Process
from support.loopback import Reply, Request

import timeline.config
from timeline.runtime import Timeline
from timeline.store import Verification

KILLS = 100
AT_ONCE = 5
PIECES = 60
PAUSE = 0.012
WINDOW = 0.1
SEED = int(os.environ.get("TIMELINE_TEST_SEED", "20261122"))


def margin() -> float:
    """Seconds from a window's end to its commit, and from a write into a pipe to our read; more on a busy machine."""
    return 0.25 + 0.15 * os.getloadavg()[0] / (os.cpu_count() or 1)


def pieces(prompt: str) -> list[str]:
    """What the server answers to a prompt, different for each."""
    return [f"[{prompt}/{number}] " for number in range(PIECES)]


def slowly(request: Request) -> Reply:
    """The answer to a prompt, a piece every 12 ms."""
    prompt = request.json()["messages"][-1]["content"]
    return answer(*pieces(prompt), pause=PAUSE)


async def start_again(home: Home) -> Verification:
    """What any next start does, and a verification."""
    config = timeline.config.load(environ=home.env, cwd=home.work)
    async with Timeline.open(config=config) as opened:
        return await opened.store.verify()


# ------------------------------------------------------------------ a hundred times


@dataclass
class Victim:
    """A process that will be killed, and what it had shown when."""

    prompt: str
    process: Process
    after: float
    seen: list[tuple[float, bytes]] = field(default_factory=list)
    killed_at: float = 0.0

    def shown_for(self, seconds: float) -> str:
        """The text that had been readable for that long when it was killed."""
        return b"".join(data for moment, data in self.seen if self.killed_at - moment > seconds).decode()


def kill_all(victims: list[Victim]) -> None:
    """Read what they write, and kill each at its time: seconds after its first output, or after its start."""
    due = {}
    with selectors.DefaultSelector() as selector:
        for victim in victims:
            assert victim.process.stdout is not None
            selector.register(victim.process.stdout, selectors.EVENT_READ, victim)
            if victim.after < 0:
                due[id(victim)] = time.monotonic() - victim.after
        left = list(victims)
        while left:
            for key, _ in selector.select(0.002):
                victim = key.data
                data = os.read(key.fd, 65536)
                if not data:
                    selector.unregister(key.fileobj)
                victim.seen.append((time.monotonic(), data))
                due.setdefault(id(victim), time.monotonic() + victim.after)
            for victim in [
                victim for victim in left if due.get(id(victim), FOREVER + time.monotonic()) <= time.monotonic()
            ]:
                with suppress(ProcessLookupError):
                    victim.process.send(signal.SIGKILL)
                victim.killed_at = time.monotonic()
                left.remove(victim)
    for victim in victims:
        assert victim.process.wait() in (-signal.SIGKILL, 0)


def recorded_texts(home: Home) -> dict[str, tuple[str, list[tuple[str, str | None]]]]:
    """By prompt: the text in the chunks, and how the attempt ended."""
    titles = {row["session_id"]: row["data"]["title"] for row in home.events("session.started")}
    found: dict[str, tuple[str, list[tuple[str, str | None]]]] = {title: ("", []) for title in titles.values()}
    for row in home.events("chunk.received"):
        text, ends = found[titles[row["session_id"]]]
        found[titles[row["session_id"]]] = (text + "".join(row["data"]["texts"]), ends)
    for row in home.events("response.completed", "call.failed", "call.interrupted"):
        found[titles[row["session_id"]]][1].append((row["type"], row["data"].get("reason")))
    return found


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_kill_at_a_hundred_moments_loses_nothing_that_was_on_the_screen(home: Home, backend: Backend) -> None:
    backend.says(slowly)
    chance = random.Random(SEED)
    victims: list[Victim] = []
    for round_ in range(KILLS // AT_ONCE):
        batch = []
        for _ in range(AT_ONCE):
            prompt = f"kill {len(victims) + len(batch)}"
            # One in five before it has shown anything: while it opens the file, writes its first events, connects.
            after = -chance.uniform(0.02, 0.4) if chance.random() < 0.2 else chance.uniform(0, PIECES * PAUSE * 1.15)
            batch.append(Victim(prompt, home.start("ask", prompt, "-q"), after))
        kill_all(batch)
        victims += batch
        if round_ % 5 == 4:
            found = asyncio.run(start_again(home))
            assert found.problem is None, f"after {len(victims)} kills: {found}"

    found = asyncio.run(start_again(home))

    assert found.problem is None
    home.end()
    texts = recorded_texts(home)
    lost, unseen, completed = [], 0, 0
    for victim in victims:
        text, ends = texts.get(victim.prompt, ("", []))
        whole = "".join(pieces(victim.prompt))
        assert whole.startswith(text), victim
        if not text.startswith(victim.shown_for(WINDOW + margin()).removesuffix("\n")):
            lost.append((victim.prompt, victim.shown_for(0)[-60:], text[-60:]))
        unseen += not victim.shown_for(0)
        completed += ends == [("response.completed", None)]
        assert ends in ([], [("response.completed", None)], [("call.interrupted", "abandoned")]), (victim.prompt, ends)
        assert ends or not text
    assert [] == lost
    # The moments were what they were meant to be: most of them in mid-stream.
    assert KILLS == len(victims)
    assert unseen + completed < KILLS / 2


@pytest.mark.slow
def test_kill_during_the_first_start_leaves_a_file_that_opens(tmp_path: Path, home: Home, backend: Backend) -> None:
    backend.says(answer("Hello"))
    chance = random.Random(SEED)
    for number in range(10):
        folder = tmp_path / f"first-{number}"
        folder.mkdir()
        (folder / "config.yaml").write_bytes((home.path / "config.yaml").read_bytes())
        env = {"TIMELINE_HOME": str(folder)}
        process = home.start("ask", "hi", env=env)
        time.sleep(chance.uniform(0.005, 0.25))
        with suppress(ProcessLookupError):
            process.send(signal.SIGKILL)
        process.wait()

        again = home.run("ask", "hi", env=env)
        checked = home.run("store", "verify", env=env)

        assert (0, 0) == (again.code, checked.code), (number, again.err, checked.err)


@pytest.mark.slow
@pytest.mark.parametrize("command", [("sessions", "forget", "secret question", "--yes"), ("store", "rebuild")])
def test_kill_while_the_file_is_rewritten_leaves_it_whole(
    tmp_path: Path, home: Home, backend: Backend, command: tuple[str, ...]
) -> None:
    backend.says(answer(*(f"secret {number} " for number in range(200))))
    assert 0 == home.run("ask", "secret question").code
    backend.says(answer("kept"))
    assert 0 == home.run("ask", "kept question").code
    rows = home.events()
    report = home.run("report", "--json").out
    chance = random.Random(SEED)
    for number in range(6):
        folder = tmp_path / f"copy-{number}"
        shutil.copytree(home.path, folder)
        env = {"TIMELINE_HOME": str(folder)}
        process = home.start(*command, env=env)
        time.sleep(chance.uniform(0.05, 0.3))
        with suppress(ProcessLookupError):
            process.send(signal.SIGKILL)
        process.wait()

        checked = home.run("store", "verify", env=env)
        assert 0 == checked.code, checked.err
        assert report == home.run("report", "--json", env=env).out
        with sqlite3.connect(folder / "timeline.db") as conn:
            digests = [row[0] for row in conn.execute("SELECT digest FROM events ORDER BY position")]
        assert [row["digest"] for row in rows] == digests[: len(rows)]
        conn.close()

    if command[0] == "sessions":
        # What was begun can be finished, wherever it was cut off.
        assert 0 == home.run("sessions", "forget", rows[0]["session_id"], "--yes", env=env).code
        left = b"".join(path.read_bytes() for path in folder.glob("timeline.db*"))
        assert (False, True) == (b"secret 7 " in left, b"kept question" in left)


# ------------------------------------------------------------------ once, looked at closely


def started(home: Home, backend: Backend, *, fresh: bool = False) -> Process:
    """A call that has shown `Hello wor`, and whose windows are committed, with more to come."""
    backend.says(stream("Hello ", "wor", FOREVER))
    process = home.start("ask", "first question", fresh=fresh)
    process.read_until("wor")
    for _ in range(200):
        if home.recorded() == "Hello wor":
            break
        time.sleep(0.02)
    return process


def kill(process: Process) -> None:
    process.send(signal.SIGKILL)
    assert -signal.SIGKILL == process.wait()


def test_text_in_a_silence_is_committed_without_more_to_come(home: Home, backend: Backend) -> None:
    process = started(home, backend)

    kill(process)

    assert "Hello wor" == home.recorded()
    assert "chunk.received" == home.types()[-1]


@pytest.mark.parametrize("argv", [("ask", "second"), ("sessions", "list"), ("report",)], ids=["ask", "list", "report"])
def test_the_next_start_ends_what_a_dead_process_left_open(home: Home, backend: Backend, argv: tuple[str, ...]) -> None:
    kill(started(home, backend))
    backend.says(answer("Hello"))

    assert 0 == home.run(*argv).code

    interrupted, turn = home.events("call.interrupted", "turn.interrupted")
    assert ("abandoned", "abandoned") == (interrupted["data"]["reason"], turn["data"]["reason"])
    assert {"input": 4, "output": 3} == interrupted["data"]["usage"]
    sent = home.events("request.sent")[0]
    assert [sent["session_id"], sent["call_id"], sent["turn_id"]] == [
        interrupted[name] for name in ("session_id", "call_id", "turn_id")
    ]
    home.end()


def test_it_is_ended_once_however_many_start_next(home: Home, backend: Backend) -> None:
    kill(started(home, backend))
    backend.says(answer("Hello"))

    processes = [home.start("ask", f"question {number}") for number in range(6)]

    assert [0] * 6 == [process.wait() for process in processes]
    assert 1 == len(home.events("call.interrupted"))
    home.end()


def test_an_abandoned_answer_can_be_replayed_and_gone_on_with(home: Home, backend: Backend) -> None:
    kill(started(home, backend))

    shown = home.run("replay", "last")

    assert (0, True, True) == (shown.code, "Hello wor" in shown.out, "abandoned" in shown.out)

    backend.says(answer("Yes"))
    assert 0 == home.run("ask", "-c", "go on").code
    assert [("user", "first question"), ("assistant", "Hello wor"), ("user", "go on")] == backend.messages()


def test_nobody_ends_the_call_of_a_process_that_lives(home: Home, backend: Backend) -> None:
    process = started(home, backend)
    backend.says(answer("Hello"))

    for argv in (("ask", "second"), ("sessions", "list"), ("store", "rebuild"), ("report",), ("replay", "last")):
        assert 0 == home.run(*argv).code

    assert ([], []) == (home.events("call.interrupted"), home.events("turn.interrupted"))

    process.send(signal.SIGINT)
    assert 130 == process.wait()
    (interrupted,) = home.events("call.interrupted")
    assert "sigint" == interrupted["data"]["reason"]
    home.end()


def test_a_stopped_process_lives(home: Home, backend: Backend) -> None:
    process = started(home, backend)
    process.send(signal.SIGSTOP)
    backend.says(answer("Hello"))

    assert 0 == home.run("ask", "second").code

    assert [] == home.events("call.interrupted")
    process.send(signal.SIGCONT)
    process.send(signal.SIGINT)
    assert 130 == process.wait()
    home.end()


def test_a_dead_process_nobody_has_waited_for_is_dead(home: Home, backend: Backend) -> None:
    # A child of this very process, which doesn't wait for it; what is forked elsewhere is waited for at once.
    process = started(home, backend, fresh=True)
    process.send(signal.SIGKILL)
    for _ in range(500):
        if psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.01)
    backend.says(answer("Hello"))

    assert 0 == home.run("ask", "second").code

    assert ["abandoned"] == [row["data"]["reason"] for row in home.events("call.interrupted")]
    assert psutil.STATUS_ZOMBIE == psutil.Process(process.pid).status()


def test_a_reused_process_number_is_not_the_owner(home: Home, backend: Backend) -> None:
    kill(started(home, backend))
    # The same pid, alive, but begun at another time: this very process stands in for the newcomer.
    with home.connect() as conn:
        conn.execute("UPDATE attempts SET owner_pid = ?", (os.getpid(),))
        conn.execute("UPDATE turns SET owner_pid = ? WHERE state = 'open'", (os.getpid(),))
        conn.execute("UPDATE attempts SET owner_started = owner_started - 1000")
        conn.execute("UPDATE turns SET owner_started = owner_started - 1000")
        conn.commit()
    backend.says(answer("Hello"))

    assert 0 == home.run("ask", "second").code

    assert ["abandoned"] == [row["data"]["reason"] for row in home.events("call.interrupted")]


def test_a_process_of_another_host_is_nobody_s_to_judge(home: Home, backend: Backend) -> None:
    kill(started(home, backend))
    with home.connect() as conn:
        conn.execute("UPDATE attempts SET owner_host = 'elsewhere'")
        conn.execute("UPDATE turns SET owner_host = 'elsewhere'")
        conn.commit()
    backend.says(answer("Hello"))

    assert 0 == home.run("ask", "second").code

    assert [] == home.events("call.interrupted")
