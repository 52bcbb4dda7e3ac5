"""Which tools there are - built in, of plugins, of MCP servers -, which of them are on, and why the others are not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from msgspec import Struct
from msgspec.structs import replace

from timeline.cognition.builtin.calculator import Calculator
from timeline.cognition.builtin.clock import Clock
from timeline.cognition.builtin.files import ListFiles, ReadFile
from timeline.cognition.builtin.past import SearchTimeline
from timeline.cognition.builtin.web import FetchUrl
from timeline.cognition.tool_plugins import plugins
from timeline.cognition.tools import Confirm, Tool, Tools
from timeline.config import Config, mcp_server
from timeline.errors import ConfigError
from timeline.providers.address import is_loopback, split_url

__all__ = ["Listed", "Toolbox", "open_tools"]


class Listed(Struct, frozen=True):
    """A tool, or what should have brought some.

    Args:
        name: The tool's; of a server that can't be reached, the server's followed by `_*`.
        description: What it does.
        origin: `built in`, or the distribution or server that brings it.
        on: Whether models are offered it.
        reason: Why not.
        changes: It changes something, and is run only once somebody agreed.
    """

    name: str
    description: str
    origin: str
    on: bool
    reason: str | None = None
    changes: bool = False


class Toolbox(Struct, frozen=True):
    """What was found when the tools were opened.

    Args:
        tools: Those that are on.
        listed: All, with why some are off.
    """

    tools: Tools
    listed: tuple[Listed, ...]


@asynccontextmanager
async def open_tools(config: Config, *, confirm: Confirm | None = None) -> AsyncIterator[Toolbox]:
    """The tools, with their servers running meanwhile. What can't be used is listed with its reason, and stops nothing.

    Args:
        config: The settings in force.
        confirm: Asked before a tool that changes something; None refuses them all.
    """
    found = [*_built_in(config), *_of_plugins(config)]
    servers = [name for name, server in config.settings.tools.mcp.items() if server.enabled]
    if not servers:
        yield _box(found, config, confirm)
        return
    from timeline.cognition.mcp import serving

    ready, failed = [], []
    for name in servers:
        try:
            server = mcp_server(config, name)
        except ConfigError as exc:
            failed.append(_unreachable(name, str(exc)))
            continue
        if config.settings.offline and server.url and not is_loopback(split_url(server.url)[4]):
            failed.append(_unreachable(name, "offline: true leaves out what isn't on this machine"))
        else:
            ready.append(server)
    async with serving(ready) as connections:
        for connection in connections:
            origin = f"MCP server {connection.name}"
            if connection.problem:
                failed.append(_unreachable(connection.name, connection.problem))
            found += [_judged(tool, origin, config) for tool in connection.tools]
        yield _box([*found, *failed], config, confirm)


_Found = tuple[Tool | None, Listed]


def _box(found: Iterable[_Found], config: Config, confirm: Confirm | None) -> Toolbox:
    tools: dict[str, Tool] = {}
    listed = []
    for tool, row in found:
        if tool is not None and row.on and tools.setdefault(tool.name, tool) is not tool:
            listed.append(replace(row, on=False, reason="another tool has that name: rename the server in tools.mcp"))
        else:
            listed.append(row)
    registry = Tools(tools.values(), confirm=confirm, result_characters=config.settings.tools.max_result)
    return Toolbox(registry, tuple(listed))


def _built_in(config: Config) -> list[_Found]:
    reader = ReadFile(private=(config.paths.keys_file, config.paths.config_file))
    tools = (Calculator(), Clock(), reader, ListFiles(), SearchTimeline(), FetchUrl())
    return [_judged(tool, "built in", config) for tool in tools]


def _of_plugins(config: Config) -> list[_Found]:
    found: list[_Found] = []
    for plugin in plugins():
        origin = f"{plugin.entry.distribution} {plugin.entry.version}"
        if plugin.tool is None:
            found.append((None, Listed(plugin.entry.name, "", origin, on=False, reason=plugin.reason)))
        else:
            found.append(_judged(plugin.tool, origin, config))
    return found


def _judged(tool: Tool, origin: str, config: Config) -> _Found:
    reason = _why_off(tool.name, config)
    return tool, Listed(tool.name, tool.description, origin, reason is None, reason, tool.changes)


def _why_off(name: str, config: Config) -> str | None:
    settings = config.settings.tools
    if name in settings.disabled:
        return f"tools.disabled in {config.source('tools', 'disabled')} names it"
    if settings.enabled is not None and name not in settings.enabled:
        return f"tools.enabled in {config.source('tools', 'enabled')} doesn't name it"
    if name == FetchUrl.name and not settings.fetch_url:
        return f"it fetches from the internet: allow it with tools: {{fetch_url: true}} in {config.paths.config_file}"
    if name == FetchUrl.name and config.settings.offline:
        return "offline: true leaves out what isn't on this machine"
    return None


def _unreachable(name: str, reason: str) -> _Found:
    return None, Listed(f"{name}_*", "", f"MCP server {name}", on=False, reason=reason)
