"""Eight processes at a provider that limits: how often it refuses, and how long all take against the least possible.

    python benchmarks/limits.py [--processes 8] [--calls 5] [--limit 5] [--window 2]

The provider is a loopback server in a process of its own; each client is a whole `Timeline` on one shared file.
"""

from __future__ import annotations

import argparse
import platform
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KINDS = (
    ("fixed", "full", True),
    ("first", "full", True),
    ("sliding", "full", True),
    ("sliding", "next", True),
    ("bucket", "full", True),
    ("fixed", "full", False),
)

CLIENT = """
import asyncio, sys
from pathlib import Path
from timeline import Timeline
from timeline.config import load

async def main() -> None:
    home, calls = Path(sys.argv[1]), int(sys.argv[2])
    async with Timeline.open(config=load(environ={"TIMELINE_HOME": str(home)}, cwd=home)) as timeline:
        for number in range(calls):
            async for item in timeline.ask(f"question {number}", model="limited:m"):
                last = item
            assert last.error is None, last.error

asyncio.run(main())
"""


def run(kind: str, reset: str, told: bool, options: argparse.Namespace) -> str:
    """One provider, all clients; a line of the table."""
    sys.path.insert(0, str(ROOT / "tests"))
    from support.command import Backend
    from support.limited import Limiter, served

    window = round(options.window * 1_000_000)
    server = Limiter(options.limit, window, kind, reset, told)
    backend = Backend()
    backend.says(served(server))
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "config.yaml").write_text(
            f"llm_providers: {{limited: {{kind: openai, base_url: '{backend.url}', api_key: key-1234, models: [m]}}}}\n"
            "store: {synchronous: normal}\nmode: direct\n"
        )
        command = [sys.executable, "-c", CLIENT, folder, str(options.calls)]
        clients = [subprocess.Popen(command) for _ in range(options.processes)]
        codes = [client.wait() for client in clients]
        waits = (
            sqlite3.connect(home / "timeline.db")
            .execute("SELECT count(*) FROM events WHERE type = 'rate_limit.waited'")
            .fetchone()[0]
        )
    backend.close()
    taken = server.taken
    began = taken[0]
    took = (taken[-1] - began) / 1e6
    count = len(taken)
    ideal = (-(-count // options.limit) - 1) * options.window
    if kind == "bucket":
        ideal = (count - options.limit) * options.window / options.limit
    late = sum(at > began + window for at in server.refused)
    if "-v" in sys.argv:
        print([round((at - began) / 1e6, 2) for at in taken], [round((at - began) / 1e6, 2) for at in server.refused])
    name = f"{kind}{', next' if reset == 'next' else ''}{'' if told else ', no headers'}"
    failed = sum(code != 0 for code in codes)
    return (
        f"{name:22} {len(taken):4} {len(server.refused):8} {late:6} {waits:6} {took:8.2f} {ideal:8.2f}"
        f" {took / ideal:6.2f} {failed:7}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--limit", type=int, default=5)
    parser.add_argument("--window", type=float, default=2)
    parser.add_argument("-v", action="store_true", help="tell every moment")
    options = parser.parse_args()
    print(f"{platform.platform()}, Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}")
    print(f"{options.processes} processes x {options.calls} calls, {options.limit} per {options.window:g} s\n")
    print(f"{'provider':22} {'sent':>4} {'refused':>8} {'later*':>6} {'waits':>6} {'seconds':>8} {'ideal':>8} {'ratio':>6} {'failed':>7}")  # fmt: skip
    for kind in KINDS:
        print(run(*kind, options), flush=True)
    print("\n* refused after the first window")


if __name__ == "__main__":
    main()
