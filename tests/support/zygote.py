"""A process that has imported the command line once and forks for every run: hundreds of runs without a second of imports each.

What is run is the same code in a process of its own, with its own pid, signals and standard streams.
It ends as an interpreter does, up to taking every module apart, which a fork pays for once more in
memory that is no longer shared. Run as a script: `python zygote.py SOCKET`. A request is one line
of JSON with three file descriptors beside it; the answers are the pid, then the wait status.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import ctypes
import fcntl
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import threading
import time
from pathlib import Path
from typing import NoReturn


def _preload() -> None:
    import aiosqlite  # noqa: F401
    import filelock  # noqa: F401
    import httpcore  # noqa: F401
    import httpx  # noqa: F401
    import rich.markdown
    import rich.table  # noqa: F401
    import sqlalchemy.dialects.sqlite.aiosqlite  # noqa: F401
    import yaml  # noqa: F401
    from timeline_cli import app, ask, batch, blocks, compare, live, playing, replay, report, sessions, shapes, store  # noqa: F401

    commands = "budget config keys limits models opening plugins progress providers route search tools"
    # typer reads command lines with the help of pydantic, which it imports only then.
    late = "anyio._backends._asyncio encodings.utf_8_sig keyring pydantic.plugin._loader typer._adapters typer._click.decorators"
    for name in (*(f"timeline_cli.{each}" for each in commands.split()), *late.split()):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)

    import timeline.cognition.provider_batch
    import timeline.cognition.schema
    import timeline.providers.openai
    import timeline.runtime  # noqa: F401

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_ask_once(Path(folder)))
    # A fork with threads would be one without them.
    assert 1 == threading.active_count()
    gc.collect()
    gc.freeze()


async def _ask_once(folder: Path) -> None:
    """One turn, so that what a process works out of its types and statements once is worked out before the forks.

    Nothing of the turn itself is kept: what the library remembers beyond a `Timeline` is of the machine or goes by pid.
    """
    import timeline.config
    from support.answers import answer
    from support.loopback import Server
    from timeline.runtime import Timeline

    async with Server(answer("Yes")) as server:
        entry = {"kind": "openai", "base_url": f"{server.url}/v1", "models": ["m"], "local": True}
        settings = {"llm_providers": {"t": entry}, "routing_strategy": {"default": "t:m", "fallback": None}}
        (folder / "config.yaml").write_text(json.dumps(settings))
        config = timeline.config.load(environ={"TIMELINE_HOME": str(folder), "HOME": str(folder)}, cwd=folder)
        async with Timeline.open(config=config) as opened:
            items = [item async for item in opened.ask("hi", direct=True)]
        assert "Yes" == items[-1].text


def _serve(listener: socket.socket) -> dict | None:
    """Fork a child a request; what the child is to run, in the child, and None at the end of the parent's life."""
    children: dict[int, socket.socket] = {}
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    while True:
        ready, _, _ = select.select([listener, woken, 0], [], [])
        if 0 in ready:
            # Whoever started this is gone.
            return None
        if woken in ready:
            os.read(woken, 1024)
            _reap(children)
        if listener not in ready:
            continue
        asking, _ = listener.accept()
        data, streams, _, _ = socket.recv_fds(asking, 1 << 20, 3)
        if not data:
            # Somebody only looked whether we are here.
            asking.close()
            continue
        while not data.endswith(b"\n"):
            data += asking.recv(1 << 20)
        pid = os.fork()
        if pid:
            for number in streams:
                os.close(number)
            asking.sendall(f"{pid}\n".encode())
            children[pid] = asking
            continue
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for connection in (listener, asking, *children.values()):
            connection.close()
        os.close(woken)
        os.close(wake)
        for target, number in enumerate(streams):
            os.dup2(number, target)
            os.close(number)
        return json.loads(data)


def _reap(children: dict[int, socket.socket]) -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            asking = children.pop(pid)
            with contextlib.suppress(OSError):
                asking.sendall(f"{status}\n".encode())
            asking.close()


def _apart(before: str, after: str) -> None:
    """Go on where the first script has mounted something; the other one still sees it, when the command has ended.

    Exits with 99 where that isn't allowed.
    """
    libc, user, group = ctypes.CDLL(None), os.geteuid(), os.getegid()
    # As unshare(1) does it: what is mounted from now on is seen by no other process.
    allowed = not libc.unshare(CLONE_NEWNS | (CLONE_NEWUSER if user else 0))
    if user and allowed:
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            Path("/proc/self", name).write_text(text)
    allowed = allowed and not libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    if not allowed or subprocess.run(["bash", "-c", before], check=False).returncode:
        os._exit(99)
    if pid := os.fork():
        _, status = os.waitpid(pid, 0)
        subprocess.run(["bash", "-c", after], check=True)
        os._exit(os.waitstatus_to_exitcode(status))


CLONE_NEWNS, CLONE_NEWUSER, MS_REC, MS_PRIVATE = 0x20000, 0x10000000, 1 << 14, 1 << 18


def _become(job: dict) -> None:
    if job["terminal"]:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    if job["apart"]:
        _apart(*job["apart"])
    os.chdir(job["cwd"])
    if job["umask"] is not None:
        os.umask(job["umask"])
    os.environ.clear()
    os.environ.update(job["env"])
    # As an interpreter does when it starts.
    time.tzset()
    sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.argv = ["timeline", *job["argv"]]
    encoding = os.environ.get("PYTHONIOENCODING", "utf-8")
    sys.stdin = open(0, encoding=encoding, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding=encoding, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding=encoding, errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    for number in job["closed"]:
        os.close(number)
        setattr(sys, ("stdin", "stdout", "stderr")[number], None)


def _end(code: object) -> NoReturn:
    """What an interpreter does before it takes its modules apart: wait for threads, call what is to be called, flush."""
    threading._shutdown()
    atexit._run_exitfuncs()
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        code = 120
    os._exit(code or 0)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    _preload()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(sys.argv[1])
        server.listen(128)
        wanted = _serve(server)
    if wanted is not None:
        _become(wanted)
        if sys.argv[1:2] == ["support.watched"]:
            from support.watched import main
        elif sys.argv[1:2] == ["support.processes"]:
            from support.processes import main
        else:
            from timeline_cli import main

        try:
            main()
        except SystemExit as exc:
            _end(exc.code)
        _end(0)
