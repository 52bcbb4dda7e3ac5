"""How a program that runs the local model is stopped, and what it leaves behind: nothing."""

from __future__ import annotations

import signal
import subprocess
import sys

import psutil
import pytest
from support.processes import together

pytestmark = [pytest.mark.model, pytest.mark.slow]

PROGRAM = """
import asyncio, os, signal, sys
from contextlib import aclosing
from pathlib import Path
from timeline.providers import Delta, EmbeddedProvider, LLMRequest

folder, what = sys.argv[1:]

def say(word):
    print(word, flush=True)

async def main():
    provider = EmbeddedProvider(models_dir=Path(folder))
    if what == "load":
        asyncio.get_running_loop().call_later(0.15, say, "loading")
        await asyncio.gather(provider.load(), asyncio.sleep(60))
    request = LLMRequest(model="smollm2", messages=[{"role": "user", "content": "Count."}], extra={"ignore_eos": True})
    async with aclosing(provider.stream_request(request)) as items:
        async for item in items:
            if isinstance(item, Delta):
                say("streaming")
                if what == "exit":
                    sys.exit(3)
                if what == "return":
                    return

if what == "term":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
try:
    asyncio.run(main())
except KeyboardInterrupt:
    say("interrupted")
    sys.exit(130)
"""


@pytest.fixture
def program(models_dir):
    """Starts the program, waits until it says what is awaited, and gives it with the process of its model."""
    started = []

    def start(what):
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", PROGRAM, str(models_dir), what],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline().strip() in ("loading", "streaming")
        return process, psutil.Process(process.pid).children()

    yield start
    for process in started:
        process.kill()
        process.communicate()


def ends(process):
    """What it still says, what it complains about, and its status."""
    out, err = process.communicate(timeout=30)
    return set(out.split()) - {"streaming", "loading"}, err, process.returncode


def gone(engines):
    _, alive = psutil.wait_procs(engines, timeout=10)
    return not alive


@pytest.mark.parametrize("what", ["load", "stream"])
def test_ctrl_c_reaches_the_program_at_once_whatever_the_model_does(program, what):
    process, engines = program(what)
    process.send_signal(signal.SIGINT)

    assert ({"interrupted"}, "", 130) == ends(process)
    assert gone(engines)


@pytest.mark.parametrize(("what", "status"), [("return", 0), ("exit", 3)])
def test_a_program_that_ends_amid_an_answer_ends_cleanly(program, what, status):
    process, engines = program(what)

    assert (set(), "", status) == ends(process)
    assert gone(engines)


def test_sigterm_is_the_programs_own_to_handle(program):
    process, engines = program("term")
    process.terminate()

    assert (set(), "", 143) == ends(process)
    assert gone(engines)


@pytest.mark.parametrize("what", ["load", "stream"])
def test_a_killed_program_leaves_no_process_behind(program, what):
    process, engines = program(what)
    process.kill()

    assert (set(), "", -signal.SIGKILL) == ends(process)
    assert gone(engines)


MANY = """
from pathlib import Path
from timeline.providers import EmbeddedProvider, LLMRequest

async def main(number):
    provider = EmbeddedProvider(models_dir=Path({folder!r}))
    request = LLMRequest(model="smollm2", messages=[{{"role": "user", "content": "Say hello."}}], max_tokens=2)
    answer = await provider.make_request(request)
    await provider.aclose()
    return answer.tokens_output
"""


def test_many_processes_at_once_all_get_their_answer(models_dir, zygote):
    ended = together(zygote, 4, MANY.format(folder=str(models_dir)))

    assert [{"ok": 2}] * 4 == ended
