"""Pictures of a run, drawn without a display."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from composer import atomic


def curves(rows: Sequence[dict[str, Any]], path: Path, title: str = "", best: int | None = None) -> Path | None:
    """Accuracies and terms against epochs, from the lines of metrics.jsonl; None where there is nothing to draw.

    Left: accuracies in percent (training, validation, traces). Right: the terms' means, on a logarithmic axis where they span more than a decade.
    """
    accuracies = [k for k in keys(rows) if k.startswith(("train/accuracy.", "val/", "trace-"))]
    terms = [k for k in keys(rows) if k.startswith("train/terms.")]
    if not rows or not (accuracies or terms):
        return None
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    for name in accuracies:
        style = "-" if name.startswith("val/") else ":" if name.startswith("trace-") else "--"
        draw(left, rows, name, style, 100.0, name.replace("train/accuracy.", "train "))
    for name in terms:
        draw(right, rows, name, "-", 1.0, name.removeprefix("train/terms."))
    left.set(xlabel="epoch", ylabel="accuracy, %", ylim=(0, 100))
    right.set(xlabel="epoch", ylabel="mean of each term")
    means = [row[name] for row in rows for name in terms if row.get(name) is not None]
    if means and min(means) > 0 and max(means) > 10 * min(means):
        right.set_yscale("log")
    for axis in (left, right):
        if best:
            axis.axvline(best, color="0.6", linewidth=1)
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    try:
        return atomic.replace_with(path, lambda beside: figure.savefig(beside, dpi=120))
    finally:
        pyplot.close(figure)


def keys(rows: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(k for row in rows for k in row))


def draw(axis: Any, rows: Sequence[dict[str, Any]], name: str, style: str, scale: float, label: str) -> None:
    points = [(row["epoch"], scale * row[name]) for row in rows if row.get(name) is not None]
    axis.plot(*zip(*points), style, label=label, linewidth=1.4)
