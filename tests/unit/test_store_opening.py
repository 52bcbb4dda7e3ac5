"""What the store makes of the file it is told to open: new, empty, foreign, newer, damaged, or out of its reach."""

from __future__ import annotations

import asyncio
import os
import shlex
import sqlite3
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.command import Zygote
from support.processes import forked
from support.stores import Scribe, TickingClock, force, look, opened, projections

from timeline.errors import (
    NotATimelineStore,
    NotFound,
    StoreBusy,
    StoreDamaged,
    StoreError,
    StoreReadOnly,
    StoreTooNew,
)
from timeline.store import EventStore, schema, sqlite


async def appended(path: Path, count: int = 1) -> None:
    async with opened(path) as store:
        await store.append(Scribe().notes("a", count))


async def count(path: Path, **how: bool) -> int:
    async with opened(path, **how) as store:
        return len([event async for event in store.read()])


def names(folder: Path) -> list[str]:
    return sorted(part.name for part in folder.iterdir())


def modes(folder: Path) -> dict[str, str]:
    return {part.name: oct(stat.S_IMODE(part.stat().st_mode)) for part in folder.iterdir()}


# ------------------------------------------------------------------ making it


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
async def test_nobody_else_can_read_what_is_recorded_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        async with opened(tmp_path / "new" / "folders" / "timeline.db") as store:
            await store.append(Scribe().notes("a", 1))
            within = modes(store.path.parent)
            await store.backup(tmp_path / "copy.db")
    finally:
        os.umask(before)

    assert {"timeline.db", "timeline.db-wal", "timeline.db-shm", "timeline.db.lock"} == set(within)
    assert {"0o600"} == set(within.values())
    assert "0o700" == modes(tmp_path)["new"] == modes(tmp_path / "new")["folders"]
    assert "0o600" == modes(tmp_path)["copy.db"]


async def test_an_empty_file_becomes_a_store_of_our_own_mode(tmp_path: Path) -> None:
    path = tmp_path / "timeline.db"
    path.touch(mode=0o644)

    await appended(path)

    assert "0o600" == modes(tmp_path)["timeline.db"]
    assert 1 == await count(path)


async def test_a_database_without_tables_becomes_a_store(tmp_path: Path) -> None:
    path = tmp_path / "timeline.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.close()
    assert path.stat().st_size > 0

    await appended(path)

    assert 1 == await count(path)


@pytest.mark.parametrize(
    "name", ["with space.db", "100%.db", "a?b=c.db", "#1&.db", "file:x.db", "ünï.db", ":memory:", "a%20b.db"]
)
async def test_no_character_of_the_name_means_anything(tmp_path: Path, name: str) -> None:
    path = tmp_path / "dir?mode=ro" / name

    await appended(path)

    assert 1 == await count(path)
    assert 1 == await count(path, read_only=True)
    async with opened(path) as store:
        await store.backup(tmp_path / "copy?.db")
    assert 1 == await count(tmp_path / "copy?.db")
    assert {name, f"{name}.lock"} == set(names(path.parent))


async def test_a_relative_path_is_of_the_folder_we_are_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    await appended(Path("timeline.db"))

    assert 1 == await count(tmp_path / "timeline.db")


async def test_an_existing_store_is_opened_without_a_word_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "timeline.db"
    await appended(path)
    before = path.read_bytes()

    assert 1 == await count(path)

    assert before == path.read_bytes()


# ------------------------------------------------------------------ what is none of ours


async def test_a_text_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("Dear diary, " * 100)

    with pytest.raises(NotATimelineStore, match=r"notes\.txt is not a timeline store: move it away, or choose"):
        await appended(path)

    assert "Dear diary, " * 100 == path.read_text()
    assert ["notes.txt"] == names(tmp_path)


async def test_a_short_text_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("hi")

    with pytest.raises(NotATimelineStore):
        await appended(path)


async def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotATimelineStore, match="is not a timeline store"):
        await appended(tmp_path)


async def test_what_is_no_plain_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    """Root could otherwise take `/dev/null` from everyone."""
    path = tmp_path / "timeline.db"
    os.mkfifo(path, 0o644)
    before = path.stat()

    with pytest.raises(NotATimelineStore):
        await appended(path)

    assert before == path.stat()
    assert ["timeline.db"] == names(tmp_path)


async def test_another_programs_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    connection = sqlite3.connect(path)
    connection.executescript("CREATE TABLE events (position INTEGER PRIMARY KEY); PRAGMA application_id=7")
    connection.close()
    before = path.read_bytes()

    with pytest.raises(NotATimelineStore):
        await appended(path)

    assert before == path.read_bytes()
    assert ["other.db"] == names(tmp_path)


async def test_a_folder_that_would_have_to_be_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(StoreReadOnly, match=r"timeline\.db can't be opened .*choose another place with TIMELINE_HOME"):
        await appended(tmp_path / "file" / "timeline.db")


async def test_a_link_that_leads_nowhere_makes_its_target(tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to(tmp_path / "real.db")

    await appended(tmp_path / "link.db")

    assert 1 == await count(tmp_path / "real.db")


# ------------------------------------------------------------------ newer, older, damaged


async def test_a_schema_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "timeline.db"
    await appended(path)
    force(path, "UPDATE alembic_version SET version_num = '9999'")
    before = path.read_bytes()

    for read_only in (False, True):
        with pytest.raises(StoreTooNew, match=rf"newer version of timeline \(schema 9999, .* {schema.HEAD}\): update"):
            await count(path, read_only=read_only)

    assert before == path.read_bytes()


async def test_an_event_of_a_newer_release_is_named_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "timeline.db"
    await appended(path)
    force(path, "INSERT INTO events VALUES (2, 'x', 'a', 2, 'session.dreamt', 1, 0, NULL, NULL, NULL, '{}', '')")
    force(path, "UPDATE projections SET position = 2")

    with pytest.raises(StoreTooNew, match=r"session\.dreamt"):
        await count(path)


@pytest.mark.parametrize(
    "damage",
    ["DELETE FROM alembic_version", "DROP TABLE alembic_version", "UPDATE alembic_version SET version_num = '0000'"],
)
async def test_a_store_that_lost_its_version_is_damaged(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "timeline.db"
    await appended(path)
    force(path, damage)

    with pytest.raises(StoreDamaged, match="doesn't say which version of timeline wrote it"):
        await count(path)


async def test_a_file_that_was_cut_off_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "timeline.db"
    await appended(path, 2000)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)

    with pytest.raises(StoreDamaged, match=r"is damaged .*: run 'timeline store verify', and restore a backup"):
        await count(path)


async def test_a_file_that_was_overwritten_is_not_ours_any_more(tmp_path: Path) -> None:
    path = tmp_path / "timeline.db"
    await appended(path)
    path.write_bytes(os.urandom(path.stat().st_size))

    with pytest.raises(NotATimelineStore):
        await count(path)


# ------------------------------------------------------------------ looking only


async def test_looking_needs_a_file(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no store of this version at"):
        await count(tmp_path / "timeline.db", read_only=True)

    assert [] == names(tmp_path)


async def test_looking_leaves_nothing_behind_and_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "timeline.db"
    await appended(path)
    (tmp_path / "timeline.db.lock").unlink()

    async with opened(path, read_only=True) as store:
        assert 1 == len([event async for event in store.read()])
        assert (await store.verify()).problem is None
        assert 1 == (await store.stats()).events
        for write in (
            lambda: store.append([]),
            lambda: store.append_when(lambda _: []),
            store.rebuild,
            lambda: store.forget("a", lambda _: None),  # type: ignore[arg-type,return-value]
        ):
            with pytest.raises(StoreReadOnly, match="can't be written: choose another place with TIMELINE_HOME"):
                await write()

    assert ["timeline.db"] == names(tmp_path)


async def test_looking_sees_what_a_live_process_has_just_committed(tmp_path: Path) -> None:
    path = tmp_path / "timeline.db"
    await appended(path)

    async with opened(path) as writing:
        await writing.append(Scribe(TickingClock(1)).notes("b", 2))
        assert 3 == await count(path, read_only=True)


async def test_looking_at_read_models_of_another_release_says_so(tmp_path: Path) -> None:
    path = tmp_path / "timeline.db"
    await appended(path)
    force(path, "UPDATE projections SET version = 0 WHERE name = 'calls'")

    with pytest.raises(StoreReadOnly, match=r"read models .* of another version: run timeline once where it can be"):
        await count(path, read_only=True)


READ_ONLY_FOLDER = """
import asyncio
from pathlib import Path
from support.stores import Scribe, opened
folder = Path(sys.argv[1])

async def main():
    async with opened(folder / "timeline.db", read_only=True) as store:
        print(len([event async for event in store.read()]), (await store.verify()).problem)
        await store.backup(folder.parent / "copy.db")
    for name in ("timeline.db", "new.db", "folder/new.db"):
        try:
            async with opened(folder / name):
                pass
        except Exception as exc:
            print(type(exc).__name__, exc)

asyncio.run(main())
"""


async def read_only_folder(zygote: Zygote, folder: Path) -> subprocess.CompletedProcess[str]:
    where = shlex.quote(str(folder))
    mount = f"mount --bind {where} {where} && mount -o remount,ro,bind {where}"
    done = await asyncio.to_thread(forked, zygote, READ_ONLY_FOLDER, folder, apart=(mount, ""))
    if done.returncode == 99:
        pytest.skip("no mount namespaces here")
    return done


async def test_a_read_only_folder_is_read_and_never_written(tmp_path: Path, zygote: Zygote) -> None:
    path = tmp_path / "ro" / "timeline.db"
    await appended(path, 3)

    done = await read_only_folder(zygote, path.parent)

    seen, *errors = done.stdout.splitlines()
    assert "3 None" == seen, done.stderr
    assert 3 == len(errors)
    assert all(error.startswith("StoreReadOnly the store ") for error in errors), errors
    assert 3 == await count(tmp_path / "copy.db")


DIES = """
import asyncio, os
from pathlib import Path
from support.stores import Scribe, opened

async def main():
    async with opened(Path(sys.argv[1])) as store:
        await store.append(Scribe().notes("a", 3))
        os._exit(9)

asyncio.run(main())
"""


async def test_a_read_only_folder_shows_what_a_process_that_died_had_committed(tmp_path: Path, zygote: Zygote) -> None:
    path = tmp_path / "ro" / "timeline.db"
    assert 9 == (await asyncio.to_thread(forked, zygote, DIES, path)).returncode
    assert sqlite.wal_size(path) > 0

    done = await read_only_folder(zygote, path.parent)

    assert done.stdout.startswith("3 None\n"), done.stderr


NOBODY = """
import asyncio, os
import filelock, sqlalchemy.dialects.sqlite.aiosqlite  # while they can be read
from pathlib import Path
from support.stores import opened
os.setgroups([])
os.setgid(65534)
os.setuid(65534)

async def main():
    for path in sys.argv[1:]:
        try:
            async with opened(Path(path)):
                pass
            print("opened")
        except Exception as exc:
            print(type(exc).__name__, exc)

asyncio.run(main())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
async def test_what_belongs_to_somebody_else_is_named_in_one_sentence(passable: Path, zygote: Zygote) -> None:
    closed, listed = passable / "closed" / "timeline.db", passable / "listed" / "timeline.db"
    await appended(closed)
    await appended(listed)
    listed.parent.chmod(0o755)

    done = await asyncio.to_thread(forked, zygote, NOBODY, closed, listed, listed.parent / "new.db")

    errors = done.stdout.splitlines()
    assert 3 == len(errors), done.stderr
    assert all(error.startswith("StoreReadOnly the store ") for error in errors), errors


@pytest.fixture
def passable() -> Iterator[Path]:
    """A folder that everybody may pass through."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


# ------------------------------------------------------------------ busy


async def test_a_lock_held_too_long_is_named_and_concerns_everyone_in_line_at_once(tmp_path: Path) -> None:
    """30 s is the real wait; the connection's own is shortened here, as only the waiting differs."""
    path = tmp_path / "timeline.db"
    scribe = Scribe()
    async with opened(path) as store:
        await store.append_when(shorten)
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        begun = asyncio.get_running_loop().time()

        outcomes = await asyncio.gather(
            *(store.append(scribe.notes("a", 1)) for _ in range(20)), return_exceptions=True
        )

        took = asyncio.get_running_loop().time() - begun
        assert [StoreBusy] * 20 == [type(outcome) for outcome in outcomes]
        assert "another process has held" in str(outcomes[0])
        assert took < 2
        holder.execute("COMMIT")
        holder.close()
        assert 1 == (await store.append(scribe.notes("a", 1)))[0].position


def shorten(conn):
    conn.connection.driver_connection.execute("PRAGMA busy_timeout=100")
    return []


# ------------------------------------------------------------------ details that people ask for


async def test_stats_say_what_is_in_the_file(tmp_path: Path) -> None:
    async with opened(tmp_path / "timeline.db") as store:
        await store.append(Scribe().turn("a") + Scribe().notes("b", 1), contents=["Why is the sky blue?"])
        stats = await store.stats()

    assert (8, 2, 1) == (stats.events, stats.sessions, stats.contents)
    assert (schema.HEAD, sqlite3.sqlite_version, "full") == (stats.schema, stats.sqlite_version, stats.synchronous)
    assert str(tmp_path / "timeline.db") == stats.path
    assert stats.wal_bytes > 0


@pytest.mark.parametrize(
    ("version", "safe"),
    [
        ((3, 40, 1), False),
        ((3, 44, 5), False),
        ((3, 44, 6), True),
        ((3, 45, 0), False),
        ((3, 50, 6), False),
        ((3, 50, 7), True),
        ((3, 51, 2), False),
        ((3, 51, 3), True),
        ((4, 0, 0), True),
    ],
)
def test_which_sqlite_has_the_fix_of_the_wal_reset_bug(version: tuple[int, int, int], safe: bool) -> None:
    assert safe == sqlite.checkpoints_are_safe(version)


@pytest.mark.parametrize(("synchronous", "number"), [("full", 2), ("normal", 1)])
async def test_every_connection_is_set_up_as_it_has_to_be(tmp_path: Path, synchronous: str, number: int) -> None:
    path = tmp_path / "timeline.db"

    def pragmas(conn) -> dict[str, object]:
        names = (
            "journal_mode",
            "synchronous",
            "wal_autocheckpoint",
            "busy_timeout",
            "query_only",
            "secure_delete",
            "mmap_size",
        )
        return {name: conn.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names}

    async with EventStore.open(path, projections(), synchronous=synchronous) as store:  # type: ignore[arg-type]
        reader = await store.query(pragmas)
        writer: dict[str, object] = {}
        await store.append_when(lambda conn: writer.update(pragmas(conn)) or [])

    common = {"journal_mode": "wal", "wal_autocheckpoint": 0, "busy_timeout": 30_000}
    assert common | {"query_only": 1} == {name: reader[name] for name in (*common, "query_only")}
    assert common | {"query_only": 0, "secure_delete": 1, "synchronous": number} == {
        name: writer[name] for name in (*common, "query_only", "secure_delete", "synchronous")
    }
    assert {reader["mmap_size"], writer["mmap_size"]} <= {0, None}


async def test_no_body_stands_in_the_traceback_of_a_failed_statement(tmp_path: Path) -> None:
    import traceback

    body = "terces"[::-1] + " body"  # a traceback shows lines of code, too
    async with opened(tmp_path / "timeline.db") as store:

        def decide(conn):
            conn.exec_driver_sql("INSERT INTO contents VALUES (?, ?)", (None, body))
            return []

        with pytest.raises(StoreError) as caught:
            await store.append_when(decide)

    assert body not in "".join(traceback.format_exception(caught.value))


async def test_what_was_looked_at_is_closed_again(tmp_path: Path) -> None:
    path = tmp_path / "timeline.db"
    await appended(path)
    for _ in range(3):
        await count(path)

    assert [] == [name for name in open_files() if "timeline.db" in name]
    assert [(1,)] == look(path, "SELECT count(*) FROM events")


def open_files() -> list[str]:
    return [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
