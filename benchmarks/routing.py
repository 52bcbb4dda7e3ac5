"""How often a text is routed to the tools it needs, per model: signals alone, and signals and model together.

    python benchmarks/routing.py                          # the embedded model, on benchmarks/routing_queries.jsonl
    python benchmarks/routing.py -m groq:llama-3.1-8b-instant -m ollama:qwen2.5:0.5b --small
    python benchmarks/routing.py --queries mine.jsonl     # lines {"text": "…", "tools": ["clock"], "complexity": "low"}
    python benchmarks/routing.py --signals                # no model
    python benchmarks/routing.py --calibrate              # how the embedded model leans, for timeline/cognition/routing.py

Half of the texts, chosen by a hash of each, were looked at while the signals were written (dev); the others never
were (held-out). A text counts as right if exactly its tools are chosen. Nothing is recorded, and nothing but the
model that is named is asked.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from timeline.cognition.builtin.calculator import Calculator
from timeline.cognition.builtin.clock import Clock
from timeline.cognition.builtin.files import ListFiles, ReadFile
from timeline.cognition.builtin.past import SearchTimeline
from timeline.cognition.builtin.web import FetchUrl
from timeline.cognition.routing import (
    Asking,
    Decision,
    Malformed,
    by_signals,
    decide,
    repair,
    request,
)
from timeline.cognition.tools import Tools, Workspace
from timeline.config import ModelRef, load
from timeline.providers.base import LLMProvider
from timeline.providers.pool import Providers

QUERIES = Path(__file__).with_name("routing_queries.jsonl")
FILES = ("notes.txt", "README.md", "todo.md", "data.csv", "config.yaml", "docs/guide.md", "src/main.py", "src/utils.py")
"""Those of the texts' files that are there; others are only named."""


class Query(Struct, frozen=True):
    """A text with what is right for it."""

    text: str
    tools: frozenset[str]
    complexity: str | None

    @property
    def half(self) -> str:
        """Which half it belongs to, for ever."""
        return "held-out" if hashlib.blake2b(self.text.encode(), digest_size=8).digest()[-1] % 2 else "dev"


class Routed(Struct, frozen=True):
    """A query, what was decided, and how long that took."""

    query: Query
    decision: Decision
    seconds: float
    tokens: int = 0

    @property
    def right(self) -> bool:
        """Exactly its tools were chosen."""
        return frozenset(self.decision.tools) == self.query.tools


def read(path: Path) -> list[Query]:
    """The queries of a file of JSON lines."""
    found = []
    for line in path.read_text().splitlines():
        if line.strip():
            entry = json.loads(line)
            found.append(Query(entry["text"], frozenset(entry["tools"]), entry.get("complexity")))
    return found


async def ask(provider: LLMProvider, asking: Asking) -> tuple[Decision, int]:
    """What the pipeline does: ask, once show the mistake, and then go by the signals."""
    wanted, tokens, decided = request(asking), 0, Malformed("nothing was asked")
    for source in ("model", "repaired"):
        response = await provider.make_request(replace(wanted, model=asking.model))
        tokens += response.tokens_input + response.tokens_output
        decided = decide(asking, response)
        if isinstance(decided, Decision):
            return (replace(decided, source=source, degraded=True) if source == "repaired" else decided), tokens
        wanted = repair(asking, decided)
    return by_signals(asking, decided), tokens


async def route(
    queries: Sequence[Query], asking: Asking, tools: Tools, space: Workspace, provider: LLMProvider | None
) -> list[Routed]:
    """Every query by one model, or by none."""
    routed = []
    for query in queries:
        begun, tokens = time.perf_counter(), 0
        asked = replace(asking, text=query.text, signals=tools.signals(query.text, space))
        if provider is None:
            decision = by_signals(asked, Malformed("no model was asked"))
        else:
            decision, tokens = await ask(provider, asked)
        routed.append(Routed(query, decision, time.perf_counter() - begun, tokens))
    return routed


def share(found: Iterable[bool]) -> str:
    """How many of them are true."""
    values = list(found)
    return f"{100 * sum(values) / len(values):5.1f} % ({sum(values)}/{len(values)})" if values else "     -"


def show(name: str, routed: Sequence[Routed], *, halves: bool, errors: str | None) -> None:
    """Print the figures of one model."""
    times = [item.seconds * 1000 for item in routed]
    print(f"\n{name}")
    print(f"  tools right       {share(item.right for item in routed)}")
    if halves:
        for half in ("dev", "held-out"):
            print(f"    {half:<14}  {share(item.right for item in routed if item.query.half == half)}")
    labels = sorted({label for item in routed for label in item.query.tools})
    for label in labels:
        print(f"    {label:<14}  {share(item.right for item in routed if item.query.tools == {label})}")
    print(f"    {'several':<14}  {share(item.right for item in routed if len(item.query.tools) > 1)}")
    print(f"    {'none':<14}  {share(item.right for item in routed if not item.query.tools)}")
    graded = [item for item in routed if item.query.complexity]
    print(f"  complexity right  {share(item.decision.complexity == item.query.complexity for item in graded)}")
    print(f"  degraded          {share(item.decision.degraded for item in routed)}")
    print(
        f"  ms a route        median {statistics.median(times):.1f}, fastest {min(times):.1f}, slowest {max(times):.1f};"
        f" tokens {statistics.mean(item.tokens for item in routed):.0f}"
    )
    for item in routed:
        if errors is not None and not item.right and (not halves or item.query.half == errors):
            print(
                f"  ✗ {item.query.text!r}: {sorted(item.query.tools)}, not {list(item.decision.tools)}; {item.decision.reason}"
            )


async def calibrate(queries: Sequence[Query], tools: Tools) -> None:
    """Print the mean log-probability of each word over the dev half's texts, whose labels aren't looked at."""
    import httpx

    from timeline.cognition import routing

    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from support.local_model import LlamaServer, fetched_models

    from timeline.providers.openai import OpenAIProvider

    words = [*routing.WORDS.values(), routing.NONE]
    server = LlamaServer(await asyncio.to_thread(fetched_models))
    scores: dict[str, list[float]] = {word: [] for word in words}
    try:
        shape = OpenAIProvider(base_url="http://127.0.0.1/v1")
        async with httpx.AsyncClient(headers={"authorization": f"Bearer {server.key}"}, timeout=None) as client:
            for query in queries:
                if query.half != "dev":
                    continue
                asking = Asking(query.text, tools.schemas(), (), model="smollm2", small=True)
                body = shape.body(replace(request(asking), model="smollm2", extra={}), stream=False)
                body |= {"max_tokens": 1, "logprobs": True, "top_logprobs": 400}
                answer = (await client.post(f"{server.url}/chat/completions", json=body)).json()
                top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
                found = {item["token"]: item["logprob"] for item in top}
                for word in words:
                    scores[word].append(found.get(word, min(found.values()) - 1))
    finally:
        server.close()
    for word in words:
        print(f'        "{word}": {statistics.mean(scores[word]):.2f},')


def furnish(folder: Path) -> None:
    """Put the files there that some of the texts name."""
    for name in FILES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("one\ntwo\nthree\n")
    (folder / "tests").mkdir()


def installed(package: str) -> str:
    """Its version."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


async def measure(asked: argparse.Namespace) -> None:
    """Measure and print."""
    queries = read(Path(asked.queries))
    tools = Tools((Calculator(), Clock(), ReadFile(), ListFiles(), SearchTimeline(), FetchUrl()))
    if asked.calibrate:
        await calibrate(queries, tools)
        return
    print(f"{platform.platform()}, {platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}")
    print(f"llm-timeline {installed('llm-timeline')}, xllamacpp {installed('xllamacpp')}, {len(queries)} texts")
    print(f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "")
    with tempfile.TemporaryDirectory() as folder:
        furnish(Path(folder))
        space = Workspace(Path(folder))
        halves = Path(asked.queries) == QUERIES
        asking = Asking("", tools.schemas(), ())
        alone = await route(queries, asking, tools, space, None)
        show("signals alone", alone, halves=halves, errors=asked.errors)
        if asked.signals:
            return
        config = load()
        async with Providers(config) as providers:
            for name in asked.model or ["embedded:smollm2"]:
                choice = config.parse_choice(name)
                if not isinstance(choice, ModelRef):
                    sys.exit(f"{name} is no single model: name one as provider:model")
                provider = providers.get(choice.provider)
                await provider.warm_up(choice.model)
                small = provider.is_small(choice.model)
                of_model = replace(asking, model=choice.model, small=small or asked.small, biased=small)
                routed = await route(queries, of_model, tools, space, provider)
                show(name, routed, halves=halves, errors=asked.errors)


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", action="append", help="provider:model; may be given several times")
    parser.add_argument("--queries", default=str(QUERIES), help="a file of JSON lines")
    parser.add_argument("--small", action="store_true", help="ask also models that aren't embedded for one word")
    parser.add_argument("--signals", action="store_true", help="ask no model")
    parser.add_argument(
        "--errors",
        nargs="?",
        const="dev",
        choices=["dev", "held-out"],
        help="show the errors of a half, or of another file",
    )
    parser.add_argument("--calibrate", action="store_true", help="measure how the embedded model leans")
    asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
