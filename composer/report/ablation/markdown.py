"""The tables as Markdown, as GitHub and most viewers read it."""

from __future__ import annotations

from composer.ablate.summary import Summary
from composer.report.ablation.sheet import Cell, Sheet
from composer.report.ablation.sheets import sheets_of
from composer.report.ablation.terminal import headline


def markdown(summary: Summary) -> str:
    """Headline, banners, a table for each sheet, the footer as a list."""
    blocks = [f"# {escape(headline(summary))}", escape(summary.about), *(f"**{escape(banner)}**" for banner in summary.banners)]
    for sheet in sheets_of(summary):
        blocks += [f"## {escape(sheet.title)}", sheet_text(sheet), *(f"_{escape(note)}_" for note in sheet.notes)]
    blocks.append("\n".join(["## Notes", "", *(f"- **{escape(head)}**: {escape(text)}" for head, text in summary.footer)]))
    return "\n\n".join(filter(None, blocks)) + "\n"


def sheet_text(sheet: Sheet) -> str:
    heads = ["<br>".join(map(escape, (head.name, *filter(None, head.under)))) for head in sheet.heads]
    lines = [heads, [":--" if head.left else "--:" for head in sheet.heads], *([_cell(cell) for cell in row] for row in sheet.rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(cell: Cell) -> str:
    text = escape(cell.text)
    return f"**{text}**" if cell.bold and text else text


def escape(text: str) -> str:
    """Nothing in a name may open a tag, a cell or an emphasis."""
    for mark in ("\\", "|", "*", "_", "`", "[", "]"):
        text = text.replace(mark, "\\" + mark)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("\n", " ")
