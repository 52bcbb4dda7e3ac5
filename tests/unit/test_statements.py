"""Statements that are compiled once: their values, rows, transactions and errors are as when SQLAlchemy runs them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import (
    Column,
    Connection,
    Integer,
    MetaData,
    Table,
    Text,
    bindparam,
    func,
    insert,
    literal,
    select,
    text,
    update,
)

from timeline.errors import StoreBusy, StoreDamaged, StoreError
from timeline.statements import Statement, overwriting
from timeline.store import sqlite

birds = Table(
    "birds",
    MetaData(),
    Column("name", Text, primary_key=True),
    Column("count", Integer, nullable=False, server_default="1"),
    Column("song", Text),
)
ADD = Statement(insert(birds))
ALL = Statement(select(birds).order_by(birds.c.name))


@pytest.fixture
def conn(tmp_path: Path) -> Iterator[Connection]:
    engine = sqlite.writer(tmp_path / "birds.db")
    with engine.connect() as conn:
        birds.create(conn)
        conn.commit()
        yield conn
    engine.dispose()


def test_a_row_has_its_columns_by_name_also_one_that_tuples_have_a_method_of(conn: Connection) -> None:
    ADD.run(conn, {"name": "wren", "count": 3, "song": None})

    row = ALL.one(conn)

    assert ("wren", 3, None) == row == (row.name, row.count, row.song)
    assert {"name": "wren", "count": 3, "song": None} == row._asdict()


def test_an_insert_sets_the_columns_that_are_named(conn: Connection) -> None:
    ADD.run(conn, {"name": "wren"})
    ADD.run(conn, {"song": "zilp", "name": "chiffchaff"})
    ADD.run_all(conn, [{"name": "owl", "count": 2}, {"name": "rook", "count": 9}])

    assert [("chiffchaff", 1, "zilp"), ("owl", 2, None), ("rook", 9, None), ("wren", 1, None)] == ALL.all(conn)


def test_a_statement_has_values_of_its_own_beside_those_it_is_given(conn: Connection) -> None:
    ADD.run_all(conn, [{"name": "owl"}, {"name": "rook"}, {"name": "wren"}])
    hush = Statement(
        update(birds)
        .where(birds.c.name.in_([literal("owl"), literal("rook")]), birds.c.count < bindparam("most"))
        .values(song="", count=birds.c.count + 4)
    )

    assert 2 == hush.run(conn, {"most": 5})
    assert 0 == hush.run(conn, {"most": 5})
    assert [5, 5, 1] == [row.count for row in ALL.all(conn)]


def test_a_value_that_is_missing_is_an_error(conn: Connection) -> None:
    one = Statement(select(birds).where(birds.c.name == bindparam("which")))

    with pytest.raises(sqlite3.ProgrammingError, match="which"):
        one.first(conn)


def test_where_nothing_is_found_there_is_no_row_and_no_value(conn: Connection) -> None:
    assert ([], None, None) == (ALL.all(conn), ALL.first(conn), ALL.scalar(conn))
    assert 0 == Statement(select(func.count()).select_from(birds)).scalar(conn)


def test_the_whole_row_of_a_key_is_overwritten(conn: Connection) -> None:
    write = overwriting(birds)
    write.run(conn, {"name": "owl", "count": 1, "song": "tu-whit"})
    write.run(conn, {"count": 2, "song": None, "name": "owl"})

    assert [("owl", 2, None)] == ALL.all(conn)


def test_the_first_statement_begins_the_transaction_and_a_rollback_undoes_it(conn: Connection, tmp_path: Path) -> None:
    assert [] == ALL.all(conn)
    other = sqlite3.connect(tmp_path / "birds.db", timeout=0)

    with pytest.raises(sqlite3.OperationalError, match="locked"):
        other.execute("BEGIN IMMEDIATE")
    ADD.run(conn, {"name": "wren"})
    conn.rollback()
    assert [] == ALL.all(conn)
    conn.rollback()
    other.execute("BEGIN IMMEDIATE")
    other.close()


@pytest.mark.parametrize(
    ("statement", "values", "error"),
    [
        (ADD, {"name": "owl", "count": None}, StoreError),
        (Statement(text("SELECT CAST(x'ff' AS TEXT) AS name")), {}, StoreDamaged),
        (Statement(text("ATTACH :path AS other")), {"path": "/nowhere/at/all.db"}, StoreError),
    ],
)
def test_what_goes_wrong_is_an_error_of_the_store(
    conn: Connection, statement: Statement, values: dict[str, str | int | None], error: type[StoreError]
) -> None:
    with pytest.raises(error), sqlite.mapped_errors(Path("birds.db")):
        statement.all(conn, values)


def test_a_file_that_another_process_holds_is_busy(conn: Connection, tmp_path: Path) -> None:
    conn.exec_driver_sql("PRAGMA busy_timeout=0")
    conn.rollback()
    other = sqlite3.connect(tmp_path / "birds.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    with pytest.raises(StoreBusy), sqlite.mapped_errors(tmp_path):
        ALL.all(conn)
    other.close()
