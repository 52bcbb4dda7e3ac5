"""Over random histories: what is folded inline, folded anew and folded for drawing is always the same."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.histories import Batch, History, histories, play
from support.stores import Scribe, every_event, look, opened, read_models

from timeline import events as e
from timeline.events import Event, NewEvent
from timeline.projections import Projection, Projections
from timeline.projections.blocks import Blocks, Session, fold
from timeline.projections.calls import Calls
from timeline.projections.search import Search
from timeline.projections.usage import UsageProjection, report
from timeline.store import EventStore


async def recorded(store: EventStore, batches: Sequence[Batch], scribe: Scribe) -> None:
    """Append the batches, several at a time as tasks would; forgetting comes between."""
    line: list[asyncio.Future[list[Event]]] = []
    for batch in batches:
        if batch.forget is not None:
            session = batch.forget
            await store.forget(session, lambda data, session=session: scribe.event(session, data))  # type: ignore[misc]
        else:
            line.append(store.enqueue(batch.events, contents=batch.contents))
    for future in line:
        await future


async def refolded(events: Sequence[Event], contents: Sequence[str] = ()) -> dict[str, list[tuple[Any, ...]]]:
    """The read models of a store that finds all the events, and their contents, at its first start."""
    new = [
        NewEvent(
            event.session_id,
            event.data,
            event.event_id,
            event.recorded_at,
            event.turn_id,
            event.step_id,
            event.call_id,
        )
        for event in events
        if event.data is not None
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "timeline.db"
        async with EventStore.open(path, Projections([])) as store:
            await store.append(new, contents=contents)
        async with opened(path):
            pass
        return read_models(path)


@settings(max_examples=25)
@given(histories)
def test_rebuild_is_byte_identical_to_what_was_folded_inline(history: History) -> None:
    scribe = Scribe()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "timeline.db"

        async def check() -> None:
            async with opened(path, synchronous="normal") as store:
                await recorded(store, play(history, scribe), scribe)
                inline = read_models(path)
                await store.rebuild()
                assert inline == read_models(path)
                assert (await store.verify()).problem is None
                events = [event async for event in store.read()]
            if all(event.data for event in events):
                bodies = [row[0] for row in look(path, "SELECT body FROM contents")]
                assert inline == await refolded(events, bodies)

        asyncio.run(check())


@settings(max_examples=20)
@given(histories)
def test_what_is_drawn_is_what_the_tables_say(history: History) -> None:
    scribe = Scribe()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "timeline.db"

        async def play_it() -> list[Event]:
            async with opened(path, synchronous="normal") as store:
                await recorded(store, play(history, scribe), scribe)
                return [event async for event in store.read()]

        events = asyncio.run(play_it())
        ids = [row[0] for row in look(path, "SELECT session_id FROM sessions ORDER BY 1")]
        assert sorted({event.session_id for event in events if event.type != "session.redacted"}) == ids
        for id_ in ids:
            session = fold(event for event in events if event.session_id == id_)
            assert tables(path, id_) == drawn(session)


def tables(path: Path, session: str) -> list[object]:
    """What the read models know of a session, in the shape of `drawn`."""
    (head,) = look(path, "SELECT session_id, title, started_at, turns FROM sessions WHERE session_id = ?", session)
    turns = look(
        path,
        "SELECT turn_id, number, state, started_at, duration_us, answer_call, reason FROM turns WHERE session_id = ?"
        " ORDER BY number",
        session,
    )
    steps = look(
        path,
        "SELECT step_id, turn_id, kind, s.number, s.state, s.duration_us FROM steps s JOIN turns t USING (turn_id)"
        " WHERE session_id = ? ORDER BY s.rowid",
        session,
    )
    attempts = look(
        path,
        "SELECT a.call_id, a.attempt, step_id, provider, model, state, reason, duration_us, time_to_first_token_us,"
        " input, cache_read, cache_write, cache_write_1h, output, reasoning, cost_state, nano_usd"
        " FROM attempts a LEFT JOIN usage u ON u.call_id = a.call_id AND u.attempt = a.attempt"
        " WHERE session_id = ? ORDER BY first_position",
        session,
    )
    return [head, turns, steps, attempts]


def drawn(session: Session) -> list[object]:
    """The part of the drawn session that the read models know, too."""
    head = (session.session_id, session.title, session.started_at, len(session.turns))
    turns = [
        (
            turn.turn_id,
            number,
            turn.state,
            turn.started_at,
            turn.duration_us,
            turn.answer_call,
            turn.error.kind if turn.error else turn.reason,
        )
        for number, turn in enumerate(session.turns, 1)
    ]
    steps = [
        (step.step_id, turn.turn_id, step.kind, step.index, step.state, step.duration_us)
        for turn in session.turns
        for step in turn.steps
    ]
    attempts = []
    for step in (step for turn in session.turns for step in turn.steps):
        # What was read again is no attempt of its own: it asked nobody.
        for attempt in (item for item in step.attempts if item.source_call is None):
            usage = attempt.usage
            counters = [usage and getattr(usage, name) for name in e.Usage.__struct_fields__]
            cost = [attempt.cost.state, attempt.cost.nano_usd] if attempt.cost else ["unpriced", None]
            reason = attempt.finish_reason or (attempt.error.kind if attempt.error else attempt.reason)
            row = [
                attempt.call_id,
                attempt.number,
                step.step_id,
                attempt.provider,
                attempt.model,
                attempt.state,
                reason,
            ]
            # Of what broke off, the table has `first_at`.
            first = attempt.time_to_first_token_us if attempt.state == "completed" else None
            times = [attempt.duration_us, first]
            attempts.append((*row, *times, *counters, *(cost if usage else [None, None])))
    return [head, turns, steps, attempts]


@settings(max_examples=20)
@given(histories)
def test_sums_over_steps_calls_and_reports_are_the_events_own_numbers(history: History) -> None:
    scribe = Scribe()
    batches = play(history, scribe)
    told = e.Usage()
    nano_usd = failed = interrupted = 0
    for data in (event.data for batch in batches for event in batch.events):
        if isinstance(data, e.ResponseCompleted | e.CallFailed | e.CallInterrupted):
            failed += isinstance(data, e.CallFailed)
            interrupted += isinstance(data, e.CallInterrupted)
            if data.usage is not None:
                names = e.Usage.__struct_fields__
                told = e.Usage(**{name: getattr(told, name) + getattr(data.usage, name) for name in names})
                nano_usd += (data.cost.nano_usd if data.cost else None) or 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "timeline.db"

        async def check() -> None:
            async with opened(path, synchronous="normal") as store:
                await recorded(store, batches, scribe)
                for by in (None, "model", "provider", "session", "day", "month"):
                    rows = await store.query(lambda conn, by=by: report(conn, by))  # type: ignore[misc]

                    def total(name: str, rows: Any = rows) -> int:
                        return sum(getattr(row, name) for row in rows)

                    assert told.input == total("input")
                    assert told.cache_read == total("cache_read")
                    assert told.cache_write + told.cache_write_1h == total("cache_write")
                    assert (told.output, told.reasoning) == (total("output"), total("reasoning"))
                    assert (nano_usd, failed, interrupted) == (total("nano_usd"), total("failed"), total("interrupted"))
                    assert len(rows) == len({row.group for row in rows})
                events = [event async for event in store.read()]
            by_session = [fold(event for event in events if event.session_id == id_) for id_ in sessions(events)]
            steps = [step for session in by_session for turn in session.turns for step in turn.steps]
            for name in e.Usage.__struct_fields__:
                of_steps = sum(getattr(a.usage, name) for step in steps for a in step.attempts if a.usage)
                assert getattr(told, name) == of_steps

        asyncio.run(check())


def sessions(events: Sequence[Event]) -> list[str]:
    return sorted({event.session_id for event in events})


# ------------------------------------------------------------------ impossible histories


names = st.sampled_from(["a", "b", None])


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 25), st.sampled_from("ab"), names, names, names), max_size=40), st.randoms())
def test_no_order_of_events_stops_the_folds(shuffled: list[tuple[Any, ...]], rng: random.Random) -> None:
    """However a log came to be, it opens, and folds into the same each time."""
    scribe = Scribe()
    examples = every_event()
    events = [
        NewEvent(session, examples[which], scribe.clock.uuid7(), scribe.clock.now(), turn, step, call)
        for which, session, turn, step, call in shuffled
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "timeline.db"

        async def check() -> None:
            async with opened(path, synchronous="normal") as store:
                cut = rng.randint(0, len(events))
                await store.append(events[:cut])
                await store.append(events[cut:])
                inline = read_models(path)
                await store.rebuild()
                assert inline == read_models(path)
                kept = [event async for event in store.read()]
            for session in sessions(kept):
                fold(event for event in kept if event.session_id == session)
            assert inline == await refolded(kept)

        asyncio.run(check())


@pytest.mark.parametrize("projections", [[Calls()], [Calls(), UsageProjection()], [Blocks()], [Search()]])
async def test_a_projection_with_what_it_reads_is_folded_and_rebuilt(
    tmp_path: Path, projections: list[Projection]
) -> None:
    scribe = Scribe()
    path = tmp_path / "timeline.db"
    async with EventStore.open(path, Projections(projections)) as store:
        priced = scribe.turn("a", cost=e.Cost("priced", 5))
        await store.append(
            [scribe.session("a"), *priced, scribe.event("a", e.BudgetAlerted("b", "total", 5, 0, 9, 50))]
        )
        tables = [table.name for projection in projections for table in projection.tables]
        before = [await asyncio.to_thread(look, path, f"SELECT * FROM {name}") for name in tables]

        assert [projection.name for projection in projections] == await store.rebuild()

        assert before == [await asyncio.to_thread(look, path, f"SELECT * FROM {name}") for name in tables]
        assert all(before)
