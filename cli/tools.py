"""`timeline tools`: which tools models are offered and why others are off, and one of them tried by hand."""

import json
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from timeline.errors import NotFound, PluginError, ToolError, UsageError

from . import output
from .app import wait_for
from .opening import looking
from .options import AsJson

if TYPE_CHECKING:
    from timeline.cognition.toolbox import Listed
    from timeline.cognition.tools import Found, Tool, ToolOutcome
    from timeline.looking import Looking

__all__ = ["app"]

app = typer.Typer(help="List the tools that models may use, and try one.", no_args_is_help=True)

DESCRIPTION_CHARACTERS = 76
"""Shown of a description at most; less where a terminal is narrower."""


@app.command("list")
def list_(*, as_json: AsJson = False) -> None:
    """List the tools: what each does, and why one is off. Starts the configured MCP servers to ask what they offer."""
    listed = wait_for(_listed())
    if as_json:
        output.emit_json({"tools": msgspec.to_builtins(listed)})
        return
    width = max(len(row.name) for row in listed)
    for row in listed:
        head = f"{row.name.ljust(width)}  {'on ' if row.on else 'off'}  "
        sys.stdout.write(f"{head}{_told(row, len(head))}\n")


def _told(row: "Listed", begins: int) -> str:
    text, console = row.description or row.origin, output.stdout()
    room = min(DESCRIPTION_CHARACTERS, console.width - begins) if console.is_terminal else DESCRIPTION_CHARACTERS
    if len(text) > room:
        text = f"{text[: room - 1].rstrip()}…"
    if row.changes:
        text += " (asks first: it changes something)"
    if row.origin != "built in" and row.description:
        text += f" [{row.origin}]"
    return output.harmless(f"{text}  off: {row.reason}" if row.reason else text, console)


async def _listed() -> "tuple[Listed, ...]":
    from timeline.cognition.toolbox import open_tools
    from timeline.config import load

    async with open_tools(load()) as box:
        return box.listed


@app.command()
def run(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A tool; 'timeline tools list' names them.")],
    arguments: Annotated[
        str,
        typer.Argument(metavar="ARGUMENTS", help="A JSON object, or the text of its first argument."),
    ] = "",
    *,
    allow_dir: Annotated[
        list[Path] | None,
        typer.Option(
            "--allow-dir", metavar="DIR", exists=True, file_okay=False, help="A further folder that may be read."
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Let it change something without asking.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a tool as a model would, and print what the model would be told. Nothing is recorded, and no model asked."""
    outcome = wait_for(_run(name, arguments, allow_dir or [], yes=yes))
    error = outcome.error
    if error is not None:
        raise (PluginError if error.kind == PluginError.kind else ToolError)(error.message)
    result = outcome.result
    if as_json and result is not None:
        output.emit_json(
            {
                "name": outcome.call.name,
                "arguments": outcome.arguments,
                "result": result.text,
                "fact": result.fact,
                "truncated": result.truncated,
                "duration_seconds": outcome.duration_us / 1_000_000,
            }
        )
        return
    sys.stdout.write(f"{output.harmless(outcome.text, output.stdout())}\n")


async def _run(name: str, arguments: str, allow_dirs: list[Path], *, yes: bool) -> "ToolOutcome":
    from timeline.cognition.toolbox import open_tools
    from timeline.cognition.tools import Workspace
    from timeline.config import allowed_dirs, load
    from timeline.providers.base import ToolCall

    async def confirm(tool: "Tool", given: Mapping[str, Any]) -> bool:
        if yes:
            return True
        if not sys.stdin.isatty():
            msg = f"{tool.name} changes something, and nobody can be asked: allow it with --yes"
            raise ToolError(msg)
        return typer.confirm(
            f"{tool.name} {json.dumps(given, ensure_ascii=False)} changes something. Run it?", err=True
        )

    config = load()
    async with AsyncExitStack() as stack:
        box = await stack.enter_async_context(open_tools(config, confirm=confirm))
        tool = box.tools.get(name)
        if tool is None:
            raise _missing(name, box.listed)
        workspace = Workspace(Path.cwd(), (*allowed_dirs(config), *allow_dirs))
        if name == "search_timeline" and config.paths.store.exists():
            timeline = await stack.enter_async_context(looking())
            workspace = msgspec.structs.replace(workspace, search=_search(timeline))
        return await box.tools.run(ToolCall("cli", name, _arguments(tool, arguments)), workspace)


def _search(timeline: "Looking") -> "Callable[[str, int], Awaitable[Sequence[Found]]]":
    async def search(words: str, limit: int) -> "Sequence[Found]":
        return await timeline.search(words, limit=limit)

    return search


def _missing(name: str, listed: "tuple[Listed, ...]") -> NotFound | UsageError:
    for row in listed:
        if row.name == name:
            return UsageError(f"the tool {name} is off: {row.reason}")
    there = ", ".join(row.name for row in listed if row.on)
    return NotFound(f"there is no tool {name!r}: use one of {there}")


def _arguments(tool: "Tool", text: str) -> dict[str, Any]:
    """The arguments that a text stands for: a JSON object, or the value of the first one."""
    if not text.strip():
        return {}
    if text.lstrip().startswith("{"):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as exc:
            msg = f"the arguments are no JSON object ({exc}): write one, or the text of the first argument"
            raise UsageError(msg) from None
        if isinstance(value, dict):
            return value
    first = next(iter(tool.parameters.get("properties", {})), None)
    if first is None:
        msg = f"{tool.name} takes no arguments: leave them out"
        raise UsageError(msg)
    return {first: text}
