"""What a provider promises: its class before it is made, and what may come out of it.

The promises themselves stand in `timeline.providers.base`; here each has the name by which errors
and docs/plugins.md call it.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from timeline.errors import ConfigError, MissingKey, ModelUnavailable, PluginError, ProviderError, TimelineError
from timeline.events import ErrorInfo, RateLimit
from timeline.providers.address import blotted
from timeline.providers.base import Capabilities

__all__ = [
    "RULES",
    "STATIC_RULES",
    "UNSOUND",
    "Boundary",
    "Problem",
    "broken",
    "cancels",
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
    "usage": "tokens are reported before the Finish, none negative or more than a billion, "
    "reasoning no more than output",
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
UNSOUND = (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError)
"""What reading and writing a struct fails with whose fields aren't of their types."""
_ERROR = msgspec.json.Decoder(ErrorInfo)
_LIMITS = msgspec.json.Decoder(tuple[RateLimit, ...])


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
        self._asked = cancels()

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
        if cancels() > self._asked:
            raise asyncio.CancelledError

    def _problem(self, exc: BaseException | None) -> Problem | None:
        match exc:
            case None | GeneratorExit() | KeyboardInterrupt() | PluginError():
                return None
            case asyncio.CancelledError() if cancels() > self._asked:
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
        except (AttributeError, *UNSOUND) as wrong:
            return Problem("errors", f"{name} has a field of a wrong type: {wrong}")
        if self._reveals(str(exc)):
            exc.args = tuple(blotted(part, self._secrets) for part in exc.args)
        if self._reveals(str(exc), info.code, info.request_id):
            return Problem("errors", f"{name} repeats a key")
        return None

    def _reveals(self, *texts: str | None) -> bool:
        return any(secret in text for text in texts if text for secret in self._secrets)


def cancels() -> int:
    """How often the running task has been asked to stop."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        return 0
    return 0 if task is None else task.cancelling()
