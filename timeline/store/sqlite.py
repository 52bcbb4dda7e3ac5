"""Everything that is SQLite's own: engines and their pragmas, transactions, error codes, checkpoints, file modes.

Checkpoints: SQLite before 3.51.3 (and 3.50.7, 3.44.6) can lose committed pages when a commit
resets the WAL while another connection checkpoints (https://sqlite.org/wal.html#walresetbug).
So no connection checkpoints by itself here; the writer does, with `wal_checkpoint(TRUNCATE)`.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError

from timeline.config.paths import make_lock_file
from timeline.errors import (
    NotATimelineStore,
    StoreBusy,
    StoreDamaged,
    StoreError,
    StoreFull,
    StoreReadOnly,
)

__all__ = [
    "BUSY_TIMEOUT_SECONDS",
    "Synchronous",
    "address",
    "checkpoints_are_safe",
    "connect",
    "make_folder",
    "make_private",
    "mapped_errors",
    "plain",
    "reader",
    "start_lock",
    "truncate_wal",
    "unreachable",
    "vacuum",
    "wal_size",
    "writer",
]

LEAST_ROOM = 128 * 1024
"""Bytes. A write that finds less fails as an I/O error, not as a full disk, where it is the shared memory that grows."""
BUSY_TIMEOUT_SECONDS = 30
LOCK_POLL_SECONDS = 0.2
"""How often whoever waits for `start_lock` looks whether it is still wanted."""

Synchronous = Literal["full", "normal"]
"""`full`: a committed event survives a power cut. `normal`: it survives a crash of the process, and a
power cut may take the last commits (never the file). https://sqlite.org/pragma.html#pragma_synchronous"""


def reader(path: Path, *, read_only: bool = False) -> Engine:
    """An engine that refuses to write, whose driver the event loop waits for: all of it is called by `greenlet_spawn`.

    It is what an `AsyncEngine` has inside. That would bring SQLAlchemy's ORM along, an eighth of a command's start.

    Args:
        path: The database file.
        read_only: It stands where nothing can be written; see `address`.
    """
    made = create_engine(
        URL.create("sqlite+aiosqlite", database=address(path, read_only=read_only), query={"uri": "true"}),
        connect_args={"timeout": BUSY_TIMEOUT_SECONDS},
        pool_size=5,
        max_overflow=0,
        hide_parameters=True,
    )
    _configure(made, "query_only=ON", begin="BEGIN")
    return made


def writer(path: Path, *, synchronous: Synchronous = "full") -> Engine:
    """An engine whose transactions write, for one thread of its own: a transaction is a dozen statements, and each
    would otherwise cross from the event loop to the driver's thread and back several times.

    Args:
        path: The database file; its folder exists.
        synchronous: When a commit is durable; see `Synchronous`.
    """
    made = create_engine(
        URL.create("sqlite", database=address(path), query={"uri": "true"}),
        connect_args={"timeout": BUSY_TIMEOUT_SECONDS, "check_same_thread": False},
        pool_size=1,
        max_overflow=0,
        # What people say to models has no place in a traceback.
        hide_parameters=True,
    )
    # A deferred transaction that turns into a writer can fail at once with SQLITE_BUSY,
    # whatever the timeout, so writers begin as writers.
    # The mode is the file's; one that came out of `VACUUM INTO` or a dump has lost it.
    _configure(made, "journal_mode=WAL", f"synchronous={synchronous}", "secure_delete=ON", begin="BEGIN IMMEDIATE")
    return made


@contextmanager
def connect(path: Path, *, synchronous: Synchronous = "full") -> Iterator[Connection]:
    """One write transaction by itself, for making and migrating the file."""
    made = writer(path, synchronous=synchronous)
    try:
        with made.begin() as connection:
            yield connection
    finally:
        made.dispose()


def address(path: Path, *, read_only: bool = False) -> str:
    """The file as a URI (https://sqlite.org/uri.html), so that no character of its name means anything.

    Args:
        path: The database file.
        read_only: It stands where nothing can be written. SQLite can read a file in WAL mode there only if the
            log's two files exist, left by a process that lives or died, or if it is told that nobody writes.
    """
    place = f"file:{quote(str(path.absolute()))}"
    if not read_only:
        return place
    # On a full disk an empty log is what is left of somebody who could not even begin.
    held = Path(f"{path}-wal").exists() and (wal_size(path) > 0 or has_room(path))
    return f"{place}?mode=ro" if held else f"{place}?mode=ro&immutable=1"


def _configure(engine: Engine, *pragmas: str, begin: str) -> None:
    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: Any) -> None:
        # The driver's own transaction control is off: it would begin deferred transactions.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in ("wal_autocheckpoint=0", *pragmas):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.connection.cursor().execute(connection.get_execution_options().get("begin", begin))


@contextmanager
def plain(path: Path, *, read_only: bool = False) -> Iterator[sqlite3.Connection]:
    """A plain connection, for when there is no engine; closed at the end. `read_only` as for `address`."""
    place = address(path, read_only=read_only)
    connection = sqlite3.connect(place, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None, uri=True)
    try:
        connection.execute("PRAGMA wal_autocheckpoint=0")
        yield connection
    finally:
        connection.close()


def make_folder(path: Path) -> None:
    """Make the folders above the file that don't exist, with mode 0700.

    Raises:
        StoreReadOnly: One can't be made.
    """
    try:
        missing = [parent for parent in (path.parent, *path.parent.parents) if not parent.exists()]
        for parent in reversed(missing):
            parent.mkdir(mode=0o700, exist_ok=True)
    except OSError as exc:
        raise unreachable(path, exc) from exc


def make_private(path: Path) -> None:
    """Give a file that is to become a store mode 0600, and make it if there is none; under `start_lock`.

    A file that may be in use is never opened here: closing it would drop the locks that SQLite holds in
    this process (https://sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_).

    Raises:
        StoreReadOnly: It can't be made.
    """
    try:
        if path.exists():
            path.chmod(0o600)
        else:
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as exc:
        raise unreachable(path, exc) from exc


def unreachable(path: Path, exc: OSError) -> StoreReadOnly:
    """What the system's refusal to open a file or folder means to a store."""
    return StoreReadOnly(f"the store {path} can't be opened ({exc.strerror}): choose another place with TIMELINE_HOME")


@contextmanager
def start_lock(path: Path, given_up: Callable[[], bool]) -> Iterator[None]:
    """Held by the one process that makes, migrates or brings up to date the file.

    Args:
        path: The file.
        given_up: Whether nobody waits for it any more; asked again and again while another process has it.

    Raises:
        StoreReadOnly: The folder can't be written.
        StoreBusy: It was given up.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(f"{path}.lock", mode=0o600)
    try:
        make_lock_file(Path(lock.lock_file))
        while not lock.is_locked:
            # A thread can't be stopped from outside: a wait without an end would outlast Ctrl-C.
            with suppress(Timeout):
                lock.acquire(timeout=LOCK_POLL_SECONDS)
            if not lock.is_locked and given_up():
                msg = f"another process makes {path} ready: try again later"
                raise StoreBusy(msg)
    except OSError as exc:
        raise unreachable(path, exc) from exc
    try:
        yield
    finally:
        lock.release()


@contextmanager
def mapped_errors(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into ours; the one place that knows its result codes (https://sqlite.org/rescode.html)."""
    try:
        yield
    except (DBAPIError, sqlite3.Error) as exc:
        original = exc.orig if isinstance(exc, DBAPIError) else exc
        raise _error(path, original or exc) from exc
    except UnicodeDecodeError as exc:
        # The driver quotes the damaged text of a schema in a message that it then can't make.
        raise _error(path, exc) from exc


def _error(path: Path, exc: BaseException) -> StoreError:
    code = (getattr(exc, "sqlite_errorcode", None) or 0) & 0xFF
    match code:
        case sqlite3.SQLITE_FULL | sqlite3.SQLITE_IOERR if code == sqlite3.SQLITE_FULL or not has_room(path):
            return StoreFull(
                f"no space left to record in {path}: free some and ask again; all that was recorded is kept"
            )
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            return StoreReadOnly(f"the store {path} can't be written ({exc}): choose another place with TIMELINE_HOME")
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return StoreBusy(
                f"another process has held {path} for over {BUSY_TIMEOUT_SECONDS} s: end it, or try again later"
            )
        case sqlite3.SQLITE_NOTADB:
            return NotATimelineStore(
                f"{path} is not a timeline store: move it away, or choose another with TIMELINE_HOME"
            )
        case sqlite3.SQLITE_CORRUPT:
            return StoreDamaged(f"{path} is damaged ({exc}): run 'timeline store verify', and restore a backup")
    if "malformed JSON" in str(exc):
        return StoreDamaged(f"{path} holds a body that is no JSON: run 'timeline store verify', and restore a backup")
    if "decode" in str(exc):
        return StoreDamaged(f"{path} holds text that is not UTF-8: run 'timeline store verify', and restore a backup")
    return StoreError(f"the store {path} failed ({exc}): run 'timeline store verify'")


def has_room(path: Path) -> bool:
    """Whether what SQLite keeps beside a file, its shared memory above all, fits on the disk."""
    try:
        return shutil.disk_usage(path.parent).free >= LEAST_ROOM
    except OSError:
        return True


def wal_size(path: Path) -> int:
    """Bytes in the write-ahead log."""
    try:
        return Path(f"{path}-wal").stat().st_size
    except OSError:
        return 0


def truncate_wal(writer: Engine, *, wait_seconds: float) -> bool:
    """Move the write-ahead log into the file and empty it, holding the write lock meanwhile.

    Args:
        writer: An engine that may write; no transaction of it is open.
        wait_seconds: How long to wait for readers and writers; without them all, nothing is lost by not doing it.

    Returns:
        Whether the log was emptied.
    """
    with _driver(writer) as driver:
        driver.execute(f"PRAGMA busy_timeout={int(wait_seconds * 1000)}")
        deadline = time.monotonic() + wait_seconds
        try:
            # Another connection's checkpoint makes this one fail at once, whatever the timeout
            # (https://sqlite.org/c3ref/wal_checkpoint_v2.html).
            while driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] != 0:
                if time.monotonic() >= deadline:
                    return False
                time.sleep(0.01)
        finally:
            driver.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_SECONDS * 1000}")
    return True


def vacuum(writer: Engine) -> None:
    """Rewrite the file without its free pages."""
    with _driver(writer) as driver:
        driver.execute("VACUUM")


@contextmanager
def _driver(engine: Engine) -> Iterator[sqlite3.Connection]:
    """The driver's own connection, outside of any transaction."""
    with engine.connect() as connection:
        yield cast("sqlite3.Connection", connection.connection.driver_connection)


def checkpoints_are_safe(version: tuple[int, int, int]) -> bool:
    """Whether this SQLite has the fix of the WAL-reset bug, and so would be safe without our care."""
    return version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51) or (3, 44, 6) <= version < (3, 45)
