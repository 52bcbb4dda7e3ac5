"""How many bytes of the store a 500-token answer takes, beside `llm` (https://llm.datasette.io), in one run.

    python benchmarks/storage.py [--answers 20] [--rates 0,80] [--llm PATH]

Both programs ask the same loopback server, which streams the same distinct English answers in
OpenAI's format, one token a chunk. The file is measured after its write-ahead log was folded in.
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import itertools
import json
import os
import platform
import random
import re
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

TOKENS = 500
MODEL = "bench"


# ------------------------------------------------------------------ what is streamed


def sentences() -> list[str]:
    """Plain English sentences from the prose of Python's own reference, which every installation carries."""
    from pydoc_data.topics import topics

    prose = re.sub(r"\s+", " ", " ".join(topics[name] for name in sorted(topics)))
    return sorted(set(re.findall(r"(?<=\. )[A-Z][\w ,;:'\"()-]{40,400}\.(?= )", prose)))


def answer(seed: int, corpus: list[str]) -> list[str]:
    """Exactly `TOKENS` pieces of text, on average about 4.4 characters each, as common tokenizers cut English."""
    order = random.Random(seed)
    text = ""
    pieces: list[str] = []
    while len(pieces) < TOKENS:
        text += order.choice(corpus) + order.choice([" ", " ", " ", "\n\n"])
        pieces = re.findall(r" ?[A-Za-z]{6}(?=[a-z]{4})| ?[A-Za-z]+|\s*[^A-Za-z\s]|\s+", text)
    return pieces[:TOKENS]


def serve(rate: float) -> None:
    """Answer every request on a free loopback port, whose number is printed first.

    Args:
        rate: Tokens a second; 0 is as fast as possible.
    """
    corpus = sentences()
    count = itertools.count()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_request(self, *_: object) -> None:
            """Stay silent."""

        def send(self, media_type: str, body: bytes) -> None:
            self.send_response(200)
            self.send_header("content-type", media_type)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.send("application/json", json.dumps({"object": "list", "data": [{"id": MODEL}]}).encode())

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", "0")))
            number = next(count)
            head = {"id": f"chatcmpl-{number}", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("connection", "close")
            self.end_headers()

            def event(choices: list[object], usage: object = None) -> None:
                body = json.dumps({**head, "choices": choices, "usage": usage})
                self.wfile.write(f"data: {body}\n\n".encode())

            begun = time.perf_counter()
            for index, piece in enumerate(answer(number, corpus)):
                if rate:
                    time.sleep(max(0.0, begun + index / rate - time.perf_counter()))
                delta = {"content": piece} if index else {"role": "assistant", "content": piece}
                event([{"index": 0, "delta": delta, "finish_reason": None}])
            event([{"index": 0, "delta": {}, "finish_reason": "stop"}])
            event([], {"prompt_tokens": 20, "completion_tokens": TOKENS, "total_tokens": 20 + TOKENS})
            self.wfile.write(b"data: [DONE]\n\n")
            self.close_connection = True

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()


@contextlib.contextmanager
def server(rate: float) -> Iterator[str]:
    """A server in a process of its own, so that it takes no time from the measured one; its base address."""
    command = [sys.executable, __file__, "--serve", str(rate)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"
        finally:
            process.terminate()


# ------------------------------------------------------------------ what is measured


def settled_size(database: Path) -> int:
    """Bytes of the file and whatever lies beside it, after its write-ahead log was folded in."""
    connection = sqlite3.connect(database)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return sum(path.stat().st_size for path in database.parent.glob(database.name + "*"))


def ask(command: list[str], environment: dict[str, str]) -> None:
    """Run one question to its end; a program that fails ends the benchmark with its own words."""
    done = subprocess.run(
        command, env=os.environ | environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode or len(done.stdout) < TOKENS:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-500:]}\n{done.stderr[-2000:]}")


def growth(program: list[str], environment: dict[str, str], database: Path, answers: int) -> list[int]:
    """Bytes by which each of so many answers made the file grow, each asked by a process of its own."""
    sizes = [settled_size(database)]
    for number in range(answers):
        ask([*program, f"Question {number}: why is the sky blue?"], environment)
        sizes.append(settled_size(database))
    return [after - before for before, after in itertools.pairwise(sizes)]


def measure_llm(llm: str, address: str, home: Path, answers: int) -> list[int]:
    """`llm`'s own growth, over a file to which it applied its migrations and wrote nothing else."""
    home.mkdir()
    model = [{"model_id": MODEL, "model_name": MODEL, "api_base": address}]
    (home / "extra-openai-models.yaml").write_text(json.dumps(model))
    environment = {"LLM_USER_PATH": str(home), "OPENAI_API_KEY": "none"}
    migrate = (
        "import llm, sqlite_utils; from llm.migrations import migrate;"
        " db = sqlite_utils.Database(llm.user_dir() / 'logs.db'); migrate(db); db.close()"
    )
    python = Path(llm).resolve().with_name("python")
    subprocess.run([str(python), "-c", migrate], env=os.environ | environment, check=True)
    return growth([llm, "-m", MODEL], environment, home / "logs.db", answers)


def measure_timeline(timeline: str, address: str, home: Path, answers: int) -> list[int]:
    """Our own growth, over a store that holds nothing yet."""
    home.mkdir()
    (home / "config.yaml").write_text(json.dumps({"llm_providers": {MODEL: {"kind": "openai", "base_url": address}}}))
    environment = {"TIMELINE_HOME": str(home)}
    subprocess.run([timeline, "store", "rebuild"], env=os.environ | environment, check=True, stdout=subprocess.DEVNULL)
    return growth([timeline, "ask", "-m", f"{MODEL}:{MODEL}"], environment, home / "timeline.db", answers)


def report(name: str, rate: float, grown: list[int]) -> float:
    """Print one line and return the mean, bytes an answer."""
    mean = statistics.mean(grown)
    pace = f"{rate:.0f} tokens/s" if rate else "full speed"
    print(f"{name:<10} {pace:<14} first {grown[0]:>7,} B   mean {mean:>9,.0f} B   largest {max(grown):>7,} B")
    return mean


def beside_python(name: str) -> str | None:
    """The executable of this environment, else that on the path."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name)


def one_line(command: list[str]) -> str:
    """What a short command prints."""
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True).stdout.strip()


def file_system(folder: Path) -> str:
    """The type of file system that holds the folder, where the machine tells."""
    mounts = Path("/proc/mounts")
    if not mounts.exists():
        return "unknown"
    places = [line.split()[1:3] for line in mounts.read_text().splitlines()]
    holding = [(place, kind) for place, kind in places if folder.resolve().is_relative_to(place)]
    return max(holding, key=lambda found: len(found[0]))[1]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=20)
    parser.add_argument("--rates", default="0,80", help="tokens a second, 0 is full speed")
    parser.add_argument("--timeline", default=beside_python("timeline"), help="the timeline executable")
    parser.add_argument(
        "--llm", default=beside_python("llm"), help="the llm executable to compare with, if there is one"
    )
    parser.add_argument("--serve", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        return serve(options.serve)

    corpus = sentences()
    length = statistics.mean(len("".join(answer(number, corpus))) for number in range(options.answers))
    print(f"{platform.platform()}, {platform.machine()}, file system {file_system(Path(tempfile.gettempdir()))}")
    print(
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {one_line([options.timeline, '--version'])}"
    )
    print(
        one_line([options.llm, "--version"])
        if options.llm
        else "llm is not installed: pip install llm, or name it with --llm"
    )
    print(
        f"{options.answers} answers of {TOKENS} tokens, {length:,.0f} characters of text each ({length / TOKENS:.2f} a token)"
    )
    for rate in map(float, options.rates.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            with server(rate) as address:
                ours = report(
                    "timeline", rate, measure_timeline(options.timeline, address, Path(folder, "ours"), options.answers)
                )
            if not options.llm:
                continue
            with server(rate) as address:
                theirs = report("llm", rate, measure_llm(options.llm, address, Path(folder, "llm"), options.answers))
            print(f"{'ratio':<10} {ours / theirs:.2f}")
    return None


if __name__ == "__main__":
    main()
