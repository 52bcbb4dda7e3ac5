"""`verify` finds whatever was changed behind the store's back, and says where."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
from pathlib import Path

import pytest
from support.stores import Scribe, force, look, opened

from timeline import events as e
from timeline.errors import StoreDamaged
from timeline.store import Verification, content_digest, integrity, schema
from timeline.store.writer import body_digest, chain_digest

PROMPT = "Why is the sky blue?"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sessions of 8 events each, a shared prompt, a forgotten one."""
    path = tmp_path_factory.mktemp("recorded") / "timeline.db"
    scribe = Scribe()

    async def record() -> None:
        async with opened(path) as store:
            for session in ("a", "b", "c"):
                prompts = [PROMPT, f"only of {session}"]
                await store.append(
                    [scribe.session(session, f"Title {session}"), *scribe.turn(session)], contents=prompts
                )
            await store.append(scribe.turn("b", prompt="only of b"))
            await store.forget("c", lambda data: scribe.event("c", data))

    asyncio.run(record())
    return path


@pytest.fixture
def path(recorded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(recorded, tmp_path))


async def verify(path: Path) -> Verification:
    async with opened(path) as store:
        return await store.verify()


def verified(path: Path) -> Verification:
    return asyncio.run(verify(path))


def test_an_untouched_store_is_whole(path: Path) -> None:
    assert Verification(events=32, sessions=3) == verified(path)


def test_an_empty_store_is_whole(tmp_path: Path) -> None:
    assert Verification(events=0, sessions=0) == verified(tmp_path / "timeline.db")


def test_the_chain_is_what_is_documented(path: Path) -> None:
    """digest = BLAKE2b-128(previous digest ‖ header fields ‖ BLAKE2b-128(data)), the header as a JSON array."""
    import hashlib
    import json

    previous = b""
    for *header, data, digest in look(path, "SELECT * FROM events WHERE session_id = 'a' ORDER BY version"):
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        link = hashlib.blake2b(previous + text + body_digest(data.encode()), digest_size=16)
        assert link.hexdigest() == digest
        previous = link.digest()


# ------------------------------------------------------------------ changed


@pytest.mark.parametrize("position", [1, 16, 32])
@pytest.mark.parametrize(
    "change",
    [
        "event_id = event_id || 'x'",
        "session_id = 'd'",
        "version = version + 100",
        "type = 'session.renamed'",
        "v = v + 1",
        "recorded_at = recorded_at + 1",
        "turn_id = 'other'",
        "step_id = 'other'",
        "call_id = 'other'",
        "data = replace(data, '1', '2') || ' '",
        "data = ''",
        "digest = upper(digest) || ''",
        "digest = ''",
        "digest = '" + "0" * 32 + "'",
    ],
)
def test_every_changed_column_is_found_where_it_was_changed(path: Path, position: int, change: str) -> None:
    force(path, f"UPDATE events SET {change} WHERE position = {position}")

    found = verified(path)

    assert (position, True) == (found.position, bool(found.problem)), found


def test_a_forged_event_with_a_digest_of_its_own_breaks_the_next_ones_link(path: Path) -> None:
    *header, _, _ = look(path, "SELECT * FROM events WHERE position = 2")[0]
    (previous,) = look(path, "SELECT digest FROM events WHERE position = 1")[0]
    data = '{"mode":"direct","owner":{"host":"h","pid":1,"started":1.0}}'
    digest = chain_digest(previous, tuple(header), body_digest(data.encode()))
    force(path, f"UPDATE events SET data = '{data}', digest = '{digest}' WHERE position = 2")

    assert 3 == verified(path).position


def test_a_right_digest_over_no_body_of_its_type_is_found(path: Path) -> None:
    """Only whoever appends can do this; what can't be read is no less a problem."""
    *header, _, _ = look(path, "SELECT * FROM events WHERE position = 32")[0]
    (previous,) = look(path, "SELECT digest FROM events WHERE session_id = 'c' AND version = 8")[0]
    digest = chain_digest(previous, tuple(header), body_digest(b"{}"))
    force(path, f"UPDATE events SET data = '{{}}', digest = '{digest}' WHERE position = 32")

    found = verified(path)

    assert 32 == found.position
    assert "'session.redacted' event can't be read" in str(found.problem)


def test_two_events_that_changed_places_are_found(path: Path) -> None:
    force(
        path,
        "UPDATE events SET position = -1 WHERE position = 3",
        "UPDATE events SET position = 3 WHERE position = 4",
        "UPDATE events SET position = 4 WHERE position = -1",
    )

    assert 3 == verified(path).position


# ------------------------------------------------------------------ removed


def test_a_removed_event_is_found(path: Path) -> None:
    force(path, "DELETE FROM events WHERE position = 9")

    assert (9, "position 9 is missing") == (verified(path).position, verified(path).problem)


def test_a_removed_event_is_found_though_the_others_moved_up(path: Path) -> None:
    force(path, "DELETE FROM events WHERE position = 9", "UPDATE events SET position = position - 1 WHERE position > 9")

    assert 9 == verified(path).position


def test_a_removed_first_event_is_found(path: Path) -> None:
    force(path, "DELETE FROM events WHERE position = 1")

    assert (1, "position 1 is missing") == (verified(path).position, verified(path).problem)


def test_a_removed_end_is_found_by_what_the_read_models_have_seen(path: Path) -> None:
    """The chain alone can't tell: what is left of it is whole. Nor could this, had the read models been cut, too."""
    force(path, "DELETE FROM events WHERE position > 30")

    assert 31 == verified(path).position

    force(path, "UPDATE projections SET position = 30")
    assert verified(path).problem is None


def test_an_emptied_log_is_found(path: Path) -> None:
    force(path, "DELETE FROM events")

    assert 1 == verified(path).position


# ------------------------------------------------------------------ forgotten


def test_a_tombstone_verifies(path: Path) -> None:
    tombstones = look(path, """SELECT count(*) FROM events WHERE data LIKE '{"forgotten":%'""")

    assert [(3,)] == tombstones
    assert verified(path).problem is None


@pytest.mark.parametrize("at", [0, 1, 12, 13, 14, 15, 16, 17, 18, 19, 20, 45, 46, 47])
def test_a_flipped_bit_of_a_tombstone_is_found(path: Path, at: int) -> None:
    ((position, data),) = look(path, "SELECT position, data FROM events WHERE session_id = 'c' AND version = 1")
    for bit in (1, 0x20):
        changed = data[:at] + chr(ord(data[at]) ^ bit) + data[at + 1 :]
        quoted = changed.replace("'", "''")
        force(path, f"UPDATE events SET data = '{quoted}' WHERE position = {position}")

        assert position == verified(path).position, changed


# ------------------------------------------------------------------ around the log


@pytest.mark.parametrize("name", [statement.split()[2] for statement in schema.TRIGGERS])
def test_a_removed_trigger_is_found(path: Path, name: str) -> None:
    look(path, f"DROP TRIGGER {name}")

    assert f"the trigger {name} is gone or changed: the log was open to changes" == verified(path).problem


def test_a_trigger_that_only_bears_the_name_is_found(path: Path) -> None:
    look(path, "DROP TRIGGER events_no_delete")
    look(path, "CREATE TRIGGER events_no_delete BEFORE DELETE ON events BEGIN SELECT 1; END")

    assert "the trigger events_no_delete is gone or changed" in str(verified(path).problem)


@pytest.mark.parametrize("body", ["'Why is the sky red?'", "''", "x'00'"])
def test_a_changed_body_is_found(path: Path, body: str) -> None:
    digest = content_digest(PROMPT)
    force(path, f"UPDATE contents SET body = {body} WHERE digest = '{digest}'")

    assert f"the body {digest} in contents is not what was recorded" == verified(path).problem


def test_a_removed_body_is_found_at_the_event_that_refers_to_it(path: Path) -> None:
    force(path, f"DELETE FROM contents WHERE digest = '{content_digest(PROMPT)}'")

    found = verified(path)

    assert (2, True) == (found.position, "is gone from contents" in str(found.problem))


def test_a_body_that_nothing_refers_to_may_be_gone(path: Path) -> None:
    force(path, f"DELETE FROM contents WHERE digest = '{content_digest('only of a')}'")

    assert verified(path).problem is None


def test_bodies_that_a_private_turn_only_counted_are_not_missed(tmp_path: Path) -> None:
    path = tmp_path / "timeline.db"
    scribe = Scribe()
    private = e.TurnStarted("direct", e.Owner("h", 1, 1.0), private=True)
    sent = e.RequestSent(1, "p", "m", "asked for", (e.MessageRef("user"),), e.Owner("h", 1, 1.0), tools="0" * 32)

    async def record() -> Verification:
        async with opened(path) as store:
            await store.append(
                [scribe.session("a"), *(scribe.event("a", fact, turn_id="t") for fact in (private, sent))]
            )
            return await store.verify()

    assert asyncio.run(record()).problem is None


def test_a_damaged_index_is_found(path: Path) -> None:
    """An index that was emptied behind SQLite's back."""
    force(
        path,
        "PRAGMA writable_schema = ON",
        "CREATE TABLE spare (x, y)",
        "CREATE INDEX spare_index ON spare (x)",
        "UPDATE sqlite_master SET rootpage = (SELECT rootpage FROM sqlite_master WHERE name = 'spare_index')"
        " WHERE name = 'turns_open'",
    )

    assert "SQLite finds the file damaged" in str(verified(path).problem)


# ------------------------------------------------------------------ the bytes on disk


def test_a_byte_of_a_body_that_is_no_text_any_more_is_found(path: Path) -> None:
    raw = path.read_bytes()
    at = raw.index(b'"title":"Title a"') + 12
    path.write_bytes(raw[:at] + b"\xff" + raw[at + 1 :])

    assert 1 == verified(path).position


def test_what_a_damaged_row_lacks_is_found(path: Path) -> None:
    """A flipped bit can make a column null that the table says never is."""
    for name in ("data", "digest"):
        lax = "PRAGMA writable_schema=ON; UPDATE sqlite_master SET sql = replace(sql, '{0} TEXT{1}', '{0} TEXT{2}')"
        never = " NOT NULL"
        change(path, lax.format(name, never, ""))
        force(path, f"UPDATE events SET {name} = NULL WHERE position = 3")
        change(path, lax.format(name, "", never))

    async def read() -> list[e.Event]:
        async with opened(path) as store:
            return [event async for event in store.read()]

    assert 3 == verified(path).position
    with pytest.raises(StoreDamaged):
        asyncio.run(read())


def change(path: Path, script: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as conn:
        conn.executescript(script)


def spoil(path: Path, at: int) -> None:
    """Overwrite the head of the page that holds a byte."""
    raw = bytearray(path.read_bytes())
    page = at // 4096 * 4096
    raw[page : page + 8] = b"\xee" * 8
    path.write_bytes(raw)


def test_a_page_of_rubbish_is_reported_with_the_position_before_it(tmp_path: Path) -> None:
    path = tmp_path / "timeline.db"

    async def record() -> None:
        async with opened(path) as store:
            await store.append(Scribe().notes("a", 6000))

    asyncio.run(record())
    spoil(path, path.read_bytes().index(b'"waited_us":3000}'))

    found = verified(path)

    assert (2000, None) == (found.events, found.position)
    assert f"after position 2000: {path} is damaged (database disk image is malformed)" == found.problem


def test_what_is_before_a_page_of_rubbish_is_read(tmp_path: Path) -> None:
    path, seen = tmp_path / "timeline.db", [0]

    async def record() -> None:
        async with opened(path) as store:
            await store.append(Scribe().notes("a", 1800))

    async def read() -> None:
        async with opened(path) as store:
            async for event in store.read(session_id="a"):
                seen.append(event.position)  # noqa: PERF401  those before the damage count

    asyncio.run(record())
    spoil(path, path.read_bytes().index(b'"waited_us":1500}'))

    with pytest.raises(StoreDamaged) as damage:
        asyncio.run(read())

    assert list(range(len(seen))) == seen
    assert 1400 < len(seen) < 1502
    assert f"position {len(seen)}: {path} is damaged (database disk image is malformed): " in str(damage.value)


def test_damage_in_one_call_is_placed_where_it_is_and_not_where_others_are(path: Path) -> None:
    ((position, call_id),) = look(
        path, "SELECT position, call_id FROM events WHERE session_id = 'b' AND type = 'turn.started' LIMIT 1"
    )
    force(path, f"UPDATE events SET data = 'z' WHERE position = {position}")

    async def read() -> None:
        async with opened(path) as store:
            async for _ in store.read(call_id=call_id, until=position + 3):
                pass

    with pytest.raises(StoreDamaged, match=f"^position {position}: "):
        asyncio.run(read())


def test_rubbish_in_the_first_page_of_the_log_is_damage_at_once(path: Path) -> None:
    (page,) = look(path, "SELECT rootpage FROM sqlite_master WHERE name = 'events'")[0]
    spoil(path, (page - 1) * 4096)

    with pytest.raises(StoreDamaged, match="is damaged"):
        verified(path)


@pytest.mark.parametrize(
    ("answers", "damage"),
    [
        (["ok"], None),
        (["row 3 missing from index a", "row 4 missing from index a"], "row 3 missing from index a"),
        # SQLite 3.44.0 through a connection that only reads.
        (["unable to validate the inverted index for FTS5 table main.search_index: attempt to write"], None),
        (["unable to validate the inverted index for FTS5 table main.search_index: it", "Page 9: bad"], "Page 9: bad"),
    ],
)
def test_what_sqlite_can_t_check_is_no_damage(answers: list[str], damage: str | None) -> None:
    assert damage == integrity._damage(answers)
