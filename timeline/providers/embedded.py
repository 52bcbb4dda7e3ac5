"""The local model: llama.cpp in a process of its own, asked in OpenAI's format over the loopback interface.

Knows when a model is fetched, loaded, loaded anew and let go; how llama.cpp runs stands in
`llama_process`, where files come from in `models`, and what is said over the wire in `openai`.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import secrets
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, suppress
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import ClassVar

from timeline.errors import (
    BrokenStream,
    ModelNotFound,
    ModelUnavailable,
    NetworkError,
    ProviderError,
    TimelineError,
)
from timeline.providers import llama_process
from timeline.providers.base import Capabilities, Item, LLMProvider, LLMRequest, LLMResponse, ModelInfo, collect
from timeline.providers.gguf import read_header
from timeline.providers.models import KNOWN_MODELS, KnownModel, ModelStore, Progress
from timeline.providers.openai import OpenAIProvider
from timeline.providers.waiting import Timeouts

__all__ = ["LARGEST_DEFAULT_CONTEXT", "EmbeddedProvider"]

LARGEST_DEFAULT_CONTEXT = 8192
"""Tokens of context that a model gets unasked. The memory for them is taken when it is loaded: 188 MB for
smollm2's 8192, but 16 GB for the 131,072 of an 8B model."""

PATIENCE = Timeouts(connect=None, first_byte=None, between_chunks=None, total=None)
"""Slow isn't stuck: fifty processes on two cores take minutes. A process that ended closes its connections."""

EACH_BY_ITSELF = {"connection": "close"}
"""A connection per request: llama.cpp closes one that was idle for 5 s, at times just when it is used again."""

DYING_SECONDS = 1.0

ENVIRONMENT = {
    # Threads that wait for one another spin this often before they sleep. libgomp's 300,000 make 10 processes
    # on 2 cores eight times slower than they need be; alone, none is slower for it.
    "GOMP_SPINCOUNT": "1000",
    # At abort() ggml would start a debugger.
    "GGML_NO_BACKTRACE": "1",
}


class EmbeddedProvider(LLMProvider):
    """Models that run on this machine with nothing else installed or running.

    A model is fetched and loaded at its first use, or by `load` and `warm_up`, and stays loaded until
    `aclose`. Requests to one model take turns.

    Args:
        models: Names and paths of GGUF files; None as path means the built-in model of that name.
        name: As configured.
        models_dir: Where built-in models are found and fetched to.
        context: Tokens of context for every model; by default what each was trained for, up to
            `LARGEST_DEFAULT_CONTEXT`.
        progress: Told about what takes long, see `timeline.providers.models.Progress`.
        known: The built-in models.
        fetches: Whether one that isn't on this machine may be fetched.

    Raises:
        ConfigError: A name without a path is no built-in model.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(schema=True)

    def __init__(
        self,
        models: Mapping[str, str | None] | None = None,
        *,
        name: str = "embedded",
        models_dir: Path,
        context: int | None = None,
        progress: Progress | None = None,
        known: Mapping[str, KnownModel] = KNOWN_MODELS,
        fetches: bool = True,
    ) -> None:
        self.name = name
        self._store = ModelStore(models_dir, models, known=known, fetches=fetches)
        self._context = context
        self._progress = progress
        self._engines: dict[str, _Engine] = {}
        self._loading: dict[str, _Shared] = {}

    @property
    def local(self) -> bool:
        """Always: nothing leaves this machine."""
        return True

    def is_small(self, model: str) -> bool:
        """The built-in ones are."""
        return self._store.known(model) is not None

    async def make_request(self, request: LLMRequest) -> LLMResponse:
        """Ask for the whole answer; see `LLMProvider.make_request`.

        It is streamed all the same: llama.cpp goes on with an unstreamed answer that nobody waits for any more.

        Raises:
            ModelUnavailable: The model can't be fetched or loaded.
            ProviderError: The attempt failed.
        """
        return await collect(self.stream_request(request), provider=self.name, model=request.model)

    async def stream_request(self, request: LLMRequest) -> AsyncIterator[Item]:
        """Ask, and yield items as they arrive; see `LLMProvider.stream_request`.

        Raises:
            ModelUnavailable: The model can't be fetched or loaded.
            ProviderError: The attempt failed.
        """
        engine = await self._engine(request.model)
        try:
            async with aclosing(engine.server.stream_request(request)) as items:
                async for item in items:
                    yield item
        except (NetworkError, BrokenStream) as exc:
            if (how := await asyncio.to_thread(engine.end_of_process)) is None:
                raise
            msg = f"the process of the embedded model {request.model} {how}: ask again, and the model is loaded anew"
            raise type(exc)(msg, provider=self.name) from exc

    async def get_available_models(self) -> list[ModelInfo]:
        """The configured models, but for those whose file isn't there.

        Raises:
            ModelUnavailable: xllamacpp isn't installed, so that none can be asked.
        """
        _require_engine()
        found = []
        for name in self._store.names:
            with suppress(ModelUnavailable):
                known, status = self._store.known(name), await asyncio.to_thread(self._store.status, name)
                found.append(
                    ModelInfo(
                        name,
                        self.name,
                        context=self._context
                        or min(status.context or LARGEST_DEFAULT_CONTEXT, LARGEST_DEFAULT_CONTEXT),
                        local=True,
                        digest=f"sha256:{known.sha256}" if known else None,
                        # llama.cpp hands tools to the model's template; smollm2's has no place for them.
                        capabilities=Capabilities(tools=known is None, schema=True),
                    )
                )
        return found

    async def load(self, model: str | None = None) -> None:
        """Fetch and load a model ahead of the first request.

        Args:
            model: Which; by default the first.

        Raises:
            ModelNotFound: It isn't configured.
            ModelUnavailable: It can't be fetched or loaded.
        """
        await self._engine(model if model is not None else next(iter(self._store.names), ""))

    async def warm_up(self, model: str | None = None) -> None:
        """As `load`; what goes wrong is left for the first request to meet."""
        with suppress(TimelineError):
            await self.load(model)

    async def aclose(self) -> None:
        """End the processes and give back their memory; a later request loads its model anew."""
        loading, self._loading = self._loading, {}
        engines, self._engines = self._engines, {}
        for shared in loading.values():
            await shared.cancel()
        for engine in engines.values():
            await engine.aclose()

    async def _engine(self, model: str) -> _Engine:
        """A model, loaded; concurrent callers wait for one load."""
        engine = self._engines.get(model)
        if engine is not None:
            if engine.alive:
                return engine
            del self._engines[model]
            await engine.aclose()
        shared = self._loading.get(model)
        if shared is None or not shared.usable:
            if model not in self._store.names:
                msg = f"{self.name} doesn't know the model {model!r}: choose from {', '.join(self._store.names)}"
                raise ModelNotFound(msg, provider=self.name)
            shared = self._loading[model] = _Shared(asyncio.create_task(self._load(model)))
        try:
            return await shared.result()
        finally:
            if self._loading.get(model) is shared and not shared.usable:
                del self._loading[model]

    async def _load(self, model: str) -> _Engine:
        _require_engine()
        _require_loopback()
        path = await self._store.fetch(model, self._progress)
        known = self._store.known(model)
        context = self._context or min(read_header(path).context or LARGEST_DEFAULT_CONTEXT, LARGEST_DEFAULT_CONTEXT)
        engine = _Engine(self.name, model, path, context, known.sampling if known else {})
        try:
            await asyncio.to_thread(engine.start)
            # What httpx loads at its first request it has to load before one that matters: llama.cpp drops a
            # connection whose first byte takes 5 s to come, as it may on a machine with much else to do.
            with suppress(ProviderError):
                await engine.server.get_json("/health")
        except BaseException:
            await engine.aclose()
            raise
        self._engines[model] = engine
        return engine


class _Shared:
    """A load that many wait for; it goes on as long as one of them does."""

    def __init__(self, task: asyncio.Task[_Engine]) -> None:
        self._task = task
        self._waiting = 0

    @property
    def usable(self) -> bool:
        """Whether it is still under way, in this event loop."""
        return not self._task.done() and self._task.get_loop() is asyncio.get_running_loop()

    async def result(self) -> _Engine:
        self._waiting += 1
        task = asyncio.current_task()
        try:
            return await asyncio.shield(self._task)
        except asyncio.CancelledError:
            if self._task.cancelled() and not (task and task.cancelling()):
                msg = "the embedded model was closed while it loaded: ask again"
                raise ModelUnavailable(msg) from None
            raise
        finally:
            self._waiting -= 1
            if not self._waiting:
                await self.cancel()

    async def cancel(self) -> None:
        """Stop it, and wait until what it began is undone."""
        if not self._task.done() and self._task.get_loop() is asyncio.get_running_loop():
            self._task.cancel()
            await asyncio.wait((self._task,))
        if self._task.done() and not self._task.cancelled():
            self._task.exception()  # Asked for, so that asyncio doesn't report it as never retrieved.


class _Server(OpenAIProvider):
    """llama.cpp's own HTTP server."""

    key_variable = None

    @property
    def unreachable_advice(self) -> str:
        """Its process ended."""
        return "ask again, and the model is loaded anew"


class _Engine:
    """One loaded model: its process, and a client of the server in it."""

    server: OpenAIProvider

    def __init__(self, provider: str, model: str, path: Path, context: int, sampling: dict[str, float]) -> None:
        self._provider = provider
        self._model = model
        self._path = path
        self._context = context
        self._sampling = sampling
        self._process: subprocess.Popen[bytes] | None = None
        self._end: Callable[[], object] | None = None
        self._guard = threading.Lock()
        self._closed = False

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def end_of_process(self) -> str | None:
        """How the process ended, None if it runs. It may take a moment to be gone after its connections are."""
        with suppress(subprocess.TimeoutExpired):
            return _how(self._process.wait(DYING_SECONDS)) if self._process is not None else None
        return None

    def start(self) -> None:
        """Start the process and wait until it serves, however long that takes; for a thread of its own.

        Raises:
            ModelUnavailable: It doesn't, or was closed meanwhile.
        """
        with self._guard:
            if self._closed:
                raise ModelUnavailable(self._sentence("it was closed while it loaded"))
            process, lifeline = self._spawn()
            self._process = process
            self._end = weakref.finalize(self, _end, process, lifeline, os.getpid())
        key = secrets.token_urlsafe(32)
        self._tell(process, key)
        # Needed as soon as the model is loaded, and loaded meanwhile.
        import httpx  # noqa: F401

        said: list[str] = []
        with process.stdout or BytesIO() as output:
            for line in output:
                if line.startswith(llama_process.READY):
                    address = line.removeprefix(llama_process.READY).decode().strip()
                    self.server = _Server(
                        key,
                        f"{address}/v1",
                        name=self._provider,
                        local=True,
                        timeouts=PATIENCE,
                        headers=EACH_BY_ITSELF,
                    )
                    return
                said.append(line.decode("utf-8", "replace"))
        raise ModelUnavailable(self._sentence(_reason("".join(said), process.wait())))

    def _spawn(self) -> tuple[subprocess.Popen[bytes], int]:
        """The process, and the end of a pipe that keeps it alive."""
        theirs, ours = os.pipe()
        try:
            process = subprocess.Popen(  # noqa: S603 - this Python, our script
                [sys.executable, "-I", "-S", llama_process.__file__, str(theirs)],
                env=ENVIRONMENT | os.environ,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs,),
                # Ctrl-C at the terminal is for this process, which then ends that one. Not a new session:
                # Linux would share the processors out by sessions, and starve this process for that one.
                process_group=0,
            )
        except OSError as exc:
            os.close(ours)
            raise ModelUnavailable(self._sentence(f"its process can't be started: {exc.strerror}")) from exc
        finally:
            os.close(theirs)
        return process, ours

    def _tell(self, process: subprocess.Popen[bytes], key: str) -> None:
        """Say what to load. The key goes this way alone: anybody can read argv."""
        settings = llama_process.Settings(
            # The script runs without `site`, so that it starts at once and finds what this process finds.
            path=list(sys.path),
            model=str(self._path),
            alias=self._model,
            context=self._context,
            key=key,
            sampling=self._sampling,
        )
        if process.stdin is not None:
            with suppress(BrokenPipeError), process.stdin as pipe:
                pipe.write(json.dumps(settings).encode())

    def _sentence(self, why: str) -> str:
        return (
            f"the embedded model {self._model} can't be loaded from {self._path} ({why}):"
            " check the file and the free memory, or choose another model"
        )

    async def aclose(self) -> None:
        """End the process, whatever it is doing."""
        with self._guard:
            self._closed = True
        if self._end is not None:
            await asyncio.to_thread(self._end)
        if hasattr(self, "server"):
            await self.server.aclose()


def _end(process: subprocess.Popen[bytes], lifeline: int, owner: int) -> None:
    if owner != os.getpid():
        return  # A fork of this process ends; the model isn't its own.
    process.kill()
    process.wait()
    os.close(lifeline)


def _reason(said: str, status: int) -> str:
    """Why the process ended: llama.cpp's first complaint, or its own last words."""
    # llama.cpp writes its log piece by piece, in a thread of its own: the last words may stand within a complaint.
    before, failed, after = said.partition("\n" + llama_process.FAILED.decode())
    why, _, rest = after.partition("\n")
    for line in (before + rest).splitlines():
        # `0.00.054.901 E llama_model_load: error loading model: unknown model architecture: 'foo'`
        _, is_error, text = line.strip().partition(" E ")
        if is_error:
            return text.partition(": ")[2].strip() or text
    if failed:
        return f"{why}, which Debian and Ubuntu have in the package libgomp1" if "libgomp" in why else why
    return f"its process {_how(status)}"


def _how(status: int) -> str:
    return f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"


def _require_engine() -> None:
    if find_spec("xllamacpp") is None:
        msg = "the embedded model needs xllamacpp: pip install 'llm-timeline[local]'"
        raise ModelUnavailable(msg)
    if not sys.executable:
        msg = "the embedded model needs a Python to run in and this program has none of its own: use another provider"
        raise ModelUnavailable(msg)


def _require_loopback() -> None:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            # Sends nothing: it only asks for a route.
            probe.connect(("127.0.0.1", 9))
    except OSError as exc:
        if exc.errno not in (errno.ENETUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL):
            return
        msg = (
            f"the embedded model is asked over the loopback interface, which is down ({os.strerror(exc.errno).lower()}):"
            " bring it up ('ip link set lo up'), which a sandbox without a network needs as well"
        )
        raise ModelUnavailable(msg) from None
