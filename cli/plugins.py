"""`timeline plugins`: what is installed and whether it can be used, and the contract checked, live where asked for."""

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from timeline.errors import PluginError, UsageError

from . import output
from .options import AsJson

if TYPE_CHECKING:
    from timeline.config import Config
    from timeline.providers.base import LLMProvider
    from timeline.providers.plugins import Listed
    from timeline.testing import Outcome

__all__ = ["app"]

app = typer.Typer(help="List the installed plugins, and check one.", no_args_is_help=True)


@app.command("list")
def list_(*, as_json: AsJson = False) -> None:
    """List the installed plugins. Providers and tools, and why one can't be used."""
    from timeline.providers.plugins import listing

    found = _with_tools(listing())
    if as_json:
        output.emit_json({"plugins": [_object(plugin) for plugin in found]})
        return
    rows = [(plugin.name, plugin.group, plugin.value, f"{plugin.distribution} {plugin.version}") for plugin in found]
    for row, plugin in zip(_aligned(rows), found, strict=True):
        sys.stdout.write(f"{row}  can't be used: {plugin.reason}\n" if plugin.reason else f"{row}\n")
    if not found:
        output.notice("No plugins are installed; docs/plugins.md shows how one is made.")


@app.command()
def validate(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A plugin, or a built-in kind of provider.")],
    *,
    live: Annotated[
        bool, typer.Option("--live", help="Ask a model, too: about ten requests, which may cost money.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="MODEL", help="Which --live asks: a name, or provider:model."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check that a plugin keeps the contract. Its class, and with --live a provider's answers; nothing is recorded."""
    from timeline.providers import plugins

    if model is not None and not live:
        msg = "-m names the model that --live asks: add --live"
        raise UsageError(msg)
    tool = _tool(name, live=live)
    plugin = tool or plugins.validate(name)
    if not as_json:
        _show_rules(plugin)
    outcomes: list[Outcome] = []
    for outcome in _live(name, model) if live and plugin.reason is None else ():
        outcomes.append(outcome)
        if not as_json:
            why = f": {outcome.message}" if outcome.message else ""
            sys.stdout.write(f"{outcome.state:<7}  {outcome.check.rstrip('.')}{why}\n")
            sys.stdout.flush()
    failed = sum(outcome.state == "failed" for outcome in outcomes)
    if as_json:
        valid = plugin.reason is None and not failed
        output.emit_json({**_object(plugin), "live": msgspec.to_builtins(outcomes), "valid": valid})
        if not valid:
            raise typer.Exit(PluginError.exit_code)
    elif plugin.problems:
        msg = f"{name} breaks {len({problem.rule for problem in plugin.problems})} of the rules above: tell its author"
        raise PluginError(msg)
    elif plugin.reason is not None:
        raise PluginError(plugin.reason)
    elif failed:
        msg = (
            f"{name} failed {failed} of {len(outcomes)} checks: tell its author, or see docs/plugins.md if that is you"
        )
        raise PluginError(msg)
    elif not live:
        try_it = f"try it with 'timeline tools run {name}'" if tool else "add --live -m MODEL to ask it"
        output.notice(f"What {name} answers was not checked: {try_it}.")


def _with_tools(found: "list[Listed]") -> "list[Listed]":
    """The plugins, those of tools looked into, too."""
    if not any(plugin.group == "tool" for plugin in found):
        return found
    from timeline.cognition.tool_plugins import plugins

    looked = {(plugin.entry.name, plugin.entry.distribution): plugin for plugin in plugins()}
    return [
        plugin
        if plugin.group == "provider" or (tool := looked.get((plugin.name, plugin.distribution))) is None
        else msgspec.structs.replace(plugin, reason=tool.reason, problems=tool.problems)
        for plugin in found
    ]


def _tool(name: str, *, live: bool) -> "Listed | None":
    """The tool plugin of that name, looked into; None where there is none, or a provider of that name, too.

    Raises:
        UsageError: It can't be asked live.
    """
    from timeline.config import KINDS
    from timeline.entry_points import TOOLS, installed
    from timeline.providers.plugins import listing

    if name in KINDS or name not in {entry.name for entry in installed(TOOLS)}:
        return None
    found = [plugin for plugin in _with_tools(listing()) if plugin.name == name]
    if any(plugin.group == "provider" for plugin in found):
        return None
    if live:
        msg = f"{name} is a tool, which is asked by no name of a model: try it with 'timeline tools run {name}'"
        raise UsageError(msg)
    return found[0]


def _show_rules(plugin: "Listed") -> None:
    """What its class was checked for, where there is one."""
    if plugin.reason is not None and not plugin.problems:
        return
    from timeline.cognition import tool_plugins
    from timeline.providers import contract

    rules: dict[str, str] = tool_plugins.RULES if plugin.group == "tool" else contract.RULES
    static: tuple[str, ...] = tool_plugins.STATIC_RULES if plugin.group == "tool" else contract.STATIC_RULES
    broken = {problem.rule for problem in plugin.problems}
    rows = [("broken", problem.rule, problem.what) for problem in plugin.problems]
    rows += [("kept", rule, rules[rule]) for rule in static if rule not in broken]
    sys.stdout.writelines(f"{row}\n" for row in _aligned(rows))


def _live(kind: str, model: str | None) -> "Iterator[Outcome]":
    """Run the suite against a configured provider of that kind."""
    from timeline.config import load
    from timeline.providers.plugins import make
    from timeline.testing import ProviderContract, outcomes

    config = load()
    name, asked = _target(config, kind, model)
    # Once: looking for the key may run a command, and ask for a passphrase.
    resolved = config.provider(name)
    if resolved.kind != kind:
        msg = f"{name} is of kind {resolved.kind}, not {kind}: name a model of a provider of kind {kind}"
        raise UsageError(msg)

    class Live(ProviderContract):
        model = asked
        patience = 30.0

        def provider(self) -> "LLMProvider":
            return make(resolved, config.paths.models_dir)

    yield from outcomes(Live())


def _target(config: "Config", kind: str, model: str | None) -> tuple[str, str]:
    """Which provider to ask for which model."""
    written = config.settings.llm_providers
    if model is None:
        configured = written[kind].models if kind in written else ()
        if not configured:
            msg = f"--live needs a model to ask: name one with -m, for example -m {kind}:MODEL"
            raise UsageError(msg)
        return kind, next(iter(configured))
    name, colon, rest = model.partition(":")
    return (name, rest) if colon and (name in written or name == kind) else (kind, model)


def _object(plugin: "Listed") -> dict[str, Any]:
    return {**msgspec.to_builtins(plugin), "usable": plugin.reason is None}


def _aligned(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
