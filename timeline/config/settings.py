"""Which settings there are: the structs of a configuration file, the built-in defaults, and what of them is secret."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from timeline.errors import UsageError

__all__ = [
    "AUTO",
    "DEFAULTS",
    "KINDS",
    "MAX_COST",
    "MOST_TOKENS",
    "SECRET",
    "BudgetConfig",
    "CacheConfig",
    "Complexity",
    "KeyPath",
    "Kind",
    "McpServer",
    "Price",
    "ProviderConfig",
    "ResolvedProvider",
    "Retry",
    "Routing",
    "Settings",
    "StoreConfig",
    "Strategy",
    "Task",
    "Window",
    "fill",
    "masked",
    "max_cost",
    "plugin_kinds",
]

SECRET = frozenset({"api_key", "headers", "options", "env"})
"""Keys whose values no error, repr or listing shows."""
VARIABLE = re.compile(r"\$\$\{|\$\{(?:(?P<name>[A-Za-z_]\w*)(?::-(?P<default>[^}]*))?\})?")

AUTO = "auto"
"""What stands before the colon where a strategy chooses the model: `auto:cheapest`. No provider may be called so."""

KeyPath = tuple[str, ...]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Dollars = Annotated[float, Meta(ge=0, le=1_000_000)]
MOST_TOKENS = 1_000_000_000
"""Of an answer, a context or a minute: what is more is a slip, and sums of it would not fit into the log's integers."""
Count = Annotated[int, Meta(gt=0, le=MOST_TOKENS)]
Name = Annotated[str, Meta(min_length=1)]
Route = Name | Annotated[list[Name], Meta(min_length=1)]
Complexity = Literal["low", "medium", "high"]
Task = Literal["query_routing", "tool_calling", "response_formatting", "fallback", "default"]
Window = Literal["call", "turn", "session", "day", "week", "month", "total"]
Strategy = Literal["cheapest", "fastest", "best", "balanced"]
TimeoutName = Literal["connect", "first_byte", "between_chunks", "total"]


class Kind(Struct, frozen=True):
    """An API that is spoken without a plugin.

    Args:
        base_url: Where the vendor serves it; None for the engine in this process.
        key_variable: The vendor's own name of the environment variable with the key, for a
            provider of the same name; None where no key is asked for.
    """

    base_url: str | None = None
    key_variable: str | None = None


KINDS: dict[str, Kind] = {
    "openai": Kind("https://api.openai.com/v1", "OPENAI_API_KEY"),
    "anthropic": Kind("https://api.anthropic.com", "ANTHROPIC_API_KEY"),
    "groq": Kind("https://api.groq.com/openai/v1", "GROQ_API_KEY"),
    "ollama": Kind("http://localhost:11434"),
    "embedded": Kind(),
}


TOOLS = ("calculator", "clock", "read_file", "list_files", "search_timeline", "fetch_url")
"""The tools that come with timeline."""


class Masked(Struct, frozen=True):
    """A struct that holds secrets and never shows them."""

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [(name, masked((name,), getattr(self, name))) for name in self.__struct_fields__]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"


class ProviderConfig(Masked, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One entry of `llm_providers`, as written.

    Args:
        enabled: False refuses it, and leaves its `${VAR}` alone.
        kind: Which API it speaks, a key of `KINDS` or an installed plugin; by default what its name says.
        api_key: The key, mostly as `${VAR}`.
        key_cmd: A command that prints the key; run without a shell.
        base_url: Where it is served.
        models: Names to offer; for `embedded` also names with the path of their GGUF.
        local: Whether a server at a loopback address computes its answers itself, so that they are free; by default only
            Ollama's does. False: it passes questions on, and isn't asked offline.
        headers: Further HTTP headers.
        ca_file: PEM file of certificate authorities to trust instead of the usual ones.
        timeouts: Seconds, or null to wait for ever.
        context: Most tokens of prompt and answer together.
        options: What else a plugin wants to know, by its own names.
        rpm, tpm: Most requests and tokens a minute, for a provider that doesn't tell its limits.
        max_concurrent: Most requests at a time, of all processes together.
    """

    enabled: bool = True
    kind: str | None = None
    api_key: str | None = None
    key_cmd: str | None = None
    base_url: str | None = None
    models: list[Name] | dict[Name, str | None] = []
    local: bool | None = None
    headers: dict[Name, str] = {}
    ca_file: str | None = None
    timeouts: dict[TimeoutName, Seconds | None] = {}
    context: Count | None = None
    options: dict[Name, str | int | float | bool] = {}
    rpm: Count | None = None
    tpm: Count | None = None
    max_concurrent: Count | None = None


class Routing(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which model does what: `provider:model`, `auto:strategy`, or a list of them in order of preference.

    Args:
        query_routing: Decides what a prompt needs.
        tool_calling: Chooses tools and their arguments.
        response_formatting: Writes the answer.
        fallback: Where to go when all else fails; null turns that off.
        default: For everything that has no route of its own.
        complexity: Who writes the answer to a prompt of low, medium or high complexity, before `response_formatting`.
        rotate: Go to the next candidate rather than wait for a limit, where that one is free sooner.
        on_stream_error: When an answer breaks off after its first words: `fail` keeps what came and says so,
            `restart` asks again, or the next candidate.
        fallback_on_refusal: Ask the next candidate also where one refused the content.
    """

    query_routing: Route | None = None
    tool_calling: Route | None = None
    response_formatting: Route | None = None
    fallback: Route | None = None
    default: Route | None = None
    complexity: dict[Complexity, Route] = {}
    rotate: bool = False
    on_stream_error: Literal["fail", "restart"] = "fail"
    fallback_on_refusal: bool = False


class Retry(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How often, and for how long, a request that failed is made again.

    Args:
        timeout: Seconds that a call may take until its first words, waits included; null for no limit.
        max_attempts: Most attempts at one candidate.
        base_delay, max_delay: Seconds of the first wait at most, which then doubles, and of any.
    """

    timeout: Seconds | None = 120.0
    max_attempts: Annotated[int, Meta(ge=1, le=100)] = 4
    base_delay: Seconds = 0.5
    max_delay: Seconds = 30.0


class BudgetConfig(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A limit to what is spent. What runs on this machine counts for none.

    Args:
        name: Its name, for people.
        limit_usd: US dollars a window; this or `limit_tokens` is set.
        limit_tokens: Tokens a window, prompts and answers.
        window: Of what: one call, all calls of one question (`turn`), a session, a calendar day, week (from Monday)
            or month of this machine's time zone, or all that was ever spent.
        provider, model: Only what this provider, or this `provider:model`, costs.
        action: What happens to a request that would pass it: `block` refuses it, `warn` lets it pass with a warning,
            `fallback` goes to the next candidate.
    """

    name: Name
    limit_usd: Dollars | None = None
    limit_tokens: Annotated[int, Meta(ge=0, le=1_000_000_000_000_000)] | None = None
    window: Window = "month"
    provider: Name | None = None
    model: Name | None = None
    action: Literal["block", "warn", "fallback"] = "block"


MAX_COST = "--max-cost"
"""The name of the budget that the option makes."""


def max_cost(text: str) -> BudgetConfig:
    """The budget that `--max-cost` means: all calls of one question together.

    Args:
        text: US dollars, as `0.05` or `$0.05`.

    Raises:
        UsageError: It is no amount.
    """
    try:
        limit = float(text.strip().removeprefix("$"))
        return msgspec.convert({"name": MAX_COST, "limit_usd": limit, "window": "turn"}, BudgetConfig)
    except ValueError as exc:
        msg = f"{MAX_COST} {text!r} is no amount of US dollars: write it like 0.05"
        raise UsageError(msg) from exc


class CacheConfig(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Answers of equal requests from the log instead of the model.

    Args:
        enabled: Whether, without `--cache`.
        ttl: How old an answer may be, seconds; null for any age.
        max_temperature: Requests of a higher temperature are always made, unless `--cache` asks for it.
    """

    enabled: bool = False
    ttl: Annotated[float, Meta(gt=0)] | None = None
    max_temperature: Annotated[float, Meta(ge=0, le=2)] = 0.3


class StoreConfig(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The event store.

    Args:
        path: The database file.
        synchronous: `full`: what was recorded survives a power cut. `normal`: it survives a crash of the
            program, and a power cut may take the last moments.
    """

    path: Name | None = None
    synchronous: Literal["full", "normal"] = "full"


class Price(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a model costs, in US dollars per million tokens.

    Args:
        input_per_million: Prompt tokens that came from no cache.
        output_per_million: Generated tokens, reasoning included.
        cache_read_per_million: Prompt tokens read from the cache; by default as input.
        cache_write_per_million: Prompt tokens written to the cache; by default as input.
        cache_write_1h_per_million: Those written to the one-hour cache; by default as other cache writes.
    """

    input_per_million: Dollars
    output_per_million: Dollars
    cache_read_per_million: Dollars | None = None
    cache_write_per_million: Dollars | None = None
    cache_write_1h_per_million: Dollars | None = None


class McpServer(Masked, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A server of the Model Context Protocol whose tools are offered to models.

    Args:
        command: What starts it, and its arguments, run without a shell; it speaks on its standard streams.
        url: Where it is served, by streamable HTTP. This or `command` is set.
        env: Variables for the command, beside the few that say who and where one is.
        headers: HTTP headers for the `url`.
        cwd: Where the command runs; by default the working directory.
        enabled: False leaves it alone.
        confirm: Whether somebody has to agree to each call of a tool that it doesn't call read-only.
        timeout: Seconds that a call may take.
    """

    command: Annotated[list[Name], Meta(min_length=1)] | None = None
    url: Name | None = None
    env: dict[Name, str] = {}
    headers: dict[Name, str] = {}
    cwd: Name | None = None
    enabled: bool = True
    confirm: bool = True
    timeout: Seconds = 30.0


class ToolsConfig(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What models may do beside answering.

    Args:
        enabled: Only these tools; null for all.
        disabled: Not these. A project's list is added to the user's.
        fetch_url: Whether pages of the public web may be fetched.
        allow_dirs: Folders that may be read beside the working directory.
        max_rounds: How often, for one question, results go back to a model that may then call again.
        max_result: Most characters of a result that a model is told.
        mcp: Servers of further tools, by the names that their tools' names begin with.
    """

    enabled: list[Name] | None = None
    disabled: list[Name] = []
    fetch_url: bool = False
    allow_dirs: list[Name] = []
    max_rounds: Annotated[int, Meta(ge=1, le=20)] = 4
    max_result: Annotated[int, Meta(ge=500, le=1_000_000)] = 16_000
    mcp: dict[Name, McpServer] = {}


class Settings(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A whole configuration file; `mode` says how `timeline ask` works a question out, unless it is told."""

    llm_providers: dict[Name, ProviderConfig] = {}
    routing_strategy: Routing = Routing()
    store: StoreConfig = StoreConfig()
    prices: dict[Name, Price] = {}
    offline: bool = False
    mode: Literal["pipeline", "direct"] = "pipeline"
    retry: Retry = Retry()
    budgets: list[BudgetConfig] = []
    cache: CacheConfig = CacheConfig()
    tools: ToolsConfig = ToolsConfig()


DEFAULTS: dict[str, Any] = {
    "llm_providers": {
        "embedded": {"enabled": True, "models": {"smollm2": None}},
        "ollama": {"enabled": True, "base_url": KINDS["ollama"].base_url},
    },
    "routing_strategy": {"fallback": "embedded:smollm2"},
    "store": {"synchronous": "full"},
    "offline": False,
}
"""In force without any file: only what runs on this machine. Paid services must be asked for by name."""


class ResolvedProvider(Masked, frozen=True):
    """A provider ready for use: variables filled in, key found, paths absolute.

    Args:
        name: As configured, the part of `provider:model` before the colon.
        kind: A key of `KINDS`, or an installed plugin.
        base_url: None for the engine in this process.
        api_key: None where none is needed.
        models: Configured names; for `embedded` with the path of their GGUF, or None for a model known by its name.
        local: As of `ProviderConfig`.
        headers: Further HTTP headers.
        ca_file: PEM file of certificate authorities.
        timeouts: Those that were configured, seconds; None waits for ever.
        context: Most tokens of prompt and answer together.
        options: What else a plugin wants to know.
    """

    name: str
    kind: str
    base_url: str | None
    api_key: str | None
    models: dict[str, str | None]
    local: bool | None
    headers: dict[str, str]
    ca_file: Path | None
    timeouts: dict[TimeoutName, float | None]
    context: int | None
    options: dict[str, str | int | float | bool] = {}


def fill(text: str, environ: Mapping[str, str]) -> str:
    """The text with `${VAR}` and `${VAR:-default}` filled in; `$${` stands for `${`. An empty variable is an unset one.

    Raises:
        LookupError: A variable without a default is not set; its argument is the name.
        ValueError: A `${` is neither of the three.
    """

    def value(found: re.Match[str]) -> str:
        if found[0] == "$${":
            return "${"
        if not found["name"]:
            msg = "expected ${NAME} or ${NAME:-default}: write $${ for a ${ that stands for itself"
            raise ValueError(msg)
        filled = environ.get(found["name"]) or found["default"]
        if filled is None:
            raise LookupError(found["name"])
        return filled

    return VARIABLE.sub(value, text)


def masked(path: KeyPath, value: Any) -> Any:
    """The value at a key path as anyone may see it: no key, no header, no password of an address."""
    if value is None:
        return None
    if isinstance(value, dict):
        return {key: masked((*path, key), item) for key, item in value.items()}
    if SECRET.intersection(path):
        # A mere reference says where the secret is, not what it is.
        return value if isinstance(value, str) and re.fullmatch(r"\$\{\w+\}", value) else "***"
    if path[-1] in ("base_url", "url"):
        return re.sub(r"(?<=//)[^/]*@", "***@", re.sub(r"\?.*", "?***", value))
    return value


def plugin_kinds() -> frozenset[str]:
    """The names of the installed provider plugins, each a kind of its own."""
    from timeline.entry_points import PROVIDERS, installed

    return frozenset(entry.name for entry in installed(PROVIDERS))
