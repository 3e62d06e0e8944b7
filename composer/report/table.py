"""The table a run ends with: measures as columns, best and last as rows, each accuracy with the half-width of its 95 % interval."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import IO, Any

from composer.report.doubts import by_kind

DOUBTED = "†"                                                # behind every number of a checkpoint whose trust checks found a reason
Z = 1.959963984540054                                        # two-sided 95 % of the normal distribution


def half_width(p: float, n: int) -> float:
    """Half of Wilson's 95 % interval for a rate p over n images.

    Formula: z·sqrt(p(1-p)/n + z²/4n²) / (1 + z²/n)   [same unit as p]
    Paper:   Wilson, JASA 1927
    """
    return Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n)) / (1 + Z * Z / n) if n > 0 else 0.5


def is_rate(value: Any, n: int | None) -> bool:
    """Whether a metric is a share of n images (and not, say, a mean margin): k of n, k whole."""
    return isinstance(value, (int, float)) and bool(n) and 0 <= value <= 1 and abs(value * n - round(value * n)) < 1e-4


def show(value: Any, n: int | None, unit: str = "") -> str:
    """`54.30 ± 0.98` (percent) for a rate, the bare number for anything else; a diagnostic, which has a unit, is never a rate."""
    if value is None or isinstance(value, float) and not math.isfinite(value):
        return "-"
    if not unit and is_rate(value, n):
        return f"{100 * value:.2f} ± {100 * half_width(value, n):.2f}"
    return f"{value:.4g}" if isinstance(value, (int, float)) else str(value)


def span(seconds: float) -> str:
    """`0:03:12`, or `2 d 01:00:00`."""
    days, rest = divmod(max(0, int(seconds + 0.5)), 86400)
    hours, minutes, whole = rest // 3600, rest // 60 % 60, rest % 60
    return f"{days} d {hours:02}:{minutes:02}:{whole:02}" if days else f"{hours}:{minutes:02}:{whole:02}"


def rows_of(result: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """(label, metrics): the selected checkpoint first; the other one where it was judged too."""
    chosen = result.get("selected") or "result"
    other = {"best": "last", "last": "best"}.get(chosen, "other")
    rows = [(chosen, result.get("metrics") or {}), (other, result.get("metrics_other") or {})]
    return [row for row in rows if row[1]]


def trusts(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What the trust checks say of each of rows_of's rows. `trust_other` stands in a result only where they found something."""
    pairs = (("trust", "metrics"), ("trust_other", "metrics_other"))
    return [result.get(trust) or {} for trust, metrics in pairs if result.get(metrics)]


def grid(result: Mapping[str, Any]) -> list[list[str]]:
    """Cells of the table: a line of names, a line of image counts and the units of diagnostics, a line for each checkpoint. Doubted numbers bear a mark."""
    rows, n, units = rows_of(result), result.get("n") or {}, result.get("units") or {}
    names = list(dict.fromkeys(name for _, metrics in rows for name in metrics))
    counts = [" ".join([f"n = {n[name]:,}" if n.get(name) else "", f"[{units[name]}]" if name in units else ""]).strip() for name in names]
    mark = " *" if len(rows) > 1 else ""
    doubts = [DOUBTED if trust.get("ok") is False else "" for trust in trusts(result)]
    lines = [[label + mark * (at == 0), *(marked(show(metrics.get(name), n.get(name), units.get(name, "")), doubts[at]) for name in names)]
             for at, (label, metrics) in enumerate(rows)]
    return [["", *names], ["", *counts], *lines]


def marked(cell: str, mark: str) -> str:
    """The number with its mark; nothing measured needs none."""
    return cell + mark if cell != "-" else cell


def layout(cells: Sequence[Sequence[str]]) -> list[str]:
    """Cells as lines: the first column to the left, the others to the right, two spaces between."""
    widths = [max(len(row[at]) for row in cells) for at in range(len(cells[0]))]
    return ["  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]).rstrip()
            for row in cells]


def fitted(cells: list[list[str]], width: int) -> list[list[str]]:
    """The cells as they are where they fit the width, else turned: measures as rows under one line of headings."""
    if len(cells) < 3 or len(max(layout(cells), key=len)) <= width:
        return cells
    cells = [["measure", *cells[0][1:]], ["images", *(count.removeprefix("n = ") for count in cells[1][1:])], *cells[2:]]
    return [list(row) for row in zip(*cells, strict=True)]


def head(result: Mapping[str, Any]) -> str:
    name = str(result.get("recipe") or result.get("model") or "result")
    what = f"{name} on {result['setting']}" if result.get("setting") else name
    facts = [f"seed {result['seed']}" if result.get("seed") is not None else "", f"{result['epochs']:,} epochs" if result.get("epochs") else "",
             f"{result['steps']:,} steps" if result.get("steps") else "", span(result["seconds"]) if result.get("seconds") else "",
             f"protocol {result['protocol']}" if result.get("protocol") else ""]
    return ", ".join([what, *filter(None, facts)])


def foot(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Lines beneath the table, each with its tone: dim, good or bad."""
    rows, n, units = rows_of(result), result.get("n") or {}, result.get("units") or {}
    lines = []
    if any(is_rate(value, n.get(name)) for _, metrics in rows for name, value in metrics.items() if name not in units):
        mark = f"* selected; the run's result is its {rows[0][0]} checkpoint. " if len(rows) > 1 else ""
        lines.append((f"{mark}Accuracy in % ± half of the 95 % interval over images (Wilson).", "dim"))
    if chosen := result.get("selection"):
        score = f"{chosen['attack']} {100 * chosen['score']:.2f} ± {100 * chosen['se']:.2f} %"
        lines.append((f"epoch {chosen['epoch']} selected by {score} on {chosen['n']:,} held-out images (standard error)", "dim"))
    lines += [(f"recipe's [expect]  {line}", "bad" if "OUTSIDE" in line else "good") for line in result.get("expect") or []]
    lines += _doubts(result)
    lines += [(_workers(result["workers"]), "dim")] if result.get("workers") else []
    kept = [str(result["out"]) if result.get("out") else "", f"MLflow run {result['mlflow_run_id']}" if result.get("mlflow_run_id") else ""]
    if any(kept):
        lines.append(("kept in " + ", ".join(filter(None, kept)) if kept[0] else kept[1], "dim"))
    return lines


def _doubts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the mark on numbers means, a line a kind of doubt; or that there is none."""
    rows, checked = rows_of(result), trusts(result)
    names = [*(result.get("n") or {}), *(name for _, metrics in rows for name in metrics)]
    lines = []
    for (label, _), trust in zip(rows, checked, strict=True):
        flags = [str(flag) for flag in trust.get("flags") or ([] if trust.get("ok") is not False else ["the trust checks doubt these numbers"])]
        of = f" of {label}" if trust is not checked[0] else ""
        lines += [(f"{DOUBTED} doubt{of}: {line}", "bad") for line in by_kind(flags, names)]
    if checked and checked[0].get("ok") and not lines:
        lines.append(("trust checks: no reason to doubt these numbers", "good"))
    return lines


def _workers(facts: Mapping[str, Any]) -> str:
    """`2 workers (gloo): 742 images/s, 135 ms a step, 20 of them in exchanges`."""
    speed = [f"{facts['images_per_s']:,.0f} images/s" if facts.get("images_per_s") else "", f"{facts['step_ms']:,.0f} ms a step" if facts.get("step_ms") else "",
             f"{facts['exchange_ms']:,.0f} of them in exchanges" if facts.get("exchange_ms") else ""]
    how = facts["exchange"] + (", batch norm over all" if facts.get("sync_bn") else "")
    return f"{facts['n']} workers ({how})" + (": " + ", ".join(filter(None, speed)) if any(speed) else "")


def plain_table(result: Mapping[str, Any], width: int = 10_000) -> str:
    """The table as text without colours."""
    cells = grid(result)
    body = layout(fitted(cells, width)) if len(cells) > 2 else ["nothing was measured"]
    return "\n".join([head(result), "", *body, "", *(line for line, _ in foot(result))])


def final_table(result: Mapping[str, Any], width: int = 80) -> Any:
    """The table for a terminal, as a renderable of rich."""
    from rich.console import Group
    from rich.text import Text

    tones = {"dim": "dim", "good": "green", "bad": "bold yellow"}
    cells = grid(result)
    body = _rich_table(cells, width) if len(cells) > 2 else Text("nothing was measured")
    return Group(Text(head(result), style="bold"), body, *(Text(line, style=tones[tone]) for line, tone in foot(result)))


def _rich_table(cells: list[list[str]], width: int) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = fitted(cells, width - len(cells[0]))
    turned = shown is not cells
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for at in range(len(shown[0])):
        heading = Text(shown[0][at], style="bold")
        if not turned:
            heading.append(f"\n{shown[1][at]}", style="not bold dim")
        table.add_column(heading, justify="right" if at else "left", no_wrap=True, style="dim" if turned and at in (1, 3) else "")
    for at, row in enumerate(shown[1 if turned else 2:]):
        table.add_row(*(Text(cell) for cell in row), style="dim" if at and not turned else "")
    return table


def print_result(result: Mapping[str, Any], file: IO[str] | None = None) -> None:
    """Print the table: coloured on a terminal, plain text into anything else."""
    file = file or sys.stdout
    if not file.isatty():
        print(plain_table(result), file=file)
        return
    from rich.console import Console

    console = Console(file=file, highlight=False)
    console.print(final_table(result, console.width))


def compare_expect(expect: Mapping[str, Any], metrics: Mapping[str, float], n: Mapping[str, int], units: Mapping[str, str] | None = None) -> list[str]:
    """A line for each metric of a recipe's `[expect]` table: expected, got, and whether it lies within the tolerance.

    `aa = 0.60` allows the half-width of the 95 % interval for the difference of two runs on n images each, at least one point;
    `aa = { value = 0.60, within = 0.05 }` says its own. Entries that hold no number (prose, hardware) are passed over. A diagnostic (in `units`) is
    compared in its unit, within a tenth of the expected value.
    """
    lines = []
    for name, entry in expect.items():
        value = entry.get("value") if isinstance(entry, Mapping) else entry
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        given = entry.get("within") if isinstance(entry, Mapping) else None
        unit = (units or {}).get(name)
        lines.append(_compared(name, float(value), given, metrics.get(name), n.get(name, 0)) if unit is None else
                     _compared_value(name, float(value), given, metrics.get(name), unit))
    return lines


def _compared_value(name: str, value: float, given: float | None, got: float | None, unit: str) -> str:
    if got is None or not math.isfinite(got):
        return f"{name}: expected {value:.4g} {unit}, not measured"
    within = float(given) if given is not None else abs(value) / 10
    verdict = "within" if abs(got - value) <= within + 1e-12 else "OUTSIDE"
    return f"{name}: expected {value:.4g} {unit}, got {got:.4g} {unit} ({got - value:+.2g}), {verdict} ±{within:.2g}"


def _compared(name: str, value: float, given: float | None, got: float | None, n: int) -> str:
    if got is None:
        return f"{name}: expected {100 * value:.2f} %, not measured"
    within = float(given) if given is not None else max(0.01, math.sqrt(2) * half_width(value, n) if n else 0.01)
    verdict = "within" if abs(got - value) <= within + 1e-12 else "OUTSIDE"
    return f"{name}: expected {100 * value:.2f} %, got {100 * got:.2f} % ({100 * (got - value):+.2f}), {verdict} ±{100 * within:.2f}"
