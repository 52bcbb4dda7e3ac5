"""How files, environment and command line become settings in force: who wins over whom, and what a project may not set."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from timeline.config.file import decode, nearest, read, where
from timeline.config.paths import Paths, beside, find_paths
from timeline.config.resolved import DEFAULT, Config
from timeline.config.settings import (
    AUTO,
    DEFAULTS,
    KINDS,
    SECRET,
    TOOLS,
    KeyPath,
    ProviderConfig,
    Settings,
    fill,
    plugin_kinds,
)
from timeline.errors import ConfigError

__all__ = ["load", "load_sound"]

ENVIRONMENT = "TIMELINE_MODEL"
COMMAND_LINE = "command line"
SECTIONS = ("llm_providers", "routing_strategy", "store", "prices", "retry", "budgets", "cache", "tools")


def load(
    paths: Paths | None = None,
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    without: Collection[Path | None] = (),
) -> Config:
    """Read the files and the environment; uses no network and runs no command.

    Args:
        paths: By default what `find_paths(environ, cwd)` gives.
        environ: Where `${VAR}` and keys are looked up, also later; by default the process's own.
        cwd: By default the working directory.
        overrides: Settings of the command line, in the shape of a file's; they win.
        without: Files to leave unread.

    Raises:
        ConfigError: A file, key path or value is wrong.
    """
    environ = os.environ if environ is None else environ
    paths = paths or find_paths(environ, cwd)
    user, project = ({} if file in without else _layer(file) for file in (paths.config_file, paths.project_file))
    _refuse_in_project(project, paths)
    _add_disabled(user, project)
    model = environ.get(ENVIRONMENT, "").strip()
    layers = {
        DEFAULT: DEFAULTS,
        str(paths.config_file): user,
        str(paths.project_file): project,
        ENVIRONMENT: {"routing_strategy": {"default": model}} if model else {},
        COMMAND_LINE: overrides or {},
    }
    merged: dict[str, Any] = {}
    values: dict[KeyPath, tuple[Any, str]] = {}
    for source, layer in layers.items():
        _merge(merged, layer, source, values)
    settings = decode("the settings together", merged, Settings, secret=SECRET)
    listed = frozenset(user.get("llm_providers", {}))
    config = Config(settings, paths, values=values, listed=listed, environ=environ)
    for name, provider in settings.llm_providers.items():
        _check(config, name, provider)
    for model in settings.prices:
        _check_priced(config, model)
    _check_tools(config)
    _check_budgets(config)
    if settings.store.path:
        config.paths = msgspec.structs.replace(paths, store=_store_path(config, settings.store.path, environ))
    return config


def load_sound() -> tuple[Config, list[ConfigError]]:
    """The settings as if the files that are wrong weren't there, and what is wrong with them; for who looks for just that.

    Raises:
        ConfigError: Something else than a file is wrong.
    """
    paths = find_paths()
    user, project = paths.config_file, paths.project_file
    problems: dict[str, ConfigError] = {}
    for without in ((), (project,), (user,)):
        try:
            return load(paths, without=without), list(problems.values())
        except ConfigError as exc:
            problems.setdefault(str(exc), exc)
    return load(paths, without=(user, project)), list(problems.values())


def _layer(path: Path | None) -> dict[str, Any]:
    """A file's settings, each of the right type; a section with nothing under it counts as not written."""
    if path is None:
        return {}
    values = {key: value for key, value in read(path).items() if value is not None or key not in SECTIONS}
    providers = values.get("llm_providers")
    if isinstance(providers, dict):
        values["llm_providers"] = {name: {} if value is None else value for name, value in providers.items()}
    decode(str(path), values, Settings, secret=SECRET)
    return values


def _leaves(values: Mapping[str, Any], path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and (value or not path):
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value


def _merge(into: dict[str, Any], layer: Mapping[str, Any], source: str, values: dict[KeyPath, tuple[Any, str]]) -> None:
    """Lay one source over the others: mappings are merged, anything else replaces what was there."""
    for path, value in _leaves(layer):
        target = into
        for key in path[:-1]:
            if not isinstance(target.get(key), dict):
                target[key] = {}
            target = target[key]
        if value == {} and isinstance(target.get(path[-1]), dict):
            continue
        target[path[-1]] = value
        for known in [known for known in values if known[: len(path)] == path or path[: len(known)] == known]:
            del values[known]
        values[path] = value, source


def _refuse_in_project(values: Mapping[str, Any], paths: Paths) -> None:
    """A project file comes with a cloned repository, so it may choose and restrict, and nothing else.

    Anything more could run a command, send a key or a prompt to another server, put the record
    elsewhere, or load a file into the engine.
    """
    for path, value in _leaves(values):
        match path:
            case ("routing_strategy", *_):
                continue
            case ("llm_providers", _, "enabled") if value is False:
                continue
            case ("offline",) if value is True:
                continue
            case ("tools", "disabled"):
                continue
            case ("tools", "fetch_url") | ("tools", "mcp", _, "enabled") if value is False:
                continue
        what = f"a project file may not set this, as it comes with the repository: put it into {paths.config_file}"
        raise ConfigError(where(str(paths.project_file), path, what))


def _add_disabled(user: Mapping[str, Any], project: dict[str, Any]) -> None:
    """A list replaces the one below it; a project's shorter list must not turn tools on that the user turned off."""
    added = (project.get("tools") or {}).get("disabled")
    if added is not None:
        names = [*(user.get("tools") or {}).get("disabled", []), *added]
        project["tools"] = {**project["tools"], "disabled": list(dict.fromkeys(names))}


def _check(config: Config, name: str, provider: ProviderConfig) -> None:
    """What a type can't say about an entry of `llm_providers`."""

    def wrong(what: str, *path: str) -> NoReturn:
        full = ("llm_providers", name, *path)
        raise ConfigError(where(config.source(*full), full, what))

    if name == AUTO:
        wrong("expected another name: auto: chooses among the models of all")
    if ":" in name:
        wrong("expected a name without a colon, which separates provider:model")
    if provider.kind is None and name not in KINDS and provider.enabled and name not in plugin_kinds():
        wrong(f"expected the API that {name} speaks ({', '.join(KINDS)}), got nothing", "kind")
    if provider.kind is not None and _mistyped(provider.kind):
        wrong(f'unknown kind "{provider.kind}": {nearest(provider.kind, list(KINDS))}', "kind")
    if provider.options and (provider.kind or name) in KINDS:
        wrong("expected no options: only plugins take them", "options")
    if provider.api_key is not None and provider.key_cmd is not None:
        wrong("expected api_key or key_cmd, got both: remove one", "key_cmd")
    files = [path for path in provider.models.values() if path] if isinstance(provider.models, dict) else []
    if files and (provider.kind or name) != "embedded":
        wrong("expected a list of names: only embedded models have a file", "models")


def _mistyped(kind: str) -> bool:
    """Whether a kind is nearly a built-in one; a plugin that isn't installed now is left for its use to meet."""
    import difflib

    return kind not in KINDS and bool(difflib.get_close_matches(kind, KINDS, 1)) and kind not in plugin_kinds()


def _check_tools(config: Config) -> None:
    """A tool that is turned off by a mistyped name would stay on; a server has one way to be reached."""

    def wrong(what: str, *path: str) -> NoReturn:
        full = ("tools", *path)
        raise ConfigError(where(config.source(*full), full, what))

    import difflib

    tools = config.settings.tools
    for key, names in (("enabled", tools.enabled or ()), ("disabled", tools.disabled)):
        for name in names:
            if name not in TOOLS and difflib.get_close_matches(name, TOOLS, 1):
                wrong(f'there is no tool "{name}": {nearest(name, list(TOOLS))}', key)
    for name, server in tools.mcp.items():
        if not re.fullmatch(r"[a-zA-Z0-9_-]{1,32}", name):
            wrong("expected a name of at most 32 letters, digits, - and _: its tools' names begin with it", "mcp", name)
        if server.enabled and (server.command is None) == (server.url is None):
            wrong("expected either a command that starts it or the url where it is served", "mcp", name)
        if server.url is not None and not re.match(r"https?://[^/]|\$\{", server.url):
            wrong("expected an http:// or https:// address", "mcp", name, "url")


def _check_priced(config: Config, text: str) -> None:
    """A price is for a model of a provider: with a typo it would be for nobody, without a word."""
    provider, _, model = text.partition(":")
    unknown = _unknown(config, provider)
    if model and not unknown:
        return
    what = f"expected provider:model: {unknown}" if model else "expected provider:model as the key"
    raise ConfigError(where(config.source("prices", text), ("prices", text), what))


def _unknown(config: Config, provider: str) -> str | None:
    """What was meant, where there is no provider of that name."""
    known = sorted({*KINDS, *config.settings.llm_providers})
    return None if provider in known or provider in plugin_kinds() else nearest(provider, known)


def _check_budgets(config: Config) -> None:
    """What a type can't say about `budgets`: with a typo, one would hold nobody back, without a word."""
    names: set[str] = set()
    for number, budget in enumerate(config.settings.budgets):

        def wrong(what: str, key: str, number: int = number) -> NoReturn:
            source = next(setting.source for setting in config.effective() if setting.path == ("budgets",))
            raise ConfigError(where(source, ("budgets", number, key), what))

        if budget.name in names:
            wrong(f'expected another name, as there is a budget "{budget.name}" before it', "name")
        names.add(budget.name)
        if budget.limit_usd is None and budget.limit_tokens is None:
            wrong("expected limit_usd or limit_tokens, got neither: write how much it allows", "limit_usd")
        if budget.limit_usd is not None and budget.limit_tokens is not None:
            wrong("expected limit_usd or limit_tokens, got both: make two budgets of it", "limit_tokens")
        if budget.provider is not None and (unknown := _unknown(config, budget.provider)):
            wrong(f'there is no provider "{budget.provider}": {unknown}', "provider")
        if budget.model is not None:
            provider, _, model = budget.model.partition(":")
            if not model:
                wrong(f'expected provider:model, got "{budget.model}"', "model")
            if unknown := _unknown(config, provider):
                wrong(f'there is no provider "{provider}": {unknown}', "model")
            if budget.provider not in (None, provider):
                wrong(f'expected a model of {budget.provider}, got "{budget.model}": leave provider out', "model")


def _store_path(config: Config, text: str, environ: Mapping[str, str]) -> Path:
    path = ("store", "path")
    try:
        return beside(config.source(*path), fill(text, environ))
    except LookupError as exc:
        what = f"the environment variable {exc.args[0]} is not set: set it or write the path out"
    except ValueError as exc:
        what = str(exc)
    raise ConfigError(where(config.source(*path), path, what))
