"""Fixtures that several folders share."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.command import Backend, Home, Zygote
from support.local_model import LlamaServer, fetched_models

from timeline.providers import EmbeddedProvider


def in_memory() -> None:
    """Put temporary files into memory, where there is room: thousands of tests each wait for a disk many times over.

    A killed process loses no more there than on a disk; what a power cut does, no test can show. `TMPDIR` wins.
    """
    memory = Path("/dev/shm")
    if "TMPDIR" in os.environ or not os.access(memory, os.W_OK):
        return
    if shutil.disk_usage(memory).free >= ROOM_BYTES:
        # Also for the workers and for the processes that tests start.
        os.environ["TMPDIR"] = tempfile.tempdir = str(memory)


ROOM_BYTES = 4 << 30
in_memory()


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    # A socket's path has to be short.
    folder = Path(tempfile.mkdtemp(prefix="zygote"))
    made = Zygote(folder)
    yield made
    made.close()
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def running_backend() -> Iterator[Backend]:
    made = Backend()
    yield made
    made.close()


@pytest.fixture
def backend(running_backend: Backend) -> Backend:
    """A server of OpenAI's format; `says` gives it its answers."""
    running_backend.says()
    return running_backend


@pytest.fixture
def home(tmp_path: Path, zygote: Zygote, backend: Backend) -> Iterator[Home]:
    """A fresh `TIMELINE_HOME` whose default model is the server's."""
    with Home(tmp_path / "home", zygote, backend.url) as made:
        yield made


@pytest.fixture(scope="session")
def models_dir() -> Path:
    """A models folder that holds the real local model; outside of the repository, fetched once."""
    return fetched_models()


@pytest.fixture(scope="session")
def loaded_model(models_dir: Path) -> Iterator[EmbeddedProvider]:
    """The local model, loaded at most once; for tests that leave it as it was, or able to be loaded anew."""
    made = EmbeddedProvider(models_dir=models_dir)
    yield made
    asyncio.run(made.aclose())


@pytest.fixture(scope="session")
def llama_server(models_dir: Path) -> Iterator[LlamaServer]:
    """The real llama.cpp server with the real local model, as anybody could run it."""
    made = LlamaServer(models_dir)
    yield made
    made.close()
