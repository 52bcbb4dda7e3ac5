"""Statements that run again and again: written with SQLAlchemy Core, compiled once, then run by SQLite's driver alone.

SQLAlchemy takes ten times as long to run a statement as SQLite does, and an append is made of some twenty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any, ClassVar, cast

from sqlalchemy import Connection, Insert, Table
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.sqlite import insert

if TYPE_CHECKING:
    from sqlalchemy import ClauseElement
    from sqlalchemy.engine.interfaces import DBAPICursor
    from sqlalchemy.sql.compiler import SQLCompiler

__all__ = ["Row", "Statement", "overwriting"]

# Named, since the driver then takes rows as they are written: dictionaries.
_dialect = sqlite.dialect(paramstyle="named")


class Row(tuple[Any, ...]):
    """A row whose columns are its attributes, too."""

    __slots__ = ()
    _fields: ClassVar[tuple[str, ...]] = ()

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def _asdict(self) -> dict[str, Any]:
        """By the names of the columns; underscored, as a named tuple's, so as not to clash with one of them."""
        return dict(zip(self._fields, self, strict=True))


class Statement:
    """A statement that is compiled when it is first run.

    Values go to the driver and rows come from it as they are: text, numbers, bytes and None. What goes wrong is
    `sqlite3.Error`.

    Args:
        core: What SQLAlchemy made. An insert sets those columns that the values name; a list for `IN` has to be
            known, or passed as JSON for `json_each`.
    """

    __slots__ = ("_insert", "_made", "_row", "core")

    def __init__(self, core: ClauseElement) -> None:
        self.core = core
        self._insert = isinstance(core, Insert)
        self._made: dict[tuple[str, ...], tuple[str, dict[str, Any]]] = {}
        self._row: type[Row] | None = None

    def run(self, conn: Connection, values: Mapping[str, Any] = {}) -> int:
        """Run it for what it changes; how many rows it did."""
        return self._execute(conn, values).rowcount

    def run_all(self, conn: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Run it once for each row of values; all of them have the same names."""
        sql, constants = self._compiled(rows[0])
        _cursor(conn).executemany(sql, [{**constants, **row} for row in rows] if constants else rows)

    def all(self, conn: Connection, values: Mapping[str, Any] = {}) -> list[Row]:
        """Every row."""
        cursor = self._execute(conn, values)
        return list(map(self._row_type(cursor), cursor.fetchall()))

    def first(self, conn: Connection, values: Mapping[str, Any] = {}) -> Row | None:
        """The first row, if there is one."""
        cursor = self._execute(conn, values)
        found = cursor.fetchone()
        cursor.close()
        return None if found is None else self._row_type(cursor)(found)

    def one(self, conn: Connection, values: Mapping[str, Any] = {}) -> Row:
        """The row of a query that always has one, a sum for example."""
        (row,) = self.all(conn, values)
        return row

    def scalar(self, conn: Connection, values: Mapping[str, Any] = {}) -> Any:
        """The first column of the first row; None if there is none."""
        cursor = self._execute(conn, values)
        found = cursor.fetchone()
        cursor.close()
        return None if found is None else found[0]

    def _execute(self, conn: Connection, values: Mapping[str, Any]) -> DBAPICursor:
        sql, constants = self._compiled(values)
        cursor = _cursor(conn)
        cursor.execute(sql, {**constants, **values} if constants else values)
        return cursor

    def _compiled(self, values: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Its text, and the values that it has itself."""
        names = tuple(values) if self._insert else ()
        made = self._made.get(names)
        if made is None:
            compiled = cast("SQLCompiler", self.core.compile(dialect=_dialect, column_keys=names or None))
            required = {bind.key for bind in compiled.binds.values() if bind.required}
            constants = {name: value for name, value in compiled.params.items() if name not in required}
            made = self._made[names] = (str(compiled), constants)
        return made

    def _row_type(self, cursor: DBAPICursor) -> type[Row]:
        if self._row is None:
            names = [column[0] for column in cursor.description]
            columns = {name: property(itemgetter(place)) for place, name in enumerate(names)}
            self._row = type("Row", (Row,), {"__slots__": (), "_fields": tuple(names), **columns})
        return self._row


def overwriting(table: Table) -> Statement:
    """An insert of whole rows, which takes the place of the row that has the same key."""
    new = insert(table)
    return Statement(
        new.on_conflict_do_update(
            index_elements=[column.name for column in table.primary_key],
            set_={column.name: new.excluded[column.name] for column in table.columns if not column.primary_key},
        )
    )


def _cursor(conn: Connection) -> DBAPICursor:
    """The driver's own, inside a transaction: as when SQLAlchemy runs a statement, the first one begins it."""
    if not conn.in_transaction():
        conn.begin()
    return conn.connection.cursor()
