"""Accuracy against confidence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from composer.report.figures import style
from composer.report.figures.record import Series, Shown

LEAST = 5      # images in a bin, below which its accuracy says nothing


def draw(names: Sequence[str], series: Sequence[Series]) -> Any:
    """Two panels a measure: accuracy in each bin of confidence, and how many images lie there. Seeds are pooled."""
    shown = [s for s in series if any(s.of(name) for name in names)]
    labels = {(name, at): label(each, name) for name in names for at, each in enumerate(shown)}
    figure, axes = style.canvas(2 * len(names), width=4.4, columns=2, legend=len(shown) + 1, names=[*labels.values(), "accuracy = confidence"])
    for at_name, name in enumerate(names):
        left, right = axes[2 * at_name], axes[2 * at_name + 1]
        left.plot([0, 1], [0, 1], color="0.5", linewidth=1, linestyle="--", label="accuracy = confidence")
        for at, each in enumerate(shown):
            rows = together(each.of(name))
            filled = [row for row in rows if row["n"] >= LEAST]
            total = sum(row["n"] for row in rows) or 1
            x, y = [r["confidence"] for r in filled], [r["accuracy"] for r in filled]
            left.plot(x, y, style.line(at), color=style.colour(at), linewidth=1.2, label=labels[name, at])
            left.scatter(x, y, [8 + 300 * r["n"] / total for r in filled], color=style.colour(at), alpha=0.7, linewidths=0, clip_on=False, zorder=3)
            edges = [rows[0]["low"], *(row["high"] for row in rows)] if rows else [0, 1]
            right.stairs([100 * row["n"] / total for row in rows], edges, color=style.colour(at), linewidth=1.4, linestyle=style.line(at))
        left.set(xlim=(0, 1.01), ylim=(0, 1.01), xlabel="confidence", ylabel=f"{name}: accuracy")
        right.set(xlim=(0, 1), ylim=(0, None), xlabel="confidence", ylabel="share of images, %")
    n = max(f.n for s in shown for name in names for f in s.of(name))
    style.title(figure, f"Reliability, n = {n:,}: below the diagonal the network is too sure; marks by the share of images, bins with fewer than {LEAST} left out")
    style.legend(figure, axes)
    return figure


def label(each: Series, name: str) -> str:
    found = style.finite(f.metric for f in each.of(name))
    return f"{each.label}, {name}: ECE {style.mean(found):.3f}" if found else each.label


def together(found: Sequence[Shown]) -> list[dict[str, Any]]:
    """The bins of all seeds as one."""
    rows = []
    for same in zip(*(f.details["bins"] for f in found)):
        n = sum(row["n"] for row in same)
        pooled = {key: sum(row["n"] * row[key] for row in same if row["n"]) / n if n else None for key in ("confidence", "accuracy")}
        rows.append({**same[0], "n": n, **pooled})
    return rows
