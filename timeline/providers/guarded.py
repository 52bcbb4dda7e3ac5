"""A plugin's provider as it is asked: watched while it answers, and refused with the rule that it breaks.

The rules stand in `timeline.providers.contract`. Built-in providers aren't watched: their tests are.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from typing import Any, TypeVar, cast

import msgspec

from timeline.config import MOST_TOKENS
from timeline.events import Usage
from timeline.providers.address import blotted, key_mark
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
from timeline.providers.contract import UNSOUND, Boundary, Problem, cancels, check_provider
from timeline.providers.sources import without_keys

__all__ = ["Guarded"]

T = TypeVar("T")

CLOSING_SECONDS = 5.0
"""How long a plugin may take to clean up behind a stream, and at the end."""

_DECODERS: dict[type, msgspec.json.Decoder[Any]] = {
    type_: msgspec.json.Decoder(type_) for type_ in (Delta, UsageReport, Finish, LLMResponse, ModelInfo)
}


def _checked(rule: str, value: T) -> T | Problem:
    """The value as its type says, as if it had been written and read; structs check nothing when they are made."""
    try:
        checked: T = _DECODERS[type(value)].decode(msgspec.json.encode(value))
    except UNSOUND as exc:
        return Problem(rule, f"{type(value).__name__}: {exc}")
    return checked


_WORDS = ("raw_reason", "raw_finish_reason", "request_id", "explanation", "tier", "raw", "raw_usage")
"""What an answer says beside its text in words of anybody's; who answered is a name, by which prices are found."""


def _without_keys(told: T, secrets: tuple[str, ...]) -> T:
    """What goes into the log beside an answer's text, where no key may stand."""
    changes: dict[str, Any] = {name: blotted(getattr(told, name), secrets) for name in _WORDS if hasattr(told, name)}
    if isinstance(told, Finish | LLMResponse):
        changes["sources"] = without_keys(told.sources, secrets)
    return msgspec.structs.replace(told, **changes)  # type: ignore[type-var]


def _usage_problem(told: UsageReport | LLMResponse) -> Problem | None:
    for usage in (told.usage, *(part.usage for part in told.besides)):
        for name in Usage.__struct_fields__:
            count = getattr(usage, name)
            if not 0 <= count <= MOST_TOKENS:
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
        asked = cancels()
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
                        if item.__class__ is not Delta:
                            item = _without_keys(item, self._secrets)  # noqa: PLW2901
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
            return msgspec.structs.replace(_without_keys(checked, self._secrets), provider=self.name)

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
