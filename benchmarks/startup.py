"""What a command takes beside a Python that does nothing, and beside peers, each in a fresh interpreter, warm.

    python benchmarks/startup.py [--runs 40] [--only NAME]…  [--instructions]

All take turns, so that whatever else the machine does weighs on each alike. CPU is user and system time of the
process. The commands work on a small store of their own; `ask --direct` asks a server on a loopback port. Peers that
aren't installed beside this Python, or in the folders of `PATH`, are left out: `pip install llm`, `npm install -g ccusage`.
`--instructions` counts what each executes, with valgrind, instead: what the clock of a busy machine can't say.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

QUESTION = ["ask", "--direct", "-m", "bench:gpt-4o-mini", "Tell me a story."]
CHUNKS = 100


class Run(NamedTuple):
    """Seconds that one run took."""

    wall: float
    cpu: float


def run(command: list[str], environ: dict[str, str]) -> Run:
    """Run a command to its end."""
    begun = time.perf_counter()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environ
    )
    _, status, used = os.wait4(process.pid, 0)
    taken = Run(time.perf_counter() - begun, used.ru_utime + used.ru_stime)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed with {process.returncode}")
    return taken


def instructions(command: list[str], environ: dict[str, str]) -> int:
    """Count what a run executes."""
    counted = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null", *command]
    done = subprocess.run(counted, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environ, check=True)
    found = re.search(r"I\s+refs:\s+([\d,]+)", done.stderr)
    assert found is not None
    return int(found[1].replace(",", ""))


def program(name: str) -> str | None:
    """The program beside this Python, else the one in `PATH`."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name)


def commands() -> dict[str, list[str]]:
    """What is compared, by the name under which it is shown."""
    ours = program("timeline")
    if ours is None:
        sys.exit("timeline is not installed for this Python: pip install .")
    found = {"python -c pass": [sys.executable, "-c", "pass"]}
    for words in (["--version"], ["--help"], ["budget"], ["report"], ["sessions", "list"], ["search", "story"]):
        found[f"timeline {' '.join(words)}"] = [ours, *words]
    found |= {"timeline replay last": [ours, "replay", "last"], "timeline ask --direct": [ours, *QUESTION]}
    if (llm := program("llm")) is not None:
        found |= {"llm --version": [llm, "--version"], "llm logs list": [llm, "logs", "list"]}
        found |= {"llm -m": [llm, "-m", "bench", QUESTION[-1]]}
    if (ccusage := program("ccusage")) is not None:
        found |= {"ccusage --version": [ccusage, "--version"]}
    return found


def prepare(folder: Path, url: str) -> dict[str, str]:
    """Settings of all programs in a folder of their own; the environment that names it."""
    server = {"kind": "openai", "base_url": url, "local": True}
    limit = {"name": "monthly", "limit_usd": 20, "window": "month"}
    # JSON is YAML.
    (folder / "config.yaml").write_text(json.dumps({"llm_providers": {"bench": server}, "budgets": [limit]}))
    theirs = folder / "llm"
    theirs.mkdir()
    model = [{"model_id": "bench", "model_name": "gpt-4o-mini", "api_base": url, "api_key_name": "bench"}]
    (theirs / "extra-openai-models.yaml").write_text(json.dumps(model))
    (theirs / "keys.json").write_text(json.dumps({"bench": "key-12345"}))
    # Without its bytecode a program is compiled anew at each start, which nobody's is.
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "TIMELINE_HOME": str(folder), "LLM_USER_PATH": str(theirs), "HOME": str(folder)}


def measure(asked: argparse.Namespace, environ: dict[str, str]) -> None:
    """Let all take turns, and print."""
    known = commands()
    for name in ("timeline ask --direct", "llm -m"):
        if name in known:
            # What the others show.
            run(known[name], environ)
    chosen = {name: command for name, command in known.items() if not asked.only or name in asked.only}
    for command in chosen.values():
        run(command, environ)
    print(f"{platform.platform()}, {platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}")
    packages = ("llm-timeline", "typer", "sqlalchemy", "rich", "msgspec")
    print(", ".join(f"{package} {version(package)}" for package in packages))
    if asked.instructions:
        for name, command in chosen.items():
            print(f"{name:<24} {instructions(command, environ) / 1e6:8.1f} million instructions")
        return
    times: dict[str, list[Run]] = {name: [] for name in chosen}
    for name in [*chosen] * asked.runs:
        times[name].append(run(chosen[name], environ))
    print(f"{asked.runs} runs each; ms\n{'':<24} {'CPU':>8} {'fastest':>8} {'wall':>8} {'fastest':>8}")
    for name, taken in times.items():
        columns = [figure for kind in ("cpu", "wall") for figure in figures([getattr(each, kind) for each in taken])]
        print(f"{name:<24} {' '.join(f'{figure * 1e3:8.1f}' for figure in columns)}")


def figures(taken: list[float]) -> tuple[float, float]:
    """Median and fastest."""
    return statistics.median(taken), min(taken)


def main() -> None:
    """Start the server, make the store, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=40, help="runs of each command")
    parser.add_argument(
        "--only", action="append", help="the name of one that is measured, as it is printed; repeatable"
    )
    parser.add_argument("--instructions", action="store_true", help="count instructions, with valgrind")
    asked = parser.parse_args()
    serve = [sys.executable, str(Path(__file__).with_name("stream.py")), "--serve", "--chunks", str(CHUNKS)]
    with (
        tempfile.TemporaryDirectory(prefix="timeline-startup-") as folder,
        subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as server,
    ):
        assert server.stdout is not None
        try:
            url = f"http://127.0.0.1:{server.stdout.readline().strip()}/v1"
            measure(asked, prepare(Path(folder), url))
        finally:
            server.kill()


if __name__ == "__main__":
    main()
