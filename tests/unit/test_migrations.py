"""A file that was made at once and one that was migrated step by step are the same file."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Column, Connection, Integer, MetaData, Table, func, insert, select
from support.stores import Scribe, force, look, opened, read_models

from timeline.errors import StoreDamaged, StoreTooNew
from timeline.events import Event
from timeline.projections import Projection, Projections
from timeline.projections.blocks import Blocks
from timeline.projections.calls import Calls, attempts
from timeline.projections.usage import UsageProjection
from timeline.store import EventStore, schema

ROOT = Path(__file__).resolve().parents[2]


def config(path: Path) -> Config:
    made = Config()
    made.set_main_option("script_location", "timeline_migrations:")
    made.set_main_option("path_separator", "os")
    made.attributes["path"] = path
    return made


def shape(path: Path) -> dict[str, object]:
    """All that SQLite knows about the file's tables, indexes and triggers, without differences in white space."""

    def normal(sql: str | None) -> str | None:
        return sql and re.sub(r"\s*([(),])\s*", r"\1", " ".join(sql.replace('"', "").split()))

    master = look(path, "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name")
    tables = [name for type_, name, *_ in master if type_ == "table"]
    return {
        "master": [(*row[:3], normal(row[3])) for row in master],
        "columns": {name: look(path, f"PRAGMA table_xinfo({name})") for name in tables},
        "tables": look(
            path, "SELECT name, type, ncol, wr, strict FROM pragma_table_list WHERE schema = 'main' ORDER BY 1"
        ),
        "indexes": {name: look(path, f"PRAGMA index_list({name})") for name in tables},
        "application_id": look(path, "PRAGMA application_id"),
        "journal_mode": look(path, "PRAGMA journal_mode"),
        "revision": look(path, "SELECT version_num FROM alembic_version"),
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "timeline.db"


# ------------------------------------------------------------------ fresh = migrated


async def test_a_fresh_file_equals_a_migrated_one(tmp_path: Path) -> None:
    fresh, migrated = tmp_path / "fresh.db", tmp_path / "migrated.db"
    async with EventStore.open(fresh, Projections([])):
        pass
    command.upgrade(config(migrated), "head")

    assert shape(fresh) == shape(migrated)


async def test_a_migrated_file_is_a_store(path: Path) -> None:
    command.upgrade(config(path), "head")

    async with opened(path) as store:
        await store.append(Scribe().turn("a"), contents=["Why is the sky blue?"])
        assert (await store.verify()).problem is None


def test_head_is_the_last_migration() -> None:
    scripts = ScriptDirectory.from_config(config(Path("unused")))

    assert [schema.HEAD] == scripts.get_heads()
    assert ["0001"] == scripts.get_bases()


def test_revisions_sort_in_their_order() -> None:
    """`_look` compares them as text to tell an older file from a newer one."""
    revisions = [script.revision for script in ScriptDirectory.from_config(config(Path("unused"))).walk_revisions()]

    assert sorted(revisions, reverse=True) == revisions
    assert {4} == {len(revision) for revision in revisions}


def test_a_developer_can_run_alembic_from_the_checkout(path: Path) -> None:
    command_line = [sys.executable, "-m", "alembic", "-x", f"path={path}", "upgrade", "head"]

    done = subprocess.run(command_line, cwd=ROOT, capture_output=True, text=True, check=False)

    assert 0 == done.returncode, done.stderr
    assert [("0001",)] == look(path, "SELECT version_num FROM alembic_version")


def test_migrating_twice_changes_nothing(path: Path) -> None:
    command.upgrade(config(path), "head")
    before = shape(path)

    command.upgrade(config(path), "head")

    assert before == shape(path)


def test_a_migration_that_breaks_leaves_the_file_as_it_was(path: Path) -> None:
    connection_made = look(path, "SELECT 1")
    force(path, "CREATE TABLE contents (in_the_way)")

    with pytest.raises(Exception, match="table contents already exists"):
        command.upgrade(config(path), "head")

    assert [(1,)] == connection_made
    assert [("contents",)] == look(path, "SELECT name FROM sqlite_master WHERE type = 'table'")


async def test_a_file_that_has_lost_its_mode_gets_it_back(tmp_path: Path, path: Path) -> None:
    async with opened(path) as store:
        await store.append(Scribe().notes("a", 1))
    copy = tmp_path / "copy.db"
    look(path, f"VACUUM INTO '{copy}'")
    assert [("delete",)] == look(copy, "PRAGMA journal_mode")

    async with opened(copy) as store:
        await store.append(Scribe().notes("a", 1))
        assert (await store.verify()).problem is None

    assert [("wal",)] == look(copy, "PRAGMA journal_mode")


# ------------------------------------------------------------------ read models of other releases


class Newer(Calls):
    version = Calls.version + 1


async def record(path: Path, turns: int = 3) -> dict[str, Any]:
    scribe = Scribe()
    async with opened(path) as store:
        for n in range(turns):
            await store.append([scribe.session(f"s{n}"), *scribe.turn(f"s{n}")], contents=["Why is the sky blue?"])
    return read_models(path)


async def test_an_outdated_read_model_is_folded_anew_at_the_next_start(path: Path) -> None:
    before = await record(path)
    force(
        path,
        "UPDATE projections SET version = 0 WHERE name = 'calls'",
        "DROP TABLE attempts",
        "CREATE TABLE attempts (x)",
    )

    async with opened(path):
        pass

    assert before == read_models(path)


async def test_a_missing_read_model_is_folded_at_the_next_start(path: Path) -> None:
    before = await record(path)
    force(path, "DELETE FROM projections WHERE name = 'usage'", "DROP TABLE usage")

    async with opened(path):
        pass

    assert before == read_models(path)


@pytest.mark.parametrize("lost", ["TABLE attempts", "TABLE steps", "TABLE search_index", "VIEW search_texts"])
async def test_a_table_of_a_read_model_that_somebody_dropped_is_folded_at_the_next_start(path: Path, lost: str) -> None:
    before = await record(path, 1)
    force(path, f"DROP {lost}")

    async with opened(path) as store:
        await store.rebuild()

    assert before == read_models(path)


async def test_a_read_model_that_lags_catches_up_at_the_next_start(path: Path) -> None:
    """As when a release that didn't have it appended meanwhile."""
    await record(path, 1)
    scribe = Scribe()
    async with EventStore.open(path, Projections([UsageProjection(), Blocks()])) as store:
        await store.append([scribe.session("late"), *scribe.turn("late")])
    positions = dict(look(path, "SELECT name, position FROM projections"))
    assert (16, 8) == (positions["blocks"], positions["calls"])

    async with opened(path) as store:
        before = read_models(path)
        assert {16} == {position for _, _, position in before["projections"]}
        await store.rebuild()

    assert before == read_models(path)
    assert 2 == len(before["attempts"])


async def test_a_release_without_a_projection_leaves_it_alone_and_another_catches_up_while_it_runs(path: Path) -> None:
    """What lags is not folded out of order by who appends next, only at a start."""
    await record(path, 1)
    scribe = Scribe()
    async with opened(path) as full, EventStore.open(path, Projections([Blocks()])) as without:
        await without.append(scribe.turn("s0"))
        await full.append(scribe.turn("s0"))
    positions = dict(look(path, "SELECT name, position FROM projections"))
    assert (22, 8) == (positions.pop("blocks"), *set(positions.values()))

    async with opened(path) as store:
        before = read_models(path)
        await store.rebuild()

    assert before == read_models(path)
    assert 3 == len(before["attempts"])


async def test_a_newer_read_model_is_refused_and_left_alone(path: Path) -> None:
    await record(path)
    force(path, "UPDATE projections SET version = version + 1 WHERE name = 'calls'")
    before = read_models(path)

    with pytest.raises(StoreTooNew, match="read model 'calls' was made by a newer version of timeline: update"):
        async with opened(path):
            pass

    assert before == read_models(path)


async def test_an_older_release_that_still_runs_when_a_newer_one_starts_can_not_spoil_its_read_models(
    path: Path,
) -> None:
    await record(path, 1)
    async with opened(path) as old:
        async with EventStore.open(path, Projections([Newer(), UsageProjection(), Blocks()])):
            pass

        with pytest.raises(StoreTooNew, match="another release of timeline took over the read model 'calls'"):
            await old.append(Scribe().notes("a", 1))
        with pytest.raises(StoreTooNew, match="newer version"):
            await old.rebuild()
        assert (await old.verify()).problem is None

    assert [(Newer.version, 8)] == look(path, "SELECT version, position FROM projections WHERE name = 'calls'")
    async with EventStore.open(path, Projections([Newer(), UsageProjection(), Blocks()])) as new:
        assert 9 == (await new.append(Scribe().notes("a", 1)))[0].position


async def test_the_next_release_folds_its_own_version_of_a_read_model(path: Path) -> None:
    newer = Projections([Newer(), UsageProjection(), Blocks()])
    before = await record(path)

    async with EventStore.open(path, newer) as store:
        assert await store.query(newer.is_current)

    after = read_models(path)
    expected = {(item.name, item.version, 24) for item in (Blocks, Newer, UsageProjection)}
    assert expected <= set(after.pop("projections"))
    assert after == {name: rows for name, rows in before.items() if name != "projections"}


class FollowsCalls(Projection):
    """Counts the attempts that the calls' table shows at each end: it can't be right out of step with it."""

    name = "follows"
    version = 1
    reads = ("calls",)
    counts = Table("follows", MetaData(), Column("position", Integer, primary_key=True), Column("seen", Integer))
    tables = (counts,)

    def apply(self, conn: Connection, event: Event) -> None:
        if event.type == "response.completed":
            seen = conn.execute(select(func.count()).select_from(attempts)).scalar_one()
            conn.execute(insert(self.counts).values(position=event.position, seen=seen))


async def test_a_read_model_that_reads_another_is_folded_in_step_with_it(path: Path) -> None:
    await record(path, 2)
    both = Projections([Calls(), FollowsCalls()])
    seen = "SELECT seen FROM follows ORDER BY position"

    async with EventStore.open(path, both) as store:
        assert [1, 2] == [row[0] for row in look(path, seen)]
        await store.append(Scribe().turn("s0"))
        assert ["calls", "follows"] == await store.rebuild(["follows"])
        assert [1, 2, 3] == [row[0] for row in look(path, seen)]

    async with opened(path) as without:
        await without.append(Scribe().turn("s0"))
    async with EventStore.open(path, both):
        assert [1, 2, 3, 4] == [row[0] for row in look(path, seen)]


async def test_a_log_whose_end_is_gone_takes_no_more_until_the_user_decides(path: Path) -> None:
    """The read models remember having seen more."""
    await record(path, 2)
    force(path, "DELETE FROM events WHERE position > 12")

    async with opened(path) as store:
        found = await store.verify()
        assert (13, "the log ends at 12, but events up to 16 were recorded: its end is gone") == (
            found.position,
            found.problem,
        )
        with pytest.raises(
            StoreDamaged, match=r"the log ended at 12, but the read model .* has seen 16: restore a backup"
        ):
            await store.append(Scribe().notes("b", 1))
        assert 12 == len([event async for event in store.read()])
        await store.rebuild()
        assert (await store.verify()).problem is None
        assert 13 == (await store.append(Scribe().notes("b", 1)))[0].position


def test_the_package_ships_its_migrations() -> None:
    import timeline_migrations.versions

    names = {part.name for part in Path(timeline_migrations.versions.__file__).parent.glob("0*.py")}
    assert {f"{schema.HEAD}_initial.py"} <= names
