"""`timeline providers`: who can be asked, and whether it would work now: key, address, models, time and price."""

import asyncio
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer
from msgspec import Struct

from timeline.errors import ConfigError, ProviderTimeout, TimelineError

from . import output
from .options import AsJson

if TYPE_CHECKING:
    from timeline.config import Config
    from timeline.events import Cost
    from timeline.llm.pricing import PriceBook
    from timeline.providers.base import ModelInfo

__all__ = ["app"]

app = typer.Typer(help="List the providers, and check whether they can be asked.", no_args_is_help=True)


FEW = 3
"""Models that a line names."""


@app.command("list")
def list_(*, as_json: AsJson = False) -> None:
    """List every provider. Whether it is built in, configured or brought by a plugin; asks none of them."""
    from timeline.config import load

    rows = [_described(config, name) for config in [load()] for name in _names(config)]
    if as_json:
        output.emit_json({"providers": rows})
        return
    header = ("provider", "kind", "address", "key", "enabled", "set in")
    narrowed = ("set in", "kind", "address", "enabled")
    lines, left_out = output.fitting([header, *(_line(row) for row in rows)], first_to_go=narrowed)
    sys.stdout.writelines(f"{line}\n" for line in lines)
    output.notice_left_out(left_out)
    for row in rows:
        if row["problem"]:
            output.notice(f"Warning: {row['problem']}")


@app.command()
def check(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Which; by default all that are enabled or that a route names."),
    ] = None,
    *,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=0.1, help="How long each may take.")
    ] = 20.0,
    as_json: AsJson = False,
) -> None:
    """Check that providers can be asked. Each lists its models, which costs nothing; says what a one-token call would cost.

    Ends with 0 if all that were named can be asked, or else all that a configuration file lists or a route names.
    """
    from timeline.config import load

    from .app import wait_for

    config = load()
    asked = list(dict.fromkeys(names)) if names else list(dict.fromkeys([*config.providers, *config.routed]))
    found = wait_for(_check_all(config, asked, timeout, show=not as_json))
    astray = [] if names else config.route_problems()
    if as_json:
        output.emit_json(
            {
                "providers": [_checked_object(each) for each in found],
                "route_problems": [output.error_object(problem) for problem in astray],
            }
        )
    else:
        sys.stdout.writelines(f"route failed: {problem}\n" for problem in astray)
    matter = set(names or config.routed) | {name for name in asked if config.source("llm_providers", name) != "default"}
    codes = [each.error.exit_code for each in found if each.error and each.name in matter]
    codes += [problem.exit_code for problem in astray]
    if codes:
        raise typer.Exit(max(codes))


# ------------------------------------------------------------------ list


def _names(config: "Config") -> list[str]:
    from timeline.config import KINDS
    from timeline.entry_points import PROVIDERS, installed

    plugins = [plugin.name for plugin in installed(PROVIDERS)]
    return list(dict.fromkeys([*config.settings.llm_providers, *KINDS, *plugins]))


def _described(config: "Config", name: str) -> dict[str, Any]:
    from timeline.config.settings import masked

    written = config.settings.llm_providers.get(name)
    row: dict[str, Any] = {
        "name": name,
        "kind": (written and written.kind) or name,
        "base_url": None,
        "key": {"state": "not_needed", "origin": None},
        "enabled": bool(written and written.enabled),
        "configured": written is not None,
        "source": config.source("llm_providers", name) if written else None,
        "problem": None,
    }
    try:
        _, address = config.served(name)
        row["base_url"] = masked(("base_url",), address)
        key = next(iter(config.keys(name)), None) if config.takes_key(name) else None
        if key is not None:
            row["key"] = {"state": "found", "origin": key.origin}
        elif config.needs_key(name):
            row["key"]["state"] = "missing"
    except TimelineError as exc:
        row["key"]["state"] = "unknown"
        row["problem"] = str(exc) if row["enabled"] else None
    return row


def _line(row: dict[str, Any]) -> tuple[str, ...]:
    key = {"not_needed": "–", "missing": "missing", "unknown": "?"}.get(row["key"]["state"], row["key"]["origin"])
    # One that nobody listed can be asked by name all the same.
    enabled = "yes" if row["enabled"] else "no" if row["configured"] else "with -m"
    source = row["source"] or "–"
    return row["name"], row["kind"], row["base_url"] or "in this process", key, enabled, output.short_path(source)


# ------------------------------------------------------------------ check


class _Checked(Struct, frozen=True):
    """What came out for one provider.

    Args:
        name: As configured.
        key: Where its key is from; None where it has none.
        models: What it offers.
        seconds: How long it took to say so, with opening the connection.
        model: The model that was priced.
        cost: One token in and one out of it.
        error: Why it can't be asked.
    """

    name: str
    key: str | None = None
    models: "tuple[ModelInfo, ...]" = ()
    seconds: float | None = None
    model: str | None = None
    cost: "Cost | None" = None
    error: TimelineError | None = None


async def _check_all(config: "Config", names: list[str], timeout: float, *, show: bool) -> list[_Checked]:
    import httpx  # noqa: F401  here, so that nobody's time includes it

    from timeline.llm.pricing import PriceBook

    prices = PriceBook(config.settings.prices, config.served)
    tasks = [asyncio.create_task(_check(config, prices, name, timeout)) for name in names]
    found = []
    width = max(map(len, names), default=0)
    try:
        for task in tasks:
            found.append(await task)
            if show:
                sys.stdout.write(f"{found[-1].name:<{width}}  {_sentence(found[-1])}\n")
                sys.stdout.flush()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return found


async def _check(config: "Config", prices: "PriceBook", name: str, timeout: float) -> _Checked:
    from timeline.providers.plugins import make_provider

    key = None
    try:
        key = next((key.origin for key in config.keys(name)), None) if config.takes_key(name) else None
        if config.settings.offline and not _is_here(config, name):
            msg = f"{name} was not asked, because of offline: true"
            raise ConfigError(msg)
        # `key_cmd` may take its time.
        provider = await asyncio.to_thread(make_provider, config, name)
        started = time.perf_counter()
        try:
            async with asyncio.timeout(timeout):
                models = tuple(await provider.get_available_models())
            seconds = time.perf_counter() - started
        except TimeoutError:
            msg = f"{name} didn't list its models within {timeout:g} s: try again or raise --timeout"
            raise ProviderTimeout(msg, provider=name) from None
        finally:
            await provider.aclose()
        model = _usual_model(config, name, models)
        cost = None
        if model:
            local = provider.is_local(model)
            await prices.ready(name, model, local=local)
            cost = _one_token(prices, name, model, local=local)
    except TimelineError as exc:
        return _Checked(name, key, error=exc)
    return _Checked(name, key, models, seconds, model, cost)


def _is_here(config: "Config", name: str) -> bool:
    from timeline.providers.address import is_loopback, split_url

    _, address = config.served(name)
    return address is None or is_loopback(split_url(address)[4])


def _usual_model(config: "Config", name: str, offered: "tuple[ModelInfo, ...]") -> str | None:
    """The model that questions go to: the default route's, else the first that is configured, else the first there is."""
    from timeline.config import ModelRef

    written = config.settings.llm_providers.get(name)
    try:
        route = config.default_route()
    except ConfigError:
        route = ()  # It leads nowhere, which is no fault of this provider.
    routed = [choice.model for choice in route if isinstance(choice, ModelRef) and choice.provider == name]
    return next(iter([*routed, *(written.models if written else ()), *(model.id for model in offered)]), None)


def _one_token(prices: "PriceBook", name: str, model: str, *, local: bool) -> "Cost":
    from timeline.events import Usage

    return prices.cost(name, (model,), Usage(input=1, output=1), local=local, at=time.time_ns() // 1000)


def _sentence(found: _Checked) -> str:
    from timeline.money import usd

    if found.error is not None:
        return f"failed: {found.error}"
    few = ", ".join(model.id for model in found.models[:FEW]) + (", …" if len(found.models) > FEW else "")
    count = len(found.models)
    parts = [
        "ok",
        f"key from {found.key}" if found.key else "no key",
        f"{count} model{'' if count == 1 else 's'}{f' ({few})' if few else ''}",
        f"{(found.seconds or 0) * 1000:.0f} ms",
    ]
    if found.cost is not None:
        amount = {"free": "free", "unpriced": "?"}.get(found.cost.state) or usd(found.cost.nano_usd or 0)
        parts.append(f"one token in and out of {found.model}: {amount}")
    return " · ".join(parts)


def _checked_object(found: _Checked) -> dict[str, Any]:
    cost = found.cost
    value: dict[str, Any] = {
        "name": found.name,
        "ok": found.error is None,
        "key": found.key,
        "models": [model.id for model in found.models],
        "seconds": found.seconds,
        "one_token": cost
        and {
            "model": found.model,
            "state": cost.state,
            "usd": None if cost.nano_usd is None else cost.nano_usd / 1_000_000_000,
            "table": cost.table,
            "table_version": cost.table_version,
            "entry": cost.entry,
        },
    }
    if found.error is not None:
        value["error"] = output.error_object(found.error)
    return value
