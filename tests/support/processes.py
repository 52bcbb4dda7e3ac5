"""Many real processes that start at one moment, without paying for as many interpreters."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]

_STARTER = """
import asyncio, json, os, sys, traceback
sys.path.insert(0, {tests!r})
import timeline.store, timeline.projections, support.stores
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


def together(count: int, code: str) -> list[Any]:
    """What `async def main(number)`, defined by the code, gave in each of so many processes.

    The modules are imported once, then the processes are forked, and all begin when the last one is there.

    Returns:
        For each `{"ok": result}`, `{"error": class, "message": text}`, or None if it was killed.
    """
    starter = _STARTER.format(tests=str(TESTS), count=count, code=textwrap.dedent(code))
    done = subprocess.run([sys.executable, "-c", starter], capture_output=True, text=True, check=False, timeout=100)
    assert 0 == done.returncode, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def alone(code: str, *arguments: object, within: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run code in a new interpreter, `within` another command (`unshare`, …), with `support` on its path."""
    text = f"import sys; sys.path.insert(0, {str(TESTS)!r})\n{textwrap.dedent(code)}"
    command = [*within, sys.executable, "-c", text, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
