"""Batches: which session holds one, who asks its prompts now, and which of them are answered."""

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
    delete,
    exists,
    insert,
    literal_column,
    select,
    update,
)

from timeline.events import BatchEnded, BatchStarted, BatchSubmitted, Event, Owner, TurnStarted
from timeline.projections import Projection
from timeline.projections.blocks import sessions
from timeline.projections.owners import NOBODY, owned_by, owner_columns, owner_of
from timeline.statements import Statement, overwriting

__all__ = [
    "Batches",
    "KnownBatch",
    "Place",
    "answered_items",
    "batch_items",
    "batches",
    "find_batch",
    "last_conversation",
    "open_items",
    "provider_batches",
    "submissions",
]

_metadata = MetaData()

batches = Table(
    "batches",
    _metadata,
    Column("session_id", Text, primary_key=True, nullable=False),
    Column("batch", Text, nullable=False),
    Column("position", Integer, nullable=False),  # of its last `batch.started`
    *owner_columns(),  # while it is being asked
)
Index("batches_batch", batches.c.batch, batches.c.position)

batch_items = Table(
    "batch_items",
    _metadata,
    Column("turn_id", Text, primary_key=True, nullable=False),
    Column("session_id", Text, nullable=False),
    Column("item", Text, nullable=False),
    Column("state", Text, nullable=False),  # open, completed
    Column("first_position", Integer, nullable=False),
    Column("last_position", Integer),
)
# A literal, not a parameter: only then does SQLite use the partial index.
_is_completed = batch_items.c.state == literal_column("'completed'")
Index("batch_items_completed", batch_items.c.session_id, sqlite_where=_is_completed)

submissions = Table(
    "submissions",
    _metadata,
    Column("submission", Text, primary_key=True, nullable=False),
    Column("session_id", Text, nullable=False),
    Column("provider", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("provider_batch", Text, nullable=False),
    Column("requests", Integer, nullable=False),
)

_begin = overwriting(batches)
_end = Statement(update(batches).where(batches.c.session_id == bindparam("of_session")).values(**NOBODY))
_submit = Statement(insert(submissions).prefix_with("OR IGNORE"))
_ask = Statement(insert(batch_items).prefix_with("OR IGNORE"))
_this_turn = (batch_items.c.turn_id == bindparam("of_turn")) & (batch_items.c.state == literal_column("'open'"))
_complete = Statement(
    update(batch_items).where(_this_turn).values(state="completed", last_position=bindparam("position"))
)
_drop = Statement(delete(batch_items).where(_this_turn))


class Batches(Projection):
    """Folds batches and the turns that are items of one; what failed or was stopped is not kept, since it is asked again."""

    name: ClassVar[str] = "batches"
    version: ClassVar[int] = 2
    tables: ClassVar[tuple[Table, ...]] = (batches, batch_items, submissions)

    def apply(self, conn: Connection, event: Event) -> None:
        """See `Projection.apply`."""
        # By type where a forgotten body (None) still says all that is needed.
        match event.type, event.data:
            case _, BatchStarted() as began:
                row = {
                    "session_id": event.session_id,
                    "batch": began.batch,
                    "position": event.position,
                    **owned_by(began.owner),
                }
                _begin.run(conn, row)
            case _, BatchEnded():
                _end.run(conn, {"of_session": event.session_id})
            case _, BatchSubmitted() as told:
                row = {name: getattr(told, name) for name in told.__struct_fields__}
                _submit.run(conn, row | {"session_id": event.session_id})
            case _, TurnStarted(item=str() as item):
                row = {
                    "turn_id": event.turn_id,
                    "session_id": event.session_id,
                    "item": item,
                    "state": "open",
                    "first_position": event.position,
                }
                _ask.run(conn, row)
            case "turn.completed", _:
                _complete.run(conn, {"of_turn": event.turn_id, "position": event.position})
            case (("turn.failed" | "turn.interrupted"), _):
                _drop.run(conn, {"of_turn": event.turn_id})


class KnownBatch(Struct, frozen=True):
    """A batch's newest session, and who asks its prompts now, if anyone said so and has not ended it."""

    session_id: str
    owner: Owner | None


class Place(Struct, frozen=True):
    """Where a turn stands in the log: all its events lie between these positions."""

    turn_id: str
    first: int
    last: int


def find_batch(conn: Connection, batch: str) -> KnownBatch | None:
    """The newest session of a batch.

    Args:
        conn: Any connection.
        batch: As `BatchStarted.batch`.
    """
    query = select(batches).where(batches.c.batch == batch).order_by(batches.c.position.desc()).limit(1)
    row = conn.execute(query).first()
    if row is None:
        return None
    return KnownBatch(row.session_id, None if row.owner_host is None else owner_of(row))


def answered_items(conn: Connection, session_id: str) -> dict[str, Place]:
    """The items of a batch's session that have an answer, and where it stands."""
    columns = batch_items.c
    query = select(columns.item, columns.turn_id, columns.first_position, columns.last_position)
    query = query.where(columns.session_id == session_id, _is_completed).order_by(columns.first_position)
    return {row.item: Place(row.turn_id, row.first_position, row.last_position) for row in conn.execute(query)}


def open_items(conn: Connection, session_id: str) -> dict[str, tuple[str, int]]:
    """The items of a batch's session that are under way: by their turns, the item and the position at which it began."""
    columns = batch_items.c
    query = select(columns.turn_id, columns.item, columns.first_position)
    query = query.where(columns.session_id == session_id, columns.state == "open")
    return {row.turn_id: (row.item, row.first_position) for row in conn.execute(query)}


def provider_batches(conn: Connection, session_id: str) -> dict[str, BatchSubmitted]:
    """What of a session went to batch APIs, by our own name for it."""
    query = select(submissions).where(submissions.c.session_id == session_id)
    names = BatchSubmitted.__struct_fields__
    return {
        row.submission: BatchSubmitted(**{name: getattr(row, name) for name in names}) for row in conn.execute(query)
    }


def last_conversation(conn: Connection) -> str | None:
    """The session used last that is no batch: what `--continue` means."""
    held = exists().where(batches.c.session_id == sessions.c.session_id)
    query = select(sessions.c.session_id).where(~held).order_by(sessions.c.last_position.desc()).limit(1)
    found: str | None = conn.execute(query).scalar()
    return found
