"""`timeline report`: calls, tokens and cost by day, model or session."""

from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import msgspec
import typer

from . import output
from .options import AsCsv, AsJson, Since, Until, span

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.text import Text

    from timeline.looking import Looking
    from timeline.projections.usage import ReportRow

    _Column = tuple[str, Callable[[ReportRow], str], int]
    """Its label, what it says of a row, and its width."""

__all__ = ["report"]


By = Literal["day", "month", "model", "provider", "session"]


def report(
    *,
    by: Annotated[By, typer.Option("--by", help="What a row is.")] = "day",
    since: Since = None,
    until: Until = None,
    session: Annotated[str | None, typer.Option("--session", metavar="SESSION", help="Only this session.")] = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Show what was asked and what it cost.

    Example: timeline report --by model --since 7d
    """
    from .app import wait_for

    first, last = span(since, until)
    rows, totals, titles = wait_for(_report(by, first, last, session))
    if as_json:
        from .shapes import report_object

        output.emit_json(report_object(by, rows, totals))
    elif as_csv:
        columns = [name for name in type(totals).__struct_fields__ if name != "group"]
        lines = [{name: getattr(row, name) for name in columns} for row in rows]
        for line in lines:
            # Nobody knows is not nothing.
            if line["unpriced"] and not line["nano_usd"]:
                line["nano_usd"] = None
        output.table_csv([by, *columns], [[row.group, *line.values()] for row, line in zip(rows, lines, strict=True)])
    else:
        whole = (since, until, session) == (None, None, None)
        _table(
            by,
            rows,
            totals,
            titles,
            nothing="nothing was asked yet: 'timeline ask' does" if whole else "nothing was asked in that time",
        )


async def _report(
    by: By, since: int | None, until: int | None, session: str | None
) -> "tuple[list[ReportRow], ReportRow, dict[str, str]]":
    from timeline.projections.usage import ReportRow

    from .opening import listed, looking

    async def read(timeline: "Looking") -> "tuple[list[ReportRow], ReportRow, dict[str, str]]":
        rows = await timeline.report(by, since=since, until=until, session=session)
        (totals,) = await timeline.report(None, since=since, until=until, session=session)
        titles = {row.id: row.title or "" for row in await timeline.sessions()} if by == "session" else {}
        return rows, totals, titles

    if session is not None:
        async with looking() as timeline:
            return await read(timeline)
    figures = dict.fromkeys(ReportRow.__struct_fields__, 0)
    return await listed(read, ([], msgspec.convert({**figures, "group": ""}, ReportRow), {}))


def _table(by: str, rows: "list[ReportRow]", totals: "ReportRow", titles: dict[str, str], *, nothing: str) -> None:
    from rich import box
    from rich.table import Table

    if not rows:
        output.notice(nothing)
        return
    console = output.stdout()
    costs = [_cost(row) for row in (*rows, totals)]
    cost_width = max(map(len, ("cost", *costs)))
    names = _names(by, rows, titles)
    columns, left_out, name_width = _fitting(totals, names, console.width - cost_width - 4)
    table = Table(box=box.SIMPLE_HEAD, show_footer=len(rows) > 1, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(by, "total", min_width=name_width, max_width=name_width)
    for label, figures, width in columns:
        table.add_column(label, figures(totals), justify="right", no_wrap=True, min_width=width)
    table.add_column("cost", costs[-1], justify="right", no_wrap=True, min_width=cost_width)
    for row, name, cost in zip(rows, names.texts, costs, strict=False):
        table.add_row(name, *(figures(row) for _, figures, _ in columns), cost)
    if name_width + cost_width + 4 > console.width:
        # Then it is the terminal that goes on in its next line; nothing is cut.
        table.width = name_width + cost_width + 4
    console.print(table, crop=False)
    output.notice_left_out(left_out, ways=", --json or --csv")
    if any(row.failed > row.calls for row in rows):
        output.notice("failed are attempts: a call that is tried again may fail more than once")
    if totals.estimated:
        output.notice(
            f"{totals.estimated} of the attempts didn't end or were not counted by their provider: their tokens are estimates"
        )
    if totals.unpriced:
        output.notice(f"?: {totals.unpriced} attempts at models without a known price")


class _Names(NamedTuple):
    """The first column: its texts, the width of the widest, how many cells will do, and how many it can't do without."""

    texts: "list[Text]"
    widest: int
    enough: int
    least: int


def _names(by: str, rows: "list[ReportRow]", titles: dict[str, str]) -> _Names:
    """What names the rows; a title gives way where it is narrow, what it stands behind is never cut."""
    from rich.text import Text

    console = output.stdout()
    label = max(len(by), len("total"))
    if by == "session":
        shown = output.distinct([row.group for row in rows])
        lines = [f"{row.group[:shown]} {titles.get(row.group, '')}".rstrip() for row in rows]
        texts = [Text(output.harmless(line, console), no_wrap=True, overflow="ellipsis") for line in lines]
        widest = max(label, *(text.cell_len for text in texts))
        # A cut title's sign stands a space behind the id, not in it.
        return _Names(texts, widest, min(widest, shown + 1 + _TITLE), min(widest, shown + 2))
    texts = [Text(output.harmless(row.group, console), overflow="fold") for row in rows]
    widest = max(label, *(text.cell_len for text in texts))
    return _Names(texts, widest, widest, max(label, min(widest, console.width // 2)))


_TITLE = 12
"""Cells of a title that say more than another column does."""


def _fitting(totals: "ReportRow", names: _Names, space: int) -> "tuple[list[_Column], list[str], int]":
    """The columns beside name and cost that there is space for, the labels of the others, and the width of the name."""
    # Columns that are zero throughout say nothing and cost width.
    shown = [
        (label, name)
        for label, name in _COLUMNS.items()
        if getattr(totals, name) or name in {"calls", "input", "output"}
    ]
    columns = [(label, _figures(name), max(len(label), len(_figures(name)(totals)))) for label, name in shown]
    # A name too long even for a line with the cost alone goes on in the next line, and leaves space for figures.
    wanted = names.enough if names.enough <= space else names.least
    left_out = []
    for label in _FIRST_TO_GO:
        if wanted + sum(width + 2 for *_, width in columns) <= space:
            break
        if any(label == column[0] for column in columns):
            left_out.append(label)
            columns = [column for column in columns if column[0] != label]
    free = space - sum(width + 2 for *_, width in columns)
    return columns, left_out, max(names.least, min(names.widest, free))


def _figures(name: str) -> "Callable[[ReportRow], str]":
    return lambda row: f"{getattr(row, name):,}"


_COLUMNS = {
    "calls": "calls",
    "failed": "failed",
    "stopped": "interrupted",
    "input": "input",
    "cached": "cache_read",
    "written": "cache_write",
    "output": "output",
    "reasoning": "reasoning",
}
_FIRST_TO_GO = ("written", "cached", "reasoning", "stopped", "failed", "input", "output", "calls")


def _cost(row: "ReportRow") -> str:
    if row.unpriced:
        return f"{output.usd(row.nano_usd)} + ?" if row.nano_usd else "?"
    if row.nano_usd:
        return output.usd(row.nano_usd)
    return "free" if row.free else "–"
