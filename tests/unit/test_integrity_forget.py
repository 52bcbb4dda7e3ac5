"""What is forgotten is in no byte of the file any more; what it used and cost stays, and so does everybody else's."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest
from support.stores import OWNER, Scribe, all_bytes, look, opened, read_models

from timeline import events as e
from timeline.errors import StoreBusy
from timeline.events import EventData, NewEvent
from timeline.projections.blocks import fold
from timeline.projections.usage import report
from timeline.store import EventStore, content_digest

SECRET = "xyzzy"
"""Part of everything that is said in the session that is forgotten, and of nothing else."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "timeline.db"


def outspoken(scribe: Scribe, session: str, word: str) -> tuple[list[NewEvent], list[str]]:
    """A session in which every field that can hold words holds that word, and its bodies."""
    error = e.ErrorInfo("server", f"said {word}", 500, f"code {word}")
    usage, cost = e.Usage(input=7, output=3), e.Cost("priced", 1000)
    bodies = [f"{name} {word}" for name in ("prompt", "system", "file", "tools", "arguments", "result")]
    prompt, system, file, tools, arguments, result = map(content_digest, bodies)
    attachment = e.Attachment(f"{word}.txt", "text/plain", 3, file)
    messages = (e.MessageRef("system", system), e.MessageRef("user", prompt, None, (file,)))
    facts: list[tuple[EventData, dict[str, str]]] = [
        (e.SessionStarted("1", OWNER, f"title {word}"), {}),
        (e.SessionRenamed(f"renamed {word}"), {}),
        (e.TurnStarted("pipeline", OWNER, prompt, system, (attachment,)), {"turn_id": "t"}),
        (e.StepStarted("route"), {"turn_id": "t", "step_id": "s"}),
        (
            e.RequestSent(1, "openai", "gpt", "asked for", messages, OWNER, tools=tools),
            {"step_id": "s", "call_id": "c"},
        ),
        (e.ChunkReceived(0, (f"chunk {word}",), (1,)), {"call_id": "c"}),
        (e.CallFailed(1, error, 11, True, usage, "estimated", cost), {"call_id": "c"}),
        (e.CallRetryScheduled(1, 5, f"because {word}"), {"call_id": "c"}),
        (e.RequestSent(2, "openai", "gpt", "retry", messages, OWNER), {"step_id": "s", "call_id": "c"}),
        (e.CallFailed(2, error, 12), {"call_id": "c"}),
        (e.CallRerouted("openai:gpt", "groq:llama", f"because {word}"), {"call_id": "c"}),
        (e.RequestSent(3, "groq", "llama", "fallback", messages, OWNER), {"step_id": "s", "call_id": "c"}),
        (e.ChunkReceived(0, (f"more {word}",), (1,), attempt=3), {"call_id": "c"}),
        (e.ResponseAnnotated((e.Source(f"https://example.org/{word}", word),), f"because {word}", 3), {"call_id": "c"}),
        (e.ResponseCompleted(3, "stop", usage, "provider", cost, 13), {"call_id": "c"}),
        (e.StepCompleted(14, {"route": word}, f"because {word}"), {"step_id": "s"}),
        (e.StepStarted("tool", 1), {"turn_id": "t", "step_id": "s2"}),
        (e.ToolCalled("calculator", "id", arguments), {"step_id": "s2"}),
        (e.ToolReturned("calculator", "id", 15, result), {"step_id": "s2"}),
        (e.ToolFailed("calculator", "id", 16, error), {"step_id": "s2"}),
        (e.StepFailed(error, 17), {"step_id": "s2"}),
        (e.TurnFailed(error, 18), {"turn_id": "t"}),
    ]
    ids = {name: f"{name} of {session}" for name in ("t", "s", "s2", "c")}
    return [
        scribe.event(session, fact, **{name: ids[value] for name, value in parts.items()}) for fact, parts in facts
    ], bodies


async def forget(store: EventStore, session: str, **how: float) -> int:
    scribe = Scribe()
    return await store.forget(session, lambda data: scribe.event(session, data), **how)


async def totals(store: EventStore) -> list[object]:
    return [await store.query(lambda conn, by=by: report(conn, by)) for by in ("model", "session", "day", None)]  # type: ignore[misc,arg-type]


async def test_nothing_that_was_said_is_in_any_byte_of_the_file(path: Path) -> None:
    scribe = Scribe()
    async with opened(path) as store:
        for session, word in (("kept", "plugh"), ("gone", SECRET)):
            events, bodies = outspoken(scribe, session, word)
            await store.append(events, contents=bodies)
        await store.append(scribe.notes("kept", 2000))
        assert all_bytes(path).count(SECRET.encode()) > 20

        assert 16 == await forget(store, "gone")

        # While the store is open: the file, the write-ahead log, all beside it.
        assert 0 == all_bytes(path).count(SECRET.encode())
        assert b"plugh" in all_bytes(path)
        assert (await store.verify()).problem is None
    assert 0 == all_bytes(path).count(SECRET.encode())


async def test_totals_stay_and_read_models_can_be_folded_anew(path: Path) -> None:
    scribe = Scribe()
    async with opened(path) as store:
        events, bodies = outspoken(scribe, "gone", SECRET)
        await store.append(events, contents=bodies)
        before = await totals(store)

        await forget(store, "gone")

        assert before == await totals(store)
        models = await asyncio.to_thread(read_models, path)
        await store.rebuild()
        assert models == await asyncio.to_thread(read_models, path)
        attempts = await asyncio.to_thread(
            look, path, "SELECT attempt, state, reason, duration_us FROM attempts ORDER BY 1"
        )
        assert [(1, "failed", "server", 11), (2, "failed", "server", 12), (3, "completed", "stop", 13)] == attempts
        assert [("failed",)] == await asyncio.to_thread(look, path, "SELECT state FROM turns")
        assert [("completed",), ("failed",)] == await asyncio.to_thread(
            look, path, "SELECT state FROM steps ORDER BY 1"
        )
        assert [(None,)] == await asyncio.to_thread(look, path, "SELECT title FROM sessions")


async def test_what_is_left_of_a_session_can_still_be_drawn(path: Path) -> None:
    scribe = Scribe()
    async with opened(path) as store:
        events, bodies = outspoken(scribe, "gone", SECRET)
        await store.append(events, contents=bodies)
        await forget(store, "gone")

        session = fold([event async for event in store.read(session_id="gone")])

    assert (None, events[0].recorded_at) == (session.title, session.started_at)
    (turn,) = session.turns
    assert ("failed", None, None, ()) == (turn.state, turn.prompt, turn.system, turn.attachments)
    assert ["completed", "failed"] == [step.state for step in turn.steps]
    first, second, third = turn.steps[0].attempts
    assert ["failed", "failed", "completed"] == [first.state, second.state, third.state]
    assert [e.Usage(input=7, output=3), None] == [first.usage, second.usage]
    assert ["server", "server"] == [attempt.error.kind for attempt in (first, second) if attempt.error]
    assert [[], [], []] == [attempt.fragments for attempt in (first, second, third)]


async def test_a_body_that_another_session_shares_stays(path: Path) -> None:
    scribe = Scribe()
    shared, own = "Why is the sky blue?", "Nobody else asked this"
    async with opened(path) as store:
        await store.append([scribe.session("a"), *scribe.turn("a", prompt=shared)], contents=[shared])
        await store.append([scribe.session("b"), *scribe.turn("b", prompt=shared)], contents=[shared])
        await store.append(scribe.turn("a", prompt=own), contents=[own])

        await forget(store, "a")
        assert {content_digest(shared): shared} == await store.contents(map(content_digest, [shared, own]))
        assert (await store.verify()).problem is None

        await forget(store, "b")
        assert {} == await store.contents(map(content_digest, [shared, own]))
        assert (await store.verify()).problem is None
    assert b"sky blue" not in all_bytes(path)


async def test_an_answer_in_the_same_words_elsewhere_does_not_keep_a_prompt(path: Path) -> None:
    """Its digest stands in the other session's `response.completed`, which is no reference to a body."""
    scribe = Scribe()
    usage, cost = e.Usage(), e.Cost("free")
    same = e.ResponseCompleted(1, "stop", usage, "none", cost, 1, text_digest=content_digest(SECRET))
    async with opened(path) as store:
        await store.append([scribe.session("a"), *scribe.turn("a", prompt=SECRET)], contents=[SECRET])
        await store.append([scribe.event("b", same, call_id="c")])

        await forget(store, "a")

        assert {} == await store.contents([content_digest(SECRET)])
    assert SECRET.encode() not in all_bytes(path)


async def test_words_said_again_elsewhere_after_forgetting_are_recorded_again(path: Path) -> None:
    scribe = Scribe()
    async with opened(path) as store:
        await store.append([scribe.session("a"), *scribe.turn("a", prompt=SECRET)], contents=[SECRET])
        await forget(store, "a")
        await store.append([scribe.session("b"), *scribe.turn("b", prompt=SECRET)], contents=[SECRET])

        assert {content_digest(SECRET): SECRET} == await store.contents([content_digest(SECRET)])
        # The forgotten session's requests still refer to it; it belongs to the other one.
        assert 2 == await forget(store, "b")
        assert {} == await store.contents([content_digest(SECRET)])


async def test_forgetting_twice_forgets_what_was_said_in_between(path: Path) -> None:
    scribe = Scribe()
    async with opened(path) as store:
        await store.append([scribe.session("a", SECRET), *scribe.turn("a", prompt=SECRET)], contents=[SECRET])
        assert [3, 0] == [await forget(store, "a"), await forget(store, "a")]
        await store.append(scribe.turn("a", prompt=SECRET), contents=[SECRET])

        assert 2 == await forget(store, "a")

        assert (await store.verify()).problem is None
        assert [3, 0, 2] == [
            event.data.events async for event in store.read() if isinstance(event.data, e.SessionRedacted)
        ]
    assert SECRET.encode() not in all_bytes(path)


async def test_a_repeated_append_does_not_bring_back_what_was_forgotten(path: Path) -> None:
    scribe = Scribe()
    events = [scribe.session("a", SECRET), *scribe.turn("a", prompt=SECRET)]
    async with opened(path) as store:
        await store.append(events, contents=[SECRET])
        await forget(store, "a")

        again = await store.append(events, contents=[SECRET])

        assert list(range(1, 9)) == [event.position for event in again]
        assert 3 == sum(event.data is None for event in again)
        assert {} == await store.contents([content_digest(SECRET)])
    assert SECRET.encode() not in all_bytes(path)


async def test_a_session_without_words_has_nothing_to_forget(path: Path) -> None:
    scribe = Scribe()
    async with opened(path) as store:
        await store.append([scribe.session("a"), *scribe.notes("a", 3)])

        assert 0 == await forget(store, "a")

        assert 5 == (await store.stats()).events
        assert (await store.verify()).problem is None


async def test_forgetting_while_others_append(path: Path) -> None:
    scribe = Scribe()
    async with opened(path) as store, opened(path) as other:
        await store.append([scribe.session("gone", SECRET), *scribe.turn("gone", prompt=SECRET)], contents=[SECRET])
        done = asyncio.Event()

        async def chatter() -> int:
            count = 0
            while not done.is_set():
                await other.append(scribe.turn("kept"), contents=["Why is the sky blue?"])
                count += 7
            return count

        chattering = asyncio.create_task(chatter())
        await forget(store, "gone")
        done.set()
        count = await chattering

        assert count > 0
        assert 9 + count == (await store.verify()).events
        assert (await store.verify()).problem is None
        assert SECRET.encode() not in all_bytes(path)
        models = await asyncio.to_thread(read_models, path)
        await store.rebuild()
        assert models == await asyncio.to_thread(read_models, path)


async def test_what_a_reader_keeps_in_the_write_ahead_log_is_told(path: Path) -> None:
    """Nothing shows the words any more, but whoever forgets must know that the bytes are still there."""
    scribe = Scribe()
    async with opened(path) as store:
        await store.append([scribe.session("gone", SECRET), *scribe.turn("gone", prompt=SECRET)], contents=[SECRET])
        reader = sqlite3.connect(path, isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM events").fetchone()

        with pytest.raises(StoreBusy, match=r"has read .* for over 0\.2 s: end it, and do this again"):
            await forget(store, "gone", wait_seconds=0.2)

        assert SECRET.encode() in all_bytes(path)
        reader.execute("COMMIT")
        reader.close()

        assert 0 == await forget(store, "gone")

        assert SECRET.encode() not in all_bytes(path)


async def test_a_session_that_can_not_be_read_whole_is_not_forgotten_in_part(path: Path) -> None:
    from support.stores import force

    from timeline.errors import StoreDamaged

    scribe = Scribe()
    async with opened(path) as store:
        await store.append([scribe.session("a", SECRET), *scribe.turn("a", prompt=SECRET)], contents=[SECRET])
    force(path, "UPDATE events SET data = '{' WHERE position = 5")
    before = look(path, "SELECT * FROM events"), look(path, "SELECT * FROM contents")

    async with opened(path) as store:
        with pytest.raises(StoreDamaged):
            await forget(store, "a")

    assert before == (look(path, "SELECT * FROM events"), look(path, "SELECT * FROM contents"))
