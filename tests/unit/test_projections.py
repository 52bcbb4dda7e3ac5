"""What the read models answer: sessions by any name, sums by any grouping, and what is still open."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection
from support.stores import NOON, OWNER, Scribe, look, opened

from timeline import events as e
from timeline.errors import AmbiguousName, NotFound
from timeline.events import EventData, NewEvent, Owner
from timeline.projections.blocks import (
    Session,
    SessionRow,
    find_session,
    fold,
    list_sessions,
    open_turns,
)
from timeline.projections.calls import open_attempts
from timeline.projections.usage import Grouping, ReportRow, report
from timeline.store import EventStore

SECOND = 1_000_000
DAY = 86_400 * SECOND


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[EventStore]:
    async with opened(tmp_path / "timeline.db", synchronous="normal") as store:
        yield store


@pytest.fixture
def scribe() -> Scribe:
    return Scribe()


def at(session: str, instant: int, data: EventData, scribe: Scribe, **ids: str) -> NewEvent:
    return NewEvent(session, data, scribe.clock.uuid7(), instant, **ids)


# ------------------------------------------------------------------ finding a session


IDS = (
    "01a20846-fe00-7000-8000-000000000001",
    "01a20846-fe01-7000-8000-000000000002",
    "01a20846-fe02-7000-8000-000000000003",
    "02b20846-fe02-7000-8000-000000000004",
)
TITLES = ("Blue skies", "100% of_it", "Äpfel und Birnen", None)


@pytest.fixture
async def named(store: EventStore, scribe: Scribe) -> EventStore:
    for id_, title in zip(IDS, TITLES, strict=True):
        await store.append([scribe.session(id_, title)])
    return store


async def find(store: EventStore, name: str) -> str:
    return await store.query(lambda conn: find_session(conn, name))


@pytest.mark.parametrize(
    ("name", "which"),
    [
        (IDS[0], 0),
        (IDS[0].upper(), 0),
        ("01a20846-fe01", 1),
        ("02", 3),
        ("02B", 3),
        ("Blue skies", 0),
        ("blue SKIES", 0),
        ("100% of_it", 1),
        ("Äpfel und Birnen", 2),
        ("Äpfel UND birnen", 2),
        ("last", 3),
    ],
)
async def test_a_session_is_found_by_id_prefix_title_or_as_the_last(named: EventStore, name: str, which: int) -> None:
    assert IDS[which] == await find(named, name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "%",
        "_",
        "01a20846-fe0_",
        "%0",
        "Blue",
        "skies",
        "100% of it",
        "nothing",
        "'",
        '"',
        "\\",
        "/",
        "*",
        "\udcff",
        "ü",
    ],
)
async def test_what_is_no_name_finds_nothing(named: EventStore, name: str) -> None:
    with pytest.raises(NotFound, match=r"there is no session .*: see 'timeline sessions list'"):
        await find(named, name)


async def test_an_ambiguous_prefix_names_its_candidates(named: EventStore) -> None:
    with pytest.raises(AmbiguousName) as caught:
        await find(named, "01a")

    assert f"'01a' may be any of {', '.join(IDS[:3])}: give more of the id" == str(caught.value)


async def test_of_many_candidates_only_a_few_are_named(store: EventStore, scribe: Scribe) -> None:
    await store.append([scribe.session(f"01a{n}", "same") for n in range(8)])

    with pytest.raises(AmbiguousName, match=r"01a4, …: give more of the id"):
        await find(store, "same")


async def test_an_id_wins_over_a_title_that_is_the_same(named: EventStore, scribe: Scribe) -> None:
    await named.append([scribe.session("03", IDS[0])])

    assert IDS[0] == await find(named, IDS[0])


async def test_a_renamed_session_goes_by_its_new_name_alone(named: EventStore, scribe: Scribe) -> None:
    await named.append([scribe.event(IDS[0], e.SessionRenamed("Red skies"))])

    assert IDS[0] == await find(named, "red skies")
    with pytest.raises(NotFound):
        await find(named, "blue skies")


async def test_a_forgotten_session_has_no_name_any_more(named: EventStore, scribe: Scribe) -> None:
    await named.forget(IDS[0], lambda data: scribe.event(IDS[0], data))

    with pytest.raises(NotFound):
        await find(named, "blue skies")
    assert IDS[0] == await find(named, IDS[0])


async def test_the_last_session_is_the_one_asked_last(named: EventStore, scribe: Scribe) -> None:
    await named.append(scribe.turn(IDS[1]))
    await named.append([scribe.event(IDS[2], e.SessionRenamed("only renamed"))])

    assert IDS[1] == await find(named, "last")


async def test_there_is_no_last_session_at_first(store: EventStore) -> None:
    with pytest.raises(NotFound, match="there is no session yet: 'timeline ask' begins one"):
        await find(store, "last")


async def test_sessions_are_listed_the_one_used_last_first(named: EventStore, scribe: Scribe) -> None:
    await named.append(scribe.turn(IDS[1]))
    await named.append(scribe.turn(IDS[1]))

    listed = await named.query(list_sessions)

    assert [IDS[1], IDS[3], IDS[2], IDS[0]] == [row.id for row in listed]
    assert isinstance(listed[0], SessionRow)
    assert ("100% of_it", 2) == (listed[0].title, listed[0].turns)
    assert listed[0].started_at < listed[0].last_at
    assert [IDS[1], IDS[3]] == [row.id for row in await named.query(lambda conn: list_sessions(conn, limit=2))]


# ------------------------------------------------------------------ sums


@pytest.fixture(params=["UTC", "Pacific/Auckland", "America/St_Johns"])
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield request.param
    monkeypatch.undo()
    time.tzset()


def attempt(scribe: Scribe, session: str, instant: int, end: EventData | None, *, call: str = "", number: int = 1, model: str = "openai:gpt") -> list[NewEvent]:  # fmt: skip
    ids = {"call_id": call or scribe.clock.short_id()}
    provider, _, name = model.partition(":")
    sent = e.RequestSent(number, provider, name, "asked for", (e.MessageRef("user"),), OWNER)
    events = [at(session, instant, sent, scribe, **ids)]
    return events + ([at(session, instant + SECOND, end, scribe, **ids)] if end else [])


def completed(tokens: int, cost: e.Cost, number: int = 1, source: str = "provider") -> e.ResponseCompleted:
    usage = e.Usage(tokens, 2 * tokens, 3 * tokens, 4 * tokens, 5 * tokens, tokens)
    return e.ResponseCompleted(number, "stop", usage, source, cost, 5)  # type: ignore[arg-type]


async def sums(store: EventStore, by: Grouping | None, **limits: object) -> dict[str, ReportRow]:
    rows = await store.query(lambda conn: report(conn, by, **limits))  # type: ignore[arg-type]
    assert len(rows) == len({row.group for row in rows})
    return {row.group: row for row in rows}


async def test_every_number_of_the_report_is_what_the_events_say(store: EventStore, scribe: Scribe) -> None:
    error = e.ErrorInfo("server", "it failed")
    await store.append(attempt(scribe, "a", NOON, completed(1, e.Cost("priced", 7))))
    await store.append(attempt(scribe, "a", NOON, completed(10, e.Cost("priced", 5)), model="groq:llama"))
    await store.append(
        attempt(scribe, "a", NOON, completed(100, e.Cost("free"), source="estimated"), model="embedded:x")
    )
    await store.append(attempt(scribe, "b", NOON, completed(1000, e.Cost("unpriced"))))
    # One call of two attempts: the first failed with tokens, the second was stopped.
    spent = e.CallFailed(1, error, 5, True, e.Usage(10_000), "estimated", e.Cost("priced", 3))
    await store.append(attempt(scribe, "b", NOON, spent, call="two"))
    stopped = e.CallInterrupted(2, "sigint", e.Usage(20_000), "estimated")
    await store.append(attempt(scribe, "b", NOON, stopped, call="two", number=2, model="groq:llama"))
    # One that failed without any token, one that is still open, one that nobody counted.
    await store.append(attempt(scribe, "b", NOON, e.CallFailed(1, error, 5)))
    await store.append(attempt(scribe, "b", NOON, None))
    await store.append(attempt(scribe, "b", NOON, completed(0, e.Cost("unpriced"), source="none")))

    assert {
        "": ReportRow(
            group="",
            calls=8,
            failed=2,
            interrupted=1,
            input=31_111,
            cache_read=2222,
            cache_write=7 * 1111,
            output=5555,
            reasoning=1111,
            nano_usd=15,
            unpriced=2,
            free=1,
            estimated=3,
        )
    } == await sums(store, None)
    by_model = await sums(store, "model")
    assert ["embedded:x", "groq:llama", "openai:gpt"] == list(by_model)
    assert [1, 2, 6] == [row.calls for row in by_model.values()]
    assert [0, 5, 10] == [row.nano_usd for row in by_model.values()]
    assert [100, 20_010, 11_001] == [row.input for row in by_model.values()]
    by_provider = await sums(store, "provider")
    assert ["embedded", "groq", "openai"] == list(by_provider)
    by_session = await sums(store, "session")
    assert [("a", 3), ("b", 5)] == [(row.group, row.calls) for row in by_session.values()]
    assert [2, 0] == [(await sums(store, None, session_id=id_))[""].failed for id_ in ("b", "a")]


async def test_an_empty_store_reports_zeros_in_total_and_no_groups(store: EventStore) -> None:
    (row,) = (await sums(store, None)).values()

    assert {0, ""} == {getattr(row, name) for name in ReportRow.__struct_fields__}
    assert {} == await sums(store, "day")
    assert {0} == {row.calls for row in (await sums(store, None, session_id="nobody")).values()}


async def test_days_and_months_are_of_this_machines_zone(store: EventStore, scribe: Scribe, zone: str) -> None:
    midnight = time.mktime((2026, 12, 1, 0, 0, 0, 0, 0, -1))
    first = int(midnight) * SECOND
    for instant in (first - DAY, first - 1, first, first + DAY - 1, first + DAY):
        await store.append(attempt(scribe, "a", instant, completed(1, e.Cost("free"))))

    assert {"2026-11-30": 2, "2026-12-01": 2, "2026-12-02": 1} == {
        group: row.calls for group, row in (await sums(store, "day")).items()
    }
    assert {"2026-11": 2, "2026-12": 3} == {group: row.calls for group, row in (await sums(store, "month")).items()}


async def test_since_is_included_and_until_is_not(store: EventStore, scribe: Scribe) -> None:
    for instant in (NOON, NOON + 1, NOON + 2):
        await store.append(attempt(scribe, "a", instant, completed(1, e.Cost("free"))))

    async def calls(**limits: int) -> int:
        return (await sums(store, None, **limits))[""].calls

    assert [3, 2, 0] == [await calls(since=since) for since in (NOON, NOON + 1, NOON + 3)]
    assert [0, 1, 3] == [await calls(until=until) for until in (NOON, NOON + 1, NOON + 3)]
    assert 1 == await calls(since=NOON + 1, until=NOON + 2)
    assert 0 == await calls(since=NOON + 2, until=NOON + 1)


async def test_sessions_are_reported_in_the_order_of_time(store: EventStore, scribe: Scribe) -> None:
    for id_ in ("z", "a", "m"):
        await store.append(attempt(scribe, id_, NOON, completed(1, e.Cost("free"))))
    await store.append(attempt(scribe, "z", NOON, completed(1, e.Cost("free"))))

    assert ["z", "a", "m"] == list(await sums(store, "session"))


# ------------------------------------------------------------------ what is open


async def test_what_has_begun_and_not_ended_is_listed_with_who_has_to_end_it(store: EventStore, scribe: Scribe) -> None:
    other = Owner("elsewhere", 5, 6.5)
    await store.append(scribe.turn("a"))
    facts: list[EventData] = [
        e.TurnStarted("direct", other),
        e.StepStarted("answer"),
        e.RequestSent(3, "embedded", "smollm2", "", (), other, estimated_input_tokens=17, local=True),
    ]
    sent = await store.append([scribe.event("a", fact, turn_id="t", step_id="s", call_id="c") for fact in facts])

    (turn,), (attempt_,) = await store.query(lambda conn: (open_turns(conn), open_attempts(conn)))

    assert ("a", "t", sent[0].recorded_at, other) == (turn.session_id, turn.turn_id, turn.started_at, turn.owner)
    assert ("a", "t", "s", "c", 3, other) == (
        attempt_.session_id,
        attempt_.turn_id,
        attempt_.step_id,
        attempt_.call_id,
        attempt_.attempt,
        attempt_.owner,
    )
    assert (sent[2].position, sent[2].recorded_at) == (attempt_.first_position, attempt_.started_at)
    assert ("embedded", "smollm2", 17, True) == (
        attempt_.provider,
        attempt_.model,
        attempt_.estimated_input_tokens,
        attempt_.local,
    )


async def test_what_has_ended_is_not_listed(store: EventStore, scribe: Scribe) -> None:
    await store.append(scribe.turn("a"))

    assert ([], []) == await store.query(lambda conn: (open_turns(conn), open_attempts(conn)))


@pytest.mark.parametrize("end", ["completed", "failed", "interrupted"])
async def test_only_the_first_end_of_an_attempt_counts(store: EventStore, scribe: Scribe, end: str) -> None:
    """As if a process that was taken for dead came back."""
    ends: dict[str, EventData] = {
        "completed": completed(1, e.Cost("free")),
        "failed": e.CallFailed(1, e.ErrorInfo("server", ""), 1, usage=e.Usage(1)),
        "interrupted": e.CallInterrupted(1, "abandoned", e.Usage(1)),
    }
    await store.append(attempt(scribe, "a", NOON, ends.pop(end), call="c"))
    first = await store.query(lambda conn: report(conn, None))
    for late in ends.values():
        await store.append([scribe.event("a", late, call_id="c")])

    assert first == await store.query(lambda conn: report(conn, None))
    assert [(end,)] == await asyncio.to_thread(look, store.path, "SELECT state FROM attempts")


async def test_looking_for_what_is_open_reads_no_more_than_that(store: EventStore, scribe: Scribe) -> None:
    for _ in range(50):
        await store.append(scribe.turn("a"))

    def plans(conn: Connection) -> str:
        queries = ("SELECT * FROM attempts WHERE state = 'open'", "SELECT * FROM turns WHERE state = 'open'")
        return " ".join(
            str(row[-1]) for query in queries for row in conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}")
        )

    plan = await store.query(plans)

    assert "USING INDEX attempts_open" in plan
    assert "USING INDEX turns_open" in plan


# ------------------------------------------------------------------ what is drawn


def recorded(facts: list[tuple[EventData, dict[str, str]]]) -> Session:
    from timeline.events import Event

    events = [
        Event(n, f"e{n}", "a", n, data.type, data.v, NOON + n, *(ids.get(i) for i in ("t", "s", "c")), data, "")
        for n, (data, ids) in enumerate(facts, 1)
    ]
    return fold(events)


async def test_a_turn_is_drawn_as_it_went(store: EventStore, scribe: Scribe) -> None:
    await store.append([scribe.session("a", "Blue skies"), *scribe.turn("a", texts=["Because", " it", " is."])])

    session = fold([event async for event in store.read(session_id="a")])

    (turn,) = session.turns
    (step,) = turn.steps
    (attempt_,) = step.attempts
    assert ("a", "Blue skies", "completed", "answer", "completed") == (
        session.session_id,
        session.title,
        turn.state,
        step.kind,
        attempt_.state,
    )
    assert [("Because", 1), (" it", 2), (" is.", 3)] == [(part.text, part.gap_us) for part in attempt_.fragments]
    assert attempt_ is turn.answer
    assert "Because it is." == attempt_.text
    assert (300_000, 2_000_000, "provider") == (
        attempt_.time_to_first_token_us,
        attempt_.duration_us,
        attempt_.usage_source,
    )


def test_the_answer_is_the_last_attempt_of_the_call_that_answered() -> None:
    error = e.ErrorInfo("server", "")
    usage, cost = e.Usage(), e.Cost("free")
    ids = {"t": "t", "s": "s", "c": "first"}
    session = recorded(
        [
            (e.TurnStarted("direct", OWNER), {"t": "t"}),
            (e.StepStarted("route"), {"t": "t", "s": "s"}),
            (e.RequestSent(1, "p", "m", "", (), OWNER), ids),
            (e.ChunkReceived(0, ("partial",), (1,)), ids),
            (e.CallFailed(1, error, 1, True), ids),
            (e.RequestSent(2, "p", "m", "", (), OWNER), ids),
            (e.ChunkReceived(0, ("think",), (1,), "reasoning", 2), ids),
            (e.ChunkReceived(1, ("whole",), (1,), attempt=2), ids),
            (e.ResponseCompleted(2, "stop", usage, "none", cost, 1), ids),
            (e.RequestSent(1, "p", "m", "", (), OWNER), ids | {"c": "second"}),
            (e.ChunkReceived(0, ("formatted",), (1,)), ids | {"c": "second"}),
            (e.StepCompleted(1), {"t": "t", "s": "s"}),
            (e.TurnCompleted("first", 1), {"t": "t"}),
        ]
    )

    (turn,) = session.turns
    assert turn.answer is not None
    assert (2, "whole") == (turn.answer.number, turn.answer.text)
    assert ["failed", "completed", "open"] == [attempt_.state for attempt_ in turn.steps[0].attempts]


def test_an_unfinished_turn_shows_what_came_last() -> None:
    ids = {"t": "t", "s": "s", "c": "c"}
    session = recorded(
        [
            (e.TurnStarted("direct", OWNER), {"t": "t"}),
            (e.StepStarted("answer"), {"t": "t", "s": "s"}),
            (e.RequestSent(1, "p", "m", "", (), OWNER), ids),
            (e.ChunkReceived(0, ("as far as",), (1,)), ids),
            (e.CallInterrupted(1, "sigint", e.Usage()), ids),
            (e.TurnInterrupted("sigint"), {"t": "t"}),
        ]
    )

    (turn,) = session.turns
    assert ("interrupted", "sigint", "as far as") == (turn.state, turn.reason, turn.answer and turn.answer.text)


def test_a_turn_that_asked_nobody_has_no_answer() -> None:
    session = recorded([(e.TurnStarted("direct", OWNER), {"t": "t"})])

    assert session.turns[0].answer is None
    assert "open" == session.turns[0].state


def test_texts_without_their_gaps_are_drawn_all_the_same() -> None:
    ids = {"t": "t", "s": "s", "c": "c"}
    session = recorded(
        [
            (e.TurnStarted("direct", OWNER), {"t": "t"}),
            (e.StepStarted("answer"), {"t": "t", "s": "s"}),
            (e.RequestSent(1, "p", "m", "", (), OWNER), ids),
            (e.ChunkReceived(0, ("a", "b", "c"), (5,)), ids),
        ]
    )

    fragments = session.turns[0].steps[0].attempts[0].fragments
    assert [("a", 5), ("b", 0), ("c", 0)] == [(part.text, part.gap_us) for part in fragments]


@pytest.mark.parametrize(
    "end",
    [
        e.CallFailed(1, e.ErrorInfo("broken_stream", "it broke off"), 90, True),
        e.CallInterrupted(1, "sigint", e.Usage()),
    ],
)
def test_an_answer_that_broke_off_still_tells_when_its_first_words_came(end: e.EventData) -> None:
    ids = {"t": "t", "s": "s", "c": "c"}
    session = recorded(
        [
            (e.TurnStarted("direct", OWNER), {"t": "t"}),
            (e.StepStarted("answer"), {"t": "t", "s": "s"}),
            (e.RequestSent(1, "p", "m", "", (), OWNER), ids),
            (e.ChunkReceived(0, ("a", "b"), (5, 2)), ids),
            (e.ChunkReceived(2, ("c",), (7,)), ids),
            (end, ids),
        ]
    )

    attempt = session.turns[0].steps[0].attempts[0]
    assert 5 == attempt.time_to_first_token_us


def test_nothing_recorded_draws_nothing() -> None:
    assert Session("") == fold([])
