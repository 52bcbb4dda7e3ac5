"""Code that runs in processes of its own: in many at one moment, in one, or in a new interpreter.

But for the last it is forked from a process that has imported what it needs (`zygote.py`), which runs `main`.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from support.command import Zygote

TESTS = Path(__file__).resolve().parents[1]

_STARTER = """
import asyncio, json, os, traceback
worker = {{}}
exec(compile({code!r}, "worker", "exec"), worker)
count = {count}
gate, opened = os.pipe()
children = []
for number in range(count):
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(opened)
            os.read(gate, 1)
            result = {{"ok": asyncio.run(worker["main"](number))}}
        except BaseException as exc:
            traceback.print_exc()
            result = {{"error": type(exc).__name__, "message": str(exc)}}
        os.write(writing, json.dumps(result).encode())
        os._exit(0)
    os.close(writing)
    children.append((pid, reading))
os.close(opened)
for pid, reading in children:
    text = b""
    while part := os.read(reading, 65536):
        text += part
    os.waitpid(pid, 0)
    print(text.decode() or "null", flush=True)
"""


def together(zygote: Zygote, count: int, code: str) -> list[Any]:
    """What `async def main(number)`, defined by the code, gave in each of so many processes.

    All begin when the last one is there.

    Returns:
        For each `{"ok": result}`, `{"error": class, "message": text}`, or None if it was killed.
    """
    done = forked(zygote, _STARTER.format(count=count, code=textwrap.dedent(code)))
    assert 0 == done.returncode, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


class Forked:
    """Code that runs in a process of its own.

    Args:
        zygote: Where it is forked.
        code, arguments: What to run, and what it sees in `sys.argv`.
        env: Its environment, by default a clean one.
        apart: As of `support.command.Home.start`.
    """

    def __init__(
        self,
        zygote: Zygote,
        code: str,
        *arguments: object,
        env: Mapping[str, str] | None = None,
        apart: tuple[str, str] | None = None,
    ) -> None:
        from support.command import clean_environment

        self._argv = ("support.processes", textwrap.dedent(code), *map(str, arguments))
        self._out = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._err = tempfile.TemporaryFile("w+")  # noqa: SIM115
        with tempfile.TemporaryFile() as nothing:
            streams = [nothing.fileno(), self._out.fileno(), self._err.fileno()]
            env = clean_environment() if env is None else env
            self.pid, self._wait = zygote.start(self._argv, env, TESTS, streams, apart=apart)

    def send(self, number: int) -> None:
        """Send it a signal, where it still runs."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self) -> subprocess.CompletedProcess[str]:
        """What became of it."""
        ended = self._wait(100)
        with self._out as out, self._err as err:
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(self._argv, ended, out.read(), err.read())


def forked(
    zygote: Zygote, code: str, *arguments: object, apart: tuple[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own to its end; see `Forked`."""
    return Forked(zygote, code, *arguments, apart=apart).wait()


def alone(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run code in a new interpreter, with `support` on its path."""
    text = f"import sys; sys.path.insert(0, {str(TESTS)!r})\n{textwrap.dedent(code)}"
    command = [sys.executable, "-c", text, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)


def main() -> None:
    """Run the code in `sys.argv`, which sees the arguments after it."""
    code, sys.argv = sys.argv[2], ["-c", *sys.argv[3:]]
    exec(compile(code, "code", "exec"), {"__name__": "__main__", "sys": sys})
