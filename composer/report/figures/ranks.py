"""Where adversarial examples go: the share of each rank under a reference network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from composer.report.figures import style
from composer.report.figures.record import Series

MOST = 20


def draw(names: Sequence[str], series: Sequence[Series]) -> Any:
    """A panel a measure, grouped bars over the ranks."""
    shown = [s for s in series if any(s.of(name) for name in names)]
    figure, axes = style.canvas(len(names), legend=len(shown), names=[s.label for s in shown])
    for axis, name in zip(axes, names):
        ranks = min(MOST, max(len(f.details["share"]) for s in shown for f in s.of(name)))
        wide = 0.8 / len(shown)
        for at, each in enumerate(shown):
            rows = [100 * sum(r) / len(r) for r in zip(*(f.details["share"] for f in each.of(name)))]
            places = [k + 1 + wide * (at - (len(shown) - 1) / 2) for k in range(ranks)]
            axis.bar(places, rows[:ranks], wide, color=style.colour(at), label=each.label)
            _seeds(axis, places, [f.details["share"] for f in each.of(name)])
        rest = max(100 * sum(f.details["share"][ranks:]) for s in shown for f in s.of(name))
        axis.set(xlabel=f"{name}: rank of the class reached" + (f" (above {ranks}: at most {rest:.1f} %)" if rest > 0 else ""), ylabel="share of broken images, %",
                 xlim=(0.4, ranks + 0.6))
        axis.set_xticks(range(1, ranks + 1))
    counted = [f.details["counted"] for s in shown for name in names for f in s.of(name)]
    many = f"{min(counted):,} to {max(counted):,} images" if min(counted) < max(counted) else f"{counted[0]:,} images"
    style.title(figure, f"Rank, under the reference at the clean image, of the class that the attack reaches; {many}"
                        + ("; line: lowest to highest seed" if max(len(s.seeds) for s in shown) > 1 else ""))
    style.legend(figure, axes)
    return figure


def _seeds(axis: Any, places: Sequence[float], shares: Sequence[Sequence[float]]) -> None:
    """From the lowest to the highest seed."""
    if len(shares) > 1:
        for at, column in zip(places, zip(*shares)):
            axis.plot([at, at], [100 * min(column), 100 * max(column)], color="0.25", linewidth=1)
