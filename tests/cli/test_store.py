"""`timeline store`: the file looked after from the command line."""

from __future__ import annotations

import signal
import sqlite3
import stat
import time
from pathlib import Path

import pytest
from support.answers import FOREVER, answer, stream
from support.command import TURN_ENDS, Backend, Home
from support.stores import force, look
from support.terminal import Terminal

from timeline.store import content_digest

PROJECTED = ("sessions", "turns", "steps", "attempts", "usage", "search_turns")


@pytest.fixture
def used(home: Home, backend: Backend) -> Home:
    """A home with one session of one turn."""
    backend.says(answer("The answer ", "is 42"))
    assert 0 == home.run("ask", "a question").code
    return home


def flip(path: Path, text: bytes) -> None:
    """Change one byte of that text in the file."""
    data = bytearray(path.read_bytes())
    data[data.index(text)] ^= 1
    path.write_bytes(data)


def test_path_prints_the_path_whether_or_not_it_exists(home: Home) -> None:
    result = home.run("store", "path")

    assert (0, f"{home.store}\n") == (result.code, result.out)
    assert not home.store.exists()


def test_verify_finds_a_whole_file_whole(used: Home) -> None:
    count = len(used.events())

    result = used.run("store", "verify")

    assert (0, f"ok: {count} events in 1 sessions\n") == (result.code, result.out)
    assert {
        "schema_version": 1,
        "ok": True,
        "events": count,
        "sessions": 1,
        "problem": None,
        "position": None,
    } == used.run("store", "verify", "--json").json()


def test_verify_names_the_position_of_one_flipped_byte(used: Home) -> None:
    (chunk, *_) = used.events("chunk.received")
    flip(used.store, b"The answer ")

    result = used.run("store", "verify")
    value = used.run("store", "verify", "--json")

    assert (1, "", 1) == (result.code, result.out, len(result.err.splitlines()))
    assert f"position {chunk['position']}" in result.err
    assert "restore a backup; 'timeline replay' and sqlite3 still read what is before it" in result.err
    assert (1, False, chunk["position"]) == (value.code, value.json()["ok"], value.json()["position"])


def test_verify_finds_a_changed_prompt(used: Home) -> None:
    # The title comes first in the file or later; all of them are changed.
    data = used.store.read_bytes()
    used.store.write_bytes(data.replace(b"a question", b"b question"))

    assert 1 == used.run("store", "verify").code


def test_a_damaged_page_is_one_sentence(used: Home) -> None:
    data = bytearray(used.store.read_bytes())
    data[4096 : 4096 * 3] = b"\xa5" * 4096 * 2
    used.store.write_bytes(data)

    for argv in (("store", "verify"), ("replay", "last"), ("report",), ("ask", "hi")):
        result = used.run(*argv)
        assert (1, 1) == (result.code, len(result.err.splitlines())), (argv, result.err)
        assert "Traceback" not in result.err


@pytest.fixture
def hurt(home: Home, backend: Backend) -> Home:
    """A home whose session has three turns, and one byte of the second answer's event is another."""
    for number in ("One", "Two", "Three"):
        backend.says(answer(f"{number} it is."))
        home.run("ask", number, *(("-c",) if number != "One" else ()))
    return home


@pytest.mark.parametrize("byte", [b"z", b"\xff"], ids=["no JSON", "no UTF-8"])
def test_replay_shows_what_is_before_the_damage(hurt: Home, byte: bytes) -> None:
    chunk = next(row for row in hurt.events("chunk.received") if row["data"]["texts"] == ["Two it is."])
    data = hurt.store.read_bytes()
    begin = data.rindex(b"{", 0, data.index(b'"Two it is.'))
    hurt.store.write_bytes(data[:begin] + byte + data[begin + 1 :])

    plain = hurt.run("replay", "last")
    value = hurt.run("replay", "last", "--json")
    events = hurt.run("replay", "last", "--events")

    assert (1, 1) == (plain.code, len(plain.err.splitlines()))
    assert f"Error: position {chunk['position']}: " in plain.err
    assert "run 'timeline store verify', and restore a backup" in plain.err
    assert "❯ One" in plain.out
    assert "One it is." in plain.out
    assert "❯ Two" in plain.out
    assert "… damaged from here on" == plain.out.splitlines()[-1]
    assert "Three" not in plain.out
    with Terminal(hurt, "replay", "last", "--speed", "100") as terminal:
        assert 1 == terminal.wait()
        assert (True, False) == ("… damaged from here on" in terminal.text, "running" in terminal.text)

    assert (1, "store_damaged") == (value.code, value.json()["error"]["kind"])
    assert [("One it is.", "completed"), ("", "damaged")] == [
        (turn["answer"], turn["state"]) for turn in value.json()["turns"]
    ]

    assert 1 == events.code
    assert list(range(1, chunk["position"])) == [row["position"] for row in events.lines()]
    assert plain.err == events.err
    for argv in ((), ("--events",)):
        beyond = hurt.run("replay", "last", "--turn", "3", *argv)
        assert (1, "", plain.err) == (beyond.code, beyond.out, beyond.err), argv


def test_replay_draws_a_session_whose_cached_answer_is_damaged_in_another(home: Home, backend: Backend) -> None:
    backend.says(answer("One it is."), answer("Two it is."))
    for argv in (("One", "--cache"), ("One", "--cache"), ("Two", "-c")):
        home.run("ask", *argv)
    spoil(home, "One it is.", "7a")

    plain = home.run("replay", "last")
    value = home.run("replay", "last", "--json")

    assert (1, 1) == (plain.code, len(plain.err.splitlines())), plain.err
    assert "Error: position " in plain.err
    assert ["❯ One", "❯ Two"] == [line for line in plain.out.splitlines() if "❯" in line]
    assert (1, "store_damaged") == (value.code, value.json()["error"]["kind"])
    assert ["", "Two it is."] == [turn["answer"] for turn in value.json()["turns"]]


def test_replay_shows_the_answers_where_a_prompt_is_damaged(hurt: Home) -> None:
    # A row of `contents` in the file: the digest, then the body.
    row = content_digest("Two").encode() + b"Two"
    data = hurt.store.read_bytes()
    assert row in data
    hurt.store.write_bytes(data.replace(row, row[:-1] + b"\xff"))

    result = hurt.run("replay", "last")

    assert (1, 1) == (result.code, len(result.err.splitlines()))
    assert "holds text that is not UTF-8: run 'timeline store verify', and restore a backup" in result.err
    assert ["One it is.", "Two it is.", "Three it is."] == [
        line for line in result.out.splitlines() if "it is." in line
    ]


LOOKS = (("sessions", "list"), ("report",), ("replay", "last"), ("search", "another"))
BYTES = pytest.mark.parametrize("byte", ["7a", "ff"], ids=["no JSON", "no UTF-8"])


def spoil(home: Home, text: str, byte: str) -> None:
    """Make another byte of the first one of the event in which that text stands."""
    body = f"CAST(CAST(x'{byte}' AS BLOB) || CAST(substr(data, 2) AS BLOB) AS TEXT)"
    force(home.store, f"UPDATE events SET data = {body} WHERE data LIKE '%{text}%'")


@BYTES
def test_a_turn_that_borrows_a_damaged_answer_ends_and_is_in_no_command_s_way(
    home: Home, backend: Backend, byte: str
) -> None:
    backend.says(answer("It is."))
    home.run("ask", "an equal question", "--cache")
    spoil(home, "It is.", byte)

    borrowed = home.run("ask", "an equal question", "--cache")
    other = home.run("ask", "another")

    assert (1, 1) == (borrowed.code, len(borrowed.err.splitlines())), borrowed.err
    assert "restore a backup" in borrowed.err
    assert [("turn.completed",), ("turn.interrupted",), ("turn.completed",)] == look(
        home.store, f"SELECT type FROM events WHERE type IN {TURN_ENDS} ORDER BY position"
    )
    assert dict.fromkeys(LOOKS, 0) == {argv: home.run(*argv).code for argv in LOOKS}
    assert (0, 1) == (other.code, home.run("store", "verify").code)


@pytest.mark.parametrize(("text", "byte"), [("Half", "7a"), ("Half", "ff"), ("estimated_input_tokens", "7a")])
def test_what_a_killed_process_left_damaged_is_in_no_command_s_way(
    home: Home, backend: Backend, text: str, byte: str
) -> None:
    backend.says(stream("Half", FOREVER), answer("It is."))
    killed(home)
    spoil(home, text, byte)

    asked = home.run("ask", "another")

    assert (0, "It is.\n") == (asked.code, asked.out), asked.err
    assert dict.fromkeys(LOOKS, 0) == {argv: home.run(*argv).code for argv in LOOKS}


def killed(home: Home) -> None:
    """A process that ends with kill -9 in the middle of its answer."""
    process = home.start("ask", "a question")
    process.read_until("Half")
    while not look(home.store, "SELECT 1 FROM events WHERE type = 'chunk.received'"):
        time.sleep(0.01)
    process.send(signal.SIGKILL)
    process.wait()


def test_a_log_that_lost_its_end_can_be_looked_at_though_a_dead_process_has_a_turn_open(
    home: Home, backend: Backend
) -> None:
    backend.says(stream("Half", FOREVER))
    killed(home)
    force(home.store, "DELETE FROM events WHERE position = (SELECT max(position) FROM events)")

    found = home.run("store", "verify", "--json").json()

    assert (False, "the log ends") == (found["ok"], found["problem"][:12]), found
    assert [0, 0] == [home.run(*argv).code for argv in (("sessions", "list"), ("report",))]


def dump(home: Home) -> list[str]:
    with home.connect() as conn:
        return [str([tuple(row) for row in conn.execute(f"SELECT * FROM {table}")]) for table in PROJECTED]


def test_rebuild_leaves_the_read_models_as_they_were(used: Home) -> None:
    before = dump(used)
    with used.connect() as conn:
        conn.execute("UPDATE usage SET input = 999")
        conn.commit()

    result = used.run("store", "rebuild")

    assert 0 == result.code
    assert before == dump(used)


def test_rebuild_of_what_isn_t_there_is_said(used: Home) -> None:
    result = used.run("store", "rebuild", "nope")

    assert (6, "", 1) == (result.code, result.out, len(result.err.splitlines()))


def test_stats_name_sizes_and_versions(used: Home) -> None:
    value = used.run("store", "stats", "--json").json()

    assert (str(used.store), len(used.events()), 1, sqlite3.sqlite_version) == (
        value["path"],
        value["events"],
        value["sessions"],
        value["sqlite_version"],
    )
    assert sqlite3.sqlite_version in used.run("store", "stats").out


def test_a_backup_is_a_store_like_the_original(used: Home, tmp_path: Path) -> None:
    target = tmp_path / "copy" / "timeline.db"
    target.parent.mkdir()

    result = used.run("store", "backup", str(target))

    assert (0, "") == (result.code, result.out)
    assert (
        f"ok: {len(used.events())} events" in used.run("store", "verify", env={"TIMELINE_HOME": str(target.parent)}).out
    )
    assert 0o600 == stat.S_IMODE(target.stat().st_mode)


def test_a_backup_overwrites_nothing(used: Home, tmp_path: Path) -> None:
    target = tmp_path / "mine"
    target.write_text("mine")

    result = used.run("store", "backup", str(target))

    assert (1, "mine", 1) == (result.code, target.read_text(), len(result.err.splitlines()))


def test_only_the_owner_may_read_the_store(used: Home) -> None:
    for path in used.path.glob("timeline.db*"):
        assert 0o600 == stat.S_IMODE(path.stat().st_mode), path
