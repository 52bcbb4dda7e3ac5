"""Whatever single thing is changed in the log, `verify` says where; and what it says is the first."""

from __future__ import annotations

import asyncio
import re
import shutil
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.stores import Scribe, every_event, force, look, opened, projections

from timeline.store import EventStore, Verification

COUNT = len(every_event()) * 2 + 60
"""Events in the store that is spoiled."""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every type of event twice, in two sessions, and some long bodies that don't fit one page."""
    path = tmp_path_factory.mktemp("recorded") / "timeline.db"
    scribe = Scribe()

    async def record() -> None:
        async with opened(path) as store:
            for session in ("a", "b"):
                for data in every_event():
                    await store.append([scribe.event(session, data)], contents=["a body"])
            for n in range(20):
                await store.append([scribe.session(f"long {n}", "x" * 500 * n), *scribe.notes("a", 2)])

    asyncio.run(record())
    return path


def verified(path: Path) -> Verification:
    """What `verify` says, of a file that is only looked at: so nothing is written to what is spoiled."""

    async def look_only() -> Verification:
        async with EventStore.open(path, projections(), read_only=True) as store:
            return await store.verify()

    return asyncio.run(look_only())


def test_the_store_that_is_spoiled_below_is_whole(recorded: Path) -> None:
    assert Verification(COUNT, 22) == verified(recorded)


@settings(max_examples=60)
@given(position=st.integers(1, COUNT), at=st.integers(0, 100_000), mask=st.integers(1, 255))
def test_one_flipped_byte_in_any_data_is_found_with_its_position(
    recorded: Path, position: int, at: int, mask: int
) -> None:
    """Changed on disk, not by SQL: so it may be no UTF-8 any more, either."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(shutil.copy(recorded, folder))
        ((data,),) = look(path, "SELECT CAST(data AS BLOB) FROM events WHERE position = ?", position)
        at %= len(data)
        flip(path, data, at, mask, position)

        found = verified(path)

    assert position == found.position, found


def flip(path: Path, data: bytes, at: int, mask: int, position: int) -> None:
    """Change a byte of an event's data in the file itself, wherever SQLite has put it."""
    changed = data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :]
    raw = path.read_bytes()
    # The id stands in an index, too; before its other fields and its data it stands but once.
    ((id_,),) = look(path, "SELECT event_id FROM events WHERE position = ?", position)
    cells = [found.start() for found in re.finditer(re.escape(id_.encode()), raw)]
    start = max(raw.find(data[:64], cell, cell + 250) for cell in cells)
    assert start >= 0
    if raw[start : start + len(data)] == data:
        path.write_bytes(raw[: start + at] + changed[at : at + 1] + raw[start + at + 1 :])
    else:
        # It goes over into pages of its own: change it where SQLite finds it.
        connection = sqlite3.connect(path, isolation_level=None)
        triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute("UPDATE events SET data = CAST(? AS TEXT) WHERE position = ?", (changed, position))
        for _, sql in triggers:
            connection.execute(sql)
        connection.close()
    assert look(path, "SELECT CAST(data AS BLOB) FROM events WHERE position = ?", position) == [(changed,)]


COLUMNS = st.sampled_from(
    ["event_id", "session_id", "version", "type", "v", "recorded_at", "turn_id", "step_id", "call_id", "digest"]
)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)


@settings(max_examples=60)
@given(position=st.integers(1, COUNT), column=COLUMNS, text=texts, number=st.integers(-(2**63), 2**63 - 1))
def test_any_other_value_in_any_column_is_found(
    recorded: Path, position: int, column: str, text: str, number: int
) -> None:
    value = str(number) if column in ("version", "v", "recorded_at") else "'" + text.replace("'", "''") + "'"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(shutil.copy(recorded, folder))
        before = look(path, "SELECT * FROM events")
        force(path, f"UPDATE OR IGNORE events SET {column} = {value} WHERE position = {position}")
        changed = before != look(path, "SELECT * FROM events")

        found = verified(path)

    assert (position if changed else None) == found.position, found


@settings(max_examples=30)
@given(gone=st.sets(st.integers(1, COUNT), min_size=1, max_size=5))
def test_of_removed_events_the_first_is_named(recorded: Path, gone: set[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(shutil.copy(recorded, folder))
        force(path, f"DELETE FROM events WHERE position IN ({', '.join(map(str, gone))})")

        found = verified(path)

    assert min(gone) == found.position, found


@settings(max_examples=60)
@given(at=st.integers(0, 10**9), mask=st.integers(1, 255))
def test_any_flipped_byte_of_the_file_is_harmless_or_named_never_a_traceback(
    recorded: Path, at: int, mask: int
) -> None:
    """Also where it hits SQLite's own structure, free space, or a read model."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(shutil.copy(recorded, folder))
        before = log(path)
        raw = bytearray(path.read_bytes())
        raw[at % len(raw)] ^= mask
        path.write_bytes(raw)
        try:
            found = verified(path)
        except Exception as exc:  # noqa: BLE001
            assert exc.__class__.__module__ == "timeline.errors", repr(exc)  # noqa: PT017
            return
        if found.problem is None:
            assert before == log(path)


def log(path: Path) -> list[tuple[Any, ...]] | None:
    """All that is recorded, as far as SQLite can read it."""
    try:
        return look(path, "SELECT * FROM events ORDER BY position") + look(path, "SELECT * FROM contents ORDER BY 1")
    except sqlite3.Error:
        return None
