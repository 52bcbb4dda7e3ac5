"""What is found among past turns, by any input; and that the index holds what the log holds, and nothing that it doesn't."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, create_engine, insert
from sqlalchemy.pool import StaticPool
from support.stores import NOON, OWNER, Scribe, TickingClock, all_bytes, look, opened, projections, read_models, words

from timeline import events as e
from timeline.errors import UsageError
from timeline.events import Event, EventData, NewEvent
from timeline.projections import Projections
from timeline.projections.calls import Calls
from timeline.projections.search import Found, Search, Term, has_full_text, search, search_turns, terms
from timeline.store import EventStore, _read, content_digest, integrity, sqlite

DAY = 86_400_000_000
USAGE, COST = e.Usage(), e.Cost("free")
ERROR = e.ErrorInfo("server", "it broke")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "timeline.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[EventStore]:
    async with opened(path, synchronous="normal") as store:
        yield store


@pytest.fixture
def scribe() -> Scribe:
    return Scribe()


async def say(
    store: EventStore, scribe: Scribe, prompt: str, *answer: str, session: str = "s", model: str = "gpt"
) -> None:
    """A whole turn."""
    await store.append(scribe.turn(session, prompt=prompt, texts=answer, model=model), contents=[prompt])


async def find(store: EventStore, typed: str, **filters: object) -> list[Found]:
    return await store.query(lambda conn: search(conn, typed, **filters))  # type: ignore[arg-type]


async def prompts(store: EventStore, typed: str, **filters: object) -> list[str]:
    return [found.prompt for found in await find(store, typed, **filters)]


# ------------------------------------------------------------------ what is found


async def test_the_words_of_a_long_answer_stand_in_their_order_over_all_its_windows(
    store: EventStore, scribe: Scribe, path: Path
) -> None:
    windows = [tuple(f" {window}-{n}" for n in range(300)) for window in range(3)]
    began, sent, chunk, *ends = [
        item for item in scribe.turn("s", prompt="Count.") if not isinstance(item.data, e.StepStarted | e.StepCompleted)
    ]
    chunks = [scribe.event("s", e.ChunkReceived(0, texts, (0,) * 300), call_id=chunk.call_id) for texts in windows]
    await store.append([began, sent, *chunks, *ends], contents=["Count."])

    ((text,),) = await asyncio.to_thread(look, path, "SELECT answer FROM search_texts")

    assert "".join(word for texts in windows for word in texts) == text


async def test_words_are_found_in_prompts_and_in_answers(store: EventStore, scribe: Scribe) -> None:
    await store.append([scribe.session("s", "My title")])
    await say(store, scribe, "How do I learn Rust?", "Read the ", "book, then wri", "te.")
    await say(store, scribe, "And Go?", "Take the tour.")

    (asked,) = await find(store, "rust")
    (answered,) = await find(store, "WRITE", marks=("<", ">"))

    assert ("user", "How do I learn **Rust**?", "Read the book, then write.") == (
        asked.role,
        asked.snippet,
        asked.answered,
    )
    assert ("assistant", "Read the book, then <write>.") == (answered.role, answered.snippet)
    assert ("How do I learn Rust?", "Read the book, then write.") == (answered.prompt, answered.text)
    assert ("s", "My title", "openai", "gpt") == (asked.session_id, asked.title, asked.provider, asked.model)
    assert asked.at == (await anext(event async for event in store.read() if event.type == "turn.started")).recorded_at


async def test_words_of_the_prompt_and_of_the_answer_count_together(store: EventStore, scribe: Scribe) -> None:
    await say(store, scribe, "How do I learn Rust?", "Beware of the borrow checker.")
    await say(store, scribe, "What does a checker do?", "It checks.")

    assert ["How do I learn Rust?"] == await prompts(store, "rust checker")


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("cafe", True),
        ("CAFÉ", True),
        ("caf*", True),
        ("caf", False),
        ('"au lait"', True),
        ('"lait au"', False),
        ("lait au", True),
        ('"café au la"*', True),
        ("au-lait", True),
        ("lait-au", False),
        ("d'Ivoire", True),
    ],
)
async def test_accents_beginnings_and_words_in_a_row(
    store: EventStore, scribe: Scribe, typed: str, found: bool
) -> None:
    await say(store, scribe, "Un café au lait de Côte d’Ivoire", "Oui")

    assert found is bool(await find(store, typed))


async def test_a_whole_question_finds_what_it_is_about(store: EventStore, scribe: Scribe) -> None:
    await say(store, scribe, "What is it that you do?", "I do what I did.")
    await say(store, scribe, "How is Rust different from C?", "It checks who borrows.")
    await say(store, scribe, "What about you?", "I am fine.")

    found = await find(store, "what did I ask you about rust?")

    assert ["How is Rust different from C?"] == [turn.prompt for turn in found]
    assert [True] == [turn.partial for turn in found]


async def test_words_in_quotes_are_not_replaced_by_fewer(store: EventStore, scribe: Scribe) -> None:
    await say(store, scribe, "Rust is fine", "Yes")

    assert [] == await find(store, '"rust compiler" fine')


async def test_a_turn_with_all_words_hides_those_with_some(store: EventStore, scribe: Scribe) -> None:
    await say(store, scribe, "red green", "x")
    await say(store, scribe, "red", "x")

    assert ["red green"] == await prompts(store, "red green")
    assert {"red green", "red"} == set(await prompts(store, "red blue"))


async def test_of_equally_good_turns_the_latest_comes_first(store: EventStore, scribe: Scribe) -> None:
    for number in range(5):
        await say(store, scribe, f"number {number} of the same", "x")
    await say(store, scribe, "Tell me more of the same, and of all else that comes to your mind", "at length")

    assert [f"number {number} of the same" for number in (4, 3, 2)] == await prompts(store, "same number", limit=3)


async def test_a_word_that_is_rare_weighs_more(store: EventStore, scribe: Scribe) -> None:
    await say(store, scribe, "zebra", "x")
    for number in range(6):
        await say(store, scribe, f"horse {number}", "x")

    assert "zebra" == (await prompts(store, "horse or zebra maybe"))[0]


async def test_filters_by_time_model_and_session(path: Path) -> None:
    async with opened(path) as store:
        for days, session, model in ((0, "a", "gpt"), (1, "b", "mini"), (2, "a", "mini")):
            scribe = Scribe(TickingClock(days, NOON + days * DAY))
            await say(store, scribe, f"day {days}", "x", session=session, model=model)

        assert ["day 2", "day 1"] == await prompts(store, "day", since=NOON + DAY)
        assert ["day 0"] == await prompts(store, "day", until=NOON + DAY)
        assert ["day 1"] == await prompts(store, "day", since=NOON + DAY, until=NOON + 2 * DAY)
        assert ["day 2", "day 0"] == await prompts(store, "day", session_id="a")
        assert ["day 2", "day 1"] == await prompts(store, "day", model="mini")
        assert ["day 0"] == await prompts(store, "day", model="openai:gpt")
        assert ["day 2", "day 1", "day 0"] == await prompts(store, "day", model="openai")
        assert [] == await prompts(store, "day", model="nobody")


# ------------------------------------------------------------------ any input


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("rust borrow", (Term("rust"), Term("borrow"))),
        ('say "hello world" now', (Term("say"), Term("hello world", quoted=True), Term("now"))),
        ('"hello wor"*', (Term("hello wor", prefix=True, quoted=True),)),
        ("rus**", (Term("rus", prefix=True),)),
        ('"unclosed quote', (Term("unclosed"), Term("quote"))),
        ("again again", (Term("again"),)),
        ("NOT AND NEAR(x)", (Term("NOT"), Term("AND"), Term("NEAR(x)"))),
        ("a\0b", (Term("a"), Term("b"))),
        ("-- * \"\" '' :^+ 🎉", ()),
    ],
)
def test_what_is_typed_is_words(typed: str, expected: tuple[Term, ...]) -> None:
    assert expected == terms(typed)


@pytest.mark.parametrize("typed", ["", " ", "?!", '"', '""*', "*", "\0", "\ud800", "🎉"])
async def test_without_any_word_there_is_nothing_to_search_for(store: EventStore, typed: str) -> None:
    with pytest.raises(UsageError, match="there is no word to search for"):
        await find(store, typed)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["rust", '"', "*", " ", "AND", "NEAR(", ")", ":", "^", "-", "\0", "\ud800", "é", "𞤀", "🎉", "'", "{"]
        )
        | st.text(max_size=3)
    )
)
def test_no_input_is_a_syntax_error(pieces: list[str]) -> None:
    typed = "".join(pieces)
    with _index.connect() as conn:
        try:
            search(conn, typed)
        except UsageError:
            assert not terms(typed)


def _an_index() -> Engine:
    """An index of one turn, in memory."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    with engine.begin() as conn:
        for statement in (
            "CREATE TABLE sessions (session_id, title)",
            "CREATE TABLE contents (digest, body)",
            "CREATE TABLE events (position INTEGER PRIMARY KEY, call_id, type, data)",
            "INSERT INTO contents VALUES ('d', 'rust é and x 𞤀')",
        ):
            conn.exec_driver_sql(statement)
        Search().make(conn)
        conn.execute(
            insert(search_turns).values(id=1, turn_id="t", session_id="s", version=1, started_at=1, ended=1, prompt="d")
        )
        conn.exec_driver_sql("INSERT INTO search_index (rowid, prompt, answer) SELECT * FROM search_texts")
    return engine


_index = _an_index()


async def test_a_pasted_page_is_searched_for_by_its_first_words(store: EventStore, scribe: Scribe) -> None:
    await say(store, scribe, "word7 is here", "x")

    assert ["word7 is here"] == await prompts(store, " ".join(f"word{n}" for n in range(20_000)))


# ------------------------------------------------------------------ which turns, and which of their texts


def facts(scribe: Scribe, *given: tuple[EventData, str], session: str = "s", turn: str = "t") -> list[NewEvent]:
    """Events of a turn; with each, its step and call as `step/call`."""
    made = []
    for data, place in given:
        step, _, call = place.partition("/")
        ids = {"turn_id": turn} | ({"step_id": step} if step else {}) | ({"call_id": call} if call else {})
        made.append(scribe.event(session, data, **ids))
    return made


def started(prompt: str) -> e.TurnStarted:
    return e.TurnStarted("pipeline", OWNER, content_digest(prompt))


def sent(attempt: int = 1) -> e.RequestSent:
    return e.RequestSent(attempt, "openai", f"m{attempt}", "asked for", (), OWNER)


async def test_a_turn_is_found_only_once_it_has_ended(store: EventStore, scribe: Scribe) -> None:
    *turn, end = scribe.turn("s", prompt="open question")
    await store.append(turn, contents=["open question"])
    assert [] == await find(store, "question")

    await store.append([end])

    assert 1 == len(await find(store, "question"))


@pytest.mark.parametrize("end", [e.TurnFailed(ERROR, 1), e.TurnInterrupted("sigint"), e.TurnInterrupted("abandoned")])
async def test_a_part_of_an_answer_is_found(store: EventStore, scribe: Scribe, end: EventData) -> None:
    turn = facts(
        scribe,
        (started("why?"), ""),
        (e.StepStarted("route"), "r"),
        (sent(), "r/route"),
        (e.ChunkReceived(0, ('{"intent": "banana"}',), (1,)), "r/route"),
        (e.StepCompleted(1), "r"),
        (e.StepStarted("format"), "f"),
        (sent(), "f/answer"),
        (e.ChunkReceived(0, ("half an ans",), (1,)), "f/answer"),
        (end, ""),
    )
    await store.append(turn, contents=["why?"])

    assert ["half an ans"] == [found.answer for found in await find(store, "half")]
    assert [] == await find(store, "banana")


async def test_only_the_last_attempt_and_only_its_text_is_the_answer(store: EventStore, scribe: Scribe) -> None:
    turn = facts(
        scribe,
        (started("why?"), ""),
        (e.StepStarted("answer"), "a"),
        (sent(), "a/c"),
        (e.ChunkReceived(0, ("superseded",), (1,)), "a/c"),
        (e.CallFailed(1, ERROR, 1), "a/c"),
        (sent(2), "a/c"),
        (e.ChunkReceived(0, ("pondering",), (1,), "reasoning", 2), "a/c"),
        (e.ChunkReceived(1, ('{"arguments": "called"}',), (1,), "tool_call", 2), "a/c"),
        (e.ChunkReceived(2, ("the ", "whole "), (1, 1), "text", 2), "a/c"),
        (e.ChunkReceived(4, ("answer",), (1,), "text", 2), "a/c"),
        (e.TurnCompleted("c", 1), ""),
    )
    await store.append(turn, contents=["why?"])

    (found,) = await find(store, "answer")
    assert ("the whole answer", "m2") == (found.answer, found.model)
    for other in ("superseded", "pondering", "called"):
        assert [] == await find(store, other)


async def test_an_answer_from_the_cache_is_found_until_its_source_is_forgotten(
    store: EventStore, scribe: Scribe
) -> None:
    await store.append([scribe.session("source"), scribe.session("hit")])
    source = scribe.turn("source", prompt="first", texts=["the cached words"])
    await store.append(source, contents=["first"])
    call = source[2].call_id or ""
    hit = facts(
        scribe,
        (started("second"), ""),
        (e.StepStarted("answer"), "a"),
        (e.CallCacheHit(call, 5, 1, "openai", "gpt"), "a/c"),
        (e.TurnCompleted("c", 1), ""),
        session="hit",
    )
    await store.append(hit, contents=["second"])
    assert {("first", "gpt"), ("second", "gpt")} == {
        (found.prompt, found.model) for found in await find(store, "cached")
    }

    await store.forget("source", lambda data: scribe.event("source", data))

    assert [] == await find(store, "cached")
    assert ["second"] == await prompts(store, "second")


async def test_a_private_turn_has_nothing_to_find(store: EventStore, scribe: Scribe, path: Path) -> None:
    turn = facts(
        scribe,
        (e.TurnStarted("direct", OWNER, private=True), ""),
        (e.StepStarted("answer"), "a"),
        (sent(), "a/c"),
        (e.TurnCompleted("c", 1), ""),
    )
    await store.append(turn)

    assert [(0,)] == look(path, "SELECT count(*) FROM search_turns")


async def test_a_tool_s_and_a_router_s_words_are_not_the_answer(store: EventStore, scribe: Scribe) -> None:
    turn = facts(
        scribe,
        (started("why?"), ""),
        (e.StepStarted("route"), "r"),
        (sent(), "r/route"),
        (e.ChunkReceived(0, ("calculator",), (1,)), "r/route"),
        (e.TurnFailed(ERROR, 1), ""),
    )
    await store.append(turn, contents=["why?"])

    assert [] == await find(store, "calculator")
    assert [""] == [found.answer for found in await find(store, "why")]


# ------------------------------------------------------------------ the index and the log


async def test_what_is_forgotten_is_in_no_byte_and_found_no_more(path: Path, scribe: Scribe) -> None:
    async with opened(path) as store:
        await store.append([scribe.session("kept"), scribe.session("gone")])
        await say(store, scribe, "xyzzy question", "xyzzyanswer", session="gone")
        await say(store, scribe, "a question that stays", "plugh", session="kept")
        assert b"xyzzyanswer" in all_bytes(path)

        await store.forget("gone", lambda data: scribe.event("gone", data))

        assert [] == await find(store, "xyzzy*")
        assert ["a question that stays"] == await prompts(store, "question")
        assert b"xyzzy" not in all_bytes(path)
        assert b"plugh" in all_bytes(path)
    assert b"xyzzy" not in all_bytes(path)


async def test_words_are_out_of_the_index_in_the_very_transaction_that_forgets_them(path: Path, scribe: Scribe) -> None:
    """Whoever is killed before the file is rewritten has left nothing to be found."""
    async with opened(path) as store:
        await say(store, scribe, "xyzzy", "xyzzy", session="gone")
        await say(store, scribe, "stays", "stays", session="kept")

        await store.append_when(lambda conn: [scribe.event("gone", integrity.redact(conn, "gone"))])

    assert {"stays"} == {word for word, *_ in words(path)}


async def test_a_rebuild_that_overlaps_with_forgetting_brings_nothing_back(path: Path, scribe: Scribe) -> None:
    """It has indexed the words already, in its temporary tables, when they are forgotten."""
    async with opened(path) as store:
        await say(store, scribe, "xyzzy", "xyzzy", session="gone")
        await say(store, scribe, "stays", "stays", session="kept")
        loop = asyncio.get_running_loop()
        forgotten: list[Event] = []

        def read(conn: Connection, after: int, limit: int) -> Sequence[Event]:
            found = _read(conn, after, limit)
            if not found and not forgotten:
                redacting = store.append_when(lambda conn: [scribe.event("gone", integrity.redact(conn, "gone"))])
                forgotten.extend(asyncio.run_coroutine_threadsafe(redacting, loop).result(10))
            return found

        def rebuild() -> None:
            engine = sqlite.writer(path)
            with engine.connect() as conn:
                projections().rebuild(conn, read, None)
            engine.dispose()

        await asyncio.to_thread(rebuild)

        assert forgotten
        assert {"stays"} == {word for word, *_ in words(path)}
        before = read_models(path)
        await store.rebuild()
        assert before == read_models(path)


async def test_the_index_is_the_same_after_a_rebuild_and_goes_on_from_there(
    store: EventStore, scribe: Scribe, path: Path
) -> None:
    for number in range(40):
        await say(store, scribe, f"question {number}", f"answer {number}", " a\0nd", " more", "\0", "")
    before = read_models(path)

    assert ["search"] == await store.rebuild(["search"])

    assert before == read_models(path)
    await say(store, scribe, "question afterwards", "x")
    assert 41 == len(await find(store, "question"))
    check(path)


async def test_the_index_holds_what_the_view_shows(store: EventStore, scribe: Scribe, path: Path) -> None:
    await say(store, scribe, "first", "one", " t\0wo", " three", "\0", "")
    await say(store, scribe, "second", "é", "\n🎲 four", "teen")
    turn = scribe.turn("s", prompt="third", texts=("said",))
    place = next(at for at, item in enumerate(turn) if isinstance(item.data, e.ChunkReceived))
    thought = scribe.event("s", e.ChunkReceived(0, ("thought",), (0,), "reasoning"), call_id=turn[place].call_id)
    await store.append([*turn[:place], thought, *turn[place:]], contents=["third"])
    indexed = words(path)

    connection = sqlite3.connect(path)
    connection.execute("INSERT INTO search_index (search_index) VALUES ('delete-all')")
    connection.execute("INSERT INTO search_index (rowid, prompt, answer) SELECT id, prompt, answer FROM search_texts")
    connection.commit()
    connection.close()

    assert words(path) == indexed
    assert {"first", "second", "third", "fourteen", "said"} < {word for word, *_ in indexed}
    assert "thought" not in {word for word, *_ in indexed}


def check(path: Path) -> None:
    """Let FTS5 itself look at its index."""
    connection = sqlite3.connect(path)
    connection.execute("INSERT INTO search_index (search_index) VALUES ('integrity-check')")
    connection.close()


async def test_an_append_that_fails_leaves_no_words(store: EventStore, scribe: Scribe, path: Path) -> None:
    events = scribe.turn("s", prompt="never said")

    with pytest.raises(ZeroDivisionError):
        await store.append_when(lambda _conn: [events[0], 1 // 0])

    await say(store, scribe, "said", "x")
    assert {"said", "x"} == {word for word, *_ in words(path)}


async def test_a_file_made_without_full_text_is_indexed_at_the_next_start_that_has_it(
    path: Path, scribe: Scribe
) -> None:
    async with EventStore.open(path, Projections([Calls()])) as without:
        await say(without, scribe, "first", "x")
    async with opened(path) as store:
        assert ["first"] == await prompts(store, "first")
    async with EventStore.open(path, Projections([Calls()])) as without:
        await say(without, scribe, "second", "x")

    async with opened(path) as store:
        assert ["second"] == await prompts(store, "second")


def test_a_sqlite_that_makes_no_index_is_told_from_one_that_does() -> None:
    connection = sqlite3.connect(":memory:")
    assert has_full_text(connection)

    connection.set_authorizer(
        lambda action, *_: sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_CREATE_VTABLE else sqlite3.SQLITE_OK
    )

    assert not has_full_text(connection)
    connection.close()
