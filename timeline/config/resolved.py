"""The settings in force and what follows from them: which model, which provider, which key, and from where each was taken."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from msgspec import Struct

from timeline.config.file import nearest, where
from timeline.config.keys import FoundKey, KeyFile, checked, in_keyring, printed_by
from timeline.config.meant import meant
from timeline.config.paths import Paths, beside
from timeline.config.settings import (
    AUTO,
    KINDS,
    Complexity,
    KeyPath,
    Kind,
    ProviderConfig,
    ResolvedProvider,
    Settings,
    Strategy,
    Task,
    fill,
    masked,
    plugin_kinds,
)
from timeline.errors import AmbiguousName, ConfigError, MissingKey, NotFound, TimelineError, UsageError

__all__ = ["Auto", "Choice", "Config", "ModelRef", "Setting"]

DEFAULT = "default"
ENVIRONMENT = "TIMELINE_MODEL"
COMMAND_LINE = "command line"


# ------------------------------------------------------------------ what comes out


class ModelRef(Struct, frozen=True):
    """A model of a provider; `str()` gives `provider:model`."""

    provider: str
    model: str

    def __str__(self) -> str:
        return f"{self.provider}:{self.model}"


class Auto(Struct, frozen=True):
    """A way to choose among the listed models; `str()` gives `auto:strategy`."""

    strategy: Strategy

    def __str__(self) -> str:
        return f"{AUTO}:{self.strategy}"


Choice = ModelRef | Auto


class Setting(Struct, frozen=True):
    """One value in force, for people.

    Args:
        path: Its keys from the top.
        value: The value, secrets masked.
        source: The file it stands in, `TIMELINE_MODEL`, `command line` or `default`.
    """

    path: KeyPath
    value: Any
    source: str


class Config:
    """The settings in force, and what follows from them. Made by `load`.

    Attributes:
        settings: The merged settings, as written: nothing of them is resolved.
        paths: Where the files lie; `store` is what the settings say.
    """

    def __init__(
        self,
        settings: Settings,
        paths: Paths,
        *,
        values: Mapping[KeyPath, tuple[Any, str]],
        listed: frozenset[str],
        environ: Mapping[str, str],
    ) -> None:
        self.settings = settings
        self.paths = paths
        self._values = values
        self._listed = listed
        self._environ = environ

    def __repr__(self) -> str:
        return f"Config({self.settings!r}, {self.paths!r})"

    @property
    def environ(self) -> Mapping[str, str]:
        """Where `${VAR}` is looked up."""
        return self._environ

    @property
    def providers(self) -> tuple[str, ...]:
        """Names of the enabled providers; a paid one is among them only if the user listed it."""
        return tuple(name for name, provider in self.settings.llm_providers.items() if provider.enabled)

    @property
    def routed(self) -> tuple[str, ...]:
        """Names of the providers that some route names, all but the built-in one."""
        routes = [found for found in self._routes() if isinstance(found, tuple)]
        return tuple(dict.fromkeys(choice.provider for route in routes for choice in route))

    def route_problems(self) -> list[ConfigError]:
        """Why routes lead nowhere, each in a sentence that says which."""
        return [found for found in self._routes() if isinstance(found, ConfigError)]

    def effective(self) -> list[Setting]:
        """Every value in force and where it comes from, secrets masked."""
        return [Setting(path, masked(path, value), source) for path, (value, source) in self._values.items()]

    def source(self, *path: str) -> str:
        """Where the value at that key path was set; for what has no value, where its neighbours were."""
        for length in range(len(path), 1, -1):
            near = [source for known, (_, source) in self._values.items() if known[:length] == path[:length]]
            if near:
                return next((source for source in reversed(near) if source != DEFAULT), DEFAULT)
        return DEFAULT

    # -------------------------------------------------------------- models

    def parse_model(self, text: str) -> ModelRef:
        """The model that `text` names: `provider:model`, or a name that exactly one enabled provider lists.

        The first colon separates, so that model names may hold colons: `ollama:llama3.1:8b`.

        Raises:
            UsageError: It has no colon and nobody lists it, or a part is empty.
            AmbiguousName: Several providers list it.
            NotFound: The part before the colon is no provider.
        """
        text = text.strip()
        provider, _, model = text.partition(":")
        if provider == AUTO:
            msg = (
                f'"{text}" chooses among models and is none itself: write provider:model, for example embedded:smollm2'
            )
            raise UsageError(msg)
        if provider and model and (provider in self.settings.llm_providers or provider in KINDS):
            return ModelRef(provider, model)
        listing = [name for name in self.providers if text in self.settings.llm_providers[name].models]
        if len(listing) > 1:
            msg = f'"{text}" is a model of {" and ".join(listing)}: write {" or ".join(f"{name}:{text}" for name in listing)}'
            raise AmbiguousName(msg)
        if listing:
            return ModelRef(listing[0], text)
        if provider and model and provider in plugin_kinds():
            return ModelRef(provider, model)
        disabled = {name for name, entry in self.settings.llm_providers.items() if not entry.enabled}
        names = {*KINDS, *self.settings.llm_providers} - disabled
        near = meant(text, {name: self.settings.llm_providers[name].models for name in self.providers}, names)
        if provider and model:
            raise self._unknown(provider, near)
        if provider in names:
            models = list(self.settings.llm_providers.get(provider, ProviderConfig()).models)
            example = (
                f", for example {provider}:{models[0]}"
                if models
                else f" ('timeline models list {provider}' names them)"
            )
            msg = f'"{text}" names no model: write {provider}:MODEL{example}'
        elif near:
            msg = f'"{text}" names no model: write provider:model, did you mean {" or ".join(near)}?'
        else:
            msg = f'"{text}" names no model: write provider:model, for example embedded:smollm2'
        raise UsageError(msg)

    def parse_choice(self, text: str) -> Choice:
        """The model that `text` names, as `parse_model`, or the strategy of an `auto:…`.

        Raises:
            UsageError: There is no such strategy.
            UsageError, AmbiguousName, NotFound: See `parse_model`.
        """
        first, _, strategy = text.strip().partition(":")
        if first != AUTO:
            return self.parse_model(text)
        for known in get_args(Strategy):
            if strategy == known:
                return Auto(known)
        names = [f"{AUTO}:{known}" for known in get_args(Strategy)]
        msg = f'there is no strategy "{text.strip()}": {nearest(text.strip(), names)}'
        raise UsageError(msg)

    def candidates(self, task: Task) -> tuple[Choice, ...]:
        """What is configured for a task, the preferred one first; empty where nothing is.

        Raises:
            ConfigError: One of them names no model, or a project's file asks for one that the user didn't list.
        """
        return self._route(getattr(self.settings.routing_strategy, task), ("routing_strategy", task))

    def tier(self, complexity: Complexity) -> tuple[Choice, ...]:
        """What is configured for prompts of a complexity; empty where nothing is.

        Raises:
            ConfigError: See `candidates`.
        """
        written = self.settings.routing_strategy.complexity.get(complexity)
        return self._route(written, ("routing_strategy", "complexity", complexity))

    def route_for(self, task: Task) -> tuple[tuple[Choice, ...], Task]:
        """What is asked for a task when nobody names a model, the preferred one first, and which route said so.

        Without any route that is the fallback, or else the embedded model; both count as `default`.

        Raises:
            ConfigError: See `candidates`.
        """
        # A direct question is answered by who writes the answers, where there is no default.
        order: tuple[Task, ...] = (task, "default") if task != "default" else ("default", "response_formatting")
        for name in order:
            if found := self.candidates(name):
                return found, name
        return self.candidates("fallback") or (ModelRef("embedded", "smollm2"),), "default"

    def stand_ins(self, *, named: bool) -> tuple[Choice, ...]:
        """What answers when all else failed; after a model that was named for this question, only what a file asks for.

        Args:
            named: The user named the model, on the command line or by `TIMELINE_MODEL`.

        Raises:
            ConfigError: See `candidates`.
        """
        named = named or self.source("routing_strategy", "default") == ENVIRONMENT
        built_in = self.source("routing_strategy", "fallback") == DEFAULT
        return () if named and built_in else self.candidates("fallback")

    def default_route(self) -> tuple[Choice, ...]:
        """What is asked for one direct question that names no model, the preferred one first.

        Raises:
            ConfigError: See `candidates`.
        """
        return self.route_for("default")[0]

    def choose(self, model: str | None) -> ModelRef:
        """The one model that a user means.

        Args:
            model: As the user named it; None for the default.

        Raises:
            UsageError: It is an `auto:…`, which may mean another one each time.
            ConfigError, AmbiguousName, NotFound: See `parse_model` and `candidates`.
        """
        choice = self.default_route()[0] if model is None else self.parse_model(model)
        return self.parse_model(str(choice))

    @property
    def offered(self) -> tuple[ModelRef, ...]:
        """The models that `auto:…` chooses among: those listed under enabled providers, in the order of the file.

        A built-in one counts only where nothing else is listed.
        """
        found: dict[ModelRef, bool] = {}
        for path, (value, source) in self._values.items():
            match path:
                case ("llm_providers", name, "models", *model) if self.settings.llm_providers[name].enabled:
                    for each in model or value or ():
                        found.setdefault(ModelRef(name, str(each)), source == DEFAULT)
        own = tuple(ref for ref, built_in in found.items() if not built_in)
        return own or tuple(found)

    def _routes(self) -> Iterator[tuple[ModelRef, ...] | ConfigError]:
        """Of each route that isn't built in, the models that it names, or what is wrong with it."""
        routing = self.settings.routing_strategy
        written: dict[KeyPath, Any] = {("routing_strategy", task): getattr(routing, task) for task in get_args(Task)}
        written |= {("routing_strategy", "complexity", level): route for level, route in routing.complexity.items()}
        for path, route in written.items():
            if self.source(*path) != DEFAULT:
                try:
                    found = self._route(route, path)
                except ConfigError as exc:
                    yield exc
                else:
                    yield tuple(choice for choice in found if isinstance(choice, ModelRef))

    def _route(self, written: str | list[str] | None, path: KeyPath) -> tuple[Choice, ...]:
        texts = written if isinstance(written, list) else [written] if written else []
        try:
            choices = tuple(self.parse_choice(text) for text in texts)
        except (UsageError, NotFound) as exc:
            source = self.source(*path)
            raise ConfigError(where(source, () if source == ENVIRONMENT else path, str(exc))) from exc
        if self.source(*path) == str(self.paths.project_file):
            for choice in choices:
                # What an `auto:…` may choose, the user has listed.
                if isinstance(choice, ModelRef):
                    self._refuse_foreign_choice(choice, path)
        return choices

    def _refuse_foreign_choice(self, model: ModelRef, path: KeyPath) -> None:
        """A project file may pick among what the user listed and the models of the engine in this process."""
        embedded = self.settings.llm_providers.get("embedded", ProviderConfig())
        if model.provider in self._listed or (model.provider == "embedded" and model.model in embedded.models):
            return
        entry = f'llm_providers: {{{model.provider}: {{models: ["{model.model}"]}}}}'
        what = f"the project asks for {model}, which you never listed: to allow it, put {entry} into {self.paths.config_file}"
        raise ConfigError(where(str(self.paths.project_file), path, what))

    # -------------------------------------------------------------- providers

    def provider(self, name: str) -> ResolvedProvider:
        """A provider with its variables filled in and its key found; may run `key_cmd`, which can take a minute.

        Raises:
            NotFound: There is no such provider.
            ConfigError: It is disabled, or a value of it is wrong.
            MissingKey: It needs a key and none was found.
        """
        written = self._written(name)
        kind = written.kind or name
        if kind not in KINDS and kind not in plugin_kinds():
            what = f'no plugin "{kind}" is installed: install it or disable the provider with enabled: false'
            raise self._error(ConfigError, what, name, "kind")
        base_url = self._address(name, written) or KINDS.get(kind, Kind()).base_url
        return ResolvedProvider(
            name=name,
            kind=kind,
            base_url=base_url,
            api_key=self._key(name, written, base_url),
            models=self._models(name, written),
            local=written.local,
            headers={header: self._fill(value, name, "headers", header) for header, value in written.headers.items()},
            ca_file=self._file(written.ca_file, name, "ca_file") if written.ca_file else None,
            timeouts=dict(written.timeouts),
            context=written.context,
            options={
                option: self._fill(value, name, "options", option) if isinstance(value, str) else value
                for option, value in written.options.items()
            },
        )

    def problem(self, name: str) -> TimelineError | None:
        """Why an enabled provider could not be used now, as far as that shows without a `key_cmd` or the keyring."""
        try:
            found = next(self._keys(name, self.settings.llm_providers.get(name) or ProviderConfig()), None)
            if found is not None and found.value is None:
                return None
            self.provider(name)
        except TimelineError as exc:
            return exc
        return None

    def served(self, name: str) -> tuple[str, str | None]:
        """The kind of a provider and its address, None for the engine in this process; looks for no key.

        Raises:
            NotFound: There is no such provider.
            ConfigError: The address is none.
        """
        written = self.settings.llm_providers.get(name)
        if written is None and name not in KINDS and name not in plugin_kinds():
            raise self._unknown(name)
        written = written or ProviderConfig()
        kind = written.kind or name
        return kind, self._address(name, written) or KINDS.get(kind, Kind()).base_url

    def takes_key(self, name: str) -> bool:
        """Whether a key is any use to a provider: to the engine in this process it isn't."""
        written = self.settings.llm_providers.get(name) or ProviderConfig()
        return (written.kind or name) != "embedded"

    def needs_key(self, name: str) -> bool:
        """Whether a provider answers nobody without a key: at its vendor's own address.

        Raises:
            NotFound, ConfigError: See `served`.
        """
        kind, base_url = self.served(name)
        known = KINDS.get(kind, Kind())
        return known.key_variable is not None and (base_url or "").rstrip("/") == known.base_url

    def keys(self, name: str) -> tuple[FoundKey, ...]:
        """Where a provider's key is found; the first one is used. Runs no command and asks no keyring.

        Raises:
            ConfigError, MissingKey: `keys.json` can't be read, or a variable of `api_key` isn't set.
        """
        return tuple(self._keys(name, self.settings.llm_providers.get(name) or ProviderConfig()))

    def _written(self, name: str) -> ProviderConfig:
        written = self.settings.llm_providers.get(name)
        if written is None and name not in KINDS and name not in plugin_kinds():
            raise self._unknown(name)
        if written is not None and not written.enabled:
            raise self._error(ConfigError, f"{name} is disabled here: set it to true to use {name}", name, "enabled")
        return written or ProviderConfig()

    def _address(self, name: str, written: ProviderConfig) -> str | None:
        if written.base_url is None:
            return None
        address = self._fill(written.base_url, name, "base_url")
        if not re.match(r"https?://[^/?#\s]+", address):
            raise self._error(ConfigError, "expected an address like https://api.example.com/v1", name, "base_url")
        return address

    def _models(self, name: str, written: ProviderConfig) -> dict[str, str | None]:
        if isinstance(written.models, list):
            return dict.fromkeys(written.models)
        return {
            model: str(self._file(path, name, "models", model)) if path else None
            for model, path in written.models.items()
        }

    def _key(self, name: str, written: ProviderConfig, base_url: str | None) -> str | None:
        """The first key found; None where none is and none is needed."""
        found = next(self._keys(name, written), None)
        if found is None and written.api_key is not None:
            self._fill(written.api_key, name, "api_key", error=MissingKey)
        key = ""
        if found is not None:
            open_it = {"key_cmd": lambda: self._run(found.place, name), "keyring": lambda: in_keyring(name)}
            key = checked(name, open_it[found.origin]() if found.value is None else found.value)
        kind = KINDS.get(written.kind or name, Kind())
        if not key and kind.key_variable and (base_url or "").rstrip("/") == kind.base_url:
            remedy = self._vendor_variable(name, kind) or f"llm_providers.{name}.api_key in {self.paths.config_file}"
            msg = f"{name} needs an API key: set {remedy} or run 'timeline keys set {name}'"
            raise MissingKey(msg)
        return key or None

    def _keys(self, name: str, written: ProviderConfig) -> Iterator[FoundKey]:
        """From `key_cmd` or `api_key`, else from the vendor's own variable, else from `timeline keys`."""
        kind = KINDS.get(written.kind or name, Kind())
        variable = self._vendor_variable(name, kind)
        if written.key_cmd is not None:
            yield FoundKey("key_cmd", written.key_cmd)
        elif written.api_key is not None:
            reference = re.fullmatch(r"\$\{(\w+)\}", written.api_key)
            variable = reference[1] if reference else None
            if reference is None:
                value = self._fill(written.api_key, name, "api_key", error=MissingKey)
                yield FoundKey("config", self.source("llm_providers", name, "api_key"), value)
        if variable and self._environ.get(variable, "").strip() and written.key_cmd is None:
            yield FoundKey("environment", variable, self._environ[variable].strip())
        # An entry there is for one name, and only the user's own file says where that name is served.
        kept = KeyFile(self.paths.keys_file).read() if self.takes_key(name) else {}
        if name in kept:
            yield FoundKey("file", str(self.paths.keys_file), kept[name]) if kept[name] else FoundKey("keyring", name)

    @staticmethod
    def _vendor_variable(name: str, kind: Kind) -> str | None:
        """Only a provider of the vendor's own name gets the key in its variable, never another server of the same API."""
        return kind.key_variable if KINDS.get(name) is kind else None

    def _run(self, command: str, name: str) -> str:
        """What `key_cmd` prints."""
        try:
            return printed_by(command, self._environ)
        except (ConfigError, MissingKey) as exc:
            raise self._error(type(exc), str(exc), name, "key_cmd") from None

    def _fill(self, text: str, *path: str, error: type[TimelineError] = ConfigError) -> str:
        """The text with variables filled in, or an error about that key of `llm_providers`."""
        try:
            return fill(text, self._environ)
        except LookupError as exc:
            keep = f", run 'timeline keys set {path[0]}'," if path[1:] == ("api_key",) else ""
            what = f"the environment variable {exc.args[0]} is not set: set it{keep} or disable the provider with enabled: false"
            raise self._error(error, what, *path) from None
        except ValueError as exc:
            raise self._error(ConfigError, str(exc), *path) from None

    def _file(self, text: str, *path: str) -> Path:
        return beside(self.source("llm_providers", *path), self._fill(text, *path))

    def _error(self, error: type[TimelineError], what: str, *path: str) -> TimelineError:
        return error(where(self.source("llm_providers", *path), ("llm_providers", *path), what))

    def _unknown(self, name: str, near: Sequence[str] = ()) -> NotFound:
        known = sorted({*KINDS, *plugin_kinds(), *self.settings.llm_providers})
        entry = f"{name}: {{kind: openai, base_url: ...}}"
        guess = f"did you mean {' or '.join(near)}?" if near else nearest(name, [*known, AUTO])
        return NotFound(
            f'there is no provider "{name}": {guess} (any server of OpenAI\'s format can be added'
            f" as {entry} under llm_providers in {self.paths.config_file})"
        )
