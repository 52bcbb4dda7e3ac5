"""`timeline config` and `timeline paths`: what is in force and why, a file to start from, where everything lies."""

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from timeline.errors import ConfigError, UsageError

from . import output
from .options import AsJson

if TYPE_CHECKING:
    from timeline.config import Setting

__all__ = ["app", "paths"]

app = typer.Typer(help="Show the settings in force, or begin a configuration file.", no_args_is_help=True)


LONG = 50
"""Characters of a setting up to which its source stands in one column with the others'."""

STARTER = """\
## Settings of timeline. All are optional: as it stands, this file changes nothing.
## `timeline config show` prints what is in force, and where each value comes from.
## The lines with a single `#` are examples: remove the `#` to use one.

## Who may be asked. A provider that needs a key is used only if it stands here or is named with -m.
#llm_providers:
#  openai: {api_key: "${OPENAI_API_KEY}", models: [gpt-4o]}
#  anthropic: {api_key: "${ANTHROPIC_API_KEY}"}
#  groq: {key_cmd: "pass show groq"}
#  ollama: {base_url: "http://localhost:11434", models: [llama3.1, phi-3]}
#  embedded: {models: {smollm2: null, mine: ~/models/mine.gguf}}
## Any other server that speaks OpenAI's format:
#  myserver: {kind: openai, base_url: "http://localhost:8000/v1", timeouts: {first_byte: 600}}

## Which model does what, as provider:model, auto:cheapest and the like, or a list of them in order of preference.
#routing_strategy:
#  default: ["ollama:llama3.1", "openai:gpt-4o"]
#  query_routing: "ollama:llama3.1"
#  tool_calling: "ollama:llama3.1"
#  response_formatting: "ollama:phi-3"
#  complexity: {high: "openai:gpt-4o"}
#  fallback: "embedded:smollm2"

## `pipeline`: find out which tools a question needs, use them, answer. `direct`: one call.
#mode: direct

## What may be spent. The windows: call, turn, session, day, week, month, total; the actions: block, warn, fallback.
#budgets:
#  - {name: monthly, limit_usd: 20, window: month}
#  - {name: careful, limit_usd: 0.05, window: call, action: warn}
#  - {name: groq-day, limit_tokens: 100000, window: day, provider: groq, action: fallback}

## Seconds until an answer has to begin, waits included, and how often a failed request is made again.
#retry: {timeout: 60, max_attempts: 3}

## Answer equal requests from the log, where they are asked for with a temperature of at most this.
#cache: {enabled: true, ttl: 86400, max_temperature: 0.3}

## What models may do beside answering.
#tools:
#  disabled: [read_file]
#  fetch_url: true
#  allow_dirs: [~/notes]
#  mcp:
#    docs: {command: [npx, -y, "@modelcontextprotocol/server-filesystem", /srv/docs]}

## `full`, the default: what was recorded survives a power cut. `normal`: faster; it survives a crash of the program.
#store:
#  synchronous: normal

## What a model costs where the built-in table doesn't know it; US dollars per million tokens.
#prices:
#  "myserver:my-model": {input_per_million: 1.5, output_per_million: 6, cache_read_per_million: 0.2}

## Ask only models on this machine.
#offline: true
"""


@app.command()
def show(*, as_json: AsJson = False) -> None:
    """Print the settings in force, and where each comes from. As YAML; secrets are masked."""
    from timeline import config

    loaded, wrong = config.load_sound()
    settings = loaded.effective()
    names = dict.fromkeys([*loaded.providers, *loaded.routed])
    problems = {name: problem for name in names if (problem := loaded.problem(name))}
    astray = loaded.route_problems()
    if as_json:
        project_file = loaded.paths.project_file
        output.emit_json(
            {
                "config_file": str(loaded.paths.config_file),
                "project_file": str(project_file) if project_file else None,
                "settings": _nested((setting.path, setting.value) for setting in settings),
                "sources": [{"path": setting.path, "source": setting.source} for setting in settings],
                "problems": [
                    {"provider": name, "kind": problem.kind, "message": str(problem)}
                    for name, problem in problems.items()
                ],
                "route_problems": [{"kind": problem.kind, "message": str(problem)} for problem in astray],
                **({"error": output.error_object(wrong[0])} if wrong else {}),
                **({"errors": [output.error_object(error) for error in wrong]} if wrong else {}),
            }
        )
    else:
        sys.stdout.writelines(f"{line}\n" for line in _annotated(settings))
    for problem in (*problems.values(), *astray):
        output.notice(f"Warning: {problem}")
    if wrong:
        # Shown is what the other files say; in force is nothing.
        for error in () if as_json else wrong:
            output.fail(error)
        raise typer.Exit(wrong[0].exit_code)


@app.command()
def init(*, force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False) -> None:
    """Write a commented configuration file to start from. It is readable by you alone; its path is printed."""
    from timeline.config import find_paths

    path = find_paths().config_file
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(path, replace=force)
    except FileExistsError:
        msg = f"{path} is there already: edit it, or replace it with --force"
        raise UsageError(msg) from None
    except OSError as exc:
        msg = f"{path}: can't be written ({exc.strerror}): check the folder, or set TIMELINE_HOME to another"
        raise ConfigError(msg) from exc
    sys.stdout.write(f"{path}\n")


@app.command()
def path() -> None:
    """Print the path of your configuration file. Whether it is there or not."""
    from timeline.config import find_paths

    sys.stdout.write(f"{find_paths().config_file}\n")


def paths(*, as_json: AsJson = False) -> None:
    """Print where everything lies."""
    from timeline import config

    loaded, wrong = config.load_sound()
    found = loaded.paths
    places: dict[str, Path | None] = {name: getattr(found, name) for name in found.__struct_fields__}
    if as_json:
        output.emit_json(
            {
                "paths": {
                    name: {"path": str(place), "exists": os.access(place, os.F_OK)} if place else None
                    for name, place in places.items()
                }
            }
        )
    else:
        for name, place in places.items():
            missing = "" if place and os.access(place, os.F_OK) else "  (not there)"
            sys.stdout.write(f"{name:<12}  {place}{missing}\n" if place else f"{name:<12}  none\n")
    for error in wrong:
        output.notice(f"Warning: {error}")


def _write(path: Path, *, replace: bool) -> None:
    # A link that someone keeps in place of the file stays one.
    target = path.resolve() if replace else path
    place = target.with_name(f".{target.name}.{os.getpid()}") if replace else target
    with os.fdopen(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(STARTER)
    if replace:
        place.replace(target)


def _nested(settings: Iterable[tuple[tuple[str, ...], Any]]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for keys, value in settings:
        branch = tree
        for key in keys[:-1]:
            branch = branch.setdefault(key, {})
        branch[keys[-1]] = value
    return tree


def _annotated(settings: "Iterable[Setting]") -> Iterator[str]:
    """YAML lines with the source of each value as a comment."""
    home = str(Path.home())
    leaves = _nested((setting.path, (setting.value, setting.source)) for setting in settings)
    lines = list(_lines(leaves, ""))
    # A long line is no reason to move the comments of all others out of sight.
    width = max((len(line) for line, source in lines if source and len(line) <= LONG), default=0)
    for line, source in lines:
        shown = f"~{source.removeprefix(home)}" if source.startswith(f"{home}/") else source
        yield f"{line:<{width}}  # {shown}" if source else line


def _lines(tree: dict[str, Any], indent: str) -> Iterator[tuple[str, str]]:
    for key, item in tree.items():
        # What YAML would read as something else than text is quoted.
        plain = re.fullmatch(r"[a-z][a-z0-9_.-]+", key) and key not in {
            "true",
            "false",
            "yes",
            "no",
            "on",
            "off",
            "null",
        }
        name = key if plain else json.dumps(key, ensure_ascii=False)
        if isinstance(item, dict):
            yield f"{indent}{name}:", ""
            yield from _lines(item, f"{indent}  ")
            continue
        value, source = item
        if isinstance(value, list) and any(isinstance(each, dict) for each in value):
            yield f"{indent}{name}:", ""
            yield from ((f"{indent}  - {json.dumps(each, ensure_ascii=False)}", source) for each in value)
        else:
            yield f"{indent}{name}: {json.dumps(value, ensure_ascii=False)}", source
