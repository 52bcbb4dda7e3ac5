"""A backup is a whole store of one moment, whoever writes meanwhile."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from pathlib import Path

import pytest
from support.processes import alone
from support.stores import Scribe, look, opened, read_models

from timeline.errors import StoreError


async def record(path: Path, turns: int = 5) -> None:
    scribe = Scribe()
    async with opened(path) as store:
        for _ in range(turns):
            await store.append(scribe.turn("a"), contents=["Why is the sky blue?"])


async def test_a_backup_made_while_a_writer_runs_is_whole(tmp_path: Path) -> None:
    path, copy = tmp_path / "timeline.db", tmp_path / "copy.db"
    scribe = Scribe()
    async with opened(path) as store, opened(path) as other:
        await store.append(scribe.notes("a", 3000))
        going, done = asyncio.Event(), asyncio.Event()

        async def chatter() -> None:
            while not done.is_set():
                await other.append(scribe.turn("b"), contents=["Why is the sky blue?"])
                going.set()

        chattering = asyncio.create_task(chatter())
        await going.wait()
        await store.backup(copy)
        done.set()
        await chattering
        appended = (await store.stats()).events

    async with opened(copy) as copied:
        found = await copied.verify()
        assert found.problem is None
        assert 3000 < found.events <= appended
        before = read_models(copy)
        await copied.rebuild()
        assert before == read_models(copy)
        await copied.append(scribe.notes("a", 1))


async def test_a_backup_holds_what_is_still_in_the_write_ahead_log(tmp_path: Path) -> None:
    async with opened(tmp_path / "timeline.db") as store:
        await store.append(Scribe().notes("a", 3))
        await store.backup(tmp_path / "copy.db")

    assert [(3,)] == look(tmp_path / "copy.db", "SELECT count(*) FROM events")


async def test_a_backup_never_writes_over_anything(tmp_path: Path) -> None:
    await record(tmp_path / "timeline.db")
    (tmp_path / "copy.db").write_text("mine")

    async with opened(tmp_path / "timeline.db") as store:
        for target in (tmp_path / "copy.db", tmp_path / "timeline.db", tmp_path):
            with pytest.raises(StoreError, match=r"can't be written .*: choose another path"):
                await store.backup(target)

    assert "mine" == (tmp_path / "copy.db").read_text()


async def test_a_backup_to_a_folder_that_is_not_there_says_so(tmp_path: Path) -> None:
    await record(tmp_path / "timeline.db")

    async with opened(tmp_path / "timeline.db") as store:
        with pytest.raises(StoreError, match=r"can't be written \(No such file or directory\)"):
            await store.backup(tmp_path / "nowhere" / "copy.db")


NO_SPACE = """
import asyncio, resource
from pathlib import Path
from support.stores import opened
from timeline.errors import StoreError

async def main():
    async with opened(Path(sys.argv[1])) as store:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            await store.backup(Path(sys.argv[2]))
        except StoreError as exc:
            print(type(exc).__name__, exc)

asyncio.run(main())
"""


async def test_a_backup_that_fails_leaves_nothing(tmp_path: Path) -> None:
    await record(tmp_path / "timeline.db")

    done = await asyncio.to_thread(alone, NO_SPACE, tmp_path / "timeline.db", tmp_path / "copy.db")

    assert "copy.db" in done.stdout, done.stderr
    assert ["timeline.db", "timeline.db.lock"] == beside(tmp_path)


def beside(folder: Path) -> list[str]:
    return sorted(part.name for part in folder.iterdir())


def test_the_shell_can_read_a_backup(tmp_path: Path) -> None:
    if not shutil.which("sqlite3"):
        pytest.skip("there is no sqlite3 shell here")

    async def copy() -> None:
        await record(tmp_path / "timeline.db")
        async with opened(tmp_path / "timeline.db") as store:
            await store.backup(tmp_path / "copy.db")

    asyncio.run(copy())
    query = ["sqlite3", "-readonly", str(tmp_path / "copy.db"), "SELECT count(*), max(position) FROM events"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)

    assert "35|35\n" == done.stdout, done.stderr
