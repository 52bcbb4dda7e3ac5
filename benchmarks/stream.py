"""CPU that a client spends on each chunk of a long stream, beside raw httpx that parses nothing, in one run.

    python benchmarks/stream.py [--chunks 5000] [--rounds 5] [--gap 0] [--only raw,provider]

A server in a process of its own sends the same event stream (OpenAI's format, one HTTP chunk an event)
to each client in turn, each in a fresh process that streams twice to warm up and then measures its own CPU
time. Peers that aren't installed are left out: `pip install openai litellm any-llm-sdk llm`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

STREAMS = 4
HOME = tempfile.TemporaryDirectory(prefix="timeline-stream-")
MESSAGES = [{"role": "user", "content": "Tell me a long story."}]
WORDS = [
    "the",
    "old",
    "ship",
    "left",
    "harbour",
    "before",
    "dawn",
    "and",
    "nobody",
    "on",
    "deck",
    "spoke",
    "until",
    "land",
    "was",
    "out",
    "of",
    "sight",
]


# ------------------------------------------------------------------ the server


def body(chunks: int) -> list[bytes]:
    """The HTTP chunks of the stream, shaped as api.openai.com shapes them."""
    common = {
        "id": "chatcmpl-BSe2s0DoWfQDJfHpWqEQJk3NrX5Jw",
        "object": "chat.completion.chunk",
        "created": 1746122222,
        "model": "gpt-4o-mini-2024-07-18",
        "service_tier": "default",
        "system_fingerprint": "fp_dbaca60df0",
    }

    def event(payload: str) -> bytes:
        data = f"data: {payload}\n\n".encode()
        return b"%x\r\n%b\r\n" % (len(data), data)

    def choice(delta: dict[str, Any], finish: str | None = None) -> str:
        one = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return json.dumps({**common, "choices": [one], "usage": None}, separators=(",", ":"))

    usage = {"prompt_tokens": 13, "completion_tokens": chunks, "total_tokens": chunks + 13}
    return [
        event(choice({"role": "assistant", "content": "", "refusal": None})),
        *(event(choice({"content": f" {WORDS[i % len(WORDS)]}"})) for i in range(chunks)),
        event(choice({}, "stop")),
        event(json.dumps({**common, "choices": [], "usage": usage})),
        event("[DONE]"),
        b"0\r\n\r\n",
    ]


def serve(chunks: int, gap: float) -> None:
    """Answer every request with the stream; the port is printed first."""
    pieces = body(chunks)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"

    def answer(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reader = connection.makefile("rb")
        while reader.readline():
            length = 0
            while (line := reader.readline()) not in (b"\r\n", b""):
                if line.lower().startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
            reader.read(length)
            connection.sendall(head)
            for piece in pieces:
                connection.sendall(piece)
                if gap:
                    time.sleep(gap)

    with socket.create_server(("127.0.0.1", 0)) as server:
        print(server.getsockname()[1], flush=True)
        while True:
            threading.Thread(target=answer, args=(server.accept()[0],), daemon=True).start()


# ------------------------------------------------------------------ the clients

Stream = Callable[[], AsyncIterator[Any]]


async def raw(url: str) -> Stream:
    """Reads the body and throws it away."""
    import httpx

    client = httpx.AsyncClient()

    async def stream() -> AsyncIterator[Any]:
        asked = {"model": "m", "messages": MESSAGES, "stream": True}
        async with client.stream("POST", f"{url}/v1/chat/completions", json=asked) as response:
            async for data in response.aiter_raw():
                yield data

    return stream


async def provider(url: str) -> Stream:
    """Our provider alone: bytes to deltas."""
    from timeline.providers import LLMRequest, OpenAIProvider

    made = OpenAIProvider("key-12345", f"{url}/v1")
    asked = LLMRequest("gpt-4o-mini", MESSAGES)
    return lambda: made.stream_request(asked)


async def openai(url: str) -> Stream:
    """The openai SDK."""
    from openai import AsyncOpenAI

    client = AsyncOpenAI(api_key="key-12345", base_url=f"{url}/v1")

    async def stream() -> AsyncIterator[Any]:
        async for chunk in await client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, stream=True):
            yield chunk

    return stream


async def litellm(url: str) -> Stream:
    """litellm."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    from litellm import acompletion

    async def stream() -> AsyncIterator[Any]:
        asked = {"model": "openai/gpt-4o-mini", "messages": MESSAGES, "stream": True}
        async for chunk in await acompletion(**asked, api_base=f"{url}/v1", api_key="key-12345"):
            yield chunk

    return stream


async def any_llm(url: str) -> Stream:
    """any-llm."""
    from any_llm import acompletion

    async def stream() -> AsyncIterator[Any]:
        asked = {"model": "openai:gpt-4o-mini", "messages": MESSAGES, "stream": True}
        async for chunk in await acompletion(**asked, api_base=f"{url}/v1", api_key="key-12345"):
            yield chunk

    return stream


async def llm(url: str) -> Stream:
    """llm, by its Python interface, without its log."""
    folder = Path(tempfile.mkdtemp(prefix="llm"))
    (folder / "extra-openai-models.yaml").write_text(
        f"- model_id: bench\n  model_name: gpt-4o-mini\n  api_base: {url}/v1\n"
    )
    os.environ["LLM_USER_PATH"] = str(folder)
    import llm as package

    model = package.get_async_model("bench")

    async def stream() -> AsyncIterator[Any]:
        async for text in model.prompt(MESSAGES[0]["content"]):
            yield text

    return stream


async def recorded(url: str) -> Callable[[], AsyncIterator[Any]]:
    """What `timeline ask` does: our provider, every delta and its time durably in the event file."""
    from timeline import Timeline
    from timeline.config import find_paths, load
    from timeline.providers.pool import Providers

    environ = {"TIMELINE_HOME": HOME.name}
    server = {"kind": "openai", "base_url": f"{url}/v1", "local": True}
    config = load(find_paths(environ, Path("/")), environ, Path("/"), {"llm_providers": {"bench": server}})
    opened = Timeline.open(providers=Providers(config))
    # Open until this process ends.
    timeline = await opened.__aenter__()

    def stream() -> AsyncIterator[Any]:
        return timeline.ask(MESSAGES[0]["content"], model="bench:gpt-4o-mini", direct=True)

    stream.opened = opened
    return stream


CLIENTS: dict[str, tuple[Callable[[str], Any], str]] = {
    "raw": (raw, "httpx"),
    "provider": (provider, "llm-timeline"),
    "recorded": (recorded, "llm-timeline"),
    "openai": (openai, "openai"),
    "llm": (llm, "llm"),
    "any-llm": (any_llm, "any-llm-sdk"),
    "litellm": (litellm, "litellm"),
}


async def measure(name: str, url: str, chunks: int) -> list[float]:
    """Microseconds of this process's CPU per chunk, one number a stream."""
    stream = await CLIENTS[name][0](url)
    taken = []
    for _ in range(2 + STREAMS):
        begun, count = time.process_time(), 0
        async with aclosing(stream()) as items:
            async for _item in items:
                count += 1
        taken.append((time.process_time() - begun) / chunks * 1e6)
        if count < chunks:
            sys.exit(f"{name} gave {count} of {chunks} chunks")
    return taken[2:]


# ------------------------------------------------------------------ the run


def installed(package: str) -> str | None:
    """The version, if it is there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def child(*arguments: str) -> list[str]:
    """This file in a process of its own."""
    return [sys.executable, __file__, *arguments]


def compare(chunks: int, rounds: int, gap: float, names: list[str]) -> None:
    """Let the clients take turns, and print."""
    times: dict[str, list[float]] = {name: [] for name in names}
    with subprocess.Popen(
        child("--serve", "--chunks", str(chunks), "--gap", str(gap)), stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}"
        try:
            for name in names * rounds:
                command = child("--client", name, "--url", url, "--chunks", str(chunks))
                printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                times[name] += json.loads(printed.splitlines()[-1])
        finally:
            server.kill()

    print(f"{platform.platform()}, {platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}")
    print(", ".join(f"{package} {installed(package)}" for package in dict.fromkeys(CLIENTS[name][1] for name in names)))
    print(
        f"httpcore {installed('httpcore')}, h11 {installed('h11')}, h2 {'installed' if find_spec('h2') else 'not installed'} (not used: no TLS)"
    )
    print(f"{chunks} chunks a stream, {gap * 1e3:g} ms between them, {rounds * STREAMS} streams each")
    base = {"median": statistics.median(times["raw"]), "fastest": min(times["raw"])} if "raw" in times else None
    for name, taken in times.items():
        median, fastest = statistics.median(taken), min(taken)
        ratios = f"   ratio {median / base['median']:6.2f} / {fastest / base['fastest']:6.2f}" if base else ""
        print(f"{name:<10} median {median:7.1f} µs a chunk   fastest {fastest:7.1f} µs{ratios}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=5000, help="chunks of each stream")
    parser.add_argument("--rounds", type=int, default=5, help="processes of each client")
    parser.add_argument("--gap", type=float, default=0.0, help="seconds between chunks; 0 sends as fast as it can")
    parser.add_argument("--only", help="names of clients, separated by commas")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--client", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        serve(asked.chunks, asked.gap)
    elif asked.client:
        print(json.dumps(asyncio.run(measure(asked.client, asked.url, asked.chunks))))
    else:
        wanted = asked.only.split(",") if asked.only else list(CLIENTS)
        names = [name for name in wanted if installed(CLIENTS[name][1]) is not None]
        compare(asked.chunks, asked.rounds, asked.gap, names)


if __name__ == "__main__":
    main()
