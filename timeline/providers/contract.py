"""What a provider promises, and how it is held to that: its class before it is made, its answers while they come.

The promises themselves stand in `timeline.providers.base`; here each has the name by which errors
and docs/plugins.md call it. Built-in providers aren't watched: their tests are.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
from msgspec import Struct

from timeline.errors import ConfigError, MissingKey, ModelUnavailable, PluginError, ProviderError, TimelineError
from timeline.events import ErrorInfo, RateLimit, Usage
from timeline.providers.address import key_mark
from timeline.providers.base import (
    Capabilities,
    Delta,
    Finish,
    Item,
    LLMProvider,
    LLMRequest,
    LLMResponse,
    ModelInfo,
    UsageReport,
)

__all__ = [
    "RULES",
    "STATIC_RULES",
    "Boundary",
    "Guarded",
    "Problem",
    "broken",
    "check_class",
    "check_provider",
    "place",
]

T = TypeVar("T")

RULES = {
    "class": "the entry point names a class, which is made with keyword arguments",
    "methods": "make_request, stream_request and get_available_models are there and take what the base class says",
    "async": "stream_request is an async generator, model_digest, is_local and is_small a plain def, "
    "the other methods are async def",
    "attributes": "name is text without a colon, capabilities a Capabilities, local, reports_usage and cuts_prompts are "
    "true or false, so is what is_local and is_small give, key_mark is text or None, and so is what model_digest gives",
    "items": "a stream yields Delta, UsageReport and Finish, with fields of their types",
    "finish": "a stream ends with exactly one Finish, and nothing comes after it",
    "usage": "tokens are reported before the Finish, none negative, reasoning no more than output",
    "tool_calls": "a tool call's first delta names the tool, and the finish reason is tool_calls",
    "response": "make_request returns an LLMResponse, with fields of their types",
    "models": "get_available_models returns a list of ModelInfo",
    "errors": "only ProviderError and below, ModelUnavailable, MissingKey and ConfigError are raised",
    "cancellation": "a cancelled or closed stream ends at once, and only a cancelled one with CancelledError",
}
"""Every rule by name, in a sentence."""

STATIC_RULES = ("class", "methods", "async", "attributes")
"""Those that show without running anything."""

ALLOWED = (ProviderError, ModelUnavailable, MissingKey, ConfigError, PluginError)
CLOSING_SECONDS = 5.0
"""How long a plugin may take to clean up behind a stream, and at the end."""
MOST_TOKENS = 1 << 53
"""What every reader of JSON takes as a whole number."""


class Problem(Struct, frozen=True):
    """One broken rule.

    Args:
        rule: A key of `RULES`.
        what: What was found, in words that follow a colon.
    """

    rule: str
    what: str


def broken(plugin: str, problem: Problem) -> PluginError:
    """The error about a plugin that broke a rule."""
    return PluginError(
        f'the plugin {plugin} broke the rule "{problem.rule}" ({problem.what}):'
        f" see 'timeline plugins validate {plugin}' and tell its author, or ask another provider"
    )


# ------------------------------------------------------------------ before it is made

_ARGUMENTS = {
    "make_request": 1,
    "stream_request": 1,
    "get_available_models": 0,
    "warm_up": 1,
    "model_digest": 1,
    "is_local": 1,
    "is_small": 1,
    "aclose": 0,
}
_PLAIN = ("model_digest", "is_local", "is_small")
_OPTIONAL = (*_PLAIN, "warm_up", "aclose")


def check_class(found: object) -> list[Problem]:
    """What shows without making one: nothing of the plugin is run.

    Args:
        found: What the entry point names.
    """
    if not isinstance(found, type):
        return [Problem("class", f"it names no class, but something of type {type(found).__name__}")]
    return [
        *_constructor_problems(found),
        *_method_problems(found),
        *_attribute_problems(found, inspect.getattr_static),
    ]


def check_provider(provider: object) -> list[Problem]:
    """What shows once it is made."""
    return list(_attribute_problems(provider, getattr))


def _constructor_problems(found: type) -> Iterator[Problem]:
    with suppress(TypeError, ValueError):  # Compiled code doesn't tell.
        for name, parameter in inspect.signature(found).parameters.items():
            if parameter.kind is parameter.POSITIONAL_ONLY and parameter.default is parameter.empty:
                yield Problem("class", f"its argument {name} can't be given by keyword")


def _method_problems(found: type) -> Iterator[Problem]:
    for name, count in _ARGUMENTS.items():
        method = getattr(found, name, None)
        if method is None or getattr(method, "__isabstractmethod__", False):
            if name not in _OPTIONAL:
                yield Problem("methods", f"{name} is missing")
            continue
        if not callable(method):
            yield Problem("methods", f"{name} is no method")
            continue
        try:
            inspect.signature(method).bind(None, *[None] * count)
        except TypeError:
            taken = ("(self)", "(self, model)" if name in _OPTIONAL else "(self, request)")[count]
            yield Problem("methods", f"{name} can't be called with {taken}")
        except ValueError:
            pass  # Compiled code doesn't tell.
        if wrong := _wrong_kind(name, inspect.unwrap(method)):
            yield Problem("async", wrong)


def _wrong_kind(name: str, function: Any) -> str | None:
    if name == "stream_request":
        # A plain function may return another's iterator; what it returns is looked at then.
        if inspect.iscoroutinefunction(function):
            return f"{name} is async def without yield: it has to be an async generator"
        return f"{name} is a generator: write async def" if inspect.isgeneratorfunction(function) else None
    if name in _PLAIN:
        return f"{name} is not a plain def" if inspect.iscoroutinefunction(function) else None
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        return f"{name} yields: it has to return"
    return None if inspect.iscoroutinefunction(function) else f"{name} is not async def"


def _attribute_problems(found: object, get: Any) -> Iterator[Problem]:
    static = isinstance(found, type)
    flags = ((flag, bool) for flag in ("local", "reports_usage", "cuts_prompts"))
    for name, wanted in (("name", str), ("key_mark", str), ("capabilities", Capabilities), *flags):
        value = get(found, name, None)
        if value is None and (static or name != "name"):
            continue
        if static and hasattr(value, "__get__"):
            continue  # A property: the instance tells.
        if not isinstance(value, wanted):
            yield Problem("attributes", f"{name} is {type(value).__name__}, no {wanted.__name__}")
        elif name == "name" and (not value or ":" in str(value)):
            yield Problem("attributes", "name is empty" if not value else "name holds a colon")


# ------------------------------------------------------------------ what may come out of it


def place(exc: BaseException, module: str) -> str:
    """Where in a plugin an exception came from: ` at file.py:12`, empty where that isn't known."""
    package, found, trace = module.partition(".")[0], "", exc.__traceback__
    while trace is not None:
        if str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0] == package:
            found = f" at {Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found


class Boundary:
    """Lets only those exceptions out of a plugin that the rules allow, without keys; all others become a `PluginError`.

    Of others only type and place are told: their text may hold anything.

    Args:
        plugin: Its name.
        module: Where its code is.
        secrets: What no message may repeat.
    """

    __slots__ = ("_asked", "_module", "_plugin", "_secrets")

    def __init__(self, plugin: str, module: str, secrets: tuple[str, ...] = ()) -> None:
        self._plugin = plugin
        self._module = module
        self._secrets = secrets
        self._asked = 0

    def __enter__(self) -> None:
        self._asked = _cancels()

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: object) -> None:
        if problem := self._problem(exc):
            raise broken(self._plugin, problem) from None

    def refuse(self, problem: Problem | None) -> None:
        """Raise where there is one.

        Raises:
            PluginError: About the problem.
        """
        if problem is not None:
            raise broken(self._plugin, problem)

    def sound(self, found: T | Problem) -> T:
        """What was found, unless that is a problem.

        Raises:
            PluginError: About the problem.
        """
        if isinstance(found, Problem):
            raise broken(self._plugin, found)
        return found

    def stop_if_asked(self) -> None:
        """Stop where the plugin was asked to and went on."""
        if _cancels() > self._asked:
            raise asyncio.CancelledError

    def _problem(self, exc: BaseException | None) -> Problem | None:
        match exc:
            case None | GeneratorExit() | KeyboardInterrupt() | PluginError():
                return None
            case asyncio.CancelledError() if _cancels() > self._asked:
                return None
            case asyncio.CancelledError():
                return Problem("cancellation", "CancelledError came out of it, though nobody cancelled")
            case TimelineError() if isinstance(exc, ALLOWED):
                return self._examine(exc)
        return Problem("errors", f"{type(exc).__name__} came out of it{place(exc, self._module)}")

    def _examine(self, exc: TimelineError) -> Problem | None:
        """Errors go into the log as they are: what it couldn't hold, or mustn't, is found here."""
        name = f"{type(exc).__name__}{place(exc, self._module)}"
        fields: dict[str, Any] = {}
        try:
            if isinstance(exc, ProviderError):
                names = ("status", "code", "retryable", "retry_after", "request_id")
                fields = {name: getattr(exc, name) for name in names}
                exc.rate_limits = _LIMITS.decode(msgspec.json.encode(exc.rate_limits))
            info = _ERROR.decode(msgspec.json.encode(ErrorInfo(exc.kind, str(exc), **fields)))
        except (AttributeError, *_UNSOUND) as wrong:
            return Problem("errors", f"{name} has a field of a wrong type: {wrong}")
        if self._reveals(str(exc)):
            exc.args = tuple(self._without_secrets(part) for part in exc.args)
        if self._reveals(str(exc), info.code, info.request_id):
            return Problem("errors", f"{name} repeats a key")
        return None

    def _reveals(self, *texts: str | None) -> bool:
        return any(secret in text for text in texts if text for secret in self._secrets)

    def _without_secrets(self, part: object) -> object:
        if isinstance(part, str):
            for secret in self._secrets:
                part = part.replace(secret, "[key]")
        return part


def _cancels() -> int:
    """How often the running task has been asked to stop."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        return 0
    return 0 if task is None else task.cancelling()


# ------------------------------------------------------------------ while it answers

_UNSOUND = (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError)
_DECODERS: dict[type, msgspec.json.Decoder[Any]] = {
    type_: msgspec.json.Decoder(type_) for type_ in (Delta, UsageReport, Finish, LLMResponse, ModelInfo)
}
_ERROR = msgspec.json.Decoder(ErrorInfo)
_LIMITS = msgspec.json.Decoder(tuple[RateLimit, ...])


def _checked(rule: str, value: T) -> T | Problem:
    """The value as its type says, as if it had been written and read; structs check nothing when they are made."""
    try:
        checked: T = _DECODERS[type(value)].decode(msgspec.json.encode(value))
    except _UNSOUND as exc:
        return Problem(rule, f"{type(value).__name__}: {exc}")
    return checked


def _usage_problem(told: UsageReport | LLMResponse) -> Problem | None:
    for usage in (told.usage, *(part.usage for part in told.besides)):
        for name in Usage.__struct_fields__:
            count = getattr(usage, name)
            if not 0 <= count < MOST_TOKENS:
                return Problem("usage", f"{name} is {count}")
        if usage.reasoning > usage.output:
            return Problem("usage", f"reasoning is {usage.reasoning}, but output {usage.output}")
    return None


def _end_problem(reason: str, *, called: bool, reported: bool) -> Problem | None:
    """What may not be so at the end of an answer."""
    if called and reason in ("stop", "unknown"):
        return Problem("tool_calls", f"tools were called, but the finish reason is {reason}")
    return None if reported else Problem("usage", "none was reported, and reports_usage isn't False")


def _checked_response(response: object, *, reports_usage: bool) -> LLMResponse | Problem:
    if type(response) is not LLMResponse:
        return Problem("response", f"it returned {type(response).__name__}")
    checked = _checked("response", response)
    if isinstance(checked, Problem):
        return checked
    called, reported = bool(checked.tool_calls), checked.usage_reported or not reports_usage
    problem = _usage_problem(checked) or _end_problem(checked.finish_reason, called=called, reported=reported)
    return problem or checked


def _checked_models(models: object) -> list[ModelInfo] | Problem:
    if not isinstance(models, list):
        return Problem("models", f"it returned {type(models).__name__}")
    found: list[ModelInfo] = []
    for model in models:
        if type(model) is not ModelInfo:
            return Problem("models", f"its list holds {type(model).__name__}")
        checked = _checked("models", model)
        if isinstance(checked, Problem):
            return checked
        found.append(checked)
    return found


class _Answer:
    """What has come of one stream, and whether the next item may follow."""

    __slots__ = ("_calls", "_reported", "finished")

    def __init__(self, *, reports_usage: bool) -> None:
        self._reported = not reports_usage
        self._calls: set[int] = set()
        self.finished = False

    def take(self, found: object) -> Item | Problem:
        """The next item, or why it may not come."""
        name = type(found).__name__
        if self.finished:
            return Problem("finish", f"{name} came after its Finish")
        if type(found) not in (Delta, UsageReport, Finish):
            return Problem("items", f"it yielded {name}")
        item: Item | Problem = _checked("items", cast("Item", found))
        problem = None
        match item:
            case Delta(kind="tool_call"):
                problem = self._call_problem(item)
            case UsageReport():
                self._reported = True
                problem = _usage_problem(item)
            case Finish():
                self.finished = True
                problem = _end_problem(item.reason, called=bool(self._calls), reported=self._reported)
        return problem or item

    def end_problem(self) -> Problem | None:
        """Why it may not be over."""
        return None if self.finished else Problem("finish", "its stream ended without a Finish")

    def _call_problem(self, delta: Delta) -> Problem | None:
        if delta.index < 0:
            return Problem("tool_calls", f"index is {delta.index}")
        if delta.index not in self._calls and not delta.name:
            return Problem("tool_calls", "the first delta of a call has no name")
        self._calls.add(delta.index)
        return None


class Guarded(LLMProvider):
    """A plugin's provider that can't break the contract: what would, becomes a `PluginError` that names the rule.

    Args:
        provider: What the plugin made; it may lack what `LLMProvider` has a default for.
        plugin: The plugin's name.
        name: As configured.
        secrets: What no message may repeat.
        api_key: Its key, where one is configured.
        elsewhere: It is known not to run on this machine, whatever it says.

    Raises:
        PluginError: It breaks a rule already.

    Attributes:
        provider: The plugin's own.
    """

    def __init__(
        self,
        provider: Any,
        *,
        plugin: str,
        name: str,
        secrets: tuple[str, ...] = (),
        api_key: str | None = None,
        elsewhere: bool = False,
    ) -> None:
        self.name = name
        self.provider = provider
        self._plugin = plugin
        self._secrets = secrets
        self._elsewhere = elsewhere
        boundary = self._boundary()
        with boundary:
            boundary.refuse(next(iter(check_provider(provider)), None))
            self.capabilities = getattr(provider, "capabilities", None) or Capabilities()  # type: ignore[misc]
            self.reports_usage = getattr(provider, "reports_usage", None) is not False  # type: ignore[misc]
            self.cuts_prompts = getattr(provider, "cuts_prompts", None) is True  # type: ignore[misc]
            # It goes into the log: whatever it is, no more of it than any key's mark.
            self.key_mark = key_mark(getattr(provider, "key_mark", None) or api_key)

    def __repr__(self) -> str:
        return f"Guarded({type(self.provider).__name__}, name={self.name!r})"

    @property
    def local(self) -> bool:
        """What the plugin says now, unless it is known better."""
        with self._boundary():
            return not self._elsewhere and getattr(self.provider, "local", None) is True

    def is_local(self, model: str) -> bool:
        """What the plugin says of this model, unless it is known better; see `LLMProvider.is_local`.

        Raises:
            PluginError: A rule was broken.
        """
        return not self._elsewhere and self._says("is_local", model, default=self.local)

    def is_small(self, model: str) -> bool:
        """What the plugin says; see `LLMProvider.is_small`.

        Raises:
            PluginError: A rule was broken.
        """
        return self._says("is_small", model, default=False)

    def _says(self, method: str, model: str, *, default: bool) -> bool:
        """What a method that a plugin need not have says of a model."""
        boundary = self._boundary()
        with boundary:
            if not hasattr(self.provider, method):
                return default
            found = getattr(self.provider, method)(model)
            if not isinstance(found, bool):
                boundary.refuse(Problem("attributes", f"{method} gave {type(found).__name__}, not true or false"))
            return cast("bool", found)

    def model_digest(self, model: str) -> str | None:
        """What the plugin says; see `LLMProvider.model_digest`.

        Raises:
            PluginError: A rule was broken.
        """
        boundary = self._boundary()
        with boundary:
            if not hasattr(self.provider, "model_digest"):
                return None
            found = self.provider.model_digest(model)
            if isinstance(_checked("attributes", ModelInfo(model, self.name, digest=found)), Problem):
                boundary.refuse(Problem("attributes", f"model_digest gave {type(found).__name__} that is no text"))
            return cast("str | None", found)

    async def stream_request(self, request: LLMRequest) -> AsyncGenerator[Item, None]:
        """Ask, and pass on what may be; see `LLMProvider.stream_request`.

        Raises:
            PluginError: A rule was broken; what came before stands.
            ProviderError: The attempt failed.
        """
        boundary, task = self._boundary(), asyncio.current_task()
        asked = _cancels()
        with boundary:
            answer = _Answer(reports_usage=self.reports_usage)
            items = self._iterator(self.provider.stream_request(request), boundary)
            try:
                async for item in items:
                    # Most items are plain text: those are looked at here, for a tenth of a microsecond.
                    if (
                        item.__class__ is not Delta
                        or answer.finished
                        or item.text.__class__ is not str
                        or not item.text.isascii()
                        or item.kind not in ("text", "reasoning")
                    ):
                        item = boundary.sound(answer.take(item))  # noqa: PLW2901  the same, of the right types
                    if task is not None and task.cancelling() > asked:
                        boundary.stop_if_asked()
                    yield item
            finally:
                await _close(items)
            boundary.stop_if_asked()
            boundary.refuse(answer.end_problem())

    async def make_request(self, request: LLMRequest) -> LLMResponse:
        """Ask without streaming; see `LLMProvider.make_request`.

        Raises:
            PluginError: A rule was broken.
            ProviderError: The attempt failed.
        """
        boundary = self._boundary()
        with boundary:
            response = await self.provider.make_request(request)
            boundary.stop_if_asked()
            checked = boundary.sound(_checked_response(response, reports_usage=self.reports_usage))
            return msgspec.structs.replace(checked, provider=self.name)

    async def get_available_models(self) -> list[ModelInfo]:
        """The plugin's list, under the configured name; see `LLMProvider.get_available_models`.

        Raises:
            PluginError: A rule was broken.
            ProviderError: The list could not be had.
        """
        boundary = self._boundary()
        with boundary:
            models = boundary.sound(_checked_models(await self.provider.get_available_models()))
        # Whether one is free is told in one place.
        return [msgspec.structs.replace(model, provider=self.name, local=self.is_local(model.id)) for model in models]

    async def warm_up(self, model: str | None = None) -> None:
        """See `LLMProvider.warm_up`."""
        with self._boundary():
            if hasattr(self.provider, "warm_up"):
                await self.provider.warm_up(model)

    async def aclose(self) -> None:
        """Let the plugin clean up; what goes wrong then is part of no answer any more."""
        await _close(self.provider)

    def _boundary(self) -> Boundary:
        return Boundary(self._plugin, type(self.provider).__module__, self._secrets)

    @staticmethod
    def _iterator(stream: Any, boundary: Boundary) -> AsyncIterator[Any]:
        if inspect.iscoroutine(stream):
            stream.close()
        if not hasattr(stream, "__aiter__"):
            what = f"stream_request gave {type(stream).__name__}, no async iterator"
            boundary.refuse(Problem("async", what))
        return aiter(stream)


async def _close(closing: Any) -> None:
    if hasattr(closing, "aclose"):
        # Why it ends is known by now; what its cleaning up meets would only hide that.
        with suppress(Exception):
            async with asyncio.timeout(CLOSING_SECONDS):
                await closing.aclose()
