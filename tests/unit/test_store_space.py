"""A full disk, and the write-ahead log: nothing that was recorded is lost, and the files stay small."""

from __future__ import annotations

import asyncio
import shlex
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, event
from support.command import Zygote
from support.processes import forked
from support.stores import Scribe, TickingClock, look, opened

from timeline.errors import StoreFull
from timeline.store import EventStore, content_digest, sqlite

MIB = 1024 * 1024


def body(seed: int, size: int = 100_000) -> bytes:
    """Bytes that no other seed gives."""
    return (content_digest(str(seed)) * (size // 32 + 1)).encode()[:size]


# ------------------------------------------------------------------ SQLite's own limit


class Disk:
    """The writer's connections, whose files may grow to so many pages."""

    def __init__(self) -> None:
        self.pages: int | None = None
        self.connections: list[sqlite3.Connection] = []

    def connected(self, connection: sqlite3.Connection, _: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            self.connections.append(connection)
            if self.pages is not None:
                connection.execute(f"PRAGMA max_page_count={self.pages}")

    def limit(self, pages: int) -> None:
        self.pages = pages
        for connection in self.connections:
            connection.execute(f"PRAGMA max_page_count={pages}")


@pytest.fixture
def disk() -> Iterator[Disk]:
    made = Disk()
    event.listen(Engine, "connect", made.connected)
    yield made
    event.remove(Engine, "connect", made.connected)


async def test_a_full_disk_refuses_the_event_and_keeps_all_that_was_recorded(tmp_path: Path, disk: Disk) -> None:
    path = tmp_path / "timeline.db"
    scribe = Scribe()
    async with opened(path) as store:
        disk.connections.clear()
        await store.append(scribe.turn("a"), contents=["Why is the sky blue?"])
        pages = (await asyncio.to_thread(look, path, "PRAGMA page_count"))[0][0]
        disk.limit(pages + 4)

        with pytest.raises(StoreFull, match=r"no space left to record in .*: free some and ask again; all that was"):
            await store.append(scribe.notes("a", 1), contents=[body(1)])
        for _ in range(3):
            with pytest.raises(StoreFull):
                await store.append(scribe.notes("a", 500))

        assert 7 == (await store.stats()).events
        assert (await store.verify()).problem is None
        # What still fits is still recorded.
        await store.append(scribe.notes("a", 1))

        disk.limit(1_000_000)
        await store.append(scribe.notes("a", 500), contents=[body(1)])
        assert list(range(1, 509)) == [event.position async for event in store.read()]
        assert (await store.verify()).problem is None

    async with opened(path) as store:
        assert 508 == (await store.verify()).events


async def test_of_a_group_what_fits_is_recorded_and_what_does_not_is_refused(tmp_path: Path, disk: Disk) -> None:
    path = tmp_path / "timeline.db"
    scribe = Scribe()
    async with opened(path) as store:
        disk.connections.clear()
        await store.append(scribe.notes("a", 1))
        pages = (await asyncio.to_thread(look, path, "PRAGMA page_count"))[0][0]
        disk.limit(pages + 8)

        outcomes = await asyncio.gather(
            store.append(scribe.notes("a", 1)),
            store.append(scribe.notes("a", 1), contents=[body(1)]),
            store.append(scribe.notes("a", 1)),
            store.append(scribe.notes("a", 2000)),
            store.append(scribe.notes("a", 1)),
            return_exceptions=True,
        )

        assert [[2], StoreFull, [3], StoreFull, [4]] == [
            type(outcome) if isinstance(outcome, BaseException) else [event.position for event in outcome]
            for outcome in outcomes
        ]
        assert (await store.verify()).problem is None


# ------------------------------------------------------------------ a file system that is full


MOUNT = """
import asyncio, os, subprocess
from pathlib import Path
from support.stores import Scribe, opened, read_models
from timeline.errors import StoreFull

folder = Path(sys.argv[1])
path, ballast = folder / "timeline.db", folder / "ballast"
scribe = Scribe()

def fill():
    with open(ballast, "ab", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            pass

async def whole(store, count):
    found = await store.verify()
    assert (found.problem, found.events) == (None, count), (found, count)
"""

FULL_DISK = (
    MOUNT
    + """
async def main():
    count = refused = 0
    async with opened(path) as store:
        for round in range(3):
            for _ in range(5):
                await store.append(scribe.turn(f"session {count}"), contents=["Why is the sky blue?"])
                count += 7
            fill()
            for _ in range(60):
                try:
                    await store.append(scribe.notes("a", 50))
                    count += 50
                except StoreFull:
                    refused += 1
            before = read_models(path)
            try:
                await store.rebuild()
                sys.exit("there was space to rebuild")
            except StoreFull:
                pass
            assert before == read_models(path)
            await whole(store, count)
            ballast.unlink()
            await store.rebuild()
            assert before == read_models(path)
            await store.append(scribe.notes("a", 1))
            count += 1
        assert refused > 60, refused
        fill()
    # Closing could not move the write-ahead log into the file; it is all there nevertheless.
    ballast.unlink()
    async with opened(path) as store:
        await whole(store, count)
        await store.append(scribe.notes("a", 1))
    print("kept", sorted(os.listdir(folder)))

    fill()
    try:
        async with opened(path):
            sys.exit("there was space for its shared memory")
    except StoreFull:
        pass
    async with opened(path, read_only=True) as store:
        await whole(store, count + 1)
    try:
        async with opened(folder / "new.db"):
            pass
    except StoreFull as exc:
        print(exc)

asyncio.run(main())
"""
)


def test_a_full_file_system_loses_nothing_and_goes_on_when_there_is_space(tmp_path: Path, zygote: Zygote) -> None:
    done = on_a_disk_of("3m", zygote, FULL_DISK, tmp_path)

    assert 2 == len(done.stdout.splitlines()), done.stdout + done.stderr
    kept, new = done.stdout.splitlines()
    assert "kept ['timeline.db', 'timeline.db.lock']" == kept
    assert new.startswith("no space left to record in "), new


NO_ROOM_TO_EMPTY_THE_LOG = (
    MOUNT
    + """
async def main():
    count = 0
    async with opened(path) as store:
        async def grow():
            nonlocal count
            await store.append(scribe.notes("a", 1), contents=[os.urandom(1024 * 1024)])
            count += 1

        try:
            while True:
                await grow()
        except StoreFull:
            pass
        # At 16 MiB there was no space left to move the log into the file.
        assert count >= 15, count
        assert os.path.getsize(f"{path}-wal") >= 16 * 1024 * 1024
        await whole(store, count)
        subprocess.run(["mount", "-o", "remount,size=100m", folder], check=True)
        for _ in range(20):
            await grow()
        assert os.path.getsize(f"{path}-wal") < 20 * 1024 * 1024
        await whole(store, count)
    print(sorted(os.listdir(folder)))

asyncio.run(main())
"""
)


def test_a_log_that_there_is_no_room_to_empty_ends_nothing_and_is_emptied_later(tmp_path: Path, zygote: Zygote) -> None:
    done = on_a_disk_of("24m", zygote, NO_ROOM_TO_EMPTY_THE_LOG, tmp_path)

    assert "['timeline.db', 'timeline.db.lock']\n" == done.stdout, done.stderr


def on_a_disk_of(size: str, zygote: Zygote, code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the code where a file system of this size is mounted at the folder."""
    mount = f"mount -t tmpfs -o size={size} tmpfs {shlex.quote(str(folder))}"
    done = forked(zygote, code, folder, apart=(mount, ""))
    if done.returncode == 99:
        pytest.skip("no file systems can be mounted here")
    return done


# ------------------------------------------------------------------ the write-ahead log


async def grow(store: EventStore, scribe: Scribe, mebibytes: int) -> list[int]:
    """Append bodies; the sizes of the write-ahead log after each."""
    sizes = []
    for _ in range(mebibytes):
        await store.append(scribe.notes("a", 1), contents=[body(scribe.clock.now(), MIB)])
        sizes.append(sqlite.wal_size(store.path))
    return sizes


async def test_the_log_is_emptied_at_16_mib_and_only_then(tmp_path: Path) -> None:
    async with opened(tmp_path / "timeline.db") as store:
        sizes = await grow(store, Scribe(), 36)

    assert sizes[0] > MIB
    emptied = [at for at, size in enumerate(sizes) if size < max(sizes[: at + 1])]
    assert 2 <= sum(sizes[at] < sizes[at - 1] for at in range(1, 36))
    assert all(size <= 19 * MIB for size in sizes)
    assert sizes[emptied[0] - 1] >= 14 * MIB


async def test_no_connection_moves_the_log_by_itself(tmp_path: Path) -> None:
    """SQLite would after 1000 pages, 4 MB; what only the writer may do is due at 16."""
    path = tmp_path / "timeline.db"
    async with opened(path) as store:
        await store.append(Scribe().notes("a", 1))
        before = path.stat().st_size
        await grow(store, Scribe(TickingClock(1)), 8)
        await store.rebuild()
        await store.query(lambda conn: conn.exec_driver_sql("SELECT count(*) FROM events").scalar())
        await store.backup(tmp_path / "copy.db")
        async with opened(path, read_only=True) as looking:
            await looking.verify()

        assert before == path.stat().st_size
        assert sqlite.wal_size(path) > 8 * MIB


def beside(path: Path) -> list[str]:
    return sorted(part.name for part in path.parent.iterdir())


async def test_nothing_is_left_beside_the_file_after_the_last_close(tmp_path: Path) -> None:
    path = tmp_path / "timeline.db"
    async with opened(path) as first, opened(path) as second:
        await first.append(Scribe().notes("a", 3))
        await second.append(Scribe(TickingClock(1)).notes("b", 3))

    assert ["timeline.db", "timeline.db.lock"] == beside(path)
    assert [(6,)] == await asyncio.to_thread(look, path, "SELECT count(*) FROM events")


async def test_a_reader_in_the_way_holds_nobody_up_and_the_log_is_emptied_later(tmp_path: Path) -> None:
    path = tmp_path / "timeline.db"
    scribe = Scribe()
    async with opened(path) as store:
        await grow(store, scribe, 1)
        outsider = sqlite3.connect(path, isolation_level=None)
        outsider.execute("BEGIN")
        outsider.execute("SELECT count(*) FROM events").fetchone()
        loop = asyncio.get_running_loop()

        await grow(store, scribe, 17)
        begun = loop.time()
        await grow(store, scribe, 10)
        took = loop.time() - begun

        assert sqlite.wal_size(path) > 25 * MIB
        assert took < 8, "each append waited for the reader"
        outsider.execute("COMMIT")
        outsider.close()
        await grow(store, scribe, 8)
        assert sqlite.wal_size(path) < 8 * MIB
        assert 36 == (await store.stats()).events
