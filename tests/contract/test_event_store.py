"""What every event store promises to who appends and reads, however its file came to be."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import Connection, select, text
from support.stores import Scribe, every_event, look, opened, projections

from timeline import events as e
from timeline.errors import IdempotencyConflict, StoreError, StoreReadOnly, VersionConflict
from timeline.events import NewEvent
from timeline.projections.blocks import sessions
from timeline.store import EventStore, content_digest


class EventStoreContract:
    """Subclass it, and say in `open` how the store comes to be."""

    @asynccontextmanager
    async def open(self, path: Path) -> AsyncIterator[EventStore]:
        async with opened(path) as store:
            yield store

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "timeline.db"

    @pytest.fixture
    async def store(self, path: Path) -> AsyncIterator[EventStore]:
        async with self.open(path) as store:
            yield store

    @pytest.fixture
    def scribe(self) -> Scribe:
        return Scribe()

    # -------------------------------------------------------------- appending and reading

    async def test_what_is_appended_is_read_back_as_it_was_returned(self, store: EventStore, scribe: Scribe) -> None:
        new = [
            scribe.event("s", data, turn_id=f"t{n}", step_id=f"s{n}", call_id=f"c{n}")
            for n, data in enumerate(every_event())
        ]

        returned = await store.append(new)

        assert returned == [event async for event in store.read()]
        assert [event.data for event in new] == [event.data for event in returned]
        for given, kept in zip(new, returned, strict=True):
            assert (given.event_id, given.session_id, given.recorded_at) == (
                kept.event_id,
                kept.session_id,
                kept.recorded_at,
            )
            assert (given.turn_id, given.step_id, given.call_id) == (kept.turn_id, kept.step_id, kept.call_id)
            assert (given.data.type, given.data.v) == (kept.type, kept.v)

    async def test_positions_are_gapless_over_all_and_versions_within_a_session(
        self, store: EventStore, scribe: Scribe
    ) -> None:
        for round_ in range(3):
            for session in ("a", "b", "a"):
                await store.append(scribe.notes(session, round_ + 1))

        kept = [event async for event in store.read()]
        assert list(range(1, 19)) == [event.position for event in kept]
        for session, count in (("a", 12), ("b", 6)):
            assert list(range(1, count + 1)) == [event.version for event in kept if event.session_id == session]

    async def test_a_batch_may_span_sessions(self, store: EventStore, scribe: Scribe) -> None:
        kept = await store.append([*scribe.notes("a", 2), *scribe.notes("b", 1), *scribe.notes("a", 1)])

        assert [("a", 1), ("a", 2), ("b", 1), ("a", 3)] == [(event.session_id, event.version) for event in kept]

    async def test_an_empty_batch_writes_nothing(self, store: EventStore) -> None:
        assert [] == await store.append([])
        assert 0 == (await store.stats()).events

    async def test_reading_is_limited_by_session_call_and_position(self, store: EventStore, scribe: Scribe) -> None:
        await store.append([scribe.event("a", e.SessionRenamed(str(n)), call_id="c") for n in range(4)])
        await store.append(scribe.notes("b", 3))

        async def positions(**limits: object) -> list[int]:
            return [event.position async for event in store.read(**limits)]  # type: ignore[arg-type]

        assert [1, 2, 3, 4] == await positions(session_id="a")
        assert [5, 6, 7] == await positions(session_id="b")
        assert [] == await positions(session_id="c")
        assert [1, 2, 3, 4] == await positions(call_id="c")
        assert [3, 4, 5] == await positions(after=2, until=5)
        assert [4] == await positions(session_id="a", after=3)

    async def test_reading_goes_over_pages(self, store: EventStore, scribe: Scribe) -> None:
        await store.append(scribe.notes("a", 2000))
        await store.append(scribe.notes("b", 501))

        assert list(range(1, 2502)) == [event.position async for event in store.read()]
        assert 2000 == len([event async for event in store.read(session_id="a")])

    async def test_the_data_in_the_file_is_json_that_people_can_read(
        self, store: EventStore, path: Path, scribe: Scribe
    ) -> None:
        await store.append([scribe.event("a", e.SessionRenamed("Blaue Stunde"))])

        assert [("session.renamed", "Blaue Stunde")] == look(path, "SELECT type, data ->> 'title' FROM events")

    # -------------------------------------------------------------- expected version

    async def test_an_append_at_the_expected_version_succeeds(self, store: EventStore, scribe: Scribe) -> None:
        await store.append(scribe.notes("a", 1), expected_version=0)
        await store.append(scribe.notes("a", 2), expected_version=1)

        assert 3 == (await store.append(scribe.notes("a", 1), expected_version=3))[0].version - 1

    @pytest.mark.parametrize("expected", [0, 1, 3])
    async def test_an_append_at_another_version_is_refused_whole(
        self, store: EventStore, scribe: Scribe, expected: int
    ) -> None:
        await store.append(scribe.notes("a", 2))

        with pytest.raises(VersionConflict, match=rf"session a is at version 2, not {expected}: .* read it again"):
            await store.append(scribe.notes("a", 2), contents=["a body"], expected_version=expected)

        assert 2 == (await store.stats()).events
        assert {} == await store.contents([content_digest("a body")])

    async def test_of_two_appends_that_expect_the_same_version_one_wins(
        self, store: EventStore, scribe: Scribe
    ) -> None:
        outcomes = await asyncio.gather(
            *(store.append(scribe.notes("a", 1), expected_version=0) for _ in range(5)), return_exceptions=True
        )

        assert [True] + [False] * 4 == [not isinstance(outcome, VersionConflict) for outcome in outcomes]
        assert 1 == (await store.stats()).events

    # -------------------------------------------------------------- idempotency

    async def test_the_same_event_twice_is_recorded_once(self, store: EventStore, scribe: Scribe) -> None:
        batch = [scribe.session("a", "title"), *scribe.notes("a", 2)]

        first = await store.append(batch, expected_version=0)
        again = await store.append(batch, expected_version=0)

        assert first == again
        assert 3 == (await store.stats()).events

    async def test_a_repeated_batch_comes_back_in_its_own_order(self, store: EventStore, scribe: Scribe) -> None:
        batch = scribe.notes("a", 5)[::-1]
        first = await store.append(batch)

        assert first == await store.append(batch)
        assert first[::-1] == await store.append(batch[::-1])

    async def test_the_same_event_twice_in_one_group_is_recorded_once(self, store: EventStore, scribe: Scribe) -> None:
        batch = scribe.notes("a", 2)

        first, again = await asyncio.gather(store.append(batch), store.append(batch))

        assert first == again
        assert 2 == (await store.stats()).events

    async def test_a_repeated_batch_does_not_write_its_contents_again(self, store: EventStore, scribe: Scribe) -> None:
        batch = scribe.notes("a", 1)
        await store.append(batch)

        await store.append(batch, contents=["late"])

        assert {} == await store.contents([content_digest("late")])

    @pytest.mark.parametrize("change", ["data", "session", "type", "turn", "step", "call"])
    async def test_an_id_stands_for_one_fact(self, store: EventStore, scribe: Scribe, change: str) -> None:
        known = scribe.event("a", e.SessionRenamed("one"), turn_id="t", step_id="s", call_id="c")
        await store.append([known])
        other = {
            "data": {"data": e.SessionRenamed("two")},
            "session": {"session_id": "b"},
            "type": {"data": e.SessionForked("one", 1)},
            "turn": {"turn_id": "other"},
            "step": {"step_id": None},
            "call": {"call_id": "other"},
        }[change]
        fields = {name: getattr(known, name) for name in NewEvent.__struct_fields__} | other

        with pytest.raises(IdempotencyConflict, match=f"event {known.event_id} is recorded with another body"):
            await store.append([NewEvent(**fields)])

        assert 1 == (await store.stats()).events

    async def test_a_batch_of_which_a_part_is_recorded_is_refused_whole(
        self, store: EventStore, scribe: Scribe
    ) -> None:
        known, new = scribe.notes("a", 1), scribe.notes("a", 1)
        await store.append(known)

        with pytest.raises(IdempotencyConflict, match="a part of the batch is recorded already"):
            await store.append([*known, *new])

        assert 1 == (await store.stats()).events

    async def test_an_id_twice_in_one_batch_is_refused(self, store: EventStore, scribe: Scribe) -> None:
        (event,) = scribe.notes("a", 1)

        with pytest.raises(IdempotencyConflict, match="stands twice in one batch"):
            await store.append([event, event])

        assert 0 == (await store.stats()).events

    # -------------------------------------------------------------- contents

    async def test_a_body_is_stored_once(self, store: EventStore, path: Path, scribe: Scribe) -> None:
        for session in ("a", "b"):
            await store.append(scribe.notes(session, 1), contents=["the same words", "the same words", f"of {session}"])

        assert 3 == (await store.stats()).contents
        digest = content_digest("the same words")
        assert {digest: "the same words"} == await store.contents([digest])
        assert [("text",)] == look(path, "SELECT typeof(body) FROM contents WHERE digest = ?", digest)

    @pytest.mark.parametrize("body", ["", "ü\u2028\U0001f600", "a\x00b", b"", b"\x00\xff", "x" * 3_000_000])
    async def test_bodies_come_back_as_they_were(self, store: EventStore, scribe: Scribe, body: str | bytes) -> None:
        await store.append(scribe.notes("a", 1), contents=[body])

        assert {content_digest(body): body} == await store.contents([content_digest(body), "unknown"])

    async def test_the_same_bytes_may_come_as_text_and_as_bytes(self, store: EventStore, scribe: Scribe) -> None:
        await store.append(scribe.notes("a", 1), contents=["word"])
        await store.append(scribe.notes("a", 1), contents=[b"word"])

        assert 1 == (await store.stats()).contents
        assert (await store.verify()).problem is None

    async def test_any_number_of_bodies_is_read_at_once(self, store: EventStore, scribe: Scribe) -> None:
        # One more than a statement of SQLite's takes values: https://sqlite.org/limits.html#max_variable_number
        bodies = [f"body {n}" for n in range(32_767)]
        await store.append(scribe.notes("a", 1), contents=bodies)

        assert len(bodies) == len(await store.contents(map(content_digest, bodies)))

    # -------------------------------------------------------------- groups

    async def test_many_appends_share_few_transactions(self, store: EventStore, path: Path, scribe: Scribe) -> None:
        await store.append(scribe.notes("a", 1))
        before = transactions(path)

        appended = await asyncio.gather(*(store.append(scribe.notes("a", 1)) for _ in range(400)))

        assert list(range(2, 402)) == [event.position for (event,) in appended]
        assert transactions(path) - before <= 3

    async def test_what_is_enqueued_first_is_committed_first(self, store: EventStore, scribe: Scribe) -> None:
        batches = [scribe.notes(f"session {n % 7}", 1 + n % 3) for n in range(100)]

        futures = [store.enqueue(batch) for batch in batches]

        committed = [event.event_id for future in futures for event in await future]
        assert [event.event_id for batch in batches for event in batch] == committed
        assert committed == [event.event_id async for event in store.read()]

    @pytest.mark.parametrize("together", [True, False], ids=["a group", "each alone"])
    async def test_a_batch_that_is_refused_does_not_spoil_its_group(
        self, store: EventStore, scribe: Scribe, together: bool
    ) -> None:
        """Of one group, and one after the other: a conflict, a text that is none, a decision that breaks, one that wrote first and breaks."""

        def breaks(_: Connection) -> list[NewEvent]:
            raise ZeroDivisionError

        def writes_and_breaks(conn: Connection) -> list[NewEvent]:
            conn.execute(text("INSERT INTO contents VALUES ('digest', 'never')"))
            raise IdempotencyConflict("on second thoughts")

        batches = (
            store.append(scribe.notes("a", 1), contents=["one"]),
            store.append(scribe.notes("a", 1), contents=["two"], expected_version=7),
            store.append(scribe.notes("a", 1)),
            store.append([*scribe.notes("a", 1), scribe.event("a", e.SessionRenamed("\ud800"))], contents=["three"]),
            store.append_when(breaks, contents=["four"]),
            store.append_when(writes_and_breaks),
            store.append(scribe.notes("a", 1)),
        )
        if together:
            outcomes = await asyncio.gather(*batches, return_exceptions=True)
        else:
            outcomes = [(await asyncio.gather(batch, return_exceptions=True))[0] for batch in batches]

        assert [1, VersionConflict, 2, UnicodeEncodeError, ZeroDivisionError, IdempotencyConflict, 3] == [
            outcome[0].position if isinstance(outcome, list) else type(outcome) for outcome in outcomes
        ]
        assert 3 == (await store.stats()).events
        assert 1 == (await store.stats()).contents
        assert (await store.verify()).problem is None

    # -------------------------------------------------------------- deciding inside the transaction

    async def test_a_decision_sees_what_was_enqueued_before_it(self, store: EventStore, scribe: Scribe) -> None:
        first = store.enqueue([scribe.session("a", "title")])

        def decide(conn: Connection) -> list[NewEvent]:
            assert ["a"] == list(conn.execute(select(sessions.c.session_id)).scalars())
            return scribe.notes("a", 1)

        assert [2] == [event.position for event in await store.append_when(decide)]
        assert [1] == [event.position for event in await first]

    async def test_a_decision_may_be_to_append_nothing(self, store: EventStore) -> None:
        assert [] == await store.append_when(lambda _: [])

    async def test_of_many_decisions_at_once_only_one_takes_the_last_slot(
        self, store: EventStore, scribe: Scribe
    ) -> None:
        def take(conn: Connection) -> list[NewEvent]:
            taken = conn.execute(text("SELECT count(*) FROM sessions")).scalar_one()
            return [scribe.session(f"slot {taken}")] if taken < 3 else []

        outcomes = await asyncio.gather(*(store.append_when(take) for _ in range(20)))

        assert 3 == sum(map(len, outcomes))

    # -------------------------------------------------------------- cancellation and closing

    async def test_a_cancelled_append_is_recorded_all_the_same(self, store: EventStore, scribe: Scribe) -> None:
        task = asyncio.create_task(store.append(scribe.notes("a", 1)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

        (event,) = await store.append(scribe.notes("a", 1))

        assert 2 == event.position

    async def test_closing_commits_what_is_in_line(self, path: Path, scribe: Scribe) -> None:
        async with self.open(path) as store:
            futures = [store.enqueue(scribe.notes("a", 3)) for _ in range(200)]

        assert all(future.done() for future in futures)
        assert [(600,)] == look(path, "SELECT count(*) FROM events")

    async def test_closing_that_is_cancelled_again_and_again_commits_what_is_in_line(
        self, path: Path, scribe: Scribe
    ) -> None:
        async def appending() -> None:
            async with self.open(path) as store:
                for _ in range(200):
                    store.enqueue(scribe.notes("a", 3))
                inside.set()
                await asyncio.sleep(60)

        inside = asyncio.Event()
        task = asyncio.create_task(appending())
        await inside.wait()
        for _ in range(5):
            task.cancel()
            await asyncio.sleep(0.001)
        with pytest.raises(asyncio.CancelledError):
            await task

        assert [(600,)] == look(path, "SELECT count(*) FROM events")

    async def test_a_closed_store_takes_no_more(self, path: Path, scribe: Scribe) -> None:
        async with self.open(path) as store:
            pass

        with pytest.raises(StoreError, match="is closed: open it again to append"):
            await store.append(scribe.notes("a", 1))

    async def test_queries_that_are_cancelled_leave_the_store_usable(self, store: EventStore, scribe: Scribe) -> None:
        await store.append(scribe.notes("a", 500))

        for pause in (0, 0, 0.001, 0.002, 0.004):
            tasks = [asyncio.create_task(store.query(lambda conn: len(slow(conn)))) for _ in range(8)]
            await asyncio.sleep(pause)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        assert 500 == len([event async for event in store.read()])

    # -------------------------------------------------------------- readers

    async def test_a_query_can_not_write(self, store: EventStore) -> None:
        with pytest.raises(StoreReadOnly):
            await store.query(lambda conn: conn.execute(text("INSERT INTO contents VALUES ('a', 'b')")))

    async def test_a_query_sees_one_moment(self, store: EventStore, scribe: Scribe) -> None:
        await store.append(scribe.notes("a", 1))
        loop = asyncio.get_running_loop()

        def twice(conn: Connection) -> tuple[int, int]:
            first = conn.execute(text("SELECT count(*) FROM events")).scalar_one()
            return first, conn.execute(text("SELECT count(*) FROM events")).scalar_one()

        appends = [loop.create_task(store.append(scribe.notes("a", 1))) for _ in range(50)]
        counts = [await store.query(twice) for _ in range(20)]
        await asyncio.gather(*appends)

        assert all(first == second for first, second in counts)


def slow(conn: Connection) -> list[object]:
    return list(conn.execute(text("SELECT a.position FROM events a, events b WHERE b.position < 40")))


def transactions(path: Path) -> int:
    """Commits in the write-ahead log since it was emptied: a frame that ends one carries the file's size."""
    log = Path(f"{path}-wal").read_bytes()
    page = int.from_bytes(log[8:12])
    salt = log[16:24]
    frames = range(32, len(log) - 24 - page + 1, 24 + page)
    return sum(log[at + 8 : at + 16] == salt and log[at + 4 : at + 8] != b"\0\0\0\0" for at in frames)


class TestFreshStore(EventStoreContract):
    """A file that was made just now."""


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("migrated") / "timeline.db"
    migrate(path)
    return path


class TestMigratedStore(EventStoreContract):
    """A file that alembic made, revision by revision."""

    @pytest.fixture
    def path(self, migrated: Path, tmp_path: Path) -> Path:
        return Path(shutil.copy(migrated, tmp_path))


def migrate(path: Path) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "timeline_migrations:")
    config.attributes["path"] = path
    command.upgrade(config, "head")


class TestStoreWithoutProjections:
    """The log needs no read model."""

    async def test_it_appends_and_verifies(self, tmp_path: Path) -> None:
        from timeline.projections import Projections

        async with EventStore.open(tmp_path / "t.db", Projections([])) as store:
            kept = await store.append(Scribe().notes("a", 3))
            assert kept == [event async for event in store.read()]
            assert (await store.verify()).problem is None

        # A release with projections folds what it finds.
        async with EventStore.open(tmp_path / "t.db", projections()) as store:
            assert await store.query(projections().is_current)
