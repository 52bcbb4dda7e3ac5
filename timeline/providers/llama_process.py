"""The process that runs llama.cpp for `timeline.providers.embedded`; run as a script.

Knows how to set llama.cpp up for one user on a machine shared with other work, and how to end
with its parent. It is a process of its own because xllamacpp holds the interpreter's lock while a
model loads, a broken model file can end the process, and libgomp is tuned by the environment
alone: docs/adr/0013-xllamacpp.md has the measurements.

Its one argument is the descriptor of a pipe that its parent holds the other end of. It reads JSON
from standard input (see `Settings`), prints what llama.cpp complains about, then `READY` and its
address, and serves until that pipe is closed.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from typing import Any, TypedDict

READY = b"timeline: ready at "
FAILED = b"timeline: failed: "


class Settings(TypedDict):
    """What the process is told.

    `path` is the parent's `sys.path`; `sampling` holds defaults in llama.cpp's names, for requests
    that don't say otherwise.
    """

    path: list[str]
    model: str
    alias: str
    context: int
    key: str
    sampling: dict[str, float]


PROMPT_CACHE_MIB = 256
"""Most memory for prompts seen before. llama.cpp's own default would let it grow to 8 GiB."""

PIECE = 256
ERRORS_ONLY = 1


def end_with_parent(lifeline: int) -> None:
    """Have the kernel end this process (by SIGIO) when the other end of the pipe is closed.

    Waiting for it isn't enough: while the model loads no Python code runs here. Nothing may ever be
    written to the pipe, since that too would be a signal.
    """
    import fcntl

    # Where a system has no such signal for pipes, the process ends when the model is loaded, or refused.
    with suppress(AttributeError, OSError):
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)


def processors() -> int | None:
    """How many processors this process may use, where that is fewer than llama.cpp would think.

    llama.cpp counts the machine's cores; neither its affinity mask nor a container's quota (Linux
    control groups, `cpu.max`) is looked at.
    """
    import psutil

    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    # No such file, or `max` in it: no quota.
    with suppress(OSError, ValueError), open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:  # noqa: PTH123
        quota, _, period = file.read().partition(" ")
        allowed = min(allowed, max(1, round(int(quota) / int(period))))
    return allowed if allowed < cores else None


def start(settings: Settings) -> Any:
    """Load the model and serve it; gives back the server, which serves as long as it is referenced.

    Raises:
        RuntimeError: llama.cpp refused; why stands on standard error.
        ImportError: xllamacpp or a library it needs is missing.
    """
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = settings["model"]
    params.model_alias = {settings["alias"]}
    params.n_ctx = settings["context"]
    if not any(device["type"].name.endswith("GPU") for device in xllamacpp.get_device_info()):
        # Fitting it into a graphics card's memory would be 0.3 s of a 0.7 s start.
        params.fit_params = False
        # A prompt is read in pieces of so many tokens, and can't be stopped within one. Larger ones aren't faster here.
        params.n_batch = params.n_ubatch = PIECE
    params.n_parallel = 1
    params.cache_ram_mib = PROMPT_CACHE_MIB
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [settings["key"]]
    params.cors_origins = ""
    params.ui = False
    params.endpoint_slots = False
    params.verbosity = ERRORS_ONLY
    if (threads := processors()) is not None:
        params.cpuparams.n_threads = threads
        params.cpuparams_batch.n_threads = threads
    for name, value in settings["sampling"].items():
        setattr(params.sampling, name, value)
    return xllamacpp.Server(params)


def main() -> None:
    """Serve until the parent is gone."""
    import resource

    lifeline = int(sys.argv[1])
    end_with_parent(lifeline)
    settings: Settings = json.loads(sys.stdin.buffer.read())
    sys.path[:] = settings["path"]
    # A core file of some hundred megabytes helps nobody.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        server = start(settings)
    except (ImportError, RuntimeError, ValueError) as exc:
        os.write(1, b"\n" + FAILED + " ".join(str(exc).split()).encode() + b"\n")
        # With the destructors: a thread of llama.cpp's writes its log, and its complaint may not be written yet.
        sys.exit(1)
    os.write(1, b"\n" + READY + server.listening_address.encode() + b"\n")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.read(lifeline, 1)
    # Without the destructors: they wait for the token at hand, and there is nothing to save.
    os._exit(0)


if __name__ == "__main__":
    main()
