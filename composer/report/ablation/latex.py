"""The tables as LaTeX, to be read into a paper with \\input; needs the package booktabs."""

from __future__ import annotations

from collections.abc import Sequence

from composer.ablate.summary import Summary
from composer.report.ablation.sheet import Cell, Sheet, fitted
from composer.report.ablation.sheets import sheets_of
from composer.report.ablation.terminal import headline

WIDTH = 104                                                   # characters of a table in \small on a page of one column
HEAD = "% Written by composer. In the preamble: \\usepackage{booktabs}"
SIGNS = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
         "^": r"\textasciicircum{}", "±": r"$\pm$", "−": "$-$", "×": r"$\times$", "Δ": r"$\Delta$", "†": r"$^\dagger$", "–": "--", "≥": r"$\ge$",
         "≤": r"$\le$", "<": "$<$", ">": "$>$", "ε": r"$\varepsilon$", "α": r"$\alpha$", "β": r"$\beta$", "λ": r"$\lambda$", "τ": r"$\tau$",
         "γ": r"$\gamma$", "σ": r"$\sigma$", "≈": r"$\approx$", "→": r"$\to$", "·": r"$\cdot$", "²": "$^2$", "∞": r"$\infty$", "…": r"\ldots{}",
         "'": "'", '"': "''", "\n": " "}


def latex(summary: Summary) -> str:
    """A table environment for each sheet; the notes stand beneath the first one."""
    parts = [HEAD, f"% {escape(headline(summary))}"]
    for number, sheet in enumerate(sheets_of(summary)):
        cut = fitted(sheet, WIDTH)
        notes = [*summary.banners, *sheet.notes] if number == 0 else list(sheet.notes)
        parts += [sheet_latex(each, summary.study, at, notes if at == len(cut) - 1 else []) for at, each in enumerate(cut)]
    parts.append("\\begin{itemize}\\footnotesize\n" + "\n".join(f"  \\item \\emph{{{escape(head)}}}: {escape(text)}" for head, text in summary.footer)
                 + "\n\\end{itemize}" if summary.footer else "")
    return "\n\n".join(filter(None, parts)) + "\n"


def sheet_latex(sheet: Sheet, name: str, at: int = 0, notes: Sequence[str] = ()) -> str:
    """One table environment; its label is made of `name` and the sheet's key."""
    columns = "".join("l" if head.left else "r" for head in sheet.heads)
    deep = max(len(head.under) for head in sheet.heads)
    heads = [[head.name for head in sheet.heads], *([head.under[i] if i < len(head.under) else "" for head in sheet.heads] for i in range(deep))]
    lines = ["\\begin{table}[htbp]", "  \\centering\\small", f"  \\caption{{{escape(sheet.title)}}}", f"  \\label{{tab:{_key(name, sheet, at)}}}",
             f"  \\begin{{tabular}}{{{columns}}}", "    \\toprule", *(_row([escape(text) for text in head]) for head in heads), "    \\midrule",
             *(_row([_cell(cell) for cell in row]) for row in sheet.rows), "    \\bottomrule", "  \\end{tabular}",
             *(f"  \\par\\smallskip{{\\footnotesize {escape(note)}}}" for note in notes), "\\end{table}"]
    return "\n".join(lines)


def _row(texts: list[str]) -> str:
    return f"    {' & '.join(_guarded(texts))} \\\\"


def _guarded(texts: list[str]) -> list[str]:
    """A bracket or star that opens a line would be read as an option of the line break before it."""
    return [("{}" + text if text[:1] in "[*" else text) if at == 0 else text for at, text in enumerate(texts)]


def _cell(cell: Cell) -> str:
    text = escape(cell.text)
    return f"\\textbf{{{text}}}" if cell.bold and text else f"\\emph{{{text}}}" if cell.tone == "dim" and text else text


def _key(name: str, sheet: Sheet, at: int) -> str:
    text = "".join(c if c.isascii() and c.isalnum() else "-" for c in f"{name}-{sheet.key}")
    return text + (f"-{at + 1}" if at else "")


def escape(text: str) -> str:
    return "".join(SIGNS.get(c, c if c.isascii() or c.isalpha() else "?") for c in text)
