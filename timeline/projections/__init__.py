"""How read models are kept: folded inline with every append, checked against their checkpoint, rebuilt beside themselves.

A projection is a fold: its tables hold nothing that the log doesn't say, so they can be
dropped and folded again to the same bytes.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar, Literal

from sqlalchemy import (
    Column,
    Connection,
    Integer,
    MetaData,
    Table,
    Text,
    bindparam,
    func,
    literal,
    literal_column,
    select,
    update,
)
from sqlalchemy.dialects.sqlite import dialect
from sqlalchemy.schema import CreateIndex, CreateTable

from timeline.errors import NotFound, StoreDamaged, StoreTooNew
from timeline.events import Event
from timeline.statements import Statement, overwriting

__all__ = ["Projection", "Projections"]

PAGE = 1000

# The store makes these two; to a projection they are names in the same file.
_log = Table("events", MetaData(), Column("position", Integer, primary_key=True))
_checkpoints = Table(
    "projections",
    MetaData(),
    Column("name", Text, primary_key=True),
    Column("version", Integer, nullable=False),
    Column("position", Integer, nullable=False),
)


_KNOWN = Statement(select(_checkpoints))
_SET = overwriting(_checkpoints)


class Projection(ABC):
    """One read model.

    Attributes:
        name: Its name, also in the `projections` table.
        version: Raised whenever the tables or the fold change; the next start folds anew.
        tables: Its tables, without a schema, each with a primary key.
        reads: Names of the projections whose tables its fold looks into; these have folded the same event already,
            and are made and rebuilt together with it.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    tables: ClassVar[tuple[Table, ...]]
    reads: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def apply(self, conn: Connection, event: Event) -> None:
        """Fold one event, the next in the log; writes nothing but its own tables, and reads them and those of `reads`.

        It may also read what the log and `contents` say of what came before; of that, only forgetting takes something away.
        """

    @property
    def parts(self) -> frozenset[str]:
        """The names of all that it keeps in the file."""
        return frozenset(table.name for table in self.tables)

    def make(self, conn: Connection) -> None:
        """Make its tables, empty, in place of what is there of them."""
        for table in self.tables:
            conn.exec_driver_sql(f"DROP TABLE IF EXISTS main.{table.name}")
            for statement in _statements(table, "main"):
                conn.exec_driver_sql(statement)

    def make_shadow(self, conn: Connection) -> None:
        """Make them once more as temporary tables, which their bare names then mean."""
        for table in self.tables:
            for statement in _statements(table, "temp"):
                conn.exec_driver_sql(statement)

    def swap(self, conn: Connection) -> None:
        """Put what the temporary tables hold in place of what the others do, and drop them."""
        for table in self.tables:
            columns = ", ".join(f'"{column.name}"' for column in table.columns)
            conn.exec_driver_sql(f"DELETE FROM main.{table.name}")
            conn.exec_driver_sql(f"INSERT INTO main.{table.name} ({columns}) SELECT {columns} FROM temp.{table.name}")
            conn.exec_driver_sql(f"DROP TABLE temp.{table.name}")


class Projections:
    """A set of projections that moves along with the log. It is what the store is handed.

    Args:
        projections: In the order in which they see each event; what one reads stands before it.
    """

    def __init__(self, projections: Iterable[Projection]) -> None:
        self._all = tuple(projections)
        self._advance = Statement(
            update(_checkpoints)
            .where(_checkpoints.c.position == bindparam("before"))
            # Others may be of a release that has more of them.
            .where(_checkpoints.c.name.in_([literal(projection.name) for projection in self._all]))
            .values(position=bindparam("after"))
        )

    # -------------------------------------------------------------- inline

    def apply(self, conn: Connection, events: Sequence[Event]) -> None:
        """Fold events just inserted, inside their transaction.

        Raises:
            StoreTooNew: Another process has moved a projection to another release meanwhile.
            StoreDamaged: A projection has seen events that the log doesn't have any more.
        """
        known = self._checkpoints(conn)
        folded = []
        for projection in self._all:
            version, position = known.get(projection.name, (0, 0))
            if version != projection.version:
                msg = f"another release of timeline took over the read model {projection.name!r}: start this one again"
                raise StoreTooNew(msg)
            if position >= events[0].position:
                msg = (
                    f"the log ended at {events[0].position - 1}, but the read model {projection.name!r} has seen {position}:"
                    " restore a backup, or run 'timeline store rebuild' to go on with what is left"
                )
                raise StoreDamaged(msg)
            if position != events[0].position - 1:
                # A release without this projection appended meanwhile; the next start folds what is missing.
                continue
            folded.append(projection)
        for event in events:
            for projection in folded:
                projection.apply(conn, event)
        if folded:
            self._advance.run(conn, {"before": events[0].position - 1, "after": events[-1].position})

    # -------------------------------------------------------------- opening

    def is_current(self, conn: Connection) -> bool:
        """Whether every table is there, of this release and folded up to the end of the log, at least.

        Raises:
            StoreTooNew: A newer release of timeline folded them.
        """
        head = _head(conn)
        known, there = self._checkpoints(conn), _names(conn)
        for projection in self._all:
            version, position = known.get(projection.name, (0, 0))
            _refuse_newer(projection, version)
            if version != projection.version or position < head or not projection.parts <= there:
                return False
        return True

    def prepare(self, conn: Connection, read: Callable[[int, int], Sequence[Event]]) -> None:
        """Make what is missing or outdated and fold what it hasn't seen.

        Args:
            conn: Inside a write transaction.
            read: Gives up to so many events after a position.

        Raises:
            StoreTooNew: A newer release of timeline folded them.
        """
        known, there = self._checkpoints(conn), _names(conn)
        seen: dict[Projection, int] = {}
        for projection in self._all:
            version, seen[projection] = known.get(projection.name, (0, 0))
            _refuse_newer(projection, version)
            if version != projection.version or not projection.parts <= there:
                projection.make(conn)
                seen[projection] = 0
        for projection in self._out_of_step(seen):
            projection.make(conn)
            seen[projection] = 0
        after = min(seen.values(), default=0)
        while events := read(after, PAGE):
            after = events[-1].position
            for event in events:
                for projection, position in seen.items():
                    if event.position > position:
                        projection.apply(conn, event)
        for projection, position in seen.items():
            self._set_checkpoints(conn, [projection], max(position, after))

    def _out_of_step(self, seen: Mapping[Projection, int]) -> list[Projection]:
        """Those to fold anew because one of them has seen more, or less, than what it reads."""
        by_name = {projection.name: projection for projection in self._all}
        anew: set[str] = set()
        for projection in reversed(self._all):
            group = [projection, *(by_name[name] for name in projection.reads)]
            if projection.name in anew or len({seen[item] for item in group}) > 1:
                anew.update(item.name for item in group)
        # What is folded anew takes those along that read it.
        for projection in self._all:
            if anew.intersection(projection.reads):
                anew.add(projection.name)
        return [projection for projection in self._all if projection.name in anew]

    # -------------------------------------------------------------- rebuilding

    def rebuild(
        self,
        conn: Connection,
        read: Callable[[Connection, int, int], Sequence[Event]],
        names: Iterable[str] | None,
    ) -> list[str]:
        """Fold the whole log into temporary tables while others append, then swap them in.

        A process that dies in between leaves nothing: temporary tables end with their connection.

        Args:
            conn: A connection that may write; no transaction is open on it.
            read: Gives up to so many events after a position.
            names: Which; None for all.

        Raises:
            NotFound: There is no such projection.
        """
        chosen = self._chosen(names)
        conn.execution_options(begin="BEGIN")
        for projection in chosen:
            projection.make_shadow(conn)
        conn.commit()
        # From here on the bare names mean the temporary tables: SQLite looks there first
        # (https://sqlite.org/lang_naming.html). Reads of the log are short transactions, and
        # nothing is written to the file before the swap.
        position = 0
        while (seen := _fold_page(conn, chosen, read, position)) > position:
            position = seen
            conn.commit()
        conn.rollback()
        conn.execution_options(begin="BEGIN IMMEDIATE")
        self._swap(conn, chosen, read, position)
        conn.commit()
        return [projection.name for projection in chosen]

    def _swap(
        self,
        conn: Connection,
        chosen: Sequence[Projection],
        read: Callable[[Connection, int, int], Sequence[Event]],
        position: int,
    ) -> None:
        known = self._checkpoints(conn)
        for projection in chosen:
            _refuse_newer(projection, known.get(projection.name, (0, 0))[0])
        while (seen := _fold_page(conn, chosen, read, position)) > position:
            position = seen
        for projection in chosen:
            projection.swap(conn)
        self._set_checkpoints(conn, chosen, position)

    def _chosen(self, names: Iterable[str] | None) -> list[Projection]:
        if names is None:
            return list(self._all)
        by_name = {projection.name: projection for projection in self._all}
        chosen: set[str] = set()
        for name in names:
            if name not in by_name:
                msg = f"there is no projection {name!r}: choose from {', '.join(by_name)}"
                raise NotFound(msg)
            chosen.add(name)
        for projection in reversed(self._all):
            if projection.name in chosen:
                chosen.update(projection.reads)
        return [projection for projection in self._all if projection.name in chosen]

    # -------------------------------------------------------------- checkpoints

    @staticmethod
    def _checkpoints(conn: Connection) -> dict[str, tuple[int, int]]:
        return {row.name: (row.version, row.position) for row in _KNOWN.all(conn)}

    @staticmethod
    def _set_checkpoints(conn: Connection, projections: Iterable[Projection], position: int) -> None:
        rows = [{"name": item.name, "version": item.version, "position": position} for item in projections]
        _SET.run_all(conn, rows)


@functools.cache
def _statements(table: Table, schema: Literal["main", "temp"]) -> tuple[str, ...]:
    """What makes a table and its indexes; SQLAlchemy takes longer to find the words than SQLite to obey."""
    placed = table if schema == "main" else table.to_metadata(MetaData(), schema=schema)
    indexes = sorted(placed.indexes, key=lambda index: str(index.name))
    made: list[CreateTable | CreateIndex] = [CreateTable(placed), *map(CreateIndex, indexes)]
    return tuple(str(ddl.compile(dialect=dialect())) for ddl in made)


def _refuse_newer(projection: Projection, version: int) -> None:
    if version > projection.version:
        msg = f"the read model {projection.name!r} was made by a newer version of timeline: update timeline"
        raise StoreTooNew(msg)


def _names(conn: Connection) -> set[str]:
    """What there is in the file. Somebody may have dropped a table: nothing of it is lost but the time to fold it."""
    return {name for (name,) in conn.exec_driver_sql("SELECT name FROM main.sqlite_master")}


def _head(conn: Connection) -> int:
    head: int = conn.execute(select(func.coalesce(func.max(_log.c.position), literal_column("0")))).scalar_one()
    return head


def _fold_page(
    conn: Connection,
    chosen: Sequence[Projection],
    read: Callable[[Connection, int, int], Sequence[Event]],
    position: int,
) -> int:
    events = read(conn, position, PAGE)
    for event in events:
        for projection in chosen:
            projection.apply(conn, event)
    return events[-1].position if events else position
