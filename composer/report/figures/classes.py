"""Accuracy class by class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from composer.report.figures import style
from composer.report.figures.record import Series, Shown

MOST = 30


def draw(names: Sequence[str], series: Sequence[Series]) -> Any:
    """A panel a measure: robust accuracy as bars, clean as marks above them. Of more than 30 classes the worst ones."""
    shown = [s for s in series if any(s.of(name) for name in names)]
    ids = {name: _classes(shown, name) for name in names}
    widest = max(map(len, ids.values()))
    figure, axes = style.canvas(len(names), width=max(4.8, 0.28 * widest * max(1, len(shown)) ** 0.6 + 1.5), columns=1, legend=len(shown) + 1,
                                names=[s.label for s in shown] + ["clean accuracy"])
    for axis, name in zip(axes, names):
        wide = 0.8 / len(shown)
        for at, each in enumerate(shown):
            for place, k in enumerate(ids[name]):
                _bar(axis, place + wide * (at - (len(shown) - 1) / 2), wide, each.of(name), k, at, each.label if place == 0 else None, at == place == 0)
        axis.set(ylabel=f"{name}: accuracy, %", ylim=(0, 102), xlabel="class", xlim=(-0.6, len(ids[name]) - 0.4))
        axis.set_xticks(range(len(ids[name])), [str(k) for k in ids[name]], fontsize=8 if len(ids[name]) <= 15 else 6)
    style.title(figure, "Robust accuracy by class" + ("; line: lowest to highest seed" if max(len(s.seeds) for s in shown) > 1
                                                      else "; line: 95 % interval over images (Wilson)"))
    style.legend(figure, axes)
    return figure


def _classes(shown: Sequence[Series], name: str) -> list[int]:
    """In order; of many the worst by the first row."""
    rows = next((f.details["classes"] for s in shown for f in s.of(name)), [])
    worst = sorted(rows, key=lambda row: row["robust"])[:MOST] if len(rows) > MOST else rows
    return [row["class"] for row in worst]


def _bar(axis: Any, place: float, wide: float, found: Sequence[Shown], k: int, at: int, label: str | None, first: bool) -> None:
    rows = [row for f in found for row in f.details["classes"] if row["class"] == k]
    if not rows:
        return
    robust, clean = ([100 * row[key] for row in rows] for key in ("robust", "clean"))
    axis.bar([place], [style.mean(robust)], wide, color=style.colour(at), label=label)
    ends = [min(robust), max(robust)] if len(rows) > 1 else [100 * v for v in rows[0]["robust_ci95"]]
    axis.plot([place, place], ends, color="0.25", linewidth=1)
    axis.plot([place], [style.mean(clean)], "_", color="0.1", markersize=max(3.0, 14 * wide), label="clean accuracy" if first else None)
