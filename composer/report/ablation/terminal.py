"""The tables on a terminal, as wide as it is; plain text into anything else."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import IO, Any

from composer.ablate.summary import Summary
from composer.report.ablation.sheet import Sheet, fitted
from composer.report.ablation.sheets import sheets_of

TONES = {"dim": "dim", "bad": "yellow", "": ""}


def show(summary: Summary, file: IO[str] | None = None, width: int | None = None) -> None:
    """Print banners, tables and footer. Errors: none; what is too wide is cut into several tables with the same rows."""
    from rich.console import Console

    file = file or sys.stdout
    width = width or (shutil.get_terminal_size((100, 24)).columns if file.isatty() else 160)
    console = Console(file=file, width=width, highlight=False, markup=False, emoji=False)
    for part in parts(summary, width):
        console.print(part)


def plain_text(summary: Summary, width: int = 160) -> str:
    """What `show` prints, without colours."""
    import io

    sink = io.StringIO()
    show(summary, sink, width)
    return "\n".join(line.rstrip() for line in sink.getvalue().splitlines()) + "\n"


def parts(summary: Summary, width: int) -> list[Any]:
    """Renderables of rich, top to bottom."""
    from rich.text import Text

    made: list[Any] = [Text(headline(summary), style="bold")]
    if summary.about:
        made.append(Text(summary.about, style="dim"))
    made += [Text(banner, style="bold yellow") for banner in summary.banners]
    for sheet in sheets_of(summary):
        for number, each in enumerate(fitted(sheet, width - 1)):
            made += [Text(), Text(each.title, style="bold")] if number == 0 else [Text()]
            made.append(_table(each))
        made += [Text(note, style="dim") for note in sheet.notes]
    return [*made, Text(), *_footer(summary), *_kept(summary)]


def headline(summary: Summary) -> str:
    rows = sum(1 for table in summary.tables for line in table.lines if line.kind in ("cell", "sweep") and not line.same_as)
    noun = "cell" if summary.toggles else "row"
    what = f"{summary.study}: {summary.design} design over {', '.join(summary.toggles)}" if summary.toggles else f"{summary.study}: a study"
    beside = f", beside table {summary.printed_table}" if summary.printed_table else ""
    return f"{what}, {rows} {noun}{'s' if rows != 1 else ''} × {len(summary.seeds)} seed{'s' if len(summary.seeds) != 1 else ''}{beside}"


def _table(sheet: Sheet) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    deep = max(len(head.under) for head in sheet.heads)
    for head in sheet.heads:
        heading = Text(head.name, style="bold", justify="left" if head.left else "right")
        for at in range(deep):
            heading.append(f"\n{head.under[at] if at < len(head.under) else ''}", style="not bold dim")
        table.add_column(heading, justify="left" if head.left else "right", no_wrap=True)
    for row in sheet.rows:
        table.add_row(*(Text(cell.text, style=" ".join(filter(None, ("bold" if cell.bold else "", TONES[cell.tone])))) for cell in row))
    return table


def _kept(summary: Summary) -> list[Any]:
    """Where all of this lies."""
    from rich.text import Text

    page = Path(summary.out) / "studies" / summary.study / "report.html"
    return [Text(), Text(f"kept in {page.parent}, the page is {page.name}", style="dim", overflow="fold")] if summary.out else []


def _footer(summary: Summary) -> list[Any]:
    """Headings to the left, sentences beside them; a heading that repeats is said once."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(ratio=1)
    before = ""
    for head, text in summary.footer:
        style = "yellow" if head.startswith(("failed", "†")) else "dim"
        grid.add_row(Text("" if head == before else head), Text(text, style=style))
        before = head
    return [grid]
