"""Sessions, turns and steps as read models for lists; what is drawn of one is folded in `drawn`, which has its names here, too."""

from __future__ import annotations

from typing import ClassVar

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
    func,
    insert,
    literal_column,
    or_,
    select,
    update,
)

from timeline import events as e
from timeline.errors import AmbiguousName, NotFound
from timeline.events import Event, Owner
from timeline.projections import Projection
from timeline.projections.drawn import Attempt, Folding, Fragment, Note, Session, Step, ToolUse, Turn, fold, sources
from timeline.projections.owners import NOBODY, owned_by, owner_columns, owner_of
from timeline.statements import Statement

__all__ = [
    "Attempt",
    "Blocks",
    "Folding",
    "Fragment",
    "Note",
    "OpenTurn",
    "Session",
    "SessionRow",
    "Step",
    "ToolUse",
    "Turn",
    "find_session",
    "fold",
    "is_open_turn",
    "list_sessions",
    "open_turns",
    "sessions",
    "sources",
    "steps",
    "turns",
]

_metadata = MetaData()

sessions = Table(
    "sessions",
    _metadata,
    Column("session_id", Text, primary_key=True, nullable=False),
    Column("title", Text),
    Column("started_at", Integer, nullable=False),
    Column("last_at", Integer, nullable=False),
    Column("last_position", Integer, nullable=False),
    Column("turns", Integer, nullable=False),
)

turns = Table(
    "turns",
    _metadata,
    Column("turn_id", Text, primary_key=True, nullable=False),
    Column("session_id", Text, nullable=False),
    Column("number", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("started_at", Integer, nullable=False),
    Column("duration_us", Integer),
    Column("answer_call", Text),
    Column("reason", Text),  # error kind, or why it was interrupted
    *owner_columns(),
)

# A literal, not a parameter: only then does SQLite use the partial index.
_is_open = turns.c.state == literal_column("'open'")
Index("turns_open", turns.c.started_at, sqlite_where=_is_open)

steps = Table(
    "steps",
    _metadata,
    Column("step_id", Text, primary_key=True, nullable=False),
    Column("turn_id", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("number", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("duration_us", Integer),
)


# ------------------------------------------------------------------ the read model


_begin_session = Statement(insert(sessions).prefix_with("OR IGNORE"))
_this_session = sessions.c.session_id == bindparam("of_session")
_title_session = Statement(update(sessions).where(_this_session).values(title=bindparam("title")))
_advance_session = Statement(
    update(sessions)
    .where(_this_session)
    .values(last_at=bindparam("at"), last_position=bindparam("position"), turns=sessions.c.turns + 1)
)
_begin_turn = Statement(
    insert(turns)
    .prefix_with("OR IGNORE")
    .values(number=func.coalesce(select(sessions.c.turns).where(_this_session).scalar_subquery(), 1), state="open")
)
# The owner matters only while the turn is open.
_end_turn = Statement(
    update(turns)
    .where(turns.c.turn_id == bindparam("of_turn"), _is_open)
    .values(
        state=bindparam("state"),
        duration_us=bindparam("duration_us"),
        answer_call=bindparam("answer_call"),
        reason=bindparam("reason"),
        **NOBODY,
    )
)
_begin_step = Statement(insert(steps).prefix_with("OR IGNORE"))
_end_step = Statement(
    update(steps)
    .where(steps.c.step_id == bindparam("of_step"), steps.c.state == "open")
    .values(state=bindparam("state"), duration_us=bindparam("duration_us"))
)


class Blocks(Projection):
    """Folds sessions, turns and steps into tables; texts stay in the log and in `contents`."""

    name: ClassVar[str] = "blocks"
    version: ClassVar[int] = 1
    tables: ClassVar[tuple[Table, ...]] = (sessions, turns, steps)

    def apply(self, conn: Connection, event: Event) -> None:
        """See `Projection.apply`."""
        # By type where a forgotten body (None) still says all that is needed.
        match event.type, event.data:
            case "session.started", data:
                row = {
                    "session_id": event.session_id,
                    "title": data.title if isinstance(data, e.SessionStarted) else None,
                    "started_at": event.recorded_at,
                    "last_at": event.recorded_at,
                    "last_position": event.position,
                    "turns": 0,
                }
                _begin_session.run(conn, row)
            case _, e.SessionRenamed(title):
                _title_session.run(conn, {"of_session": event.session_id, "title": title})
            case "session.redacted", _:
                _title_session.run(conn, {"of_session": event.session_id, "title": None})
            case "turn.started", data:
                self._begin_turn(conn, event, data.owner if isinstance(data, e.TurnStarted) else None)
            case (("turn.completed" | "turn.failed" | "turn.interrupted"), data):
                row = {
                    "of_turn": event.turn_id,
                    "state": event.type.removeprefix("turn."),
                    "duration_us": getattr(data, "duration_us", None),
                    "answer_call": data.answer_call if isinstance(data, e.TurnCompleted) else None,
                    "reason": data.error.kind if isinstance(data, e.TurnFailed) else getattr(data, "reason", None),
                }
                _end_turn.run(conn, row)
            case _, (e.StepStarted() | e.StepSkipped()) as data:
                row = {
                    "step_id": event.step_id,
                    "turn_id": event.turn_id,
                    "kind": data.kind,
                    "number": data.index,
                    "state": "skipped" if isinstance(data, e.StepSkipped) else "open",
                }
                _begin_step.run(conn, row)
            case (("step.completed" | "step.failed"), data):
                row = {
                    "of_step": event.step_id,
                    "state": event.type.removeprefix("step."),
                    "duration_us": getattr(data, "duration_us", None),
                }
                _end_step.run(conn, row)

    @staticmethod
    def _begin_turn(conn: Connection, event: Event, owner: Owner | None) -> None:
        of_session = {"of_session": event.session_id}
        _advance_session.run(conn, of_session | {"at": event.recorded_at, "position": event.position})
        row = {
            "turn_id": event.turn_id,
            "session_id": event.session_id,
            "started_at": event.recorded_at,
            **owned_by(owner),
        }
        _begin_turn.run(conn, of_session | row)


class SessionRow(Struct, frozen=True):
    """A session as lists show it; instants in µs UTC."""

    id: str
    title: str | None
    turns: int
    started_at: int
    last_at: int


def list_sessions(conn: Connection, *, limit: int | None = None) -> list[SessionRow]:
    """Sessions, the one used last first."""
    query = select(sessions).order_by(sessions.c.last_position.desc()).limit(limit)
    return [
        SessionRow(row.session_id, row.title, row.turns, row.started_at, row.last_at) for row in conn.execute(query)
    ]


def find_session(conn: Connection, name: str) -> str:
    """The id of the session that a user means.

    Args:
        conn: Any connection.
        name: `last`, an id, a unique prefix of one, or a title.

    Raises:
        NotFound: None is meant.
        AmbiguousName: More than one is.
    """
    if name == "last":
        row = conn.execute(select(sessions.c.session_id).order_by(sessions.c.last_position.desc()).limit(1)).first()
        if row is None:
            msg = "there is no session yet: 'timeline ask' begins one"
            raise NotFound(msg)
        return str(row.session_id)
    # What was no UTF-8 on the command line names nothing.
    name = name.encode("utf-8", "replace").decode()
    prefix = sessions.c.session_id.startswith(name.lower(), autoescape=True)
    # By SQLite's own lower(), which knows ASCII alone, on both sides.
    titled = func.lower(sessions.c.title) == func.lower(name)
    found = conn.execute(select(sessions.c.session_id).where(or_(prefix, titled)).limit(6)).all()
    if any(row.session_id == name for row in found):
        return name
    if not name or not found:
        msg = f"there is no session {name!r}: see 'timeline sessions list'"
        raise NotFound(msg)
    if len(found) > 1:
        few = ", ".join(row.session_id for row in found[:5]) + (", …" if len(found) > 5 else "")  # noqa: PLR2004
        msg = f"{name!r} may be any of {few}: give more of the id"
        raise AmbiguousName(msg)
    return str(found[0].session_id)


class OpenTurn(Struct, frozen=True):
    """A turn without an end, and who has to end it."""

    session_id: str
    turn_id: str
    started_at: int
    owner: Owner


def is_open_turn(conn: Connection, turn_id: str) -> bool:
    """Whether a turn has begun and not ended."""
    return conn.execute(select(turns.c.turn_id).where(turns.c.turn_id == turn_id, _is_open)).first() is not None


def open_turns(conn: Connection) -> list[OpenTurn]:
    """Every turn that has not ended and whose owner is known."""
    query = select(turns).where(_is_open, turns.c.owner_host.is_not(None)).order_by(turns.c.started_at)
    return [OpenTurn(row.session_id, row.turn_id, row.started_at, owner_of(row)) for row in conn.execute(query)]
