"""`timeline replay`: a session again, from its events alone."""

from __future__ import annotations

from typing import Annotated

import typer

from timeline.errors import UsageError

from . import output

__all__ = ["replay"]


def replay(
    session: Annotated[str, typer.Argument(metavar="SESSION", help="Id, unique prefix, title, or `last`.")],
    *,
    speed: Annotated[
        float | None,
        typer.Option("--speed", metavar="FACTOR", help="At the pace it came: 1 is the original, 2 twice as fast."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the session as one JSON object.")] = False,
    as_events: Annotated[bool, typer.Option("--events", help="Print its events as JSON lines.")] = False,
) -> None:
    """Show a session again, from its events alone.

    Example: [bold]timeline replay last --speed 1[/bold]
    """
    from .app import wait_for

    if speed is not None and not 0 < speed < float("inf"):
        msg = "--speed takes a factor above 0: 1 is the original pace"
        raise UsageError(msg)
    wait_for(_replay(session, speed, as_json=as_json, as_events=as_events))


async def _replay(name: str, speed: float | None, *, as_json: bool, as_events: bool) -> None:
    from .opening import looking

    async with looking() as timeline:
        if as_events:
            from .shapes import event_object

            session_id = await timeline.find(name)
            async for event in timeline.store.read(session_id=session_id):
                output.emit_json(event_object(event), indent=0)
            return
        session = await timeline.session(name)
        bodies = await timeline.bodies(session)
    if as_json:
        from .shapes import session_object

        output.emit_json(session_object(session, bodies))
        return
    from .blocks import draw_turn, play_turn

    console = output.stdout()
    for index, turn in enumerate(session.turns):
        if index:
            console.print()
        if speed is None:
            draw_turn(console, turn, bodies)
        else:
            await play_turn(console, turn, bodies, speed)
