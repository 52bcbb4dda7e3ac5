"""`timeline models`: what can be asked, side by side; fetching an embedded model, and loading any ahead of its first use."""

import asyncio
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer
from msgspec import Struct

from timeline.errors import NotFound, TimelineError

from . import output
from .options import AsJson

if TYPE_CHECKING:
    from pathlib import Path

    from timeline.config import Config, ModelRef
    from timeline.llm.pricing import ListPrice
    from timeline.providers.base import ModelInfo

__all__ = ["app", "price_object"]

app = typer.Typer(help="List models, fetch the embedded one, load one ahead.", no_args_is_help=True)


ABILITIES = ("tools", "schema", "images", "reasoning")

WARMED = {
    "process": "It runs in the process that asks, so each loads it anew; its file is in memory now.",
    "server": "Ollama keeps it loaded for a while (OLLAMA_KEEP_ALIVE, 5 minutes unless set).",
    "elsewhere": "A connection lasts as long as the command that opened it: this only shows that it can be had.",
}
"""What a warm model is good for; without it, the next question would look as if it had to be quicker than it is."""


class _Offer(Struct, frozen=True):
    """A model, its price, and whether it can be asked without a network."""

    model: "ModelInfo"
    price: "ListPrice"
    here: bool


@app.command("list")
def list_(
    providers: Annotated[
        list[str] | None, typer.Argument(metavar="PROVIDER", help="Whose; all enabled ones by default.")
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """List the models that can be asked now. Prices are US dollars per million tokens."""
    from timeline.config import load

    from .app import wait_for

    config = load()
    names = list(dict.fromkeys(providers or config.providers))
    offers, failures = wait_for(_offered(config, names))
    if as_json:
        output.emit_json(
            {
                "models": [_offer_object(offer) for offer in offers],
                "unavailable": [
                    {"provider": name, "kind": exc.kind, "message": str(exc)} for name, exc in failures.items()
                ],
            }
        )
    elif offers:
        header = ("model", "context", "input", "output", "can", "runs")
        narrowed = ("can", "context", "runs", "output", "input")
        lines, left_out = output.fitting([header, *map(_line, offers)], right=(1, 2, 3), first_to_go=narrowed)
        sys.stdout.writelines(f"{line}\n" for line in lines)
        output.notice_left_out(left_out)
    if not as_json:
        for exc in failures.values():
            output.notice(str(exc))
        for name in dict.fromkeys(
            each.model.provider for each in offers if each.here and each.price.state == "unpriced"
        ):
            output.notice(
                f"?: {name} is on this machine; if it computes its answers itself, 'local: true' in its entry says"
                " that they are free"
            )
    if providers and len(failures) == len(names):
        # With --json it has been said; what is left to tell is the exit code.
        exc = next(iter(failures.values()))
        raise typer.Exit(exc.exit_code) if as_json else exc


async def _offered(config: "Config", names: list[str]) -> tuple[list[_Offer], dict[str, TimelineError]]:
    from timeline.config import ModelRef
    from timeline.llm.pricing import PriceBook
    from timeline.providers.plugins import make_provider
    from timeline.providers.reach import runs_here

    prices = PriceBook(config.settings.prices, config.served)
    now = time.time_ns() // 1000

    def offer(model: "ModelInfo") -> _Offer:
        price = prices.listed(model.provider, model.id, local=model.local, at=now)
        # Ollama itself tells which of its models it only passes on.
        told = config.served(model.provider)[0] == "ollama"
        here = model.local or (not told and bool(runs_here(config, ModelRef(model.provider, model.id))))
        return _Offer(model, price, here)

    async def ask(name: str) -> list[_Offer]:
        provider = await asyncio.to_thread(make_provider, config, name)
        try:
            models = await provider.get_available_models()
        finally:
            await provider.aclose()
        for model in models:
            await prices.ready(name, model.id, local=model.local)
        return [offer(model) for model in models]

    answers = await asyncio.gather(*map(ask, names), return_exceptions=True)
    offers: list[_Offer] = []
    failures: dict[str, TimelineError] = {}
    for name, answer in zip(names, answers, strict=True):
        if isinstance(answer, TimelineError):
            failures[name] = answer
        elif isinstance(answer, BaseException):
            raise answer
        else:
            offers += sorted(answer, key=lambda offer: offer.model.id)
    return offers, failures


def _line(offer: _Offer) -> tuple[str, ...]:
    model, price = offer.model, offer.price
    context = model.context or price.context
    can = model.capabilities
    if price.rates is None:
        amounts = ("free", "free") if price.state == "free" else ("?", "?")
    else:
        amounts = (
            output.rate(price.rates.input, rises=price.rises),
            output.rate(price.rates.output, rises=price.rises),
        )
    return (
        f"{model.provider}:{model.id}",
        f"{context:,}" if context else "?",
        *amounts,
        "?" if can is None else " ".join(name for name in ABILITIES if getattr(can, name)) or "–",
        "here" if offer.here else "elsewhere",
    )


def _offer_object(offer: _Offer) -> dict[str, Any]:
    model, price = offer.model, offer.price
    can = model.capabilities
    return {
        "id": model.id,
        "provider": model.provider,
        "context": model.context or price.context,
        "context_source": "provider" if model.context else price.context and "genai-prices",
        "max_output": model.max_output,
        "here": offer.here,
        "local": model.local,
        "digest": model.digest,
        "capabilities": can and {name: getattr(can, name) for name in ("streaming", *ABILITIES)},
        "price": price_object(price),
    }


def price_object(price: "ListPrice") -> dict[str, Any]:
    """What a model costs, as `models list --json` and `route --json` print it."""
    rates = {
        f"{name}_per_million": None if rate is None else float(rate)
        for name, rate in (
            ((name, getattr(price.rates, name)) for name in price.rates.__struct_fields__) if price.rates else ()
        )
    }
    return {
        "state": price.state,
        **rates,
        "rises": price.rises,
        "table": price.table,
        "table_version": price.table_version,
        "entry": price.entry,
    }


@app.command()
def warm(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="As provider:model; the default one if none is named.")
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Load a model ahead of its first use. Says how long that took; of a service, it only opens the way to it."""
    from timeline.config import load

    from .app import wait_for

    config = load()
    route = config.choose(model)
    seconds, where = wait_for(_warm(config, route))
    said = WARMED[where]
    if as_json:
        output.emit_json({"model": str(route), "seconds": seconds, "stays_loaded": where == "server", "message": said})
        return
    done = "reached" if where == "elsewhere" else "loaded"
    sys.stdout.write(f"{route} {done} in {seconds:.2f} s. {said}\n")


async def _warm(config: "Config", route: "ModelRef") -> tuple[float, str]:
    """How long it took, and where the model is: a key of `WARMED`.

    Raises:
        NotFound: It has no such model.
        TimelineError: It can't be loaded or reached; `LLMProvider.warm_up` alone would keep that to itself.
    """
    from timeline.providers.base import LLMRequest
    from timeline.providers.embedded import EmbeddedProvider
    from timeline.providers.plugins import make_provider

    from .progress import Fetching

    kind, _ = config.served(route.provider)
    with Fetching() as fetching:
        provider = await asyncio.to_thread(make_provider, config, route.provider, fetching)
        try:
            if isinstance(provider, EmbeddedProvider):
                started = time.perf_counter()
                await provider.load(route.model)
                return time.perf_counter() - started, "process"
            started = time.perf_counter()
            known = {model.id for model in await provider.get_available_models()}
            if kind == "ollama" and not known & {route.model, f"{route.model}:latest"}:
                msg = f"{route.provider} has no {route.model}: fetch it with 'ollama pull {route.model}'"
                raise NotFound(msg)
            if kind != "ollama" or not provider.is_local(route.model):
                return time.perf_counter() - started, "elsewhere"
            # Without a message it loads the model and says nothing; unlike `warm_up` it tells what goes wrong.
            await provider.make_request(LLMRequest(route.model, ()))
            return time.perf_counter() - started, "server"
        finally:
            await provider.aclose()


@app.command()
def pull(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Which embedded model.")] = "smollm2",
) -> None:
    """Fetch an embedded model. Then the first question needs no network."""
    from timeline.config import load

    from .app import wait_for
    from .progress import Fetching

    config = load()

    async def work() -> "Path":
        from timeline.providers.models import ModelStore

        with Fetching() as fetching:
            store = ModelStore(config.paths.models_dir, config.provider("embedded").models)
            return await store.fetch(name.removeprefix("embedded:"), fetching)

    sys.stdout.write(f"{wait_for(work())}\n")
