"""The database itself refuses to change the log: whoever opens the file, with whatever settings."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.stores import Scribe, look, opened

from timeline import events as e
from timeline.store import content_digest

COLUMNS = [
    "position",
    "event_id",
    "session_id",
    "version",
    "type",
    "v",
    "recorded_at",
    "turn_id",
    "step_id",
    "call_id",
    "data",
    "digest",
]
TOMBSTONE = '{"forgotten":"' + "0" * 32 + '"}'
ROW = "(4, 'new', 'a', 3, 'session.renamed', 1, 0, NULL, NULL, NULL, '{}', '')"

ONLY_TOMBSTONES = "only data may become a tombstone"
SETTINGS = (
    "",
    "PRAGMA recursive_triggers=ON;",
    "PRAGMA foreign_keys=OFF; PRAGMA ignore_check_constraints=ON; PRAGMA trusted_schema=OFF;",
)

Run = Callable[[Path, str], str]
"""Runs statements on the file as an outsider; what it was told, empty if it was let."""


def by_shell(path: Path, sql: str) -> str:
    done = subprocess.run(["sqlite3", "-bail", path, sql], capture_output=True, text=True, check=False)
    return done.stderr


def by_driver(path: Path, sql: str) -> str:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.executescript(sql)
    except sqlite3.Error as exc:
        return str(exc)
    finally:
        connection.close()
    return ""


@pytest.fixture(params=["shell", "driver"])
def run(request: pytest.FixtureRequest) -> Run:
    if request.param == "shell" and not shutil.which("sqlite3"):
        pytest.skip("there is no sqlite3 shell here")
    return by_shell if request.param == "shell" else by_driver


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sessions of two events and of one, a body; the second session is forgotten, so its title is a tombstone."""
    import asyncio

    path = tmp_path_factory.mktemp("recorded") / "timeline.db"
    scribe = Scribe()

    async def record() -> None:
        async with opened(path) as store:
            await store.append([scribe.session("a", "one"), scribe.event("a", e.SessionRenamed("two"))])
            await store.append([scribe.session("b", "three")], contents=["a body"])

    asyncio.run(record())
    return path


@pytest.fixture
def path(recorded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(recorded, tmp_path))


def refused(run: Run, path: Path, why: str, *statements: str) -> None:
    """Each is refused, and refused whatever an outsider switches off that may be switched off."""
    before = look(path, "SELECT * FROM events"), look(path, "SELECT * FROM contents")
    for sql in statements:
        for settings in SETTINGS if run is by_driver else SETTINGS[:1]:
            assert why in run(path, f"{settings} {sql};"), f"{settings} {sql}"
    assert before == (look(path, "SELECT * FROM events"), look(path, "SELECT * FROM contents"))


# ------------------------------------------------------------------ inserting over


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(ROW.replace("(4,", "(2,"), id="an existing position"),
        pytest.param(ROW.replace("(4,", "(1,"), id="the first position"),
        pytest.param(ROW.replace("(4,", "(5,"), id="a position that skips"),
        pytest.param(ROW.replace("(4,", "(0,"), id="position 0"),
        pytest.param(ROW.replace("(4,", "(-1,"), id="a negative position"),
        pytest.param(ROW.replace("(4,", "(NULL,"), id="a position left to SQLite"),
        pytest.param(ROW.replace("'new'", "(SELECT min(event_id) FROM events)"), id="an existing event_id"),
        pytest.param(ROW.replace("'a', 3", "'a', 2"), id="an existing version"),
        pytest.param(ROW.replace("'a', 3", "'a', 4"), id="a version that skips"),
        pytest.param(ROW.replace("'a', 3", "'c', 2"), id="a new session not at 1"),
        pytest.param(ROW.replace("'a', 3", "'c', 0"), id="version 0"),
    ],
)
def test_an_event_is_never_inserted_anywhere_but_at_the_end(run: Run, recorded: Path, row: str) -> None:
    verbs = ["INSERT OR REPLACE", "INSERT", "REPLACE", "INSERT OR IGNORE", "INSERT OR ROLLBACK", "INSERT OR FAIL"]
    statements = [f"{verb} INTO events VALUES {row}" for verb in verbs]

    refused(run, recorded, "events is append-only", *(statements if run is by_driver else statements[:1]))


def test_what_fits_at_the_end_is_let_in_but_has_no_right_digest(run: Run, path: Path) -> None:
    assert "" == run(path, f"INSERT INTO events VALUES {ROW};")


def test_many_rows_in_one_statement_are_checked_one_by_one(run: Run, recorded: Path) -> None:
    two = ROW + ", " + ROW.replace("'new'", "'newer'")

    refused(run, recorded, "position must be the next one", f"INSERT INTO events VALUES {two}")


def test_an_upsert_can_not_change_an_event(run: Run, recorded: Path) -> None:
    upsert = "INSERT INTO events SELECT * FROM events WHERE position = 1 ON CONFLICT ({}) DO UPDATE SET data = '{{}}'"

    refused(run, recorded, "events is append-only", upsert.format("position"), upsert.format("event_id"))


# ------------------------------------------------------------------ changing


@pytest.mark.parametrize("column", COLUMNS)
def test_no_column_is_ever_changed(run: Run, recorded: Path, column: str) -> None:
    value = "7" if column in ("position", "version", "v", "recorded_at") else "'{}'"
    verbs = ["UPDATE OR REPLACE", "UPDATE", "UPDATE OR IGNORE", "UPDATE OR FAIL"]
    statements = [f"{verb} events SET {column} = {value} WHERE position = 3" for verb in verbs]

    refused(run, recorded, ONLY_TOMBSTONES, *(statements if run is by_driver else statements[:1]))


def test_the_position_is_not_changed_under_its_other_names(run: Run, recorded: Path) -> None:
    names = ("rowid", "oid", "_rowid_")
    statements = [f"UPDATE OR REPLACE events SET {name} = 1 WHERE position = 3" for name in names]

    refused(run, recorded, ONLY_TOMBSTONES, *statements)


def test_a_tombstone_keeps_every_other_column(run: Run, recorded: Path) -> None:
    for column in COLUMNS:
        if column != "data":
            value = "7" if column in ("position", "version", "v", "recorded_at") else "'x'"
            change = f"UPDATE events SET data = '{TOMBSTONE}', {column} = {value} WHERE position = 3"

            refused(run, recorded, ONLY_TOMBSTONES, change)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "{}",
        '{"forgotten":""}',
        TOMBSTONE.replace("0", "A"),
        TOMBSTONE.replace("0" * 32, "0" * 31),
        TOMBSTONE.replace("0" * 32, "0" * 33),
        " " + TOMBSTONE,
        TOMBSTONE + " ",
        TOMBSTONE[:-1],
        TOMBSTONE[:-1] + ',"title":"other"}',
    ],
)
def test_nothing_that_only_looks_like_a_tombstone_passes(run: Run, recorded: Path, text: str) -> None:
    refused(run, recorded, ONLY_TOMBSTONES, f"UPDATE events SET data = '{text}' WHERE position = 3")


def test_a_tombstone_passes_once_and_never_changes(run: Run, path: Path) -> None:
    assert "" == run(path, f"UPDATE events SET data = '{TOMBSTONE}' WHERE position = 3;")

    other = TOMBSTONE.replace("0", "f")
    refused(run, path, ONLY_TOMBSTONES, f"UPDATE events SET data = '{other}' WHERE position = 3")


async def test_a_tombstone_with_a_wrong_digest_is_found_by_verify(run: Run, path: Path) -> None:
    """No trigger can compute the digest; the chain can."""
    run(path, f"UPDATE events SET data = '{TOMBSTONE}' WHERE position = 2;")

    async with opened(path) as store:
        found = await store.verify()

    assert (2, "the event is not what was recorded: its digest doesn't match") == (found.position, found.problem)


# ------------------------------------------------------------------ deleting


def test_nothing_is_deleted(run: Run, recorded: Path) -> None:
    which = ("", "WHERE position = 3", "WHERE position = 1", "WHERE session_id = 'a'")

    refused(run, recorded, "nothing is deleted", *(f"DELETE FROM events {condition}" for condition in which))


# ------------------------------------------------------------------ contents


def test_a_body_is_never_changed(run: Run, recorded: Path) -> None:
    digest = content_digest("a body")
    changes = (
        "UPDATE contents SET body = 'another'",
        "UPDATE OR REPLACE contents SET digest = 'another'",
        f"INSERT OR REPLACE INTO contents VALUES ('{digest}', 'another')",
        f"REPLACE INTO contents VALUES ('{digest}', x'00')",
        f"INSERT INTO contents VALUES ('{digest}', '') ON CONFLICT DO UPDATE SET body = ''",
    )

    refused(run, recorded, "contents are addressed by their digest", *changes)


# ------------------------------------------------------------------ our own connections


async def test_our_own_writer_is_held_to_the_same(path: Path) -> None:
    from sqlalchemy import text

    from timeline.errors import StoreError

    async with opened(path) as store:
        for sql in ("DELETE FROM events", "UPDATE events SET data = '{}'"):

            def decide(conn, sql=sql):
                conn.execute(text(sql))
                return []

            with pytest.raises(StoreError, match="append-only"):
                await store.append_when(decide)

        assert 3 == (await store.stats()).events
