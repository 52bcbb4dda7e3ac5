"""What every provider has to pass, ours as well as a plugin's, and a provider that says what a test wrote down.

Needs no test runner: the checks are methods named `test_…`, which pytest finds in a subclass named
`Test…`, and which `timeline plugins validate --live` calls itself. docs/plugins.md shows how.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from typing import Any, ClassVar, Literal, NoReturn

from msgspec import Struct

from timeline.errors import PluginError, TimelineError
from timeline.providers.base import (
    Capabilities,
    Delta,
    Finish,
    Item,
    LLMProvider,
    LLMRequest,
    LLMResponse,
    Message,
    ModelInfo,
    Usage,
    UsageReport,
    collect,
)
from timeline.providers.contract import Boundary, broken, check_class
from timeline.providers.guarded import Guarded

__all__ = ["Outcome", "ProviderContract", "ScriptedProvider", "outcomes"]


# ------------------------------------------------------------------ the suite


class ProviderContract:
    """The checks; a subclass says whom to check and what to ask.

    Each check makes a provider of its own, in an event loop of its own, and closes it.

    Example:
        ::

            from timeline.testing import ProviderContract

            class TestEcho(ProviderContract):
                model = "parrot"

                def provider(self):
                    return EchoProvider()

    Attributes:
        model: Which model to ask.
        patience: Seconds within which a stopped answer has to be over.
    """

    model: ClassVar[str] = "model"
    patience: ClassVar[float] = 10.0

    # -------------------------------------------------------------- what a subclass says

    def provider(self) -> LLMProvider:
        """A fresh provider that can answer. Called in a running event loop."""
        msg = f"{type(self).__name__} has to define provider(), which returns what is to be checked"
        raise NotImplementedError(msg)

    def request(self) -> LLMRequest:
        """What a short answer is expected to."""
        return LLMRequest(self.model, (Message("user", "Say hello in one short sentence."),), max_tokens=64)

    def long_request(self) -> LLMRequest:
        """What an answer is expected to that takes long enough to be stopped."""
        text = "Count from 1 to 500 in words, one number a line, without leaving any out."
        return LLMRequest(self.model, (Message("user", text),), max_tokens=2000)

    def tool_request(self) -> LLMRequest | None:
        """What is answered by calling a tool; None skips that check."""
        return None

    def unreachable(self) -> LLMProvider | None:
        """A fresh provider whose service isn't there; None skips that check."""
        return None

    async def wait_until_stopped(self) -> None:
        """Returns once the service has noticed that an answer is wanted no longer, where that can be told."""

    # -------------------------------------------------------------- the checks

    def test_class_is_of_the_contracts_shape(self) -> None:
        """Its class has the methods, and each is of its kind."""

        async def check(provider: LLMProvider) -> None:
            found = _bare(provider)
            for problem in check_class(type(found)):
                raise broken(_name(found), problem)

        self._run(check)

    def test_stream_is_pieces_then_one_finish(self) -> None:
        """A stream yields pieces of the answer, reports usage and ends with one Finish."""

        async def check(provider: LLMProvider) -> None:
            _answered(await _streamed(provider, self.request()))

        self._run(check)

    def test_whole_answer_comes_without_streaming(self) -> None:
        """make_request returns a whole answer with its usage."""

        async def check(provider: LLMProvider) -> None:
            _answered(await provider.make_request(self.request()))

        self._run(check)

    def test_two_answers_come_at_once(self) -> None:
        """Two streams at the same time don't disturb one another."""

        async def check(provider: LLMProvider) -> None:
            for response in await asyncio.gather(*(_streamed(provider, self.request()) for _ in range(2))):
                _answered(response)

        self._run(check)

    def test_closed_stream_stops(self) -> None:
        """A stream that is closed half-way ends at once."""

        async def check(provider: LLMProvider) -> None:
            found = _bare(provider)
            with _boundary(found):
                stream = aiter(found.stream_request(self.long_request()))
                await anext(stream)
                if hasattr(stream, "aclose"):
                    await self._soon(stream.aclose(), "a closed stream goes on")
                    _expect(await anext(stream, None) is None, "a closed stream yields more")
            await self._soon(self.wait_until_stopped(), "the service still works on an answer whose stream was closed")

        self._run(check)

    def test_cancelled_stream_stops(self) -> None:
        """A stream whose task is cancelled half-way ends at once."""

        async def check(provider: LLMProvider) -> None:
            found, begun = _bare(provider), asyncio.Event()

            async def read() -> None:
                async for _ in found.stream_request(self.long_request()):
                    begun.set()

            await self._cancel(found, read(), begun)

        self._run(check)

    def test_cancelled_whole_answer_stops(self) -> None:
        """make_request ends at once when its task is cancelled."""

        async def check(provider: LLMProvider) -> None:
            found = _bare(provider)
            await self._cancel(found, found.make_request(self.long_request()))

        self._run(check)

    def test_models_are_listed(self) -> None:
        """get_available_models lists models, each once."""

        async def check(provider: LLMProvider) -> None:
            names = [model.id for model in await provider.get_available_models()]
            _expect(all(names), "a model has no id")
            _expect(len(names) == len(set(names)), "a model is listed twice")

        self._run(check)

    def test_tools_are_called(self) -> None:
        """A tool call comes with its name, its arguments and the finish reason tool_calls."""
        request = self.tool_request()
        if request is None:
            _skip("tool_request() gives nothing to ask")

        async def check(provider: LLMProvider) -> None:
            for response in (await _streamed(provider, request), await provider.make_request(request)):
                _expect(bool(response.tool_calls), "no tool was called")
                names = {tool.name for tool in request.tools}
                _expect(all(call.name in names for call in response.tool_calls), "a tool was called that isn't there")
                _expect(all("_invalid" not in call.arguments for call in response.tool_calls), "arguments are no JSON")

        self._run(check)

    def test_unknown_model_is_no_surprise(self) -> None:
        """A model that isn't there is answered for, or refused with an error of the tree."""

        async def check(provider: LLMProvider) -> None:
            await _fails_properly(provider, LLMRequest("no-such-model-3141", self.request().messages, max_tokens=1))

        self._run(check)

    def test_missing_service_is_an_error_of_the_tree(self) -> None:
        """A service that isn't there is an error of the tree, streamed or not."""

        async def check(provider: LLMProvider) -> None:
            _expect(await _fails_properly(provider, self.request()), "it answered, though its service isn't there")

        def make() -> LLMProvider:
            provider = self.unreachable()
            return provider if provider is not None else _skip("unreachable() gives no provider")

        self._run(check, make)

    def test_it_warms_up_and_closes(self) -> None:
        """It can be warmed up, and closed more than once."""

        async def check(provider: LLMProvider) -> None:
            await provider.warm_up(self.model)
            found = _bare(provider)
            with _boundary(found):
                for _ in range(2):
                    if hasattr(found, "aclose"):
                        await self._soon(found.aclose(), "aclose() doesn't return")

        self._run(check)

    # -------------------------------------------------------------- how they run

    def _run(
        self, check: Callable[[LLMProvider], Awaitable[None]], make: Callable[[], LLMProvider] | None = None
    ) -> None:
        async def work() -> None:
            provider = _guarded((make or self.provider)())
            try:
                await check(provider)
            finally:
                await provider.aclose()

        try:
            _run_to_end(work())
        except PluginError as exc:
            # At run time a plugin's own exception is kept from being shown; its author wants to see it.
            exc.__suppress_context__ = False
            raise

    async def _soon(self, work: Awaitable[Any], otherwise: str) -> None:
        try:
            async with asyncio.timeout(self.patience):
                await work
        except TimeoutError:
            msg = f"{otherwise} after {self.patience:g} s"
            raise AssertionError(msg) from None

    async def _cancel(self, found: Any, work: Any, begun: asyncio.Event | None = None) -> None:
        """Cancel `work` once it has begun, or a moment after it was started."""

        async def guarded() -> None:
            with _boundary(found):
                await work

        task = asyncio.create_task(guarded())
        started = asyncio.create_task(begun.wait() if begun else asyncio.sleep(0.2))
        await asyncio.wait((task, started), return_when=asyncio.FIRST_COMPLETED)
        started.cancel()
        if task.done():
            task.result()
            _skip("the answer to long_request() was over before it could be stopped")
        task.cancel()
        done, _ = await asyncio.wait((task,), timeout=self.patience)
        _expect(bool(done), f"a cancelled answer goes on after {self.patience:g} s")
        _expect(task.cancelled() or task.exception() is not None, "a cancelled answer goes on to its end")
        if not task.cancelled():
            task.result()
        await self._soon(self.wait_until_stopped(), "the service still works on an answer that was cancelled")


class Outcome(Struct, frozen=True):
    """How one check went.

    Args:
        check: What it says, in a sentence.
        state: `skipped` where there was nothing to check it with.
        message: Why it failed or was skipped.
    """

    check: str
    state: Literal["passed", "failed", "skipped"]
    message: str | None = None


def outcomes(suite: ProviderContract) -> Iterator[Outcome]:
    """Run every check of a suite, one after another, outside any event loop."""
    from unittest import SkipTest

    for name in [name for name in vars(ProviderContract) if name.startswith("test_")]:
        check = getattr(suite, name)
        sentence = str(getattr(ProviderContract, name).__doc__).strip()
        try:
            check()
        except SkipTest as exc:
            yield Outcome(sentence, "skipped", str(exc))
        except (AssertionError, TimelineError) as exc:
            yield Outcome(sentence, "failed", str(exc))
        else:
            yield Outcome(sentence, "passed")


def _expect(held: bool, otherwise: str) -> None:  # noqa: FBT001  reads as a sentence
    if not held:
        raise AssertionError(otherwise)


def _skip(why: str) -> NoReturn:
    # pytest knows it, too.
    from unittest import SkipTest

    raise SkipTest(why)


def _name(provider: Any) -> str:
    return str(getattr(provider, "name", type(provider).__name__))


def _guarded(provider: LLMProvider) -> Guarded:
    return (
        provider if isinstance(provider, Guarded) else Guarded(provider, plugin=_name(provider), name=_name(provider))
    )


def _bare(provider: LLMProvider) -> Any:
    """The provider itself: the guard would stop it where it doesn't stop."""
    return provider.provider if isinstance(provider, Guarded) else provider


def _boundary(provider: Any) -> Boundary:
    return Boundary(_name(provider), type(provider).__module__)


def _run_to_end(work: Coroutine[Any, Any, None]) -> None:
    """As `asyncio.run`, which would wait for ever for a task that can't be cancelled."""
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(work)
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            left = loop.run_until_complete(asyncio.wait(left, timeout=1.0))[1]
        for task in left:
            # What it thinks of its end can't matter any more.
            with suppress(Exception):
                task.get_coro().close()
            loop.set_exception_handler(lambda *_: None)
        if not left:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


async def _streamed(provider: LLMProvider, request: LLMRequest) -> LLMResponse:
    return await collect(provider.stream_request(request), provider=provider.name, model=request.model)


def _answered(response: LLMResponse) -> None:
    _expect(bool(response.content or response.reasoning or response.tool_calls), "the answer is empty")


async def _fails_properly(provider: LLMProvider, request: LLMRequest) -> bool:
    """Whether both ways of asking fail; with an error that isn't of the tree, this fails itself."""
    failures = 0
    ways: tuple[Callable[[], Awaitable[LLMResponse]], ...] = (
        lambda: _streamed(provider, request),
        lambda: provider.make_request(request),
    )
    for ask in ways:
        try:
            await ask()
        except PluginError:
            raise
        except TimelineError:
            failures += 1
    return failures == 2  # noqa: PLR2004  of two


# ------------------------------------------------------------------ a double


Step = str | float | Item | Exception
Answer = str | Sequence[Step]


class ScriptedProvider(LLMProvider):
    """Says what a test wrote down, without a network; keeps the contract where the script does.

    Args:
        answers: One for each request, the last one again and again. Each is a text, or steps in order: a text
            is a delta, a number a pause in seconds, an item itself, an exception is raised. A function gets the
            request and returns either. Where the steps end without a `Finish`, usage (a token a word) and a
            `Finish` are added.
        name: As configured.
        models: What is listed.
        local: Whether answers are free.

    Attributes:
        requests: What was asked, in order.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(tools=True, schema=True, images=True, reasoning=True)

    def __init__(
        self,
        *answers: Answer | Callable[[LLMRequest], Answer],
        name: str = "scripted",
        models: Sequence[str] = ("model",),
        local: bool = True,
    ) -> None:
        self.name = name
        self._local = local
        self.requests: list[LLMRequest] = []
        self._answers = answers or ("Hello.",)
        self._models = models

    @property
    def local(self) -> bool:
        """What was said."""
        return self._local

    async def stream_request(self, request: LLMRequest) -> AsyncIterator[Item]:
        """The next answer's steps; see `LLMProvider.stream_request`."""
        answer = self._answers[min(len(self.requests), len(self._answers) - 1)]
        self.requests.append(request)
        if not isinstance(answer, str | Sequence):
            answer = answer(request)
        items: list[Item] = []
        for step in (answer,) if isinstance(answer, str) else answer:
            if isinstance(step, Exception):
                raise step
            if isinstance(step, int | float):
                await asyncio.sleep(step)
                continue
            items.append(Delta(step) if isinstance(step, str) else step)
            yield items[-1]
        if any(isinstance(item, Finish) for item in items):
            return
        deltas = [item for item in items if isinstance(item, Delta)]
        if not any(isinstance(item, UsageReport) for item in items):
            words = sum(len(message.text.split()) for message in request.messages)
            said = len("".join(delta.text for delta in deltas).split())
            yield UsageReport(Usage(input=words, output=said), {})
        called = any(delta.kind == "tool_call" for delta in deltas)
        yield Finish("tool_calls" if called else "stop", model=request.model)

    async def make_request(self, request: LLMRequest) -> LLMResponse:
        """The next answer, whole; see `LLMProvider.make_request`."""
        return await _streamed(self, request)

    async def get_available_models(self) -> list[ModelInfo]:
        """Those that were given."""
        return [ModelInfo(model, self.name, local=self.local) for model in self._models]
