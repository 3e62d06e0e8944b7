"""Margins and radii, image by image, as histograms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from composer.report.figures import style
from composer.report.figures.record import Series

BINS, BEYOND = 40, 0.995        # the last half percent, which a few far images stretch, is counted and not drawn


def draw(names: Sequence[str], series: Sequence[Series]) -> Any:
    """A panel a measure, all with one axis; the seeds of a row are pooled. The line at the foot is a mean."""
    import numpy as np

    held = {(name, at): pooled(each, name) for name in names for at, each in enumerate(series)}
    held = {key: values for key, values in held.items() if len(values)}
    if not held:
        return None
    every = np.concatenate(list(held.values()))
    edges, unit = bins(every), next(f.unit for each in series for name in names for f in each.of(name))
    figure, axes = style.canvas(len(names), legend=len(series), names=[s.label for s in series])
    for axis, name in zip(axes, names):
        beyond = 0
        for at, each in enumerate(series):
            values = held.get((name, at))
            if values is None:
                continue
            beyond += int((values > edges[-1]).sum())
            share = 100 * np.histogram(values, edges)[0] / len(values)
            _steps(axis, edges, share, at, each.label, len(series) == 1)
            axis.plot([float(values.mean())], [0], "^", color=style.colour(at), markersize=7, clip_on=False, zorder=5)
        axis.set(xlabel=f"{name}, {unit}", ylabel="share of images, %", ylim=(0, None), xlim=(float(edges[0]), float(edges[-1])))
        if beyond:
            axis.text(0.99, 0.98, f"{beyond:,} beyond the axis", transform=axis.transAxes, ha="right", va="top", fontsize=7, color="0.4")
    sizes = [len(values) for values in held.values()]
    style.title(figure, f"Distribution over {min(sizes):,}{f' to {max(sizes):,}' if min(sizes) < max(sizes) else ''} images a line; triangle: mean"
                        + ("; seeds pooled" if max(len(s.seeds) for s in series) > 1 else ""))
    style.legend(figure, axes)
    return figure


def pooled(each: Series, name: str) -> Any:
    """The values that count, of all seeds."""
    import numpy as np

    found = [shown.values[np.isfinite(shown.values)] for shown in each.of(name) if shown.values is not None]
    return np.concatenate(found) if found else np.zeros(0, np.float32)


def bins(values: Any) -> Any:
    """Edges from the smallest value (0 where none is negative) to nearly the largest."""
    import numpy as np

    low, high = min(0.0, float(values.min())), float(np.quantile(values, BEYOND))
    if float(values.max()) <= 1.1 * high:
        high = float(values.max())
    return np.linspace(low, high if high > low else low + max(1e-3, abs(low)), BINS + 1) * (1 + 1e-7)


def _steps(axis: Any, edges: Any, share: Any, at: int, label: str, filled: bool) -> None:
    axis.stairs(share, edges, color=style.colour(at), linewidth=1.4, linestyle=style.line(at), label=label)
    axis.stairs(share, edges, color=style.colour(at), alpha=0.3 if filled else 0.08, fill=True)
