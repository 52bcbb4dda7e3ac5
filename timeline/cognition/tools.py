"""What a tool is, and how one is run for a model: arguments checked, time and size bounded, whatever comes out of it contained.

Which tools there are and why one is off is known by `timeline.cognition.toolbox`; what a text hints at by
`timeline.cognition.signals`. A tool's text is data: nothing in it is ever followed here.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from msgspec import Struct

from timeline.cognition.arguments import checked
from timeline.cognition.signals import BUILTIN, Signal
from timeline.errors import PluginError, TimelineError, ToolError
from timeline.events import ErrorInfo
from timeline.providers.base import Tool as ToolSchema
from timeline.providers.base import ToolCall
from timeline.providers.contract import place

__all__ = [
    "RESULT_CHARACTERS",
    "Confirm",
    "Found",
    "Signal",
    "Tool",
    "ToolOutcome",
    "ToolResult",
    "Tools",
    "Workspace",
]

RESULT_CHARACTERS = 16_000
"""Most characters of a result that a model is told, unless configured: about 4,000 tokens."""
CLOSING_SECONDS = 2.0
SLOW_SIGNAL_SECONDS = 0.05
"""A signal that takes longer than this costs its tool the right to signal for the rest of the process."""


# ------------------------------------------------------------------ what goes in and comes out


class Found(Protocol):
    """A turn of the past in which words were found."""

    @property
    def at(self) -> int:
        """When it was asked, µs UTC."""

    @property
    def title(self) -> str | None:
        """What its session is called."""

    @property
    def prompt(self) -> str:
        """What the user asked."""

    @property
    def answer(self) -> str:
        """What was answered."""


class Workspace(Struct, frozen=True):
    """What tools may see of the world.

    Args:
        folder: The working directory.
        allowed: Further folders that may be read.
        now: The time, µs UTC.
        search: Full text over past turns: words and how many, best first; None where nothing is recorded.
        session_id: The session that asks.
    """

    folder: Path
    allowed: tuple[Path, ...] = ()
    now: Callable[[], int] = lambda: time.time_ns() // 1000
    search: Callable[[str, int], Awaitable[Sequence[Found]]] | None = None
    session_id: str | None = None


class ToolResult(Struct, frozen=True):
    """What a tool gives back.

    Args:
        text: What the model is told.
        fact: Of a deterministic tool: the short fact that has to stand in the answer, `84`; `timeline.cognition.facts`
            knows the forms in which it may.
        truncated: More was there than `text` holds.
    """

    text: str
    fact: str | None = None
    truncated: bool = False


class ToolOutcome(Struct, frozen=True):
    """How a call of a tool ended.

    Args:
        call: As the model wished it.
        arguments: As the tool got them; the model's own where they were refused.
        duration_us: From the check of the arguments to the end.
        result: What came back, unless it failed.
        error: Why it failed.
    """

    call: ToolCall
    arguments: dict[str, Any]
    duration_us: int
    result: ToolResult | None = None
    error: ErrorInfo | None = None

    @property
    def text(self) -> str:
        """What the model is told, be it the result or why there is none."""
        return self.result.text if self.result is not None else f"Error: {self.error.message if self.error else ''}"


class Tool(ABC):
    """Something a model may have done.

    Attributes:
        name: `[a-zA-Z0-9_-]{1,64}`; of a plugin: as its entry point.
        description: For the model, a sentence or two.
        parameters: JSON Schema of the arguments, an object.
        changes: It changes something outside of timeline, and so is run only once somebody agreed.
        deterministic: Its results' facts are exact, and no answer may garble them.
        timeout_seconds: How long it may take.
    """

    name: str
    description: str
    parameters: dict[str, Any]
    changes: bool = False
    deterministic: bool = False
    timeout_seconds: float = 10

    def signal(self, text: str, workspace: Workspace) -> Signal | None:
        """Whether a text hints at this tool; quick, and reads nothing but names.

        Args:
            text: The user's words.
            workspace: What may be seen.
        """
        read = BUILTIN.get(self.name) if _is_ours(self) else None
        return read(text, workspace.folder) if read else None

    @abstractmethod
    async def run(self, arguments: dict[str, Any], workspace: Workspace) -> ToolResult:
        """Do it. Called with arguments that fit `parameters`; never blocks the event loop.

        Raises:
            ToolError: It can't be done; the sentence goes to the model.
        """


Confirm = Callable[[Tool, Mapping[str, Any]], Awaitable[bool]]
"""Asks whether a tool that changes something may be run with these arguments."""


# ------------------------------------------------------------------ the registry


class Tools:
    """The tools that are on.

    Args:
        tools: Each with a name of its own.
        confirm: Asked before a tool that changes something; None refuses them all.
        result_characters: Most characters of a result.
        closing_seconds: How long a tool may take to end once it is told to stop; then it is left behind.
    """

    def __init__(
        self,
        tools: Iterable[Tool] = (),
        *,
        confirm: Confirm | None = None,
        result_characters: int = RESULT_CHARACTERS,
        closing_seconds: float = CLOSING_SECONDS,
    ) -> None:
        self._tools = {tool.name: tool for tool in tools}
        self._confirm = confirm
        self._result_characters = result_characters
        self._closing_seconds = closing_seconds
        self._silenced: set[str] = set()
        self._asking = asyncio.Lock()

    @property
    def names(self) -> tuple[str, ...]:
        """Of the tools that are on."""
        return tuple(self._tools)

    def get(self, name: str) -> Tool | None:
        """The tool of that name, if it is on."""
        return self._tools.get(name)

    def schemas(self, names: Iterable[str] | None = None) -> tuple[ToolSchema, ...]:
        """The tools as a provider is told them.

        Args:
            names: Only these; by default all.
        """
        wanted = self._tools if names is None else [name for name in names if name in self._tools]
        return tuple(
            ToolSchema(tool.name, tool.description, tool.parameters) for tool in map(self._tools.__getitem__, wanted)
        )

    def signals(self, text: str, workspace: Workspace) -> tuple[Signal, ...]:
        """What a text hints at, the certain ones first.

        Args:
            text: The user's words.
            workspace: What may be seen.
        """
        found: list[Signal] = []
        for tool in self._tools.values():
            if tool.name in self._silenced:
                continue
            watch = _Signalling()
            with watch:
                signal = tool.signal(text, workspace)
                if isinstance(signal, Signal):
                    found.append(signal)
            if watch.broken and not _is_ours(tool):
                self._silenced.add(tool.name)
        return tuple(sorted(found, key=lambda signal: not signal.certain))

    async def run(self, call: ToolCall, workspace: Workspace, among: Collection[str] | None = None) -> ToolOutcome:
        """Run a tool as a model wishes. Ends in bounded time once nobody has to be asked, and
        raises nothing but a cancellation.

        Args:
            call: The model's wish; neither the name nor the arguments need to make sense.
            workspace: What the tool may see.
            among: Names of the tools that the model was offered; by default all. The others aren't there for it.
        """
        started = time.perf_counter()
        arguments, result, error = call.arguments, None, None
        offered = [name for name in self._tools if among is None or name in among]
        tool = self._tools[call.name] if call.name in offered else None
        try:
            if tool is None:
                raise ToolError(_unknown(call.name, offered))
            arguments = checked(tool.name, tool.parameters, call.arguments)
            if tool.changes:
                await self._agreed(tool, arguments)
            result = self._sized(await _bounded(tool, arguments, workspace, self._closing_seconds))
        except TimelineError as exc:
            error = ErrorInfo(exc.kind, _text(str(exc)))
        return ToolOutcome(call, arguments, int((time.perf_counter() - started) * 1_000_000), result, error)

    async def _agreed(self, tool: Tool, arguments: Mapping[str, Any]) -> None:
        if self._confirm is None:
            msg = f"{tool.name} changes something, and nobody can be asked: allow it with --yes"
            raise ToolError(msg)
        # One question at a time, also where a model calls several tools at once.
        async with self._asking:
            agreed = await self._confirm(tool, arguments)
        if not agreed:
            msg = f"{tool.name} changes something, and the user said no: answer without it"
            raise ToolError(msg)

    def _sized(self, result: ToolResult) -> ToolResult:
        text, most = _text(result.text), self._result_characters
        fact = None if result.fact is None else _text(result.fact)
        if len(text) <= most:
            return ToolResult(text, fact, result.truncated)
        mark = f"\n[cut here: the first {most:,} of {len(text):,} characters]"
        return ToolResult(text[:most] + mark, fact, truncated=True)


def _unknown(name: str, offered: Sequence[str]) -> str:
    there = ", ".join(offered) or "none"
    return f"there is no tool {name[:64]!r}: use one of those there are ({there}), or answer without"


# ------------------------------------------------------------------ containing what isn't ours


async def _bounded(tool: Tool, arguments: dict[str, Any], workspace: Workspace, closing_seconds: float) -> ToolResult:
    """A tool's result within its time, whatever else it does.

    Raises:
        ToolError: It failed, or took too long.
        PluginError: It broke a rule.
    """
    task = asyncio.ensure_future(_called(tool, arguments, workspace))
    try:
        await asyncio.wait((task,), timeout=tool.timeout_seconds)
        if not task.done():
            await _stopped(task, closing_seconds)
            msg = f"{tool.name} took longer than {tool.timeout_seconds:g} seconds and was stopped: ask for less"
            raise ToolError(msg)
    except asyncio.CancelledError:
        await _stopped(task, closing_seconds)
        raise
    if task.cancelled():
        raise _broken(tool, "errors", "CancelledError came out of it, though nobody cancelled")
    match task.exception():
        case None:
            return _sound(tool, task.result())
        case ToolError() | PluginError() as exc:
            raise exc
        case BaseException() as exc:
            raise _broken(tool, "errors", f"{type(exc).__name__} came out of it{place(exc, type(tool).__module__)}")


async def _called(tool: Tool, arguments: dict[str, Any], workspace: Workspace) -> ToolResult:
    try:
        return await tool.run(arguments, workspace)
    except SystemExit as exc:
        # Let through, it would end the event loop.
        raise _broken(tool, "errors", f"SystemExit came out of it{place(exc, type(tool).__module__)}") from None


async def _stopped(task: asyncio.Future[ToolResult], closing_seconds: float) -> None:
    """Cancel, and leave behind what won't be."""
    task.cancel()
    # What it says at its end is nobody's business any more.
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    await asyncio.wait((task,), timeout=closing_seconds)


def _sound(tool: Tool, result: object) -> ToolResult:
    if not isinstance(result, ToolResult):
        raise _broken(tool, "result", f"it returned {type(result).__name__}")
    if not isinstance(result.text, str) or not isinstance(result.fact, str | None):
        raise _broken(tool, "result", "its text or fact is no str")
    return result


def _broken(tool: Tool, rule: str, what: str) -> TimelineError:
    """About a tool that did what no tool may."""
    if _is_ours(tool):
        return ToolError(f"{tool.name} failed ({what}): answer without it")
    return PluginError(f'the tool {tool.name} broke the rule "{rule}" ({what}): tell its author, see docs/tools.md')


def _is_ours(tool: Tool) -> bool:
    return type(tool).__module__.startswith("timeline.cognition.")


class _Signalling:
    """Makes nothing of whatever comes out of a tool's `signal`; a hint that fails is no hint."""

    def __init__(self) -> None:
        self.broken = False
        self._started = time.perf_counter()

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: object) -> bool:
        failed = isinstance(exc, Exception | SystemExit)
        self.broken = failed or time.perf_counter() - self._started > SLOW_SIGNAL_SECONDS
        return failed


def _text(text: str) -> str:
    """The text without halves of characters, which neither the log nor a wire can hold."""
    return text.encode("utf-8", "replace").decode()
