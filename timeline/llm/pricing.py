"""What tokens cost, and how many there are where a provider doesn't say.

Money is a whole number of nano-US-dollars: a sum is exact until it is rounded once, half to even.
Prices are the user's own (`prices` in the configuration), else those of the package genai-prices as it
is installed. Nothing is fetched, and what has no price is unpriced, not free.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import Struct

from timeline.config import Price
from timeline.errors import TimelineError
from timeline.events import Cost, Usage
from timeline.money import MOST_NANO_USD
from timeline.providers.address import is_loopback, split_url

if TYPE_CHECKING:
    from types import ModuleType

    from genai_prices.types import PriceCalculation

__all__ = ["ListPrice", "PriceBook", "Rates", "estimate_tokens", "together"]

CHARACTERS_PER_TOKEN = 4
"""A rule of thumb for English text (https://platform.openai.com/tokenizer)."""
HEAD_START = 0.15
"""Seconds that a request is under way before the table's import may take processor time from it."""
TABLE = "genai-prices"
OWN = "config"
VENDORS = frozenset({"openai", "anthropic", "groq"})
"""Providers that the table knows by the same name."""
MODES = ("service_tier", "speed", "processing")
"""Fields of a request that change its price, as OpenAI, Groq and Anthropic name them; and how the table names batches."""
EXACT = Context(prec=60)

Served = Callable[[str], tuple[str, str | None]]


def together(costs: Sequence[Cost]) -> Cost:
    """What several things cost, under the name of the first that has a price; unknown, but for a part, where one is."""
    priced = [cost for cost in costs if cost.state == "priced"]
    nano_usd = min(sum(cost.nano_usd or 0 for cost in priced), MOST_NANO_USD)
    if any(cost.state == "unpriced" for cost in costs):
        return Cost("unpriced", nano_usd or None)
    return msgspec.structs.replace(priced[0], nano_usd=nano_usd) if priced else Cost("free")


def estimate_tokens(*texts: str) -> int:
    """About how many tokens the texts are; anything that isn't empty is at least one."""
    return sum(-(-len(text) // CHARACTERS_PER_TOKEN) for text in texts)


class Rates(Struct, frozen=True):
    """US dollars per million tokens, for each counter of `Usage`; None where there is no such price."""

    input: Decimal | None
    output: Decimal | None
    cache_read: Decimal | None
    cache_write: Decimal | None
    cache_write_1h: Decimal | None


class ListPrice(Struct, frozen=True, omit_defaults=True):
    """What a model costs, for people to compare.

    Args:
        state: As of a `Cost`.
        rates: None unless `priced`.
        rises: Long prompts cost more than that.
        table, table_version, entry: As of a `Cost`.
        context: The model's context in tokens, where the table has it.
    """

    state: Literal["priced", "free", "unpriced"]
    rates: Rates | None = None
    rises: bool = False
    table: str | None = None
    table_version: str | None = None
    entry: str | None = None
    context: int | None = None


class PriceBook:
    """All prices that are known here.

    Args:
        own: The user's prices, by `provider:model`; they win.
        served: Kind and address of a provider, see `Config.served`; None where nothing is configured.
    """

    def __init__(self, own: Mapping[str, Price] | None = None, served: Served | None = None) -> None:
        self._own = own or {}
        self._served = served
        self._places: dict[str, tuple[dict[str, str], ...]] = {}

    # -------------------------------------------------------------- the table's import

    def expect(self, provider: str, model: str, *, local: bool) -> None:
        """A request is under way: have its price at hand when it ends, without taking its time."""
        if not local and f"{provider}:{model}" not in self._own and self._where(provider):
            _table.begin()

    async def ready(self, provider: str, model: str, *, local: bool) -> None:
        """Wait, without blocking the event loop, until `cost` answers at once."""
        if not _table.loaded and not local and f"{provider}:{model}" not in self._own and self._where(provider):
            await asyncio.to_thread(_table.module)

    # -------------------------------------------------------------- prices

    def cost(
        self,
        provider: str,
        models: Sequence[str | None],
        usage: Usage,
        *,
        local: bool,
        at: int,
        extra: Mapping[str, Any] | None = None,
    ) -> Cost:
        """What an attempt cost.

        Args:
            provider: Its name as configured.
            models: Names to look up, the most telling first: what the provider returned, then what was asked for.
            usage: Token counters.
            local: Whether the model runs on this machine; then only a price of the user's own is not zero.
            at: When, µs UTC: prices change by date, some by the hour.
            extra: Further fields of the request; some raise or lower its price.
        """
        names = list(dict.fromkeys(name for name in models if name))
        for name in names:
            entry = f"{provider}:{name}"
            if entry in self._own:
                price = self._own[entry]
                return Cost("priced", _nano(_own_sum(price, usage)), OWN, _version(price), entry)
        if local:
            return Cost("free")
        for name in names:
            found = self._look_up(provider, name, usage, at, extra or {})
            if found is not None and _complete(found, usage):
                return Cost("priced", _nano(found.total_price), TABLE, _table.version(found), _entry(found))
        return Cost("unpriced")

    def batch_cost(self, provider: str, models: Sequence[str | None], usage: Usage, *, local: bool, at: int) -> Cost:
        """What a request of a provider's batch cost: by the table's price for batches, else half of the usual price.

        Half is what OpenAI, Anthropic and Groq ask for batches (their pricing pages). The entry says which it was.

        Args:
            provider: Its name as configured.
            models: Names to look up, the most telling first.
            usage: Token counters.
            local: Whether the model runs on this machine.
            at: When, µs UTC.
        """
        usual = self.cost(provider, models, usage, local=local, at=at)
        if usual.state != "priced" or usual.nano_usd is None:
            return usual
        if usual.table == TABLE:
            batched = self.cost(provider, models, usage, local=local, at=at, extra={"processing": "batch"})
            if batched.nano_usd is not None and batched.nano_usd < usual.nano_usd:
                return msgspec.structs.replace(batched, entry=f"{batched.entry} (batch)")
        return msgspec.structs.replace(usual, nano_usd=-(-usual.nano_usd // 2), entry=f"{usual.entry} (batch: half)")

    def most(
        self,
        provider: str,
        model: str,
        input_tokens: int,
        output_tokens: int,
        *,
        local: bool,
        at: int,
        extra: Mapping[str, Any] | None = None,
    ) -> int | None:
        """What so many tokens cost at most, nano-US-dollars; 0 where they are free, None where the price is unknown.

        A prompt is reckoned as read from no cache. Where `extra` asks for one to be written, which costs more than
        plain input, the dearest way to write it counts.

        Args:
            provider: Its name as configured.
            model: The name to ask for.
            input_tokens: Of the prompt.
            output_tokens: Of the answer.
            local: Whether it runs on this machine.
            at: When, µs UTC.
            extra: Further fields of the request.
        """
        counters = ["input"]
        if "cache_control" in str(extra):
            counters += ["cache_write", "cache_write_1h"]
        costs = []
        for counter in counters:
            usage = Usage(**{counter: input_tokens}, output=output_tokens)
            costs.append(self.cost(provider, [model], usage, local=local, at=at, extra=extra))
        if any(cost.state == "unpriced" for cost in costs):
            return None
        return max(cost.nano_usd or 0 for cost in costs)

    def listed(self, provider: str, model: str, *, local: bool, at: int) -> ListPrice:
        """What a model costs, for people to compare.

        Args:
            provider: Its name as configured.
            model: The name to ask for.
            local: Whether it runs on this machine.
            at: When, µs UTC.
        """
        entry = f"{provider}:{model}"
        if entry in self._own:
            price = self._own[entry]
            return ListPrice("priced", _rates(price), table=OWN, table_version=_version(price), entry=entry)
        if local:
            return ListPrice("free")
        found = self._look_up(provider, model, Usage(), at, {})
        if found is None:
            return ListPrice("unpriced")
        context = found.model.context_window
        if not _complete(found, Usage(input=1)):
            return ListPrice("unpriced", context=context)
        prices = found.model_price
        stated = [getattr(prices, f"{name}_mtok") for name in Rates.__struct_fields__]
        return ListPrice(
            "priced",
            Rates(*(getattr(price, "base", price) for price in stated)),
            rises=any(hasattr(price, "tiers") for price in stated),
            table=TABLE,
            table_version=_table.version(found),
            entry=_entry(found),
            context=context,
        )

    # -------------------------------------------------------------- the table

    def _look_up(
        self, provider: str, model: str, usage: Usage, at: int, extra: Mapping[str, Any]
    ) -> PriceCalculation | None:
        places = self._where(provider)
        genai_prices = _table.module() if places else None
        if genai_prices is None:
            return None
        written = usage.cache_write + usage.cache_write_1h
        # The table's counters lie one within another, ours beside one another.
        counted = genai_prices.Usage(
            input_tokens=usage.total_input,
            cache_read_tokens=usage.cache_read,
            cache_write_tokens=written,
            cache_write_1h_tokens=usage.cache_write_1h,
            output_tokens=usage.output,
            output_reasoning_tokens=min(usage.reasoning, usage.output),
        )
        modes = {name: extra[name] for name in MODES if isinstance(extra.get(name), str)}
        for place in places:
            try:
                with localcontext(EXACT):
                    found: PriceCalculation = genai_prices.calc_price(
                        counted,
                        model,
                        **place,
                        genai_request_timestamp=datetime.fromtimestamp(at / 1_000_000, UTC),
                        price_context=modes or None,
                    )
            except LookupError:
                continue
            return found
        return None

    def _where(self, provider: str) -> tuple[dict[str, str], ...]:
        """Where the table may have a provider's models: under its address, else under its vendor's name."""
        if provider not in self._places:
            places: list[dict[str, str]] = []
            try:
                kind, address = self._served(provider) if self._served else (provider, None)
                if address:
                    origin, path, _, _, host = split_url(address)
                    # Nobody's published prices are those of a server on this machine.
                    places += [] if is_loopback(host) else [{"provider_api_url": origin + path}]
            except TimelineError:
                # It isn't configured any more.
                kind = provider
            if kind == provider and kind in VENDORS:
                places.append({"provider_id": kind})
            self._places[provider] = tuple(places)
        return self._places[provider]


class _Table:
    """The package genai-prices: 0.2 s of importing, done in a thread beside the request that will need it."""

    def __init__(self) -> None:
        self._begun = threading.Lock()
        self._hurry = threading.Event()
        self._done = threading.Event()
        self._module: ModuleType | None = None

    @property
    def loaded(self) -> bool:
        """Whether `module` answers at once."""
        return self._done.is_set()

    def begin(self) -> None:
        """Import it soon."""
        if self._begun.acquire(blocking=False):
            # No daemon: ended in the middle of an import, one takes the whole process down with it.
            threading.Thread(target=self._load, name="timeline-prices").start()

    def module(self) -> ModuleType | None:
        """The package, imported; None where it isn't installed."""
        self.begin()
        self._hurry.set()
        self._done.wait()
        return self._module

    @staticmethod
    def version(found: PriceCalculation) -> str:
        """Of the table: the package's, and when its prices were renewed, should this process do that."""
        import genai_prices

        renewed = found.auto_update_timestamp
        return genai_prices.__version__ + (f"+{renewed:%Y%m%dT%H%M%S}" if renewed else "")

    def _load(self) -> None:
        if not self._hurry.wait(HEAD_START) and not threading.main_thread().is_alive():
            # The call ended without a cost and the program ends, too; who needs it all the same begins anew.
            self._begun.release()
            if self._hurry.is_set():
                self.begin()
            return
        try:
            import genai_prices.data

            self._module = genai_prices
        except ImportError:
            # A price that can't be looked up is an unknown one.
            return
        finally:
            self._done.set()


_table = _Table()


def _entry(found: PriceCalculation) -> str:
    return f"{found.provider.id}/{found.model.id}"


def _complete(found: PriceCalculation, usage: Usage) -> bool:
    """Whether all that was used has a price: some entries have none at all, or only one for images or seconds."""
    prices = found.model_price
    return prices.input_mtok is not None and (prices.output_mtok is not None or not usage.output)


def _rates(price: Price) -> Rates:
    """The user's prices, digit for digit as they are written."""

    def exact(value: float | None) -> Decimal | None:
        return None if value is None else Decimal(repr(value))

    return Rates(*(exact(getattr(price, f"{name}_per_million")) for name in Rates.__struct_fields__))


def _own_sum(price: Price, usage: Usage) -> Decimal:
    """US dollars, exact."""
    rates = _rates(price)
    plain, output = rates.input or Decimal(0), rates.output or Decimal(0)
    read = plain if rates.cache_read is None else rates.cache_read
    write = plain if rates.cache_write is None else rates.cache_write
    write_1h = write if rates.cache_write_1h is None else rates.cache_write_1h
    with localcontext(EXACT):
        return (
            usage.input * plain
            + usage.cache_read * read
            + usage.cache_write * write
            + usage.cache_write_1h * write_1h
            + usage.output * output
        ) / 1_000_000


def _nano(dollars: Decimal) -> int:
    with localcontext(EXACT):
        return min(int((dollars * 1_000_000_000).to_integral_value(ROUND_HALF_EVEN)), MOST_NANO_USD)


def _version(price: Price) -> str:
    """Changes when the entry does."""
    return blake2b(msgspec.json.encode(price), digest_size=4).hexdigest()
