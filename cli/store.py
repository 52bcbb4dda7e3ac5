"""`timeline store`: where the file is, whether it is whole, its read models, its sizes, a copy of it."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from timeline.errors import StoreDamaged

from . import output
from .options import AsJson

if TYPE_CHECKING:
    from timeline.store import Stats, Verification

__all__ = ["app"]

app = typer.Typer(help="Check, rebuild and copy the event store.", no_args_is_help=True)


@app.command()
def path() -> None:
    """Print the path of the store."""
    from timeline import config

    sys.stdout.write(f"{config.load().paths.store}\n")


@app.command()
def verify(*, as_json: AsJson = False) -> None:
    """Check every event, and the file as a whole. Exit code 1 means that something is wrong."""
    from .app import wait_for
    from .opening import looking

    async def work() -> "Verification":
        async with looking() as timeline:
            return await timeline.store.verify()

    found = wait_for(work())
    if as_json:
        output.emit_json(
            {
                "ok": found.problem is None,
                "events": found.events,
                "sessions": found.sessions,
                "problem": found.problem,
                "position": found.position,
            }
        )
        if found.problem:
            raise typer.Exit(1)
    elif found.problem:
        where = f"position {found.position}: " if found.position is not None else ""
        msg = f"{where}{found.problem}; restore a backup; 'timeline replay' and sqlite3 still read what is before it"
        raise StoreDamaged(msg)
    else:
        sys.stdout.write(f"ok: {found.events:,} events in {found.sessions:,} sessions\n")


@app.command()
def rebuild(
    names: Annotated[list[str] | None, typer.Argument(metavar="PROJECTION", help="Which; all by default.")] = None,
) -> None:
    """Fold the read models anew. Others may go on appending meanwhile."""
    from .app import wait_for
    from .opening import writing

    async def work() -> list[str]:
        async with writing() as timeline:
            return await timeline.store.rebuild(names or None)

    sys.stdout.write(f"rebuilt: {', '.join(wait_for(work()))}\n")


@app.command()
def stats(*, as_json: AsJson = False) -> None:
    """Print sizes and versions."""
    import msgspec

    from .app import wait_for
    from .opening import looking

    async def work() -> "Stats":
        async with looking() as timeline:
            return await timeline.store.stats()

    values = msgspec.to_builtins(wait_for(work()))
    if as_json:
        output.emit_json(values)
        return
    for name, value in values.items():
        told = {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
        sys.stdout.write(f"{name.replace('_', ' '):16} {f'{told:,}' if isinstance(told, int) else told}\n")


@app.command()
def backup(
    target: Annotated[Path, typer.Argument(metavar="FILE", help="The file to make; it must not exist.")],
) -> None:
    """Copy the store to another file while others write to it."""
    from .app import wait_for
    from .opening import looking

    async def work() -> None:
        async with looking() as timeline:
            await timeline.store.backup(target)

    wait_for(work())
    output.notice(f"copied to {target}")
