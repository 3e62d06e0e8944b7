"""Accuracies against the numbers that rows differ in: a line where it is one, a map where it is two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from composer.report.figures import style
from composer.report.figures.record import Series
from composer.report.figures.traces import recipe

INERT = ("about", "seed", "version", "expect", "toggle", "search", "on", "for", "analysis", "evaluate", "trace", "paper")
LEAST, MOST_METRICS = 3, 6
Row = tuple[str, dict[str, Any], Any]         # name, recipe as paths, line of the table


def pictures(table: Any, series: Sequence[Series]) -> list[tuple[str, Any]]:
    """("numbers-over-<path>", figure) for each number of the recipe in which at least three rows differ, and in nothing else; one map for two numbers
    of which every combination is there."""
    lines = {line.name: line for line in table.lines}
    rows: list[Row] = [(each.label, flat(recipe(each.folders[0])), lines[each.label]) for each in series if each.folders and each.label in lines]
    rows = [row for row in rows if row[1]]
    differ = [path for path in dict.fromkeys(p for _, r, _ in rows for p in r) if len({repr(r.get(path)) for _, r, _ in rows}) > 1]
    numeric = [path for path in differ if all(number(r.get(path)) for _, r, _ in rows if path in r)]
    for at, first in enumerate(numeric):
        for second in numeric[at + 1:]:
            group = largest(rows, differ, (first, second))
            sides = [sorted({r[path] for _, r, _ in group}) for path in (first, second)]
            if min(map(len, sides), default=0) > 1 and len(group) == len(sides[0]) * len(sides[1]):
                return [(f"numbers-over-{short(first)}-and-{short(second)}", _map(table, group, first, second, sides))]
    made = []
    for path in numeric:
        group = largest(rows, differ, (path,))
        if len({r[path] for _, r, _ in group}) >= LEAST:
            made.append((f"numbers-over-{short(path)}", _lines(table, sorted(group, key=lambda row: row[1][path]), path)))
    return made


def number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """What a recipe trains, as dotted paths."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        if not prefix and key in INERT:
            continue
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def largest(rows: Sequence[Row], differ: Sequence[str], free: Sequence[str]) -> list[Row]:
    """The most rows that agree on everything but the free paths, and have those."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if all(path in row[1] for path in free):
            groups.setdefault(repr([(p, row[1].get(p)) for p in differ if p not in free]), []).append(row)
    return max(groups.values(), key=len, default=[])


def short(path: str) -> str:
    return path.removesuffix(".value").replace("/", "_")


def _lines(table: Any, group: Sequence[Row], path: str) -> Any:
    """Mean with its 95 % t interval over seeds, a line a metric; accuracies left, everything else has a panel of its own."""
    metrics = [m for m in table.metrics if all(m.name in line.metrics for _, _, line in group)]
    rates, rest = [m for m in metrics if m.rate], [m for m in metrics if not m.rate][:MOST_METRICS - 1]
    panels = [*([rates] if rates else []), *([m] for m in rest)]
    if not panels:
        return style.canvas(1)[0]
    figure, axes = style.canvas(len(panels), legend=len(rates), names=[m.name for m in rates])
    x = [row[path] for _, row, _ in group]
    for axis, held in zip(axes, panels):
        for at, m in enumerate(held):
            records = [line.metrics[m.name] for _, _, line in group]
            sides = [[m.scale() * abs(r["mean"] - r["ci95"][k]) if r.get("ci95") else 0.0 for r in records] for k in (0, 1)]
            axis.errorbar(x, [m.scale() * r["mean"] for r in records], yerr=sides, fmt=style.line(at), marker="o", markersize=4, capsize=2.5, linewidth=1.4,
                          color=style.colour(at), label=m.name if m.rate else None)
        axis.set(xlabel=short(path), ylabel="accuracy, %" if held[0].rate else f"{held[0].name}, {held[0].unit}")
        if min(x) > 0 and max(x) >= 20 * min(x):
            axis.set_xscale("log")
        axis.set_xticks(x, [f"{v:g}" for v in x], fontsize=8)
        axis.minorticks_off()
    style.title(figure, f"Rows that differ in {short(path)} alone; " + (f"mean and 95 % t interval over {table.seeds} seeds" if table.seeds > 1 else "one seed"))
    style.legend(figure, axes)
    return figure


def _map(table: Any, group: Sequence[Row], first: str, second: str, sides: Sequence[Sequence[float]]) -> Any:
    """The mean of the primary metric, in each square."""
    import numpy as np

    metric = table.metric(table.primary)
    held = {(row[first], row[second]): line.metrics.get(metric.name) for _, row, line in group}
    values = np.array([[metric.scale() * held[a, b]["mean"] if held.get((a, b)) else np.nan for a in sides[0]] for b in sides[1]])
    figure, (axis,) = style.canvas(1, width=1.9 + 0.75 * len(sides[0]), height=1.5 + 0.5 * len(sides[1]))
    axis.grid(False)
    painted = axis.imshow(values, origin="lower", cmap="viridis", aspect="auto")
    middle = np.nanmean([np.nanmin(values), np.nanmax(values)])
    for j, row in enumerate(values):
        for i, value in enumerate(row):
            axis.text(i, j, f"{value:.1f}" if metric.rate else f"{value:.3g}", ha="center", va="center", fontsize=8, color="white" if value < middle else "black")
    axis.set_xticks(range(len(sides[0])), [f"{v:g}" for v in sides[0]])
    axis.set_yticks(range(len(sides[1])), [f"{v:g}" for v in sides[1]])
    axis.set(xlabel=short(first), ylabel=short(second))
    figure.colorbar(painted, ax=axis).set_label(f"{metric.name}, {'%' if metric.rate else metric.unit}")
    style.title(figure, f"{metric.name}: mean over {table.seeds} seeds" if table.seeds > 1 else f"{metric.name}: one seed")
    return figure
