"""Full text over past turns: which there are to be searched, where the log holds their words, and the index over these.

The words themselves are stored once, in `contents` and in the chunks; the view `search_texts` puts them
together again, and the index `search_index` (SQLite's FTS5, https://sqlite.org/fts5.html) reads them through it.
"""

from __future__ import annotations

import functools
import re
import sqlite3
import unicodedata
from collections.abc import Mapping
from contextlib import closing
from typing import Any, ClassVar, Literal

import msgspec
from msgspec import Struct
from sqlalchemy import (
    Column,
    Connection,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    bindparam,
    delete,
    insert,
    select,
    text,
    update,
)

from timeline.errors import UsageError
from timeline.events import Event, TurnCompleted, TurnStarted
from timeline.projections import Projection
from timeline.statements import Row, Statement

__all__ = ["Found", "Search", "Term", "available", "has_full_text", "search", "search_turns", "terms"]

LONGEST = 1_000_000
"""So many characters of a prompt or an answer are searched: a turn's end must not wait for a whole disk to be indexed."""

MOST_TERMS = 64
PASSAGE_TOKENS = 24
PROMPT_WEIGHT = 2.0
"""Words that a person chose say more about a turn than those of the answer."""

search_turns = Table(
    "search_turns",
    MetaData(),
    Column("id", Integer, primary_key=True),  # position of its turn.started
    Column("turn_id", Text, nullable=False),
    Column("session_id", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("started_at", Integer, nullable=False),
    Column("ended", Integer, nullable=False),  # 0 or 1; an open turn is not searched
    Column("prompt", Text),  # digest in contents
    # Where the answer's chunks stand; of one from the cache, those of the call it came from.
    Column("call_id", Text),
    Column("attempt", Integer),
    Column("answer_session", Text),
    Column("first_position", Integer),
    Column("last_position", Integer),
    Column("provider", Text),
    Column("model", Text),
)
Index("search_turns_of_turn", search_turns.c.turn_id, unique=True)
Index("search_turns_of_call", search_turns.c.call_id, sqlite_where=search_turns.c.call_id.is_not(None))

# SQLite keeps the order of a subquery under group_concat: https://sqlite.org/optoverview.html#omit_orderby
# A window's own texts need no sorting, which would take twice the time of all the rest: json_each walks them in their order.
_VIEW = f"""
CREATE VIEW {{schema}}.search_texts AS
SELECT t.id AS id,
  (SELECT substr(CAST(body AS TEXT), 1, {LONGEST}) FROM contents WHERE digest = t.prompt) AS prompt,
  (SELECT substr(group_concat(piece, ''), 1, {LONGEST}) FROM
    (SELECT (SELECT group_concat(value, '') FROM json_each(events.data, '$.texts')) AS piece FROM events
     WHERE events.position BETWEEN t.first_position AND t.last_position
       AND events.call_id = t.call_id AND events.type = 'chunk.received'
       AND json_extract(events.data, '$.kind') IS NULL
     ORDER BY events.position)) AS answer
FROM search_turns AS t WHERE t.ended
"""
_INDEX = """
CREATE VIRTUAL TABLE {schema}.search_index USING fts5(
  prompt, answer, content='search_texts', content_rowid='id', tokenize="unicode61 remove_diacritics 2")
"""
_SHADOWS = tuple(f"search_index_{part}" for part in ("data", "idx", "docsize", "config"))
"""The tables in which FTS5 keeps the index: https://sqlite.org/fts5.html#fts5_data_structures."""


# ------------------------------------------------------------------ the read model


_turns = search_turns.c
_begin = Statement(insert(search_turns).prefix_with("OR IGNORE"))
_open = Statement(
    select(_turns.id, _turns.session_id, _turns.version).where(
        _turns.turn_id == bindparam("turn_id"), _turns.ended == 0
    )
)
_end = Statement(
    update(search_turns)
    .where(_turns.id == bindparam("of_id"))
    .values(
        ended=1,
        **{
            name: bindparam(name)
            for name in (
                "call_id",
                "attempt",
                "answer_session",
                "first_position",
                "last_position",
                "provider",
                "model",
            )
        },
    )
)
_source = Statement(
    select(_turns.call_id, _turns.attempt, _turns.answer_session, _turns.first_position, _turns.last_position).where(
        _turns.call_id == bindparam("call_id"), _turns.attempt == bindparam("attempt")
    )
)
_index_all = text("INSERT INTO search_index (rowid, prompt, answer) SELECT id, prompt, answer FROM search_texts")
_index_turn = Statement(text(f"{_index_all.text} WHERE id = :id"))
# The same words in a tenth of the time; the view makes no answer where none is asked for.
_index_answer = Statement(
    text("INSERT INTO search_index (rowid, prompt, answer) SELECT id, prompt, :answer FROM search_texts WHERE id = :id")
)
# As bytes: the driver itself fails at a text that is not UTF-8.
_windows = Statement(
    text("""
SELECT CAST(data AS BLOB) AS data FROM events WHERE position BETWEEN :first_position AND :last_position
  AND call_id = :call_id AND type = 'chunk.received' ORDER BY position
""")
)
# The command 'rebuild' would scan the view, which FTS5 refuses to do where a virtual table (json_each) is part of it.
_empty_index = text("INSERT INTO search_index (search_index) VALUES ('delete-all')")

# The last try of the answer: of the call that the turn names, else of a step whose text is one. One that is damaged is none.
_last_try = Statement(
    text("""
SELECT type, call_id, position,
  json_extract(data, '$.attempt') AS attempt,
  json_extract(data, '$.provider') AS provider, json_extract(data, '$.model') AS model,
  json_extract(data, '$.source_call') AS source_call, coalesce(json_extract(data, '$.source_attempt'), 1) AS source_attempt
FROM events
WHERE session_id = :session_id AND version BETWEEN :first AND :last AND turn_id = :turn_id
  AND type IN ('request.sent', 'call.cache_hit') AND json_valid(data)
  AND CASE WHEN :call_id IS NOT NULL THEN call_id = :call_id ELSE step_id IN
    (SELECT step_id FROM events
     WHERE session_id = :session_id AND version BETWEEN :first AND :last AND type = 'step.started'
       AND CASE WHEN json_valid(data) THEN json_extract(data, '$.kind') END IN ('answer', 'format')) END
ORDER BY version DESC LIMIT 1
""")
)

# A turn without any word has two sizes of zero there.
_has_words = text("""
SELECT 1 FROM search_index_docsize WHERE sz <> x'0000' AND id IN
  (SELECT id FROM search_turns WHERE session_id = :session_id OR answer_session = :session_id) LIMIT 1
""")
_drop_session = delete(search_turns).where(_turns.session_id == bindparam("of_session"))


class Search(Projection):
    """Folds turns into `search_turns`, and indexes the words of each once, when it ends.

    After a rebuild the table is the same byte for byte; the index holds the same words at the same places, but
    how SQLite lays them out depends on when they were written.
    """

    name: ClassVar[str] = "search"
    version: ClassVar[int] = 2
    tables: ClassVar[tuple[Table, ...]] = (search_turns,)

    def apply(self, conn: Connection, event: Event) -> None:
        """See `Projection.apply`."""
        match event.type:
            case "turn.started" if event.turn_id is not None:
                self._begin(conn, event)
            case "turn.completed" | "turn.failed" | "turn.interrupted":
                self._end(conn, event)
            case "session.redacted":
                self._forget(conn, event.session_id)

    @staticmethod
    def _begin(conn: Connection, event: Event) -> None:
        data = event.data if isinstance(event.data, TurnStarted) else None
        if data is not None and data.private:
            return
        row = {
            "id": event.position,
            "turn_id": event.turn_id,
            "session_id": event.session_id,
            "version": event.version,
            "started_at": event.recorded_at,
            "ended": 0,
            "prompt": data.prompt if data else None,
        }
        _begin.run(conn, row)

    @staticmethod
    def _end(conn: Connection, event: Event) -> None:
        turn = _open.first(conn, {"turn_id": event.turn_id})
        if turn is None:
            return
        wanted = {
            "session_id": turn.session_id,
            "first": turn.version,
            "last": event.version,
            "turn_id": event.turn_id,
            "call_id": event.data.answer_call if isinstance(event.data, TurnCompleted) else None,
        }
        tried = _last_try.first(conn, wanted)
        row = {"of_id": turn.id, "provider": tried and tried.provider, "model": tried and tried.model}
        place = _place(conn, turn.session_id, tried, event.position)
        _end.run(conn, row | place)
        answer = _answer(conn, place)
        # Where SQLite ends a text that holds a NUL depends on its version.
        index = _index_turn if "\0" in answer else _index_answer
        index.run(conn, {"id": turn.id, "answer": answer})

    @staticmethod
    def _forget(conn: Connection, session_id: str) -> None:
        indexed = conn.execute(_has_words, {"session_id": session_id}).first()
        conn.execute(_drop_session, {"of_session": session_id})
        if indexed:
            # Without its text, which is gone, a turn can't be taken out of the index.
            conn.execute(_empty_index)
            conn.execute(_index_all)

    # -------------------------------------------------------------- the index beside its table

    @property
    def parts(self) -> frozenset[str]:
        """See `Projection.parts`."""
        return super().parts | {"search_texts", "search_index", *_SHADOWS}

    def make(self, conn: Connection) -> None:
        """See `Projection.make`."""
        conn.exec_driver_sql("DROP TABLE IF EXISTS main.search_index")
        conn.exec_driver_sql("DROP VIEW IF EXISTS main.search_texts")
        super().make(conn)
        _make_index(conn, "main")

    def make_shadow(self, conn: Connection) -> None:
        """See `Projection.make_shadow`."""
        super().make_shadow(conn)
        _make_index(conn, "temp")

    def swap(self, conn: Connection) -> None:
        """See `Projection.swap`."""
        # As VACUUM does, and while others wait to write: indexing all words again would take much longer.
        for table in _SHADOWS:
            conn.exec_driver_sql(f"DELETE FROM main.{table}")
            conn.exec_driver_sql(f"INSERT INTO main.{table} SELECT * FROM temp.{table}")
        conn.exec_driver_sql("DROP TABLE temp.search_index")
        conn.exec_driver_sql("DROP VIEW temp.search_texts")
        super().swap(conn)


def _make_index(conn: Connection, schema: str) -> None:
    conn.exec_driver_sql(_VIEW.format(schema=schema))
    conn.exec_driver_sql(_INDEX.format(schema=schema))


def _place(conn: Connection, session_id: str, tried: Row | None, end: int) -> dict[str, Any]:
    """Where the chunks of an answer stand."""
    if tried is not None and tried.type == "request.sent":
        return {
            "call_id": tried.call_id,
            "attempt": tried.attempt,
            "answer_session": session_id,
            "first_position": tried.position,
            "last_position": end,
        }
    names = ("call_id", "attempt", "answer_session", "first_position", "last_position")
    source = None
    if tried is not None:
        source = _source.first(conn, {"call_id": tried.source_call, "attempt": tried.source_attempt})
    return dict(zip(names, source or (None,) * len(names), strict=True))


class _Window(Struct):
    """What of a `chunk.received` is searched; one that was forgotten has no texts."""

    texts: tuple[str, ...] = ()
    kind: str | None = None


_window = msgspec.json.Decoder(_Window).decode


def _answer(conn: Connection, place: Mapping[str, Any]) -> str:
    """The answer's words, as the view `search_texts` has them; none where some can't be read."""
    try:
        windows = [_window(row.data or b"") for row in _windows.all(conn, place)]
    except (msgspec.DecodeError, UnicodeDecodeError):
        # Damage is for those to tell who read the log; here it would keep a turn from ending, and so every command from starting.
        return ""
    return "".join(text for window in windows if window.kind is None for text in window.texts)[:LONGEST]


@functools.cache
def available() -> bool:
    """Whether the SQLite that Python links has FTS5; without it there is no search, and all else works."""
    with closing(sqlite3.connect(":memory:")) as connection:
        return has_full_text(connection)


def has_full_text(connection: sqlite3.Connection) -> bool:
    """Whether a connection may make an index of words."""
    try:
        connection.execute("CREATE VIRTUAL TABLE temp.probe USING fts5(words)")
        connection.execute("DROP TABLE temp.probe")
    except sqlite3.DatabaseError:
        return False
    return True


# ------------------------------------------------------------------ what is searched for


class Term(Struct, frozen=True):
    """A word, the beginning of one, or words in a row.

    Args:
        words: As they were typed, without quotes.
        prefix: The last one is only a beginning.
        quoted: They were in quotes.
    """

    words: str
    prefix: bool = False
    quoted: bool = False

    @property
    def expression(self) -> str:
        """In FTS5's language; in quotes nothing has a meaning there but a quote."""
        return '"' + self.words.replace('"', '""') + '"' + ("*" if self.prefix else "")


_TERM = re.compile(r'"([^"]+)"(\*?)|(\S+)')


def terms(typed: str) -> tuple[Term, ...]:
    """What a person searches for: words, `"words in a row"` and beginnings of words (`begin*`); never an error.

    Args:
        typed: Anything; what has neither letter nor digit is left out.
    """
    # A NUL would end the expression for SQLite; half a character is none.
    readable = typed.replace("\0", " ").encode("utf-8", "replace").decode()
    found = []
    for phrase, star, word in _TERM.findall(readable):
        words = phrase or word.rstrip("*").replace('"', " ").strip()
        if any(map(_is_word, words)):
            found.append(Term(words, bool(star) or word.endswith("*"), bool(phrase)))
    return tuple(dict.fromkeys(found[:MOST_TERMS]))


def _is_word(character: str) -> bool:
    """Whether the tokenizer takes the character for part of a word: https://sqlite.org/fts5.html#unicode61_tokenizer."""
    category = unicodedata.category(character)
    return category[0] in "LN" or category == "Co"


# Left out where a whole question found nothing; what people ask about the past is most often asked in English here.
_SMALL = frozenset(
    """
    a about am an and any are as at be been but by can could did do does for from had has have how i if in into is
    it its me my of on or our over please should so than that the their them then there these they this those to us
    was we were what when where which who whom whose why will with would you your
    """.split()  # noqa: SIM905  a list of them would fill a page
)


def _expressions(wanted: tuple[Term, ...]) -> list[str]:
    """What to look for, in this order, until something is found: all words; else any of those that say something."""
    everything = " AND ".join(term.expression for term in wanted)
    if len(wanted) == 1 or any(term.quoted for term in wanted):
        return [everything]
    telling = [term for term in wanted if term.prefix or term.words.lower().strip("?!.,;:") not in _SMALL]
    return [everything, " OR ".join(term.expression for term in telling or wanted)]


# ------------------------------------------------------------------ what is found


class Found(Struct, frozen=True):
    """A turn in which it stands.

    Args:
        session_id, turn_id: Which.
        title: Of its session.
        at: When it was asked, µs UTC.
        role: `user` if it stands in the prompt, else `assistant`.
        snippet: The passage where it stands, the words between marks.
        prompt, answer: The whole texts; of each the first million characters.
        asked, answered: A passage of each, marked; its beginning where the words aren't in it.
        provider, model: Who answered; None where nobody was asked.
        score: The lower, the better: BM25, the prompt's words counted twice.
        partial: Some of the words are missing.
    """

    session_id: str
    turn_id: str
    title: str | None
    at: int
    role: Literal["user", "assistant"]
    snippet: str
    prompt: str
    answer: str
    asked: str
    answered: str
    provider: str | None
    model: str | None
    score: float
    partial: bool = False

    @property
    def text(self) -> str:
        """The whole prompt or answer, whichever `role` says."""
        return self.prompt if self.role == "user" else self.answer


_OPEN, _CLOSE = "\x02", "\x03"


def search(
    conn: Connection,
    typed: str,
    *,
    since: int | None = None,
    until: int | None = None,
    model: str | None = None,
    session_id: str | None = None,
    limit: int | None = None,
    marks: tuple[str, str] = ("**", "**"),
) -> list[Found]:
    """The turns that hold what was typed, the best first, of equally good ones the latest.

    Where no turn holds all the words, those that hold any of them, unless some were in quotes.

    Args:
        conn: Any connection.
        typed: See `terms`.
        since: Only turns begun at or after this instant, µs UTC.
        until: Only turns begun before this instant, µs UTC.
        model: Only turns answered by this model: `provider:model`, or one of the two.
        session_id: Only this session's.
        limit: At most so many.
        marks: What to put before and after each word that was found.

    Raises:
        UsageError: There is no word in what was typed.
    """
    wanted = terms(typed)
    if not wanted:
        msg = f"there is no word to search for in {typed!r}: give one, with a * after its beginning if that is enough"
        raise UsageError(msg)
    filters = {"since": since, "until": until, "model": model, "session_id": session_id}
    # SQLite takes -1 for no limit.
    values = {**filters, "limit": -1 if limit is None else limit}
    for number, expression in enumerate(_expressions(wanted)):
        rows = _ranked(filters).all(conn, {**values, "expression": expression})
        if rows:
            return [_found(conn, row, expression, marks, partial=number > 0) for row in rows]
    return []


_CONDITIONS = {
    "since": "t.started_at >= :since",
    "until": "t.started_at < :until",
    "model": "(t.provider || ':' || t.model = :model OR t.model = :model OR t.provider = :model)",
    "session_id": "t.session_id = :session_id",
}


def _ranked(filters: dict[str, Any]) -> Statement:
    conditions = [_CONDITIONS[name] for name, value in filters.items() if value is not None]
    query = text(f"""
        SELECT t.id, t.session_id, t.turn_id, s.title, t.started_at, t.provider, t.model,
          bm25(search_index, {PROMPT_WEIGHT}, 1.0) AS score
        FROM search_index JOIN search_turns AS t ON t.id = search_index.rowid
          LEFT JOIN sessions AS s ON s.session_id = t.session_id
        WHERE {" AND ".join(["search_index MATCH :expression", *conditions])}
        ORDER BY round(score, 2), t.started_at DESC, t.id DESC LIMIT :limit
    """)
    return Statement(query)


# By itself, so that texts are read only of what is shown.
_passages = Statement(
    text(f"""
SELECT snippet(search_index, 0, :open, :close, '…', {PASSAGE_TOKENS}) AS asked,
  snippet(search_index, 1, :open, :close, '…', {PASSAGE_TOKENS}) AS answered, prompt, answer
FROM search_index WHERE search_index MATCH :expression AND rowid = :id
""")
)


def _found(conn: Connection, row: Row, expression: str, marks: tuple[str, str], *, partial: bool) -> Found:
    values = {"open": _OPEN, "close": _CLOSE, "expression": expression, "id": row.id}
    passage = _passages.one(conn, values)
    in_prompt = _OPEN in (passage.asked or "")

    def marked(snippet: str | None) -> str:
        return (snippet or "").replace(_OPEN, marks[0]).replace(_CLOSE, marks[1])

    asked, answered = marked(passage.asked), marked(passage.answered)
    return Found(
        session_id=row.session_id,
        turn_id=row.turn_id,
        title=row.title,
        at=row.started_at,
        role="user" if in_prompt else "assistant",
        snippet=asked if in_prompt else answered,
        prompt=passage.prompt or "",
        answer=passage.answer or "",
        asked=asked,
        answered=answered,
        provider=row.provider,
        model=row.model,
        score=row.score,
        partial=partial,
    )
