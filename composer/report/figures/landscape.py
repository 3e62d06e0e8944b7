"""The loss over two directions of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from composer.report.figures import style
from composer.report.figures.record import Series, Shown

STEEP = 30.0      # largest over smallest loss from which the colours are logarithmic
MOST = 0.97       # share of the points that the colours tell apart; the corners beyond have the outermost


def draw(names: Sequence[str], series: Sequence[Series]) -> Any:
    """A panel a measure and row, all with the same colours: how much the loss exceeds that of the weights themselves. The first seed of a row."""
    import numpy as np

    shown = [(each.label, each.of(name)[0]) for name in names for each in series if each.of(name)]
    rises = [np.clip(np.asarray(f.details["loss"], float) - f.details["centre"], None, 1e6) for _, f in shown]
    every = np.concatenate([r.ravel() for r in rises])
    levels, ticks = _levels(*(float(np.quantile(every, q)) for q in (1 - MOST, MOST)))
    many = len(shown) > 1
    figure, axes = style.canvas(len(shown), width=3.2 if many else 5.0, height=3.0 if many else 4.2)
    for axis, (label, found), rise in zip(axes, shown, rises):
        axis.grid(False)
        head = " ".join(filter(None, (label if len(series) > 1 else "", found.name if len(names) > 1 or len(series) == 1 else "")))
        painted = _panel(axis, head, found, rise, levels)
    bar = figure.colorbar(painted, ax=axes, shrink=0.9, ticks=ticks)
    bar.set_label("cross entropy above the centre's, nats")
    bar.ax.set_yticklabels([f"{tick:.3g}" for tick in ticks])
    kinds = "the same two directions in every panel" if many else "two random directions"
    style.title(figure, f"Loss around the trained weights (+, loss L)\n{kinds}")
    return figure


def _levels(low: float, high: float) -> tuple[Any, Any]:
    """Edges of the colours and where the bar is labelled; logarithmic above the centre where one network's loss rises far more than another's."""
    import numpy as np
    from matplotlib.ticker import MaxNLocator

    low, high = min(low, 0.0), max(high, 1e-6)
    if high > STEEP * max(0.1, -low):
        upper = high / np.array([300, 100, 30, 10, 3, 1])
        levels = np.concatenate([[low] if low < 0 else [], [0.0], upper])
        return levels, levels
    levels = MaxNLocator(14, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return levels, levels[int(np.abs(levels).argmin()) % 2::2]     # 0 is among those that are labelled


def _panel(axis: Any, head: str, found: Shown, rise: Any, levels: Any) -> Any:
    from matplotlib.colors import BoundaryNorm

    grid = found.details["axis"]
    norm = BoundaryNorm(levels, 256, extend="both")
    painted = axis.contourf(grid, grid, rise, levels=levels, norm=norm, cmap="viridis", extend="both")
    axis.contour(grid, grid, rise, levels=levels[::2], colors="white", linewidths=0.5, alpha=0.7)
    axis.plot([0], [0], "+", color="red", markersize=9, markeredgewidth=1.6)
    axis.set(xlabel="$m_1$", ylabel="$m_2$", aspect="equal")
    axis.set_title(f"{head}\nL = {found.details['centre']:.3f}, mean rise {found.metric or 0:.3g}", fontsize=8)
    return painted
