"""`timeline search`: past turns in which words stand, with the passages."""

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from timeline.errors import NotFound

from . import output
from .options import MOST, AsJson, Since, Until, span

if TYPE_CHECKING:
    from rich.text import Text

    from timeline.projections.search import Found

__all__ = ["search"]

MARKS = ("\x02", "\x03")
"""Around the words that were found, until it is known how to show them."""


def search(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="WORDS",
            help="Words, beginnings of words (`rus*`), or words in a row in quotes of their own (`'\"borrow checker\"'`).",
        ),
    ],
    *,
    since: Since = None,
    until: Until = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="MODEL", help="Only what this model or provider answered.")
    ] = None,
    session: Annotated[str | None, typer.Option("--session", metavar="SESSION", help="Only this session.")] = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", metavar="N", min=0, max=MOST, help="Show so many; 0 shows all.")
    ] = 20,
    as_json: AsJson = False,
) -> None:
    """Find what was asked and answered, the best first.

    Example: timeline search rust borrow* --since 30d
    """
    from .app import wait_for

    typed = " ".join(words)
    first, last = span(since, until)
    marks = ("**", "**") if as_json else MARKS
    found = wait_for(_search(typed, marks, since=first, until=last, model=model, session=session, limit=limit or None))
    if as_json:
        from .shapes import search_object

        output.emit_json(search_object(found))
        if not found:
            raise typer.Exit(NotFound.exit_code)
        return
    if not found:
        msg = f"nothing was found for {typed!r}: try fewer words, or the beginning of one with a * after it"
        raise NotFound(msg)
    if found[0].partial:
        output.notice("no turn has all of these words; these have some")
    for index, turn in enumerate(found):
        if index:
            output.stdout().print()
        _draw(turn)


async def _search(typed: str, marks: tuple[str, str], **filters: Any) -> "list[Found]":
    from .opening import looking

    async with looking() as timeline:
        return await timeline.search(typed, marks=marks, **filters)


def _draw(turn: "Found") -> None:
    from rich.text import Text

    console = output.stdout()
    answered_by = f"{turn.provider}:{turn.model}" if turn.model else ""
    head = "  ".join(part for part in (turn.session_id[:13], output.when(turn.at), answered_by, turn.title) if part)
    console.print(Text(output.harmless(head, console), style="dim"), soft_wrap=True)
    if turn.asked:
        console.print(Text.assemble(("❯ ", "bold cyan"), _passage(turn.asked)), soft_wrap=True)
    # An answer without any of the words says nothing of why the turn was found.
    if MARKS[0] in turn.answered:
        console.print(Text.assemble("  ", _passage(turn.answered)), soft_wrap=True)


def _passage(marked: str) -> "Text":
    """A passage on one line, the words that were found standing out."""
    from rich.text import Text

    text = Text()
    for index, part in enumerate(re.split("{}(.*?){}".format(*MARKS), " ".join(marked.split()))):
        # Every second part lay between two marks.
        text.append(output.harmless(part, output.stdout()), style="bold yellow" if index % 2 else "")
    return text
