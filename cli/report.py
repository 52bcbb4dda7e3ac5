"""`timeline report`: calls, tokens and cost by day, model or session."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from . import output
from .options import AsCsv, AsJson, Since, Until, span

if TYPE_CHECKING:
    from timeline.projections.usage import ReportRow

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
        output.table_csv([by, *columns], [[row.group, *(getattr(row, name) for name in columns)] for row in rows])
    else:
        _table(by, rows, totals, titles)


async def _report(
    by: By, since: int | None, until: int | None, session: str | None
) -> tuple[list[ReportRow], ReportRow, dict[str, str]]:
    from .opening import looking

    async with looking() as timeline:
        rows = await timeline.report(by, since=since, until=until, session=session)
        (totals,) = await timeline.report(None, since=since, until=until, session=session)
        titles = {row.id: row.title or "" for row in await timeline.sessions()} if by == "session" else {}
    return rows, totals, titles


def _table(by: str, rows: list[ReportRow], totals: ReportRow, titles: dict[str, str]) -> None:
    from rich import box
    from rich.table import Table

    if not rows:
        output.notice("nothing was asked in that time")
        return
    table = Table(box=box.SIMPLE_HEAD, show_footer=len(rows) > 1, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(by, "total", overflow="ellipsis", no_wrap=True)
    # Columns that are zero throughout say nothing and cost width.
    columns = [("calls", "calls")]
    columns += [
        (label, name) for label, name in (("failed", "failed"), ("stopped", "interrupted")) if getattr(totals, name)
    ]
    columns += [("input", "input")]
    columns += [
        (label, name) for label, name in (("cached", "cache_read"), ("written", "cache_write")) if getattr(totals, name)
    ]
    columns += [("output", "output")]
    columns += [("reasoning", "reasoning")] if totals.reasoning else []
    widths = [max(len(label), len(f"{getattr(totals, name):,}")) for label, name in columns]
    for (label, name), width in zip(columns, widths, strict=True):
        table.add_column(label, f"{getattr(totals, name):,}", justify="right", min_width=width)
    costs = [_cost(row) for row in (*rows, totals)]
    table.add_column("cost", costs[-1], justify="right", min_width=max(map(len, costs)))
    # Numbers keep their width; names give way.
    space = output.stdout().width - sum(width + 2 for width in widths) - max(map(len, costs)) - 4
    for index, row in enumerate(rows):
        group = f"{row.group[:13]} {titles[row.group]}" if row.group in titles else row.group
        group = output.harmless(group, output.stdout())
        table.add_row(
            group if len(group) <= space else f"{group[: max(space - 1, 1)]}…",
            *(f"{getattr(row, name):,}" for _, name in columns),
            costs[index],
        )
    output.stdout().print(table)
    if any(row.failed > row.calls for row in rows):
        output.notice("failed are attempts: a call that is tried again may fail more than once")
    if totals.estimated:
        output.notice(
            f"{totals.estimated} of the attempts didn't end or were not counted by their provider: their tokens are estimates"
        )
    if totals.unpriced:
        output.notice(f"?: {totals.unpriced} attempts at models without a known price")


def _cost(row: ReportRow) -> str:
    if row.unpriced:
        return f"{output.usd(row.nano_usd)} + ?" if row.nano_usd else "?"
    if row.nano_usd:
        return output.usd(row.nano_usd)
    return "free" if row.free else "–"
