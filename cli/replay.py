"""`timeline replay`: a session again, from its events alone, or while another process goes on with it."""

import contextlib
import sys
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated

import typer

from timeline.errors import NotFound, StoreDamaged, UsageError

from . import output
from .options import AsAscii
from .signs import ascii_only

if TYPE_CHECKING:
    from timeline.events import Event
    from timeline.looking import Looking
    from timeline.projections.blocks import Session, Turn

__all__ = ["replay"]


def replay(
    session: Annotated[str, typer.Argument(metavar="SESSION", help="Id, unique prefix, title, or `last`.")],
    *,
    speed: Annotated[
        float | None,
        typer.Option("--speed", metavar="FACTOR", help="At the pace it came: 1 is the original, 2 twice as fast."),
    ] = None,
    turn: Annotated[
        int | None, typer.Option("--turn", min=1, metavar="N", help="Only this turn; 1 is the first.")
    ] = None,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow", "-f", help="Show the turn that another process is running, or begins next, until its end."
        ),
    ] = False,
    show_cognition: Annotated[
        bool, typer.Option("--show-cognition/--no-show-cognition", help="Draw the steps that led to each answer.")
    ] = True,
    as_ascii: AsAscii = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the session as one JSON object.")] = False,
    as_events: Annotated[bool, typer.Option("--events", help="Print its events as JSON lines.")] = False,
) -> None:
    """Show a session again, from its events alone.

    Example: timeline replay last --speed 1
    """
    from .app import wait_for

    if speed is not None and not 0 < speed < float("inf"):
        msg = "--speed takes a factor above 0: 1 is the original pace"
        raise UsageError(msg)
    for other, given in (("--speed", speed is not None), ("--turn", turn is not None), ("--json", as_json)):
        if follow and given:
            msg = f"--follow shows what happens now, and {other} what has happened: choose one"
            raise UsageError(msg)
    ascii_only(as_ascii)
    if as_events:
        wait_for(_events(session, turn, follow=follow))
    elif follow:
        wait_for(_follow(session, cognition=show_cognition))
    else:
        wait_for(_replay(session, speed, turn, cognition=show_cognition, as_json=as_json))


async def _replay(name: str, speed: float | None, number: int | None, *, cognition: bool, as_json: bool) -> None:
    from timeline.projections.blocks import fold

    from .opening import looking

    async with looking() as timeline:
        events, cut = await _recorded(timeline, await timeline.find(name))
        borrowed, elsewhere = await _borrowed(timeline, events)
        session = fold(events, borrowed)
        damage = cut or elsewhere
        try:
            bodies = await timeline.bodies(session)
        except StoreDamaged as exc:
            # The answers stand with the events.
            bodies, damage = {}, damage or exc
    if cut is not None:
        for turn in session.turns:
            turn.state = "damaged" if turn.state == "open" else turn.state
    chosen = _chosen(session, number, cut)
    if as_json:
        from .shapes import session_object

        session.turns = chosen
        error = {} if damage is None else {"error": output.error_object(damage)}
        output.emit_json(session_object(session, bodies) | error)
        if damage is not None:
            raise typer.Exit(damage.exit_code)
        return
    from .blocks import draw_turn, play_turn

    console = output.stdout()
    for index, turn in enumerate(chosen):
        if index:
            console.print()
        if speed is None:
            draw_turn(console, turn, bodies, cognition=cognition)
        elif sys.stdout.isatty() and not console.is_dumb_terminal:
            from .playing import play

            await play(console, turn, events, borrowed, bodies, speed, cognition=cognition)
        else:
            await play_turn(console, turn, bodies, speed, cognition=cognition)
    if damage is not None:
        raise damage


async def _recorded(timeline: "Looking", session_id: str) -> "tuple[list[Event], StoreDamaged | None]":
    """A session's events up to what can't be read, and why that can't be.

    Raises:
        StoreDamaged: None of them can be read.
    """
    events: list[Event] = []
    try:
        async for event in timeline.store.read(session_id=session_id):
            events.append(event)  # noqa: PERF401  those before the damage count
    except StoreDamaged as exc:
        if not events:
            raise
        return events, exc
    return events, None


async def _borrowed(timeline: "Looking", events: "list[Event]") -> "tuple[dict[str, list[Event]], StoreDamaged | None]":
    """The events of calls whose answers were read again, but of those that can't be read, and why these can't be."""
    try:
        return await timeline.borrowed(events), None
    except StoreDamaged as exc:
        damage = exc
    borrowed: dict[str, list[Event]] = {}
    for event in events:
        with contextlib.suppress(StoreDamaged):
            borrowed |= await timeline.borrowed([event])
    return borrowed, damage


def _chosen(session: "Session", number: int | None, damage: StoreDamaged | None) -> "list[Turn]":
    """All turns, or the one of that number.

    Args:
        session: Whose.
        number: 1 is the first.
        damage: Why no more of the session can be read, if there may be more.

    Raises:
        NotFound, StoreDamaged: It has no such turn, or it can't be read.
    """
    if number is None:
        return session.turns
    if number > len(session.turns):
        if damage is not None:
            raise damage
        count = len(session.turns)
        msg = f"the session has {count} turn{'' if count == 1 else 's'}, and no number {number}: choose a lower one"
        raise NotFound(msg)
    return [session.turns[number - 1]]


async def _events(name: str, number: int | None, *, follow: bool) -> None:
    from timeline.projections.blocks import fold

    from .opening import looking
    from .playing import events_of, until_a_turn_ends
    from .shapes import event_object

    async with looking() as timeline:
        events, damage = await _recorded(timeline, await timeline.find(name))
        chosen = events if number is None else events_of(events, _chosen(fold(events), number, damage)[0].turn_id)
        for event in chosen:
            output.emit_json(event_object(event), indent=0)
        if damage is not None:
            raise damage
        if follow:
            async with aclosing(until_a_turn_ends(timeline, events)) as later:
                async for event in later:
                    output.emit_json(event_object(event), indent=0)


async def _follow(name: str, *, cognition: bool) -> None:
    from .opening import looking
    from .playing import Following, until_a_turn_ends

    async with looking() as timeline:
        session_id = await timeline.find(name)
        events = [event async for event in timeline.store.read(session_id=session_id)]
        following = Following(timeline, output.stdout(), cognition=cognition)
        try:
            await following.begin(events)
            async with aclosing(until_a_turn_ends(timeline, events)) as later:
                async for event in later:
                    await following.add(event)
        finally:
            following.end()
