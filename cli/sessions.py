"""`timeline sessions`: which there are, one in full, another title, and forgetting what was said."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from timeline.errors import UsageError

from . import output
from .options import MOST, AsCsv, AsJson

if TYPE_CHECKING:
    from timeline.projections.blocks import Session

__all__ = ["app"]

app = typer.Typer(help="List, show, rename and forget sessions.", no_args_is_help=True)

SESSION = typer.Argument(metavar="SESSION", help="Id, unique prefix, title, or `last`.")


@app.command("list")
def list_(
    *,
    limit: Annotated[
        int, typer.Option("--limit", "-n", metavar="N", min=0, max=MOST, help="Show so many; 0 shows all.")
    ] = 20,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """List sessions, the one used last first."""
    from timeline.projections.blocks import SessionRow

    from .app import wait_for
    from .opening import listed

    # One more than is shown tells that there are more.
    known: list[SessionRow] = wait_for(listed(lambda timeline: timeline.sessions(limit + 1 if limit else None), []))
    found = known[: limit or None]
    if as_json:
        from .shapes import sessions_object

        output.emit_json(sessions_object(found))
        return
    if as_csv:
        output.table_csv(
            SessionRow.__struct_fields__,
            [[getattr(row, name) for name in SessionRow.__struct_fields__] for row in found],
        )
        return
    if not found:
        output.notice("there is no session yet: 'timeline ask' begins one")
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    # Ids made within the same seconds share their head: show as much as tells them apart.
    shown = output.distinct([row.id for row in found])
    # Only titles give way where it is narrow: half an id names nothing.
    table.add_column("session", no_wrap=True, min_width=shown)
    table.add_column("last used", no_wrap=True, min_width=len(output.when(0)))
    table.add_column("turns", justify="right", no_wrap=True, min_width=len("turns"))
    table.add_column("title")
    for row in found:
        title = Text(output.harmless(row.title or "–", output.stdout()), no_wrap=True, overflow="ellipsis")
        table.add_row(row.id[:shown], output.when(row.last_at), str(row.turns), title)
    output.stdout().print(table)
    if len(known) > len(found):
        output.notice("there are more: --limit 0 shows all")


@app.command()
def show(
    session: Annotated[str, SESSION],
    *,
    as_json: AsJson = False,
) -> None:
    """Show a session: its title, when it began, and every turn."""
    from .app import wait_for
    from .opening import looking

    async def load() -> "tuple[Session, dict[str, str | bytes]]":
        async with looking() as timeline:
            found = await timeline.session(session)
            return found, await timeline.bodies(found)

    found, bodies = wait_for(load())
    if as_json:
        from .shapes import session_object

        output.emit_json(session_object(found, bodies))
        return
    from rich.text import Text

    from .blocks import draw_turn

    console = output.stdout()
    head = f"{found.session_id}  {output.when(found.started_at)}  {found.title or ''}"
    console.print(Text(output.harmless(head, console), style="bold"), soft_wrap=True)
    for turn in found.turns:
        console.print()
        draw_turn(console, turn, bodies)


@app.command()
def rename(
    session: Annotated[str, SESSION], title: Annotated[str, typer.Argument(metavar="TITLE", help="What to call it.")]
) -> None:
    """Give a session another title; commands take it as its name."""
    from .app import wait_for
    from .opening import writing

    if not title.strip():
        msg = "a title has at least one character: give one"
        raise UsageError(msg)

    async def work() -> None:
        async with writing() as timeline:
            await timeline.rename(session, title)

    wait_for(work())


@app.command()
def forget(
    session: Annotated[str, SESSION],
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask first.")] = False,
) -> None:
    """Remove what was said in a session for good. What it used and cost stays."""
    from .app import wait_for
    from .opening import looking, writing

    async def find() -> "Session":
        async with looking() as timeline:
            return await timeline.session(session)

    async def work() -> int:
        async with writing() as timeline:
            return await timeline.forget(found.session_id)

    found = wait_for(find())
    if not (yes or _agreed(f"Forget what was said in {found.session_id} ({found.title or 'no title'})?")):
        output.notice("nothing was forgotten")
        raise typer.Exit(1)
    output.notice(f"{wait_for(work())} events lost their text; tokens and cost stay")


def _agreed(question: str) -> bool:
    """Ask on stderr; the answer comes from standard input, a terminal or not."""
    sys.stderr.write(f"{output.harmless(question, output.stderr())} [y/N] ")
    sys.stderr.flush()
    answer = sys.stdin.readline()
    if not answer:
        sys.stderr.write("\n")
        msg = "there is nobody to ask: give --yes to forget without being asked"
        raise UsageError(msg)
    return answer.strip().lower() in ("y", "yes")
