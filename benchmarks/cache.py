"""An answer from the log: how long it takes inside a process, from the question to the last delta, beside the request it saves.

    python benchmarks/cache.py [--hits 200] [--before 2000]

The provider answers at once, in this process; so the request it is compared with is the least that any could take.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sqlite3
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from timeline import Timeline
from timeline.config import load
from timeline.providers.pool import Providers
from timeline.testing import ScriptedProvider

WORDS = [f"word{number} " for number in range(500)]


class Pool(Providers):
    """One provider that says what is written down here, whatever its name."""

    said = ScriptedProvider(
        lambda request: WORDS if "another" in request.messages[-1].text else "Yes.", name="scripted"
    )

    def get(self, name: str) -> Any:  # noqa: ARG002
        return self.said


async def ask(timeline: Timeline, prompt: str) -> tuple[float, float, int]:
    """Milliseconds, of them at the processor, and deltas."""
    begun, busy, deltas = time.perf_counter(), time.process_time(), 0
    items: AsyncIterator[Any] = timeline.ask(prompt, model="scripted:model", direct=True, cache=True)
    async for item in items:
        deltas += type(item).__name__ == "Delta"
    return (time.perf_counter() - begun) * 1000, (time.process_time() - busy) * 1000, deltas


async def main(hits: int, before: int) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="timeline-cache-") as folder:
        home = Path(folder)
        entry = {"kind": "openai", "base_url": "http://127.0.0.1:9/v1", "models": ["model"], "local": True}
        settings = {"llm_providers": {"scripted": entry}, "store": {"synchronous": "full"}}
        (home / "config.yaml").write_text(json.dumps(settings))
        config = load(environ={"TIMELINE_HOME": folder}, cwd=home)
        async with Pool(config) as providers, Timeline.open(providers=providers) as timeline:
            for number in range(before):
                await ask(timeline, f"question {number}")
            made = [await ask(timeline, f"another {number}") for number in range(20)]
            wire = len(Pool.said.requests)
            taken = [await ask(timeline, "another 0") for _ in range(hits)]
            print(f"{platform.platform()}, Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}")
            print(
                f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; {before} calls in the log, 500 deltas, synchronous=full"
            )
            for name, rows in (("request", made), ("hit", taken)):
                times, busy, deltas = zip(*rows, strict=True)
                late = sorted(times)[int(len(times) * 0.95)]
                print(
                    f"{name:8} {len(times):4}  median {statistics.median(times):6.1f} ms  95 % within {late:6.1f} ms"
                    f"  processor {statistics.median(busy):6.1f} ms  deltas {set(deltas)}"
                )
            print(f"requests made for {hits} hits: {len(Pool.said.requests) - wire}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hits", type=int, default=200)
    parser.add_argument("--before", type=int, default=2000)
    given = parser.parse_args()
    asyncio.run(main(given.hits, given.before))
