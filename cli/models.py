"""`timeline models`: what can be asked, and fetching an embedded model ahead of its first use."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from timeline.errors import TimelineError

from . import output

if TYPE_CHECKING:
    from pathlib import Path

    from timeline.config import Config
    from timeline.providers.base import ModelInfo

__all__ = ["app"]

app = typer.Typer(help="List the models that can be asked, and fetch the embedded ones.", no_args_is_help=True)


@app.command("list")
def list_(
    providers: Annotated[
        list[str] | None, typer.Argument(metavar="[PROVIDER]...", help="Whose; all enabled ones by default.")
    ] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the models that can be asked now, provider by provider."""
    from timeline.config import load

    from .app import wait_for

    config = load()
    names = providers or list(config.providers)
    found, failures = wait_for(_offered(config, names))
    if as_json:
        output.emit_json(
            {
                "models": [msgspec.to_builtins(model) for model in found],
                "unavailable": [{"provider": name, "message": str(exc)} for name, exc in failures],
            }
        )
        return
    for model in found:
        details = [f"{model.context:,} tokens"] if model.context else []
        details += ["on this machine"] if model.local else []
        sys.stdout.write("  ".join([f"{model.provider}:{model.id}", *details]) + "\n")
    for _, exc in failures:
        output.notice(str(exc))
    if providers and len(failures) == len(providers):
        raise failures[0][1]


async def _offered(config: Config, names: list[str]) -> tuple[list[ModelInfo], list[tuple[str, TimelineError]]]:
    from timeline.providers.plugins import make_provider

    async def ask(name: str) -> list[ModelInfo]:
        provider = make_provider(config, name)
        try:
            return await provider.get_available_models()
        finally:
            await provider.aclose()

    answers = await asyncio.gather(*(ask(name) for name in names), return_exceptions=True)
    found: list[ModelInfo] = []
    failures: list[tuple[str, TimelineError]] = []
    for name, answer in zip(names, answers, strict=True):
        if isinstance(answer, TimelineError):
            failures.append((name, answer))
        elif isinstance(answer, BaseException):
            raise answer
        else:
            found += answer
    return found, failures


@app.command()
def pull(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Which embedded model.")] = "smollm2",
) -> None:
    """Fetch an embedded model and check it, so that the first question needs no network."""
    from timeline.config import load

    from .app import wait_for
    from .progress import Fetching

    config = load()

    async def work() -> Path:
        from timeline.providers.models import ModelStore

        with Fetching() as fetching:
            store = ModelStore(config.paths.models_dir, config.provider("embedded").models)
            return await store.fetch(name.removeprefix("embedded:"), fetching)

    sys.stdout.write(f"{wait_for(work())}\n")
