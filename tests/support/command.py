"""The command line as tests run it: a folder of its own, a real process for every run, a server to talk to, the file to look into.

A run is forked from a process that has imported everything (`zygote.py`); `fresh=True` starts a whole
interpreter, `python -m timeline_cli`, which takes a second more.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

from support.loopback import Reply, Request, Server

__all__ = ["Backend", "Home", "Process", "Result", "Zygote"]

Answer = Reply | Callable[[Request], Reply]
TERMINAL = ("response.completed", "call.failed", "call.interrupted")
TURN_ENDS = ("turn.completed", "turn.failed", "turn.interrupted")


# ------------------------------------------------------------------ the server


class Backend:
    """A loopback server on a thread of its own, so that other processes can be waited for meanwhile."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = Server()
        asyncio.run_coroutine_threadsafe(self._server.__aenter__(), self._loop).result(10)

    @property
    def url(self) -> str:
        """The base URL to configure."""
        return self._server.url + "/v1"

    @property
    def requests(self) -> list[Request]:
        """What was asked since the last `says`."""
        return self._server.requests

    def messages(self, request: int = -1) -> list[tuple[str, str]]:
        """Role and text of each message of a request."""
        return [(message["role"], message["content"]) for message in self.requests[request].json()["messages"]]

    def says(self, *replies: Answer) -> None:
        """Answer with these from now on, in order, the last one again and again."""

        def change() -> None:
            self._server.replies[:] = replies
            self._server.requests.clear()
            self._server._given = 0

        self._on_loop(change)

    def _on_loop(self, call: Callable[[], None]) -> None:
        async def work() -> None:
            call()

        asyncio.run_coroutine_threadsafe(work(), self._loop).result(10)

    def close(self) -> None:
        """Stop answering."""
        asyncio.run_coroutine_threadsafe(self._server.__aexit__(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


# ------------------------------------------------------------------ processes


@dataclass
class Result:
    """How a run ended."""

    code: int
    raw: bytes
    err: str

    @property
    def out(self) -> str:
        return self.raw.decode()

    def json(self) -> Any:
        return json.loads(self.out)

    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


class Process:
    """A run under way. `stdout` is the reading end of its output, where that is a pipe."""

    def __init__(self, pid: int, wait: Callable[[float], int], stdout: BinaryIO | None, stderr: BinaryIO) -> None:
        self.pid = pid
        self.stdout = stdout
        self._wait = wait
        self._stderr = stderr

    def send(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def read_until(self, text: str) -> str:
        """Its output up to and with that text; waits for it."""
        assert self.stdout is not None
        seen = b""
        while text.encode() not in seen:
            more = os.read(self.stdout.fileno(), 65536)
            assert more, f"{text!r} never came: {seen!r} {self.errors()!r}"
            seen += more
        return seen.decode()

    def rest(self) -> str:
        """What else it writes, up to its end."""
        assert self.stdout is not None
        return self.stdout.read().decode()

    def errors(self) -> str:
        """What it has written to standard error so far."""
        self._stderr.seek(0)
        return self._stderr.read().decode()

    def wait(self, timeout: float = 30) -> int:
        """Its exit code; negative for a signal."""
        return self._wait(timeout)

    def close(self) -> None:
        if self.stdout is not None:
            self.stdout.close()
        self._stderr.close()


class Zygote:
    """Starts runs by fork; see `zygote.py`.

    Args:
        folder: Where its socket may lie; the path has to be short.
    """

    def __init__(self, folder: Path) -> None:
        self._path = str(folder / "zygote")
        here = Path(__file__).parent
        self._process = subprocess.Popen(
            [sys.executable, str(here / "zygote.py"), self._path],
            stdin=subprocess.PIPE,
            env=clean_environment(),
        )
        while True:
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError), self._connect():
                break
            assert self._process.poll() is None, "the zygote died"
            time.sleep(0.02)

    def _connect(self) -> socket.socket:
        asking = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            asking.connect(self._path)
        except OSError:
            asking.close()
            raise
        return asking

    def start(
        self,
        argv: tuple[str, ...],
        env: Mapping[str, str],
        cwd: Path,
        streams: list[int],
        *,
        terminal: bool = False,
        umask: int | None = None,
        apart: tuple[str, str] | None = None,
        closed: Sequence[int] = (),
    ) -> tuple[int, Callable[[float], int]]:
        """Start a run on three file descriptors, a terminal it shall control or not; its pid, and how to wait for it."""
        asking = self._connect()
        asking.settimeout(30)
        job = {"argv": argv, "env": dict(env), "cwd": str(cwd), "terminal": terminal, "umask": umask}
        job |= {"apart": apart, "closed": closed}
        line = json.dumps(job).encode() + b"\n"
        asking.sendall(line[socket.send_fds(asking, [line], streams) :])
        answers = asking.makefile("r")
        pid = int(answers.readline())
        code: list[int] = []

        def wait(timeout: float) -> int:
            if not code:
                asking.settimeout(timeout)
                try:
                    code.append(os.waitstatus_to_exitcode(int(answers.readline())))
                except TimeoutError:
                    os.kill(pid, signal.SIGKILL)
                    raise
                finally:
                    answers.close()
                    asking.close()
            return code[0]

        return pid, wait

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)


def clean_environment() -> dict[str, str]:
    """What a process needs of ours, and nothing that steers Python, colours, keys or proxies."""
    return {name: os.environ[name] for name in ("PATH", "LANG", "TZ", "TMPDIR") if name in os.environ} | {
        "LC_ALL": "C.UTF-8"
    }


# ------------------------------------------------------------------ the folder


class Home:
    """A `TIMELINE_HOME` with a configuration that names the server `t`, and what its commands leave there."""

    def __init__(self, path: Path, zygote: Zygote, url: str) -> None:
        self.path = path
        self.work = path.parent / f"{path.name}-work"
        self.work.mkdir()
        self.store = path / "timeline.db"
        self.env = {**clean_environment(), "HOME": str(self.work), "TIMELINE_HOME": str(path)}
        self.url = url
        self._zygote = zygote
        self._open: list[Process] = []
        path.mkdir()
        self.configure()

    def configure(self, further: Mapping[str, Any] | None = None, /, **provider: Any) -> None:
        """Write the configuration; keyword arguments are further fields of the provider `t`, `further` other sections."""
        entry = {"kind": "openai", "base_url": self.url, "models": ["m"], "local": True, **provider}
        settings = {"llm_providers": {"t": entry}, "routing_strategy": {"default": "t:m", "fallback": None}}
        settings |= {"retry": {"max_attempts": 1}, "mode": "direct"} | dict(further or {})
        # JSON is YAML.
        (self.path / "config.yaml").write_text(json.dumps(settings))

    # -------------------------------------------------------------- running

    def run(
        self,
        *argv: str,
        stdin: str | bytes = b"",
        env: Mapping[str, str] | None = None,
        fresh: bool = False,
        apart: tuple[str, str] | None = None,
        closed: Sequence[int] = (),
        timeout: float = 30,
    ) -> Result:
        """Run a command to its end; `apart` and `closed` as of `start`."""
        with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as out:
            source.write(stdin.encode() if isinstance(stdin, str) else stdin)
            source.seek(0)
            process = self.start(*argv, stdin=source, stdout=out, env=env, fresh=fresh, apart=apart, closed=closed)
            code = process.wait(timeout)
            out.seek(0)
            return Result(code, out.read(), process.errors())

    def start(
        self,
        *argv: str,
        stdin: Any = subprocess.DEVNULL,
        stdout: Any = subprocess.PIPE,
        env: Mapping[str, str] | None = None,
        fresh: bool = False,
        apart: tuple[str, str] | None = None,
        closed: Sequence[int] = (),
    ) -> Process:
        """Begin to run a command, its output a pipe unless `stdout` is a file or descriptor.

        Args:
            argv, env: What to run.
            stdin, stdout: Files or descriptors.
            fresh: In a new interpreter.
            apart: Shell scripts that run before and after it in a mount namespace of its own. It ends with 99 where the
                first fails, or where there can't be one; not for a fresh one.
            closed: Which of its standard streams are; not for a fresh one.
        """
        stderr = tempfile.TemporaryFile()  # noqa: SIM115
        env = {**self.env, **(env or {})}
        if fresh:
            child = subprocess.Popen(
                [sys.executable, "-m", "timeline_cli", *argv],
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                env=env,
                cwd=self.work,
            )
            wait = lambda seconds: _wait(child, seconds)  # noqa: E731
            process = Process(child.pid, wait, child.stdout, stderr)
        else:
            with contextlib.ExitStack() as ours:
                reading = None
                if stdout == subprocess.PIPE:
                    number, stdout = os.pipe()
                    reading = io.FileIO(number)
                    ours.callback(os.close, stdout)
                if stdin == subprocess.DEVNULL:
                    stdin = ours.enter_context(Path(os.devnull).open("rb"))
                streams = [_number(stdin), _number(stdout), stderr.fileno()]
                pid, wait = self._zygote.start(argv, env, self.work, streams, apart=apart, closed=closed)
            process = Process(pid, wait, reading, stderr)
        self._open.append(process)
        return process

    def fork(self, *argv: str, streams: Sequence[int]) -> tuple[int, Callable[[float], int]]:
        """Begin to run a command with these three descriptors; its pid, and how to wait for it."""
        return self._zygote.start(argv, self.env, self.work, list(streams))

    def start_on(self, terminal: int, *argv: str, env: Mapping[str, str]) -> tuple[int, Callable[[float], int]]:
        """Begin to run a command on a terminal that it controls; its pid, and how to wait for it."""
        return self._zygote.start(argv, {**self.env, **env}, self.work, [terminal] * 3, terminal=True)

    def close(self) -> None:
        """End whatever still runs."""
        for process in self._open:
            with contextlib.suppress(ProcessLookupError, OSError):
                process.send(signal.SIGKILL)
            with contextlib.suppress(ValueError, OSError):
                process.wait(10)
            process.close()

    # -------------------------------------------------------------- looking

    @contextlib.contextmanager
    def connect(self) -> Iterator[sqlite3.Connection]:
        """The file as anyone may open it."""
        conn = sqlite3.connect(self.store)
        conn.row_factory = sqlite3.Row
        conn.execute("PRAGMA wal_autocheckpoint=0")
        try:
            yield conn
        finally:
            conn.close()

    def events(self, *types: str) -> list[dict[str, Any]]:
        """Recorded events, `data` decoded; all or those of these types."""
        with self.connect() as conn:
            rows = [dict(row) for row in conn.execute("SELECT * FROM events ORDER BY position")]
        return [{**row, "data": json.loads(row["data"])} for row in rows if not types or row["type"] in types]

    def tables(self) -> set[str]:
        """The names of the file's tables."""
        with self.connect() as conn:
            return {row[0] for row in conn.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}

    def types(self) -> list[str]:
        """The types of all events, in their order."""
        return [row["type"] for row in self.events()]

    def recorded(self, kind: str = "text", call_id: str | None = None) -> str:
        """The text of that kind in the chunks."""
        return "".join(
            text
            for row in self.events("chunk.received")
            if row["data"].get("kind", "text") == kind and call_id in (None, row["call_id"])
            for text in row["data"]["texts"]
        )

    def end(self) -> dict[str, Any]:
        """The one end of the one call, after checking that each attempt and turn has exactly one."""
        rows = self.events()
        attempts = [(row["call_id"], row["data"]["attempt"]) for row in rows if row["type"] == "request.sent"]
        ends = [(row["call_id"], row["data"]["attempt"]) for row in rows if row["type"] in TERMINAL]
        assert sorted(attempts) == sorted(ends)
        turns = [row["turn_id"] for row in rows if row["type"] == "turn.started"]
        assert sorted(turns) == sorted(row["turn_id"] for row in rows if row["type"] in TURN_ENDS)
        assert [row["position"] for row in rows] == list(range(1, len(rows) + 1))
        return next(row for row in reversed(rows) if row["type"] in TERMINAL)

    def bodies(self) -> list[str]:
        """What lies in `contents`."""
        with self.connect() as conn:
            return [row[0] for row in conn.execute("SELECT body FROM contents")]

    def bytes(self) -> bytes:
        """Every byte of the store's files."""
        return b"".join(path.read_bytes() for path in sorted(self.path.glob("timeline.db*")))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _wait(child: subprocess.Popen[bytes], seconds: float) -> int:
    try:
        return child.wait(seconds)
    except subprocess.TimeoutExpired:
        child.kill()
        raise


def _number(stream: Any) -> int:
    return stream if isinstance(stream, int) else stream.fileno()
