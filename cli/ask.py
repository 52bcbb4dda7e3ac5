"""`timeline ask`: the answer to stdout as it comes, all else to stderr, everything to the log."""

import asyncio
from contextlib import aclosing
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from timeline.errors import UsageError

from . import output
from .agreeing import agreed, agreeing
from .options import LARGEST, MOST, AsAscii, Offline
from .question import question
from .shown import Learning, Shown, Watched, fill_in, last_events
from .signs import ascii_only

if TYPE_CHECKING:
    from timeline.cognition.turn import TurnEnd
    from timeline.config import BudgetConfig
    from timeline.events import Event

__all__ = ["ask"]


def ask(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="What to ask; `-` reads it from standard input.")
    ] = None,
    *,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="PROVIDER:MODEL",
            help="Which model to ask, or auto:cheapest …; several are asked at once.",
        ),
    ] = None,
    system: Annotated[str | None, typer.Option("--system", "-s", metavar="TEXT", help="System prompt.")] = None,
    files: Annotated[
        list[Path] | None,
        typer.Option(
            "--file",
            "-f",
            metavar="FILE",
            help="Text in UTF-8, or a PNG, JPEG, GIF or WebP image, to go with the prompt; repeatable.",
        ),
    ] = None,
    go_on: Annotated[bool, typer.Option("--continue", "-c", help="Go on with the last session.")] = False,
    session: Annotated[
        str | None,
        typer.Option("--session", metavar="SESSION", help="Go on with this one: id, unique prefix, title or `last`."),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", metavar="NUMBER", min=0, max=2, help="Sampling temperature.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", metavar="N", min=1, max=MOST, help="Most tokens to answer with.")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", metavar="N", min=-LARGEST, max=LARGEST, help="For repeatable sampling, where the provider has it."
        ),
    ] = None,
    max_cost: Annotated[
        str | None,
        typer.Option("--max-cost", metavar="USD", help="Most that the question may cost, US dollars; or don't ask."),
    ] = None,
    schema: Annotated[
        str | None,
        typer.Option(
            "--schema", metavar="FIELDS", help="Answer in JSON: 'name, age int', or a file with a JSON Schema."
        ),
    ] = None,
    allow_dirs: Annotated[
        list[Path] | None,
        typer.Option(
            "--allow-dir",
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="A folder that tools may read, too; repeatable.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Let tools change things without asking.")] = False,
    no_stream: Annotated[bool, typer.Option("--no-stream", help="Ask for the answer in one piece.")] = False,
    direct: Annotated[
        bool | None,
        typer.Option(
            "--direct/--pipeline", help="One call, or route, tools and answer (the default).", show_default=False
        ),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout", min=0.1, metavar="SECONDS", help="How long until the first words, waits and retries included."
        ),
    ] = None,
    cache: Annotated[
        bool | None,
        typer.Option(
            "--cache/--no-cache", help="Take the recorded answer of an equal request, or ask anew.", show_default=False
        ),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Record tokens, times and cost, but nothing that was said.")
    ] = False,
    offline: Offline = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say whom it would go to and about what it would cost.")
    ] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Don't render Markdown on a terminal.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No usage line, no progress, no reasoning.")] = False,
    show_cognition: Annotated[
        bool, typer.Option("--show-cognition/--no-show-cognition", help="Show the steps that lead to the answer.")
    ] = True,
    as_ascii: AsAscii = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
    as_events: Annotated[
        bool, typer.Option("--events", help="Print the events as JSON lines while they are recorded.")
    ] = False,
) -> None:
    """Ask a model. Every event of the call is recorded before you see its result.

    Example: timeline ask "Why is the sky blue?"
    """
    from .app import wait_for

    if as_json and as_events:
        msg = "--json prints one object and --events a line an event: choose one"
        raise UsageError(msg)
    if go_on and session:
        msg = f"--continue means the last session and --session {session}: choose one"
        raise UsageError(msg)
    ascii_only(as_ascii)
    model = models[0] if models else None
    if models and len(models) > 1:
        _refuse_for_several(models, {"--continue": go_on, "--session": session is not None, "--dry-run": dry_run})
    prompt, attached, title = question(words, files)

    def options() -> dict[str, Any]:
        return {
            "system": system,
            "files": attached,
            "temperature": temperature,
            "max_tokens": max_tokens,
            "seed": seed,
            "stream": not no_stream,
            "private": private,
            "direct": direct,
            "timeout": timeout,
            "cache": cache,
            "budgets": _budgets(max_cost),
            "schema": _schema(schema),
            "allow_dirs": tuple(allow_dirs or ()),
            "title": title,
        }

    if models and len(models) > 1:
        from .compare import compare

        code = compare(
            prompt,
            models,
            plain=plain,
            quiet=quiet,
            as_json=as_json,
            as_events=as_events,
            offline=offline,
            yes=yes,
            **options(),
        )
        raise typer.Exit(code)
    if dry_run:
        from .route import Question, explain

        asked = Question(prompt, model, "last" if go_on else session, system, attached, max_tokens)
        explain(asked, direct=direct, offline=offline, dry_run=True, as_json=as_json)
        return
    shown = (
        _Json()
        if as_json
        else _Events()
        if as_events
        else Watched(plain=plain, quiet=quiet, cognition=show_cognition, whole=schema is not None)
    )
    end = wait_for(
        _ask(
            shown,
            prompt,
            model=model,
            session="last" if go_on else session,
            **options(),
            quiet=quiet,
            offline=offline,
            yes=yes,
        )
    )
    if end is not None and end.error is not None:
        if not (as_json or shown.told):
            output.fail(end.error)
        raise typer.Exit(end.error.exit_code)


def _refuse_for_several(models: list[str], options: dict[str, bool]) -> None:
    for name, given in options.items():
        if given:
            msg = f"{name} goes with one model, not with {len(models)}: name one with -m"
            raise UsageError(msg)


async def _ask(
    shown: Shown, prompt: str, *, model: str | None, quiet: bool, offline: bool, yes: bool, **options: object
) -> "TurnEnd | None":
    from timeline.config import load
    from timeline.providers.pool import Providers

    from .progress import Fetching

    with Fetching(quiet=quiet) as fetching:
        config = load(overrides={"offline": True} if offline else None)
        async with Providers(config, fetching) as providers:
            direct = options["direct"] is True or (options["direct"] is None and config.settings.mode == "direct")
            providers.warm(model, going_on=options["session"] is not None, direct=direct)
            # In a thread, so that the model begins to load meanwhile: this takes longer to import than all before.
            await asyncio.to_thread(import_module, "timeline.runtime")
            from timeline.cognition.turn import TurnEnd
            from timeline.events import Event
            from timeline.providers.base import Delta
            from timeline.runtime import Timeline

            async with Timeline.open(providers=providers, confirm=agreed if yes else agreeing(shown.aside)) as timeline:
                end = None
                try:
                    async with aclosing(timeline.ask(prompt, model=model, **options)) as items:  # type: ignore[arg-type]
                        try:
                            async for item in items:
                                if isinstance(item, TurnEnd):
                                    end = item
                                elif isinstance(item, Event):
                                    shown.event(item)
                                    if shown.wanted:
                                        shown.learn(await timeline.store.contents(shown.wanted))
                                elif isinstance(item, Delta):
                                    shown.delta(item)
                                else:
                                    shown.superseded(item)
                        finally:
                            # Before anything else that takes its time.
                            shown.stop()
                except asyncio.CancelledError:
                    for event in await last_events(timeline, shown.seen):
                        shown.event(event)
                    raise
                finally:
                    shown.end(end)
                return end


def _schema(text: str | None) -> dict[str, Any] | None:
    from timeline.cognition.schema import schema_of

    return None if text is None else schema_of(text)


def _budgets(max_cost: str | None) -> "tuple[BudgetConfig, ...]":
    from timeline import config

    return () if max_cost is None else (config.max_cost(max_cost),)


# ------------------------------------------------------------------ what is shown to programs


class _Json(Learning):
    def end(self, end: "TurnEnd | None") -> None:
        from timeline.projections.blocks import fold

        from .shapes import turn_object

        if end is None:
            return
        session = fold(self.seen)
        value = turn_object(session.session_id, fill_in(session.turns[-1], end), self.bodies)
        # A private turn's text is not in its events.
        value["answer"] = end.text
        if end.error is not None:
            value["error"] = output.error_object(end.error, value.get("error"))
        output.emit_json(value)


class _Events(Shown):
    def event(self, event: "Event") -> None:
        from .shapes import event_object

        super().event(event)
        output.emit_json(event_object(event), indent=0)
