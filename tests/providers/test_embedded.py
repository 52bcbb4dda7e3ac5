"""The local model: real llama.cpp, real weights."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from contextlib import aclosing

import psutil
import pytest
from support.tiny_model import gguf

from timeline.errors import ConfigError, ContextTooLong, ModelNotFound, ModelUnavailable, ProviderError
from timeline.providers import Delta, EmbeddedProvider, Finish, LLMRequest, UsageReport, collect

model = pytest.mark.model
slow = pytest.mark.slow

QUESTION = "Name three colours of the rainbow."
ENDLESS = {"text": "Count to ten thousand.", "extra": {"ignore_eos": True}, "max_tokens": 6000}


def asking(text=QUESTION, **more):
    return LLMRequest(model="smollm2", messages=[{"role": "user", "content": text}], **{"max_tokens": 6, **more})


@pytest.fixture
def provider(loaded_model):
    """One provider for all tests that leave it as it was, or able to load its model anew."""
    return loaded_model


@pytest.fixture
async def own(models_dir):
    """A provider for this test alone, nothing loaded yet."""
    made = EmbeddedProvider(models_dir=models_dir)
    yield made
    await made.aclose()


def engines():
    """The processes that run llama.cpp for this one, the latest last."""
    found = [child for child in psutil.Process().children() if "llama_process.py" in " ".join(child.cmdline())]
    return sorted(found, key=psutil.Process.create_time)


async def engine_of(provider):
    """The process that runs llama.cpp for this provider, which is loaded."""
    await provider.load()
    return psutil.Process(provider._engines["smollm2"]._process.pid)


async def until(condition):
    while not condition():  # noqa: ASYNC110 - what is waited for happens in other processes
        await asyncio.sleep(0.02)


async def at_rest(process):
    """Until the process uses no processor time any more."""
    before = -1.0
    while (now := sum(process.cpu_times()[:2])) > before + 0.02:
        before = now
        await asyncio.sleep(0.3)


# ------------------------------------------------------------------ answers


@model
async def test_a_stream_is_text_then_usage_then_one_finish(provider):
    items = [item async for item in provider.stream_request(asking())]

    assert {Delta, UsageReport, Finish} == {type(item) for item in items}
    assert [Finish] == [type(item) for item in items if not isinstance(item, Delta | UsageReport)]
    assert isinstance(items[-1], Finish)
    assert "smollm2" == items[-1].model
    assert sum(isinstance(item, Delta) for item in items) > 3


@model
async def test_a_whole_answer_is_what_a_stream_adds_up_to(provider):
    request = asking(temperature=0.0)
    whole, streamed = await provider.make_request(request), await collect(provider.stream_request(request))

    assert streamed.content == whole.content
    assert ("embedded", "smollm2", True) == (whole.provider, whole.model, whole.usage_reported)
    assert (streamed.tokens_input, streamed.tokens_output) == (whole.tokens_input, whole.tokens_output)
    assert whole.raw_usage["completion_tokens"] == whole.tokens_output


@model
async def test_an_answer_is_constrained_to_its_schema(provider):
    schema = {
        "type": "object",
        "properties": {"tool": {"enum": ["calculator", "clock", "none"]}, "sure": {"type": "boolean"}},
        "required": ["tool", "sure"],
        "additionalProperties": False,
    }
    answer = await provider.make_request(asking("What is 3 + 4?", response_schema=schema, max_tokens=100))
    value = json.loads(answer.content)

    assert value["tool"] in ("calculator", "clock", "none")
    assert isinstance(value["sure"], bool)


@model
async def test_the_same_seed_gives_the_same_answer(provider):
    first = await provider.make_request(asking(seed=7, temperature=1.0))
    second = await provider.make_request(asking(seed=7, temperature=1.0))

    assert first.content == second.content


@model
async def test_a_system_prompt_and_earlier_turns_are_heard(provider):
    request = LLMRequest(
        model="smollm2",
        system="You answer in one word.",
        messages=[
            {"role": "user", "content": "My name is Ada."},
            {"role": "assistant", "content": "Hello Ada."},
            {"role": "user", "content": "Hello."},
        ],
        max_tokens=5,
    )
    short, long = await provider.make_request(asking("Hello.")), await provider.make_request(request)

    assert long.tokens_input > short.tokens_input


@model
@pytest.mark.parametrize("stream", [True, False])
async def test_a_prompt_over_the_context_is_refused_with_both_numbers(provider, stream):
    request = asking("word " * 9000)
    with pytest.raises(ContextTooLong, match=r"\(90\d\d tokens\) exceeds the available context size \(8192 tokens\)"):
        await (collect(provider.stream_request(request)) if stream else provider.make_request(request))


@model
async def test_two_at_once_both_get_their_answer(provider):
    answers = await asyncio.gather(*(provider.make_request(asking(text)) for text in (QUESTION, "Say hello.")))

    assert all(answer.content for answer in answers)


@model
async def test_it_is_local_and_lists_its_model_with_the_context_it_has(provider):
    [listed] = await provider.get_available_models()

    assert provider.local
    assert ("smollm2", "embedded", 8192, True) == (listed.id, listed.provider, listed.context, listed.local)
    assert "sha256:b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53" == listed.digest


# ------------------------------------------------------------------ loading


@model
async def test_many_first_requests_at_once_load_the_model_once_while_the_event_loop_goes_on(own):
    before = engines()
    turns = 0

    async def count():
        nonlocal turns
        while True:
            await asyncio.sleep(0.01)
            turns += 1

    counting = asyncio.create_task(count())
    await asyncio.gather(
        own.warm_up(), own.warm_up("smollm2"), *(own.make_request(asking(max_tokens=1)) for _ in range(3))
    )
    counting.cancel()

    assert 1 == len(set(engines()) - set(before))
    assert turns > 10


@model
async def test_a_load_that_nobody_waits_for_any_more_is_stopped(own):
    before = engines()
    asking_once = asyncio.create_task(own.make_request(asking()))
    await until(lambda: len(engines()) > len(before))
    asking_once.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking_once

    assert before == engines()


@model
async def test_a_load_goes_on_for_those_who_still_wait(own):
    before = engines()
    first, second = (asyncio.create_task(own.make_request(asking(max_tokens=1))) for _ in range(2))
    await until(lambda: len(engines()) > len(before))
    first.cancel()

    assert (await second).content
    assert first.cancelled()


@model
async def test_closing_while_it_loads_says_so_to_who_waits(own):
    before = engines()
    task = asyncio.create_task(own.make_request(asking()))
    await until(lambda: len(engines()) > len(before))
    await own.aclose()
    with pytest.raises(ModelUnavailable, match="was closed while it loaded"):
        await task

    assert before == engines()


@model
async def test_closed_it_gives_its_memory_back_and_loads_anew_when_asked(provider):
    engine = await engine_of(provider)
    await provider.aclose()

    assert not engine.is_running()
    assert (await provider.make_request(asking(max_tokens=1))).content


@model
async def test_a_smaller_context_is_kept_to(models_dir):
    provider = EmbeddedProvider(models_dir=models_dir, context=512)
    try:
        [listed] = await provider.get_available_models()
        with pytest.raises(ContextTooLong, match="512 tokens"):
            await provider.make_request(asking("word " * 600))
    finally:
        await provider.aclose()

    assert 512 == listed.context


@model
async def test_a_file_of_ones_own_is_run_under_its_own_name(models_dir):
    path = str(models_dir / "SmolLM2-135M-Instruct.Q4_1.gguf")
    provider = EmbeddedProvider({"mine": path}, models_dir=models_dir / "nowhere", name="gguf")
    try:
        answer = await provider.make_request(LLMRequest(model="mine", messages=asking().messages, max_tokens=3))
    finally:
        await provider.aclose()

    assert ("mine", "gguf", 3) == (answer.model, answer.provider, answer.tokens_output)


# ------------------------------------------------------------------ stopping


@model
async def test_closing_the_stream_stops_the_generation(provider):
    engine = await engine_of(provider)
    async with aclosing(provider.stream_request(asking(**ENDLESS))) as items:
        async for item in items:
            if isinstance(item, Delta):
                break
    async with asyncio.timeout(20):
        await at_rest(engine)


@model
@pytest.mark.parametrize(
    ("request_", "stream"),
    [(asking(**ENDLESS), True), (asking(**ENDLESS), False), (asking("word " * 6000), True)],
    ids=["streaming", "generating as a whole", "reading"],
)
async def test_cancelling_stops_whatever_it_does(provider, stream, request_):
    engine = await engine_of(provider)
    ask = collect(provider.stream_request(request_)) if stream else provider.make_request(request_)
    task = asyncio.create_task(ask)
    start = sum(engine.cpu_times()[:2])
    await until(lambda: sum(engine.cpu_times()[:2]) > start + 0.3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(20):
        await at_rest(engine)

    assert (await provider.make_request(asking(max_tokens=1))).content


@model
async def test_a_model_whose_process_died_is_loaded_anew(provider):
    first = await engine_of(provider)

    async def read():
        async with aclosing(provider.stream_request(asking(**ENDLESS))) as items:
            async for _ in items:
                first.kill()

    with pytest.raises(
        ProviderError, match="the process of the embedded model smollm2 was ended by signal 9: ask"
    ) as caught:
        await read()
    answer = await provider.make_request(asking(max_tokens=1))

    assert caught.value.retryable
    assert answer.content
    assert first.pid != (await engine_of(provider)).pid


# ------------------------------------------------------------------ what can't be run


@model
@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"This is a text.", r"is no GGUF file"),
        (gguf(("general.architecture", "unheard-of")), "unknown model architecture: 'unheard-of'"),
        (gguf(), "can't be loaded"),
        (gguf(("general.architecture", "llama"), ("llama.context_length", 100))[:-9], "can't be loaded"),
        (b"GGUF\x03\0\0\0" + b"\xff" * 16, "number of tensors is -1"),
    ],
    ids=["text", "unknown architecture", "empty", "cut off", "absurd"],
)
async def test_what_llama_cpp_cant_run_is_told_in_one_sentence(tmp_path, content, why):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    provider = EmbeddedProvider({"mine": str(path)}, models_dir=tmp_path)
    with pytest.raises(ModelUnavailable, match=why) as caught:
        await provider.make_request(LLMRequest(model="mine", messages=asking().messages))
    await provider.aclose()

    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_a_configured_file_that_isnt_there_is_named_and_not_listed(tmp_path):
    pytest.importorskip("xllamacpp")
    provider = EmbeddedProvider({"mine": str(tmp_path / "gone.gguf")}, models_dir=tmp_path)
    with pytest.raises(ModelUnavailable, match=r"gone\.gguf, which is no file: correct .*embedded\.models\.mine"):
        await provider.make_request(LLMRequest(model="mine", messages=asking().messages))

    assert [] == await provider.get_available_models()


async def test_an_unknown_model_is_answered_with_the_known_ones(tmp_path):
    provider = EmbeddedProvider({"smollm2": None, "mine": "x.gguf"}, models_dir=tmp_path)
    with pytest.raises(ModelNotFound, match="embedded doesn't know the model 'gpt-9': choose from smollm2, mine"):
        await collect(provider.stream_request(LLMRequest(model="gpt-9", messages=asking().messages)))


def test_a_name_without_a_path_has_to_be_a_built_in_one(tmp_path):
    with pytest.raises(ConfigError, match="mine has no path, and the built-in models are smollm2"):
        EmbeddedProvider({"mine": None}, models_dir=tmp_path)


async def test_without_xllamacpp_it_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    provider = EmbeddedProvider(models_dir=tmp_path)
    for work in (provider.make_request(asking()), provider.get_available_models(), provider.load()):
        with pytest.raises(ModelUnavailable, match=r"needs xllamacpp: pip install 'llm-timeline\[local\]'"):
            await work
    await provider.warm_up()


ALONE = ("unshare", "--user", "--map-root-user", "--net")
"""A program begun so has interfaces of its own, and the only one, the loopback interface, is down."""


@pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run([*ALONE, "true"], check=False, capture_output=True).returncode != 0,
    reason="this machine gives nobody a network of their own",
)
def test_without_the_loopback_interface_it_says_how_to_bring_it_up_and_loads_nothing(tmp_path):
    pytest.importorskip("xllamacpp")
    code = """if True:
        import asyncio, pathlib, sys
        from timeline.errors import ModelUnavailable
        from timeline.providers import EmbeddedProvider

        try:
            asyncio.run(EmbeddedProvider(models_dir=pathlib.Path(sys.argv[1]), fetches=False).load())
        except ModelUnavailable as exc:
            print(exc)
    """
    done = subprocess.run([*ALONE, sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)

    assert done.stdout.startswith("the embedded model is asked over the loopback interface, which is down")
    assert "ip link set lo up" in done.stdout


def test_naming_the_provider_loads_nothing_slow():
    code = "import sys, timeline.providers.embedded; print({'httpx', 'filelock', 'xllamacpp'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "set()\n" == out.stdout


# ------------------------------------------------------------------ the neighbourhood


@model
async def test_the_server_listens_on_loopback_alone_and_asks_for_a_key_that_nobody_can_read(provider):
    import httpx

    engine = await engine_of(provider)
    listening = [c.laddr for c in engine.net_connections() if c.status == psutil.CONN_LISTEN]
    async with httpx.AsyncClient(trust_env=False, base_url=f"http://127.0.0.1:{listening[0].port}") as client:
        answers = [
            await client.post("/v1/chat/completions", json={"messages": []}),
            await client.post("/v1/completions", json={"prompt": "x"}),
            await client.get("/props"),
            await client.get("/slots"),
        ]
    key = provider._engines["smollm2"].server._api_key

    assert ["127.0.0.1"] == [address.ip for address in listening]
    assert [401] * 4 == [answer.status_code for answer in answers]
    assert len(key) > 40
    assert key not in " ".join(engine.cmdline())
    assert key not in str(engine.environ())
    assert key not in repr(vars(provider))


@model
async def test_a_fork_of_this_process_leaves_the_model_alone_when_it_ends(provider):
    await provider.load()
    pid = os.fork()
    if pid == 0:
        # As the interpreter's own end would run it.
        provider._engines["smollm2"]._end()
        os._exit(0)
    await asyncio.to_thread(os.waitpid, pid, 0)

    assert (await provider.make_request(asking(max_tokens=1))).content


@model
async def test_threads_that_wait_for_one_another_are_told_to_sleep_soon(provider):
    engine = await engine_of(provider)

    assert os.environ.get("GOMP_SPINCOUNT", "1000") == engine.environ()["GOMP_SPINCOUNT"]


@model
async def test_ctrl_c_at_the_terminal_is_for_the_program_alone(provider):
    engine = await engine_of(provider)

    assert os.getpgid(os.getpid()) != os.getpgid(engine.pid)
