"""`timeline budget`: how much of each budget is spent, reserved and left, and when it begins anew."""

from typing import TYPE_CHECKING

from . import output
from .options import AsAscii, AsJson
from .signs import ASCII, Signs, ascii_only, signs

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from timeline.config import BudgetConfig, Config
    from timeline.projections.budgets import BudgetState

__all__ = ["budget"]

WIDTH = 60
SESSION_CHARACTERS = 13
NEAR, FULL = 80, 100
EACH = {"call": "each call", "turn": "each question"}


def budget(
    *,
    as_ascii: AsAscii = False,
    as_json: AsJson = False,
) -> None:
    """Show how much of each budget is spent. Also what open requests reserve, what is left, and when it begins anew.

    Example: timeline budget
    """
    from timeline import config

    from .app import wait_for

    ascii_only(as_ascii)
    loaded = config.load()
    budgets = loaded.settings.budgets
    states = wait_for(_states(loaded)) if budgets else ()
    if as_json:
        from .shapes import budgets_object

        output.emit_json(budgets_object(budgets, states))
        return
    if not budgets:
        output.notice(
            f"there is no budget; to set one, put this into {output.short_path(str(loaded.paths.config_file))}:\n"
            "\nbudgets:\n  - {name: monthly, limit_usd: 20, window: month}"
        )
        return
    console = output.stdout()
    for number, (configured, state) in enumerate(zip(budgets, states, strict=True)):
        if number:
            console.print()
        head, *lines = _lines(configured, state, console)
        output.say(console, head)
        for line in lines:
            console.print(line, soft_wrap=True)


async def _states(loaded: "Config") -> "tuple[BudgetState, ...]":
    from timeline.looking import Looking

    from .opening import looking

    if not loaded.paths.store.exists():
        # Nothing was ever asked; then a budget is as new as the store.
        async with Looking.open(config=loaded) as timeline:
            return await timeline.budgets()
    async with looking() as timeline:
        return await timeline.budgets()


# ------------------------------------------------------------------ as it is drawn


def _lines(configured: "BudgetConfig", state: "BudgetState", console: "Console") -> "list[Text]":
    from rich.text import Text

    drawn, width = signs(console), min(console.width, WIDTH)

    limit = f"{state.limit:,} tokens" if state.unit == "tokens" else _amount(state, state.limit)
    window = EACH.get(state.window) or ("in total" if state.window == "total" else state.window)
    if configured.window == "session":
        window = f"session {state.window[:SESSION_CHARACTERS]}" if state.window != "session" else "each session"
    about = [state.name, configured.model or configured.provider, state.action, window]
    about += [f"until {output.when(state.ends_at)}"] if state.ends_at else []
    head = output.harmless(drawn.dot.join(part for part in about if part), console)
    lines = [Text(head, style="bold")]
    if state.window in EACH:
        return [*lines, Text(f"  up to {limit}")]
    lines.append(_bar(state, drawn, width))
    amounts = {"spent": state.spent, "reserved": state.reserved, "left": state.limit - state.spent - state.reserved}
    told = [f"{_amount(state, value)} {what}" for what, value in amounts.items() if value > 0 or what == "spent"]
    lines.append(Text(f"  {', '.join(told)} of {limit}"))
    if state.unpriced and state.unit == "nano_usd":
        lines.append(Text(f"  and {state.unpriced} attempts of unknown price", style="yellow"))
    return lines


def _amount(state: "BudgetState", value: int) -> str:
    """To a hundredth of a cent, so that small amounts add up."""
    return f"{value:,}" if state.unit == "tokens" else output.usd(value, places=4)


def _bar(state: "BudgetState", drawn: Signs, width: int) -> "Text":
    """What is spent, what is reserved, what is left, and how many percent the first two are."""
    from rich.text import Text

    full, held, free = "#+." if drawn is ASCII else "█▒░"
    used = state.spent + state.reserved
    percent = used * 100 // state.limit if state.limit else FULL * (used > 0)
    cells = width - len("  ") - len(" 100%")
    # Something spent is something seen.
    spent = min(-(-state.spent * cells // state.limit) if state.limit else cells * (used > 0), cells)
    reserved = min(-(-state.reserved * cells // state.limit) if state.limit else 0, cells - spent)
    colour = "red" if percent >= FULL else "yellow" if percent >= NEAR else "green"
    return Text.assemble(
        "  ",
        (full * spent + held * reserved, colour),
        (free * (cells - spent - reserved), "dim"),
        f" {min(percent, 999):3d}%",
    )
