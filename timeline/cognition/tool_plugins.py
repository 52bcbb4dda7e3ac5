"""Tools that installed distributions bring by the entry points `timeline.tools`, and what such a tool has to keep to.

Installing a plugin is trusting it: its code runs in this process. What it can't do by mistake is to stand in for a
built-in tool, to keep others from being used, or to answer out of contract; `Tools.run` watches it while it works.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from typing import Any, cast

import msgspec
from msgspec import Struct

from timeline.cognition.tools import Tool
from timeline.config import TOOLS as BUILT_IN
from timeline.entry_points import TOOLS, EntryPoint, installed
from timeline.errors import PluginError
from timeline.providers.contract import Problem
from timeline.providers.plugins import Importing

__all__ = ["LONGEST_TIMEOUT", "RULES", "STATIC_RULES", "Plugin", "check_tool", "plugins"]

RULES = {
    "class": "the entry point names a class, which is made without arguments",
    "name": "name is that of the entry point, of 1 to 64 letters, digits, - and _, and no built-in tool's",
    "description": "description is text for the model",
    "parameters": "parameters is the JSON Schema of an object",
    "attributes": "changes and deterministic are true or false, timeout_seconds is above 0 and at most 600",
    "methods": "run is async def and takes (arguments, workspace), signal takes (text, workspace)",
    "result": "run returns a ToolResult, with a text",
    "errors": "run raises nothing but ToolError, and CancelledError only if it was cancelled",
}
"""Every rule by name, in a sentence."""

STATIC_RULES = ("class", "name", "description", "parameters", "attributes", "methods")
"""Those that show without running the tool."""

LONGEST_TIMEOUT = 600
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


class Plugin(Struct, frozen=True):
    """An installed tool plugin.

    Args:
        entry: Where it is and who brings it.
        tool: Made and checked; None where it can't be used.
        reason: Why not.
        problems: The rules it breaks.
    """

    entry: EntryPoint
    tool: Tool | None = None
    reason: str | None = None
    problems: tuple[Problem, ...] = ()


def plugins() -> list[Plugin]:
    """The installed tool plugins, each imported and made; one that can't be stops no other."""
    entries = installed(TOOLS)
    return [_examined(entry, entries) for entry in entries]


def _examined(entry: EntryPoint, entries: Sequence[EntryPoint]) -> Plugin:
    try:
        made = _made(entry, entries)
    except PluginError as exc:
        return Plugin(entry, reason=str(exc))
    problems = tuple(made if isinstance(made, list) else check_tool(made, entry.name))
    if problems:
        return Plugin(entry, reason=_broken(entry.name, problems[0]), problems=problems)
    return Plugin(entry, tool=cast("Tool", made))


def _broken(name: str, problem: Problem) -> str:
    return f'the tool {name} broke the rule "{problem.rule}" ({problem.what}): tell its author, see docs/tools.md'


def _made(entry: EntryPoint, entries: Sequence[EntryPoint]) -> object:
    """The tool, or a list of problems with its class.

    Raises:
        PluginError: It can't be imported or made, or its name stands for something else, too.
    """
    rivals = [other.distribution for other in entries if other.name == entry.name]
    if entry.name in BUILT_IN:
        msg = f"the tool {entry.name} of {entry.distribution} can't be used, as that name is built in: its author has to rename it"
        raise PluginError(msg)
    if len(rivals) > 1:
        msg = f"the tool {entry.name} is brought by {' and '.join(rivals)}: uninstall all but one"
        raise PluginError(msg)
    from importlib.metadata import EntryPoint as Loader

    with Importing(entry):
        found = Loader(entry.name, entry.value, TOOLS).load()
        if not isinstance(found, type):
            return [Problem("class", f"it names no class, but something of type {type(found).__name__}")]
        abstract = sorted(getattr(found, "__abstractmethods__", ()))
        if abstract:
            return [Problem("methods", f"{abstract[0]} is missing")]
        if any(_is_required(parameter) for parameter in inspect.signature(found).parameters.values()):
            return [Problem("class", "it can't be made without arguments")]
        return found()


def _is_required(parameter: inspect.Parameter) -> bool:
    return parameter.default is parameter.empty and parameter.kind not in (
        parameter.VAR_POSITIONAL,
        parameter.VAR_KEYWORD,
    )


def check_tool(tool: object, name: str) -> list[Problem]:
    """What is wrong with a tool, as far as that shows without running it.

    Args:
        tool: Made.
        name: Of its entry point.
    """
    return [*_name_problems(tool, name), *_attribute_problems(tool), *_method_problems(tool)]


def _name_problems(tool: object, name: str) -> Iterator[Problem]:
    own = getattr(tool, "name", None)
    if not isinstance(own, str) or not _NAME.fullmatch(own):
        yield Problem("name", f"name is {own!r:.80}")
    elif own != name:
        yield Problem("name", f"name is {own}, but the entry point's is {name}")
    description = getattr(tool, "description", None)
    if not isinstance(description, str) or not description.strip():
        yield Problem("description", "description is missing or no text")


def _attribute_problems(tool: object) -> Iterator[Problem]:
    parameters = getattr(tool, "parameters", None)
    if not isinstance(parameters, dict) or parameters.get("type", "object") != "object":
        yield Problem("parameters", "parameters is no JSON Schema of an object")
    else:
        try:
            msgspec.json.encode(parameters)
        except (TypeError, ValueError, RecursionError) as exc:
            yield Problem("parameters", f"parameters is no JSON ({type(exc).__name__})")
    for attribute in ("changes", "deterministic"):
        if not isinstance(getattr(tool, attribute, False), bool):
            yield Problem("attributes", f"{attribute} is neither true nor false")
    seconds = getattr(tool, "timeout_seconds", None)
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 < seconds <= LONGEST_TIMEOUT:
        yield Problem("attributes", f"timeout_seconds is {seconds!r:.80}")


def _method_problems(tool: object) -> Iterator[Problem]:
    for method, taken in (("run", "(arguments, workspace)"), ("signal", "(text, workspace)")):
        function: Any = getattr(tool, method, None)
        if not callable(function):
            yield Problem("methods", f"{method} is missing or no method")
            continue
        try:
            inspect.signature(function).bind(None, None)
        except TypeError:
            yield Problem("methods", f"{method} can't be called with {taken}")
        except ValueError:
            pass  # Compiled code doesn't tell.
        if inspect.iscoroutinefunction(inspect.unwrap(function)) != (method == "run"):
            yield Problem("methods", f"{method} is {'not ' if method == 'run' else ''}async def")
