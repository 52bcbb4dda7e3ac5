"""Which class stands behind a kind of provider, built in or brought by a plugin, and how settings become its arguments.

Installing a plugin is trusting it: its code runs in this process. What it can't do by mistake is
to take down another command, to stand in for a built-in provider, or to answer out of contract.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct

import timeline
from timeline.config import KINDS
from timeline.entry_points import PROVIDERS, TOOLS, EntryPoint, installed
from timeline.errors import ConfigError, MissingKey, NotFound, PluginError
from timeline.providers.address import is_loopback, secrets_in, split_url
from timeline.providers.waiting import Timeouts

if TYPE_CHECKING:
    from pathlib import Path

    from timeline.config import Config, ResolvedProvider
    from timeline.providers.base import Capabilities, LLMProvider
    from timeline.providers.contract import Problem
    from timeline.providers.guarded import Guarded

__all__ = [
    "SETTINGS",
    "Importing",
    "Listed",
    "Progress",
    "capabilities",
    "listing",
    "make",
    "make_provider",
    "validate",
]

Progress = Callable[[str, int, int | None], None]

SETTINGS = ("name", "api_key", "base_url", "models", "headers", "timeouts", "ca_file", "local", "context")
"""Arguments that a plugin's constructor may declare; its `options` come by their own names."""
MEANT_FOR_US = ("name", "api_key", "models")
"""Settings that say nothing against a plugin that doesn't declare them: a key may have been kept, models are for `-m`."""
EMPTY: dict[str, Any] = {"models": (), "headers": {}, "timeouts": Timeouts()}
"""What a plugin gets that asks for a setting which need not be set."""
GUIDE = "see docs/plugins.md"


class Listed(Struct, frozen=True):
    """A plugin as people see it.

    Args:
        name: Its entry point.
        group: What it brings: a provider, or tools, which are named and not looked into.
        value: Where its object is: `module:attribute`.
        distribution: What was installed.
        version: Of the distribution.
        reason: Why it can't be used; None where it can.
        problems: The rules that its class breaks.
    """

    name: str
    group: Literal["provider", "tool"]
    value: str
    distribution: str
    version: str
    reason: str | None = None
    problems: tuple[Problem, ...] = ()


# ------------------------------------------------------------------ finding


def listing() -> list[Listed]:
    """All installed plugins. Providers are imported, so that one that can't be is listed with the reason."""
    entries = installed(PROVIDERS)
    providers = [_examined(entry, entries) for entry in entries]
    return providers + [Listed(e.name, "tool", e.value, e.distribution, e.version) for e in installed(TOOLS)]


def validate(name: str) -> Listed:
    """One kind of provider, its class checked against the contract; nothing is asked of it.

    Args:
        name: A plugin's entry point, or a built-in kind.

    Raises:
        NotFound: There is none of that name.
    """
    from timeline.providers.contract import check_class

    if name not in KINDS:
        return _examined(*_find(name))
    found = _built_in_class(name)
    value = f"{found.__module__}:{found.__qualname__}"
    return Listed(name, "provider", value, "llm-timeline", timeline.__version__, None, tuple(check_class(found)))


def _find(name: str) -> tuple[EntryPoint, list[EntryPoint]]:
    """The entry point of that name, and all there are."""
    entries = installed(PROVIDERS)
    for entry in entries:
        if entry.name == name:
            return entry, entries
    known = ", ".join(entry.name for entry in entries)
    there = f"there is only {known}" if known else "none is installed"
    msg = f'there is no provider plugin "{name}" ({there}): install the distribution that brings it, {GUIDE}'
    raise NotFound(msg)


def _examined(entry: EntryPoint, entries: list[EntryPoint]) -> Listed:
    from timeline.providers.contract import broken, check_class

    problems: tuple[Problem, ...] = ()
    try:
        problems = tuple(check_class(_import(entry, entries)))
        reason = str(broken(entry.name, problems[0])) if problems else None
    except PluginError as exc:
        reason = str(exc)
    return Listed(entry.name, "provider", entry.value, entry.distribution, entry.version, reason, problems)


def _import(entry: EntryPoint, entries: list[EntryPoint]) -> Any:
    """What the entry point names, imported and not yet checked.

    Raises:
        PluginError: It can't be, or its name stands for something else, too.
    """
    rivals = [other.distribution for other in entries if other.name == entry.name]
    if entry.name in KINDS or ":" in entry.name:
        why = "is built in" if entry.name in KINDS else "holds a colon"
        msg = f"the plugin {entry.name} of {entry.distribution} can't be used, as that name {why}: its author has to rename it"
        raise PluginError(msg)
    if len(rivals) > 1:
        msg = f"the plugin {entry.name} is brought by {' and '.join(rivals)}: uninstall all but one"
        raise PluginError(msg)
    from importlib.metadata import EntryPoint as Loader

    with Importing(entry):
        return Loader(entry.name, entry.value, PROVIDERS).load()


class Importing:
    """Makes one sentence of whatever comes out of a plugin that is imported, also of its `sys.exit()`."""

    def __init__(self, entry: EntryPoint) -> None:
        self._entry = entry

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: object) -> None:
        if not isinstance(exc, Exception | SystemExit):
            return
        from timeline.providers.contract import place

        name, value = self._entry.name, self._entry.value
        why = type(exc).__name__ + place(exc, value.partition(":")[0])
        if isinstance(exc, ImportError | AttributeError | SyntaxError):
            # Python's own words about a name or a line; any other exception's may hold anything.
            why += f": {exc}"
        msg = (
            f"the plugin {name} can't be imported from {value} ({why}): repair or uninstall {self._entry.distribution}"
        )
        raise PluginError(msg) from None


# ------------------------------------------------------------------ making


def make_provider(config: Config, name: str, progress: Progress | None = None) -> LLMProvider:
    """The provider that the configuration calls so.

    Args:
        config: What `timeline.config.load` gave.
        name: As configured, one of the built-in kinds, or a plugin's.
        progress: Told what is fetched: what, bytes so far, bytes in all where known.

    Raises:
        NotFound, ConfigError, MissingKey: It can't be made from the configuration.
        PluginError: Its plugin can't be imported, or breaks the contract.
    """
    return make(config.provider(name), config.paths.models_dir, progress, fetches=not config.settings.offline)


def make(
    resolved: ResolvedProvider, models_dir: Path, progress: Progress | None = None, *, fetches: bool = True
) -> LLMProvider:
    """The provider that settings describe.

    Args:
        resolved: What `Config.provider` gave.
        models_dir: Where embedded models lie.
        progress: As in `make_provider`.
        fetches: Whether a model that isn't on this machine may be fetched.

    Raises:
        ConfigError, MissingKey: It can't be made from these settings.
        PluginError: Its plugin can't be imported, or breaks the contract.
    """
    if resolved.kind == "embedded":
        from timeline.providers.embedded import EmbeddedProvider

        return EmbeddedProvider(
            resolved.models,
            name=resolved.name,
            models_dir=models_dir,
            context=resolved.context,
            progress=progress,
            fetches=fetches,
        )
    if resolved.kind not in KINDS:
        return _from_plugin(resolved)
    settings: dict[str, Any] = {
        "name": resolved.name,
        "base_url": resolved.base_url,
        "headers": resolved.headers,
        "timeouts": Timeouts(**resolved.timeouts),
        "ca_file": str(resolved.ca_file) if resolved.ca_file else None,
    }
    if resolved.kind == "ollama":
        # Ollama computes where it runs, unless told otherwise; only a proxy before it, or its cloud, wants a key.
        settings["local"] = resolved.local is not False
        if resolved.api_key:
            settings["headers"] = {"authorization": f"Bearer {resolved.api_key}", **resolved.headers}
    else:
        settings |= {"api_key": resolved.api_key, "local": bool(resolved.local)}
    provider: LLMProvider = _built_in_class(resolved.kind)(**settings)
    return provider


def capabilities(kind: str) -> Capabilities:
    """What a built-in kind of provider can do; none is made."""
    able: Capabilities = _built_in_class(kind).capabilities
    return able


def _built_in_class(kind: str) -> Any:
    from timeline import providers

    names = {"openai": "OpenAI", "anthropic": "Anthropic", "groq": "Groq", "ollama": "Ollama", "embedded": "Embedded"}
    return getattr(providers, f"{names[kind]}Provider")


def _from_plugin(resolved: ResolvedProvider) -> Guarded:
    from timeline.providers.contract import Boundary, broken, check_class
    from timeline.providers.guarded import Guarded

    plugin = resolved.kind
    found = _import(*_find(plugin))
    for problem in check_class(found):
        raise broken(plugin, problem)
    texts = {option: value for option, value in resolved.options.items() if isinstance(value, str)}
    secrets = secrets_in((resolved.api_key,), {**resolved.headers, **texts})
    with Boundary(plugin, found.__module__, secrets):
        made = found(**_arguments(resolved, inspect.signature(found).parameters))
    address = resolved.base_url
    # What the user says comes first, and nobody computes here what is asked for at another machine.
    elsewhere = resolved.local is False or (address is not None and not is_loopback(split_url(address)[4]))
    return Guarded(
        made, plugin=plugin, name=resolved.name, secrets=secrets, api_key=resolved.api_key, elsewhere=elsewhere
    )


def _arguments(resolved: ResolvedProvider, parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """What a plugin's constructor gets: what it declares of what is set, so that its own defaults stand for the rest.

    Raises:
        ConfigError: Something is set that it has no use for, or not set that it needs.
        MissingKey: It needs a key.
    """
    plugin, entry = resolved.kind, f"llm_providers.{resolved.name}"
    declared = {
        name: parameter.default is parameter.empty
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    given = _given(resolved)
    for name in [name for name in given if name not in declared and not takes_all]:
        if name in resolved.options:
            own = ", ".join(name for name in declared if name not in SETTINGS) or "none"
            msg = f"{entry}.options.{name}: remove it, the plugin {plugin} takes other options ({own})"
            raise ConfigError(msg)
        if name not in MEANT_FOR_US and not (name == "local" and resolved.local is False):
            msg = f"{entry}.{name}: remove it, the plugin {plugin} has no use for it"
            raise ConfigError(msg)
        del given[name]
    for name in [name for name, required in declared.items() if required and name not in given]:
        if name == "api_key":
            msg = f"{resolved.name} needs an API key: set {entry}.api_key or run 'timeline keys set {resolved.name}'"
            raise MissingKey(msg)
        if name not in EMPTY:
            msg = f"{entry}{'' if name in SETTINGS else '.options'}.{name}: set it, the plugin {plugin} needs it"
            raise ConfigError(msg)
        given[name] = EMPTY[name]
    return given


def _given(resolved: ResolvedProvider) -> dict[str, Any]:
    """What is set, by the names of constructors' arguments."""
    values = {
        "name": resolved.name,
        "api_key": resolved.api_key,
        "base_url": resolved.base_url,
        "models": tuple(resolved.models) or None,
        "headers": resolved.headers or None,
        "timeouts": Timeouts(**resolved.timeouts) if resolved.timeouts else None,
        "ca_file": str(resolved.ca_file) if resolved.ca_file else None,
        "local": resolved.local,
        "context": resolved.context,
    }
    for option in resolved.options:
        if option in values:
            msg = f"llm_providers.{resolved.name}.options.{option}: write it beside options, as for any provider"
            raise ConfigError(msg)
    return {name: value for name, value in values.items() if value is not None} | resolved.options
