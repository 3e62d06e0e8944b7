"""Robust accuracy against the radius."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from composer.report.figures import style
from composer.report.figures.record import Series, Shown

LEAST = 0.01      # accuracy of a baseline below which a ratio to it says nothing


def draw(names: Sequence[str], series: Sequence[Series]) -> Any:
    """A panel a measure; beside it, where rows extend others by name ("at_mail_emr" extends "at_mail"), their accuracies as a ratio of those."""
    pairs = extensions([s.label for s in series])
    panels = [(name, ratio) for name in names for ratio in ((False, True) if pairs else (False,))]
    figure, axes = style.canvas(len(panels), columns=2 if pairs else 3, legend=len(series), names=[s.label for s in series])
    for axis, (name, ratio) in zip(axes, panels):
        scale, unit = style.pixels(e for s in series for shown in s.of(name) for e in shown.details["radii"])
        for at, each in enumerate(series):
            if ratio:
                base = next((s for s in series if s.label == pairs.get(each.label)), None)
                _ratio(axis, each, base, name, at, scale)
            else:
                _line(axis, each, name, at, scale)
        eps = next((shown.details["eps"] for s in series for shown in s.of(name)), 0.0)
        axis.axvline(scale * eps, color="0.6", linewidth=0.9, linestyle=":")
        axis.set(xlabel=f"radius, {unit}", ylabel="accuracy / that of the row it extends" if ratio else f"{name}: accuracy, %", xlim=(0, None))
        if ratio:
            axis.axhline(1.0, color="0.35", linewidth=0.9)
        else:
            axis.set_ylim(0, 100)
    many = max(len(s.of(name)) for s in series for name in names) > 1
    n = next(shown.details["n"] for s in series for name in names for shown in s.of(name))
    style.title(figure, f"Robust accuracy by radius, n = {n:,}; dotted: the threat's radius\n"
                        + ("mean over seeds, band: lowest to highest seed" if many else "band: 95 % interval over images (Wilson)"))
    style.legend(figure, axes)
    return figure


def _line(axis: Any, each: Series, name: str, at: int, scale: float) -> None:
    found = each.of(name)
    if not found:
        return
    radii = [scale * e for e in found[0].details["radii"]]
    same = [s for s in found if s.details["radii"] == found[0].details["radii"]]
    rows = list(zip(*(s.details["accuracy"] for s in same)))
    low, high = ([min(r) for r in rows], [max(r) for r in rows]) if len(same) > 1 else zip(*same[0].details["ci95"])
    axis.fill_between(radii, [100 * v for v in low], [100 * v for v in high], color=style.colour(at), alpha=0.15, linewidth=0)
    axis.plot(radii, [100 * style.mean(r) for r in rows], style.line(at), color=style.colour(at), marker="o", markersize=3, linewidth=1.5, label=each.label)


def _ratio(axis: Any, each: Series, base: Series | None, name: str, at: int, scale: float) -> None:
    if base is None or not each.of(name) or not base.of(name):
        return
    mine, other = accuracy(each.of(name)), accuracy(base.of(name))
    points = [(scale * e, mine[e] / other[e]) for e in mine if other.get(e, 0.0) >= LEAST]
    if points:
        axis.plot(*zip(*points), style.line(at), color=style.colour(at), marker="o", markersize=3, linewidth=1.5, label=each.label)


def accuracy(found: Sequence[Shown]) -> dict[float, float]:
    """Radius -> mean over seeds."""
    return {e: style.mean([s.details["accuracy"][s.details["radii"].index(e)] for s in found if e in s.details["radii"]]) for e in found[0].details["radii"]}


def extensions(labels: Sequence[str]) -> dict[str, str]:
    """Row -> the row with the longest name that it goes on from after "_"."""
    found = {}
    for label in labels:
        under = [other for other in labels if label.startswith(f"{other}_")]
        if under:
            found[label] = max(under, key=len)
    return found
