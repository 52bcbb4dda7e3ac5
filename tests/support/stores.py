"""Stores for tests: real files, a clock that ticks, events of every type, and whole turns."""

from __future__ import annotations

import itertools
import random
import sqlite3
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from timeline import events as e
from timeline.events import Clock, EventData, NewEvent, Owner
from timeline.looking import read_models as folded
from timeline.projections import Projections
from timeline.store import EventStore, Synchronous, content_digest

OWNER = Owner("machine/4026531836/0f1e2d3c", 4711, 1234.5)
NOON = 1_795_435_200_000_000  # 2026-11-23T12:00:00Z


class TickingClock(Clock):
    """The same time, randomness and ids in every run; each look takes a millisecond."""

    def __init__(self, seed: int = 0, start: int = NOON) -> None:
        self._random = random.Random(seed)
        self._now = start

    def now(self) -> int:
        self._now += 1000
        return self._now

    def random_bits(self, bits: int) -> int:
        return self._random.getrandbits(bits)


def projections() -> Projections:
    """What the library itself folds."""
    return folded()


def opened(
    path: Path, *, synchronous: Synchronous = "full", read_only: bool = False
) -> AbstractAsyncContextManager[EventStore]:
    """A store as the library opens it."""
    return EventStore.open(path, projections(), synchronous=synchronous, read_only=read_only)


_seeds = itertools.count()


class Scribe:
    """Makes events, by a clock of its own; no two give the same ids."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or TickingClock(next(_seeds))

    def event(self, session: str, data: EventData, **ids: str) -> NewEvent:
        """One fact; `ids` are its `turn_id`, `step_id`, `call_id`."""
        return NewEvent(session, data, self.clock.uuid7(), self.clock.now(), **ids)

    def session(self, session: str, title: str | None = None) -> NewEvent:
        """A session begins."""
        return self.event(session, e.SessionStarted("0.1.0", OWNER, title))

    def notes(self, session: str, count: int) -> list[NewEvent]:
        """Events that no projection cares about."""
        return [self.event(session, e.RateLimitWaited("openai", "gpt", "requests", n)) for n in range(count)]

    def turn(
        self,
        session: str,
        *,
        prompt: str = "Why is the sky blue?",
        texts: Sequence[str] = ("Because", " it is."),
        usage: e.Usage | None = None,
        model: str = "gpt",
        cost: e.Cost | None = None,
    ) -> list[NewEvent]:
        """A whole turn in direct mode, one call of one attempt."""
        ids = {"turn_id": self.clock.short_id(), "step_id": self.clock.short_id(), "call_id": self.clock.short_id()}
        ref = content_digest(prompt)
        facts: list[EventData] = [
            e.TurnStarted("direct", OWNER, prompt=ref),
            e.StepStarted("answer"),
            e.RequestSent(1, "openai", model, "asked for", (e.MessageRef("user", ref),), OWNER),
            e.ChunkReceived(0, tuple(texts), tuple(range(1, len(texts) + 1))),
            e.ResponseCompleted(
                1, "stop", usage or e.Usage(input=5, output=3), "provider", cost or e.Cost("free"), 2_000_000, 300_000
            ),
            e.StepCompleted(2_100_000),
            e.TurnCompleted(ids["call_id"], 2_200_000),
        ]
        return [self.event(session, fact, **ids) for fact in facts]


# ------------------------------------------------------------------ one of each


_ERROR = e.ErrorInfo("rate_limited", "openai is busy (429): ask again", 429, "busy", True, 1.5, "req-1")
_USAGE = e.Usage(11, 12, 13, 14, 15, 6)
_COST = e.Cost("priced", 123_456_789, "litellm", "2026-11-01", "gpt-4o")
_LIMITS = (e.RateLimit("requests", 100, 99, NOON),)
_REF = content_digest("a body")


def every_event() -> list[EventData]:
    """An event of every type, none of its fields at its default."""
    attachment = e.Attachment("notes.txt", "text/plain", 6, _REF)
    failed = e.FailedAttempt("call", 2, "server", 5, _USAGE, "provider", _COST)
    return [
        e.SessionStarted("0.1.0", OWNER, "Blue skies"),
        e.SessionRenamed('Ünïcode \u2028 \U0001f600 \x00 "quoted"'),
        e.SessionForked("0193b3f0-0000-7000-8000-000000000000", 7),
        e.SessionRedacted(3, (failed,)),
        e.TurnStarted("pipeline", OWNER, _REF, _REF, (attachment,), True, "line"),
        e.BatchStarted(_REF, OWNER, 12),
        e.BatchEnded(7, 3, "sigint"),
        e.BatchSubmitted("label", "openai", "gpt-4o", "batch_1", 12),
        e.TurnCompleted("call", 1),
        e.TurnFailed(_ERROR, 2),
        e.TurnInterrupted("sigint", 3),
        e.StepStarted("route", 1),
        e.StepCompleted(4, {"route": "tool", "arguments": {"x": [1, 2.5, None, True]}}, "it said so", True),
        e.StepSkipped("tool", "not needed", 2),
        e.StepFailed(_ERROR, 5),
        e.RequestSent(
            2,
            "openai",
            "gpt-4o",
            "asked for",
            (e.MessageRef("user", _REF, "call", (_REF,)),),
            OWNER,
            {"temperature": 0.7, "stop": ["\n"]},
            _REF,
            False,
            321,
            654,
            _REF,
            True,
            987,
            "0f1e",
        ),
        e.ChunkReceived(9, ("a", "", "ü\n"), (1, 0, 2), "reasoning", 2),
        e.ResponseCompleted(
            2,
            "stop",
            _USAGE,
            "provider",
            _COST,
            6,
            7,
            "end_turn",
            {"nested": {"n": 1}},
            "gpt-4o-2026",
            "req",
            _REF,
            _LIMITS,
            9000,
            "sha256:b179",
            "flex",
        ),
        e.ResponseAnnotated((e.Source("https://example.org/a", "A"),), "It was blocked.", 2),
        e.CallFailed(2, _ERROR, 8, True, _USAGE, "estimated", _COST, _LIMITS),
        e.CallInterrupted(2, "abandoned", _USAGE, "provider", _COST, 9),
        e.CallRetryScheduled(2, 10, "busy"),
        e.CallRerouted("openai:gpt", "embedded:smollm2", "busy"),
        e.CallCacheHit("call", 11, 2, "openai", "gpt-4o", "stop", "asked for"),
        e.RateLimitWaited("openai", "gpt", "requests", 12, "0f1e", 987, 321, OWNER),
        e.BudgetAlerted("monthly", "2026-11", 1, 2, 3, 80, "tokens"),
        e.BudgetExceeded("monthly", "2026-11", 4, 5, 6, 7, "tokens", "warn", NOON),
        e.ToolCalled("calculator", "id", _REF),
        e.ToolReturned("calculator", "id", 13, _REF),
        e.ToolFailed("calculator", "id", 14, _ERROR),
    ]


# ------------------------------------------------------------------ looking into the file


READ_MODELS = (
    "sessions",
    "turns",
    "steps",
    "attempts",
    "usage",
    "spending",
    "budget_alerts",
    "cached",
    "limits",
    "waits",
    "health",
    "model_stats",
    "batches",
    "batch_items",
    "search_turns",
    "submissions",
    "projections",
)


def look(path: Path, sql: str, *values: object) -> list[tuple[Any, ...]]:
    """Rows of the file, by a connection that is none of ours."""
    connection = sqlite3.connect(path)
    try:
        return connection.execute(sql, values).fetchall()
    finally:
        connection.close()


def force(path: Path, *statements: str) -> None:
    """What someone with write access, who doesn't want to be stopped, does to the file: without the triggers."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            connection.execute(statement)
        for _, sql in triggers:
            connection.execute(sql)
    finally:
        connection.close()


def read_models(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every read model, as it lies in the file, with its row id where it has one; and the index's words."""
    connection = sqlite3.connect(path)
    try:
        bare = {name for (name,) in connection.execute("SELECT name FROM pragma_table_list WHERE wr")} | {"projections"}
        rows = {
            name: connection.execute(
                f"SELECT {'*' if name in bare else 'rowid, *'} FROM {name} {'' if name in bare else 'ORDER BY 1'}"
            ).fetchall()
            for name in READ_MODELS
        }
        return {**rows, "search_index": _words(connection)}
    finally:
        connection.close()


def words(path: Path) -> list[tuple[Any, ...]]:
    """Every word of the index of past turns: word, turn, column and place."""
    connection = sqlite3.connect(path)
    try:
        return _words(connection)
    finally:
        connection.close()


def _words(connection: sqlite3.Connection) -> list[tuple[Any, ...]]:
    connection.execute("CREATE VIRTUAL TABLE temp.vocabulary USING fts5vocab(main, search_index, instance)")
    return connection.execute("SELECT * FROM vocabulary ORDER BY 1, 2, 3, 4").fetchall()


def all_bytes(path: Path) -> bytes:
    """The file and all that SQLite keeps beside it."""
    return b"".join(part.read_bytes() for part in sorted(path.parent.glob(path.name + "*")))
