"""How long `timeline --version` takes beside a Python that does nothing, each in a fresh interpreter, warm.

    python benchmarks/startup.py [--runs 40]

The two take turns, so that whatever else the machine does weighs on both alike.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path


def seconds(command: list[str]) -> float:
    """Wall-clock seconds of one run."""
    begun = time.perf_counter()
    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begun


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=40, help="runs of each command")
    runs = parser.parse_args().runs

    beside = Path(sys.executable).with_name("timeline")
    program = str(beside) if beside.exists() else shutil.which("timeline")
    if program is None:
        sys.exit("timeline is not installed for this Python: pip install .")
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "timeline --version": [program, "--version"],
        "timeline --help": [program, "--help"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for command in commands.values():
        seconds(command)
    for _ in range(runs):
        for name, command in commands.items():
            times[name].append(seconds(command))

    print(f"{platform.platform()}, {platform.machine()}, Python {platform.python_version()}")
    print(
        f"llm-timeline {version('llm-timeline')}, typer {version('typer')}, msgspec {version('msgspec')}, {runs} runs each"
    )
    base = statistics.median(times["python -c pass"])
    for name, taken in times.items():
        median = statistics.median(taken)
        print(
            f"{name:<20} median {median * 1000:6.1f} ms   fastest {min(taken) * 1000:6.1f} ms   ratio {median / base:5.2f}"
        )


if __name__ == "__main__":
    main()
