"""Many real processes on one file: first starts, appends, decisions, the care of the file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from support.command import Zygote
from support.processes import alone, together
from support.stores import Scribe, all_bytes, look, opened, projections, read_models

pytestmark = pytest.mark.slow

APPEND = """
import os
from pathlib import Path
from support.stores import Scribe, opened
from timeline.events import Clock

async def main(number):
    scribe = Scribe(Clock())
    async with opened(Path({path!r})) as store:
        (event,) = await store.append([scribe.session(f"session {{number}}", "title")])
        return [event.position, os.getpid()]
"""


def beside(path: Path) -> list[str]:
    return sorted(part.name for part in path.parent.iterdir())


async def whole(path: Path, count: int) -> None:
    async with opened(path) as store:
        found = await store.verify()
        assert (None, count) == (found.problem, found.events)
        before = read_models(path)
        await store.rebuild()
        assert before == read_models(path)


async def test_any_number_of_first_starts_at_once(tmp_path: Path, zygote: Zygote) -> None:
    path = tmp_path / "new" / "timeline.db"
    for before in (0, 16):
        outcomes = together(zygote, 16, APPEND.format(path=str(path)))

        assert [] == [outcome for outcome in outcomes if "ok" not in (outcome or {})]
        positions, pids = zip(*(outcome["ok"] for outcome in outcomes), strict=True)
        assert list(range(before + 1, before + 17)) == sorted(positions)
        assert 16 == len(set(pids))
        # Nobody is open any more, so nothing stands beside the file.
        assert ["timeline.db", "timeline.db.lock"] == beside(path)

        if before:
            await whole(path, 32)


CHATTER = """
import asyncio
from pathlib import Path
from support.stores import Scribe, opened
from timeline.errors import VersionConflict
from timeline.events import Clock

async def main(number):
    scribe = Scribe(Clock())
    positions = []
    async with opened(Path({path!r})) as store:
        for round in range(20):
            batches = [scribe.turn(f"of {{number}}") if n else scribe.notes("shared", 3) for n in range(3)]
            bodies = ["Why is the sky blue?"]
            for events in await asyncio.gather(*(store.append(batch, contents=bodies) for batch in batches)):
                assert [events[0].position + n for n in range(len(events))] == [event.position for event in events]
                positions += [event.position for event in events]
    return positions
"""


async def test_appends_of_many_processes_interleave_whole(tmp_path: Path, zygote: Zygote) -> None:
    path = tmp_path / "timeline.db"

    outcomes = together(zygote, 6, CHATTER.format(path=str(path)))

    assert [] == [outcome for outcome in outcomes if "ok" not in (outcome or {})]
    every = sorted(position for outcome in outcomes for position in outcome["ok"])
    assert list(range(1, 6 * 20 * 17 + 1)) == every
    await whole(path, len(every))
    assert [(360, 360)] == look(path, "SELECT count(*), max(version) FROM events WHERE session_id = 'shared'")


DECIDE = """
import asyncio
from pathlib import Path
from sqlalchemy import text
from support.stores import Scribe, opened
from timeline.events import Clock

async def main(number):
    scribe = Scribe(Clock())
    taken = []
    async with opened(Path({path!r})) as store:
        def decide(conn):
            count = conn.execute(text("SELECT count(*) FROM sessions")).scalar_one()
            return [scribe.session(f"slot {{count}}")] if count < 20 else []

        for _ in range(10):
            taken += await store.append_when(decide)
            await asyncio.sleep(0)
    return [event.session_id for event in taken]
"""


async def test_a_decision_is_atomic_across_processes(tmp_path: Path, zygote: Zygote) -> None:
    path = tmp_path / "timeline.db"

    outcomes = together(zygote, 8, DECIDE.format(path=str(path)))

    assert [] == [outcome for outcome in outcomes if "ok" not in (outcome or {})]
    taken = Counter(slot for outcome in outcomes for slot in outcome["ok"])
    assert {f"slot {n}": 1 for n in range(20)} == taken


EXPECT = """
from pathlib import Path
from support.stores import Scribe, opened
from timeline.errors import VersionConflict
from timeline.events import Clock

async def main(number):
    scribe = Scribe(Clock())
    won = 0
    async with opened(Path({path!r})) as store:
        for version in range(15):
            try:
                await store.append(scribe.notes("shared", 1), expected_version=version)
                won += 1
            except VersionConflict:
                pass
    return won
"""


async def test_only_one_process_wins_each_expected_version(tmp_path: Path, zygote: Zygote) -> None:
    path = tmp_path / "timeline.db"

    outcomes = together(zygote, 5, EXPECT.format(path=str(path)))

    (count,) = look(path, "SELECT count(*) FROM events")[0]
    assert count == sum(outcome["ok"] for outcome in outcomes)
    assert 1 <= count <= 15
    await whole(path, count)


CARE = """
import asyncio, os, signal
from pathlib import Path
from support.stores import Scribe, opened
from timeline.events import Clock, SessionRedacted

async def main(number):
    path = Path({path!r})
    scribe = Scribe(Clock())
    async with opened(path) as store:
        if number == 0:
            return [await store.rebuild() for _ in range(6)]
        if number == 1:
            found = []
            for n in range(6):
                copy = path.with_name(f"copy {{n}}.db")
                await store.backup(copy)
                async with opened(copy) as copied:
                    found.append((await copied.verify()).problem)
            return found
        if number == 2:
            return [(await store.verify()).problem for _ in range(6)]
        if number == 3:
            forgotten = []
            for n in range(3):
                session = scribe.clock.uuid7()
                await store.append([scribe.session(session, "a secret title")])
                await store.append(scribe.turn(session, prompt=f"secret {{n}}"), contents=[f"secret {{n}}"])
                forgotten.append(await store.forget(session, lambda data: scribe.event(session, data)))
            return forgotten
        for n in range(60):
            await store.append(scribe.turn(f"of {{number}}"), contents=["Why is the sky blue?"])
        return 60
"""


async def test_rebuild_backup_verify_and_forget_go_on_while_others_append(tmp_path: Path, zygote: Zygote) -> None:
    path = tmp_path / "timeline.db"

    outcomes = together(zygote, 6, CARE.format(path=str(path)))

    names = [item.name for item in projections()._all]
    assert [[names] * 6, [None] * 6, [None] * 6, [3] * 3, 60, 60] == [
        (outcome or {}).get("ok", outcome) for outcome in outcomes
    ]
    await whole(path, 2 * 60 * 7 + 3 * 9)
    assert b"secret" not in path.read_bytes()


KILLED = """
import asyncio, os, signal
from pathlib import Path
from support.stores import Scribe, opened

async def main(number):
    async with opened(Path({path!r})) as store:
        if number:
            rebuilding = asyncio.create_task(store.rebuild())
            await asyncio.sleep(number * 0.02)
            os.kill(os.getpid(), signal.SIGKILL)
        return (await store.verify()).problem
"""


async def test_a_rebuild_that_is_killed_leaves_nothing(tmp_path: Path, zygote: Zygote) -> None:
    path = tmp_path / "timeline.db"
    scribe = Scribe()
    async with opened(path) as store:
        for n in range(400):
            store.enqueue(scribe.turn(f"session {n % 9}"), contents=["Why is the sky blue?"])
    before = read_models(path)
    tables = look(path, "SELECT type, name, sql FROM sqlite_master ORDER BY 1, 2")

    checked, *killed = together(zygote, 9, KILLED.format(path=str(path)))

    assert {"ok": None} == checked
    assert [None] * 8 == killed
    assert before == read_models(path)
    assert tables == look(path, "SELECT type, name, sql FROM sqlite_master ORDER BY 1, 2")


KILLED_FORGETTING = """
import asyncio, os, signal
from pathlib import Path
from support.stores import Scribe, opened
from timeline.events import Clock

async def main(number):
    scribe = Scribe(Clock())
    async with opened(Path({path!r})) as store:
        asyncio.create_task(store.forget(f"session {{number}}", lambda data: scribe.event(f"session {{number}}", data)))
        await asyncio.sleep(number * 0.015)
        os.kill(os.getpid(), signal.SIGKILL)
"""


async def test_forgetting_that_is_killed_leaves_a_whole_store_and_is_finished_by_doing_it_again(
    tmp_path: Path, zygote: Zygote
) -> None:
    path = tmp_path / "timeline.db"
    scribe = Scribe()
    async with opened(path) as store:
        for n in range(8):
            await store.append([scribe.session(f"session {n}", "a secret title")])
            for _ in range(20):
                store.enqueue(scribe.turn(f"session {n}", prompt=f"secret {n}"), contents=[f"secret {n}"])

    assert [None] * 8 == together(zygote, 8, KILLED_FORGETTING.format(path=str(path)))

    async with opened(path) as store:
        assert (await store.verify()).problem is None
        for n in range(8):
            await store.forget(f"session {n}", lambda data, n=n: scribe.event(f"session {n}", data))  # type: ignore[misc]
        found = await store.verify()
        assert found.problem is None
        before = read_models(path)
        await store.rebuild()
        assert before == read_models(path)
    assert b"secret" not in all_bytes(path)


NO_ALEMBIC = """
import asyncio
from pathlib import Path
from support.stores import Scribe, opened

async def main():
    async with opened(Path(sys.argv[1])) as store:
        await store.append(Scribe().notes("a", 1))
    print(sorted(name for name in sys.modules if name.split(".")[0] in {"alembic", "mako", "filelock"}))

asyncio.run(main())
"""


async def test_a_file_at_head_needs_neither_alembic_nor_the_start_lock(tmp_path: Path) -> None:
    path = tmp_path / "timeline.db"
    async with opened(path):
        pass
    (tmp_path / "timeline.db.lock").unlink()

    done = alone(NO_ALEMBIC, path)

    assert "[]" == done.stdout.strip(), done.stderr
    assert ["timeline.db"] == beside(path)


async def test_a_fresh_file_is_made_without_alembic(tmp_path: Path) -> None:
    done = alone(NO_ALEMBIC, tmp_path / "timeline.db")

    assert "['filelock" in done.stdout, done.stderr
    assert "alembic" not in done.stdout
