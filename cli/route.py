"""`timeline route`: whom a question would go to, in which order and why, without asking anybody."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from msgspec import Struct

from timeline.errors import NotFound, UsageError

from . import output
from .options import MOST, AsJson, Offline
from .question import question

if TYPE_CHECKING:
    from timeline.cognition.prompts import File
    from timeline.config import Complexity, Config, Task
    from timeline.events import Cost
    from timeline.llm.facts import Explained
    from timeline.llm.ranking import ModelFacts

__all__ = ["Question", "explain", "route"]

Step = Literal["query_routing", "tool_calling", "response_formatting"]
STEPS: tuple[Step, ...] = ("query_routing", "tool_calling", "response_formatting")
WHY_WIDTH = 24
"""Cells in which a reason can be read, going on in the next lines; where there are fewer, figures give way."""


def route(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="What you would ask; `-` reads it from standard input.")
    ] = None,
    *,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", metavar="PROVIDER:MODEL", help="Which model you would ask for, or auto:cheapest …"
        ),
    ] = None,
    system: Annotated[str | None, typer.Option("--system", "-s", metavar="TEXT", help="System prompt.")] = None,
    files: Annotated[
        list[Path] | None, typer.Option("--file", "-f", metavar="FILE", help="A file to go with it; repeatable.")
    ] = None,
    go_on: Annotated[bool, typer.Option("--continue", "-c", help="As a part of the last session.")] = False,
    session: Annotated[str | None, typer.Option("--session", metavar="SESSION", help="As a part of this one.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", metavar="N", min=1, max=MOST, help="Most tokens to answer with.")
    ] = None,
    direct: Annotated[
        bool | None,
        typer.Option(
            "--direct/--pipeline", help="As one call, or as route, tools and answer (the default).", show_default=False
        ),
    ] = None,
    step: Annotated[Step | None, typer.Option("--step", help="Of this step of the pipeline alone.")] = None,
    complexity: Annotated[
        Literal["low", "medium", "high"] | None,
        typer.Option("--complexity", help="If the prompt is found to be so complex."),
    ] = None,
    offline: Offline = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Also say about what each would cost.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say whom a question would go to, and why. Asks nobody, costs nothing, records nothing.

    Example: timeline route --dry-run -m auto:cheapest "Why is the sky blue?"
    """
    if go_on and session:
        msg = f"--continue means the last session and --session {session}: choose one"
        raise UsageError(msg)
    prompt, attached, _ = question(words, files)
    asked = Question(prompt, model, "last" if go_on else session, system, attached, max_tokens)
    explain(asked, direct=direct, step=step, complexity=complexity, offline=offline, dry_run=dry_run, as_json=as_json)


class Question(Struct, frozen=True):
    """What would be asked; fields as of `Timeline.explain`."""

    prompt: str
    model: str | None
    session: str | None
    system: str | None
    files: "tuple[File, ...]"
    max_tokens: int | None


def explain(
    asked: Question,
    *,
    direct: bool | None,
    offline: bool,
    dry_run: bool,
    as_json: bool,
    step: Step | None = None,
    complexity: "Complexity | None" = None,
) -> None:
    """Print whom a question would go to.

    Args:
        asked: What would be asked.
        direct: As one call; None for what is configured.
        offline: Only models on this machine.
        dry_run: Also about what each would cost.
        as_json: As an object.
        step: Of this step alone.
        complexity: If the prompt is found to be so complex.
    """
    from timeline.config import load

    from .app import wait_for

    config = load(overrides={"offline": True} if offline else None)
    if direct is None:
        direct = config.settings.mode == "direct"
    tasks: list[Task] = [step] if step else ["default"] if direct and not complexity else [*STEPS]
    # The answer's is the last one, and what most people want to know.
    *before, explained = wait_for(_explained(config, asked, tasks, complexity))
    now = time.time_ns() // 1000
    if as_json:
        steps = [{"task": each.asked.task, **_decision(each, estimates=dry_run, now=now)} for each in before]
        quote = {"estimate": _quote_object(before, explained)} if dry_run else {}
        output.emit_json(_object(explained, estimates=dry_run, now=now) | quote | {"steps": steps})
    else:
        table, left_out = _candidates(explained, estimates=dry_run)
        lines = table + _remarks(explained, now, estimates=dry_run)
        lines += [_step(each, estimates=dry_run) for each in before]
        if dry_run and before:
            lines.append(f"together {_in_words(_quote(before, explained))}: the route's call, and the answer's")
        sys.stdout.writelines(f"{line}\n" for line in lines)
        output.notice_left_out(left_out)
    if not explained.routed.candidates:
        from timeline.llm.facts import refusal

        error = refusal(explained.routed, explained.facts)
        # With --json it has been said; what is left to tell is the exit code.
        raise typer.Exit(error.exit_code) if as_json else error


async def _explained(
    config: "Config", asked: Question, tasks: "Sequence[Task]", complexity: "Complexity | None"
) -> "list[Explained]":
    from timeline.cognition.prompts import user_message
    from timeline.cognition.steps import route_request
    from timeline.events import Clock
    from timeline.llm.facts import Router, request_of
    from timeline.llm.pricing import PriceBook
    from timeline.llm.router import Asked
    from timeline.providers.pool import Providers

    from .opening import writable

    if config.paths.store.exists():
        from timeline.runtime import Timeline

        async with Timeline.open(config=config, read_only=not writable(config)) as timeline:
            options = {name: getattr(asked, name) for name in Question.__struct_fields__}
            return [await timeline.explain(**options, task=task, complexity=complexity) for task in tasks]
    if asked.session is not None:
        msg = "there is no session yet: 'timeline ask' begins one"
        raise NotFound(msg)
    # Nothing was ever recorded, and this is no reason to begin.
    async with Providers(config) as providers:
        router = Router(config, Clock(), PriceBook(config.settings.prices, config.served), providers.get)
        models = () if asked.model is None else (config.parse_choice(asked.model),)
        request = request_of([user_message(asked.prompt, asked.files)], asked.system, asked.max_tokens)
        requests = {"query_routing": route_request(asked.prompt)}
        return [await router.explain(Asked(models, task, complexity, requests.get(task, request))) for task in tasks]


def _step(explained: "Explained", *, estimates: bool) -> str:
    """A step before the answer, in a line."""
    task, first = explained.asked.task, next(iter(explained.routed.candidates), None)
    if first is None:
        return f"{task}: nobody"
    quoted = ""
    if estimates and task == "query_routing":
        quoted = f"; {_in_words(_estimate(explained))} for {explained.asked.request.input_tokens:,} tokens in"
    elif estimates:
        quoted = "; only if a tool is needed, and then on top"
    return f"{task}: {first}, {first.why}{quoted}"


def _estimate(explained: "Explained") -> "Cost":
    """About what a step costs if the first one who would be asked answers."""
    from timeline.config import ModelRef
    from timeline.events import Cost

    first = next(iter(explained.routed.candidates), None)
    return explained.facts.of(ModelRef(first.provider, first.model)).estimate if first else Cost("unpriced")


def _quote(before: "Sequence[Explained]", explained: "Explained") -> "Cost":
    """About what the calls cost that are made in any case: the route's, where there is one, and the answer's."""
    from timeline.events import Cost

    costs = [_estimate(each) for each in (*before, explained) if each.asked.task != "tool_calling" or not before]
    if any(cost.state not in ("priced", "free") for cost in costs):
        return Cost("unpriced")
    if all(cost.state == "free" for cost in costs):
        return Cost("free")
    return Cost("priced", sum(cost.nano_usd or 0 for cost in costs))


def _quote_object(before: "Sequence[Explained]", explained: "Explained") -> dict[str, Any]:
    cost = _quote(before, explained)
    return {"state": cost.state, "usd": 0.0 if cost.state == "free" else _usd(cost.nano_usd)}


def _candidates(explained: "Explained", *, estimates: bool) -> tuple[list[str], list[str]]:
    """A table of whom would be asked, in that order, and what of it there was no space for."""
    from timeline.config import ModelRef

    facts, rows = explained.facts, []
    for number, each in enumerate(explained.routed.candidates, 1):
        known = facts.of(ModelRef(each.provider, each.model))
        about = (_about(known.estimate),) if estimates else ()
        context = f"{known.context:,}" if known.context else "?"
        rows.append((str(number), str(each), *_rates(known), context, *about, each.why))
    header = ("", "model", "input", "output", "context", *(("about",) if estimates else ()), "why")
    if not rows:
        return [], []
    right = (0, 2, 3, 4, 5) if estimates else (0, 2, 3, 4)
    return output.fitting([header, *rows], right, first_to_go=("context", "output", "input"), sentence=WHY_WIDTH)


def _remarks(explained: "Explained", now: int, *, estimates: bool) -> list[str]:
    """What else is known of them, and who would not be asked."""
    from timeline.config import ModelRef
    from timeline.llm.ranking import answer_tokens, speed_words

    facts, request, lines = explained.facts, explained.asked.request, list[str]()
    for each in explained.routed.candidates:
        known = facts.of(ModelRef(each.provider, each.model))
        if known.waits(now) or known.stats:
            # Who failed so far has no speed.
            measured = known.stats is not None and known.stats.tokens_per_second is not None
            so_far = f"so far {speed_words(known.stats)}" if measured else "speed not measured yet"
            lines.append(f"{each}: {'; '.join(filter(None, (known.waits(now), so_far)))}")
    lines += [f"not asked: {each}" for each in explained.routed.rejected]
    if estimates:
        answers = {answer_tokens(request, known.stats) for known in facts.models.values()} or {0}
        most = f"{min(answers):,}" if len(answers) == 1 else f"{min(answers):,} to {max(answers):,}"
        tokens = "1 token" if request.input_tokens == 1 else f"{request.input_tokens:,} tokens"
        lines.append(f"about {tokens} in and {most} out; a model may write more or less")
    return lines


def _rates(known: "ModelFacts") -> tuple[str, str]:
    price = known.price
    if price.rates is None:
        return ("free", "free") if price.state == "free" else ("?", "?")
    return output.rate(price.rates.input, rises=price.rises), output.rate(price.rates.output, rises=price.rises)


def _about(cost: "Cost") -> str:
    if cost.state == "priced":
        return output.usd(cost.nano_usd or 0)
    return "free" if cost.state == "free" else "?"


def _in_words(cost: "Cost") -> str:
    return {"priced": f"about {_about(cost)}", "free": "free"}.get(cost.state, "of unknown price")


def _object(explained: "Explained", *, estimates: bool, now: int) -> dict[str, Any]:
    """What `route --json` prints; with `estimates` what each would cost."""
    facts, asked = explained.facts, explained.asked
    return {
        "task": asked.task,
        "complexity": asked.complexity,
        "input_tokens": asked.request.input_tokens,
        "max_tokens": asked.request.max_tokens,
        "offline": facts.offline,
        "session_model": str(facts.last.model) if facts.last else None,
        **_decision(explained, estimates=estimates, now=now),
    }


def _decision(explained: "Explained", *, estimates: bool, now: int) -> dict[str, Any]:
    """Who would be asked, and who wouldn't."""
    from timeline.config import ModelRef
    from timeline.llm.ranking import answer_tokens

    from .models import price_object

    facts, asked, routed = explained.facts, explained.asked, explained.routed

    def known(provider: str, model: str) -> dict[str, Any]:
        of = facts.of(ModelRef(provider, model))
        stats = of.stats
        value = {
            "context": of.context,
            "here": of.here,
            "price": price_object(of.price),
            "waits": of.waits(now),
            "open_until": of.open_until if (of.open_until or 0) > now else None,
            "limited_until": of.limited_until if (of.limited_until or 0) > now else None,
            "stats": None
            if stats is None
            else {
                "calls": stats.calls,
                "error_rate": stats.error_rate,
                "time_to_first_token_seconds": stats.time_to_first_token,
                "tokens_per_second": stats.tokens_per_second,
                "output_tokens": stats.output_tokens,
                "cost_usd": _usd(stats.cost_nano_usd),
            },
        }
        if estimates:
            value["estimate"] = {
                "output_tokens": answer_tokens(asked.request, stats),
                "state": of.estimate.state,
                "usd": 0.0 if of.estimate.state == "free" else _usd(of.estimate.nano_usd),
            }
        return value

    return {
        "candidates": [
            {
                "provider": each.provider,
                "model": each.model,
                "why": each.why,
                "fallback": each.fallback,
                **known(each.provider, each.model),
            }
            for each in routed.candidates
        ],
        "rejected": [
            {
                "provider": each.provider,
                "model": each.model,
                "why": each.why,
                "ground": each.ground,
                **known(each.provider, each.model),
            }
            for each in routed.rejected
        ],
    }


def _usd(nano: int | None) -> float | None:
    return None if nano is None else nano / 1_000_000_000
