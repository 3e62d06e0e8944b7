"""How pictures look: colours, axes, legends, files. Drawn without a display."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from composer import atomic

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")        # told apart by the colour-blind (Okabe, Ito)
MARKERS = "osD^vP*X"
LINES = ("-", "--", ":", "-.")


def colour(at: int) -> str:
    return COLOURS[at % len(COLOURS)]


def line(at: int) -> str:
    """Another dash for every round of the colours."""
    return LINES[at // len(COLOURS) % len(LINES)]


def canvas(panels: int, width: float = 4.6, height: float = 3.7, columns: int = 3, legend: int = 0, names: Iterable[str] = ()) -> tuple[Any, list[Any]]:
    """(figure, one axis a panel): up to three beside one another, four in a square; room for a legend of `legend` rows at the right."""
    from matplotlib.figure import Figure

    across = 2 if panels == 4 else min(columns, panels)
    down = -(-panels // across)
    beside = 0.07 * max(map(len, names), default=0) + 0.9 if legend > 1 else 0.0
    figure = Figure(figsize=(width * across + beside + 0.2, max(height * down + 0.5, 0.6 + 0.19 * legend)), layout="constrained")
    figure.panels_width = width * across                                  # inches left of the legend, where a title may stand
    axes = list(figure.subplots(down, across, squeeze=False).flat)
    for axis in axes:
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[panels:]:
        axis.set_visible(False)
    return figure, axes[:panels]


def legend(figure: Any, axes: Sequence[Any]) -> None:
    """One for all panels, outside them; none for a single entry."""
    held: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels()):
            held.setdefault(label, handle)
    if len(held) > 1:
        figure.legend(list(held.values()), list(held), loc="outside right upper", fontsize=8, frameon=False, ncols=1 + len(held) // 30)


def title(figure: Any, text: str) -> None:
    """Above all panels, broken into lines as wide as they are."""
    most = max(20, int(13.0 * getattr(figure, "panels_width", figure.get_figwidth())))
    lines = [line for each in text.split("\n") for line in textwrap.wrap(each, most)]
    figure.suptitle("\n".join(lines), fontsize=9, x=0.01, ha="left")


def save(figure: Any, folder: Path, name: str, vector: bool = False) -> list[Path]:
    """The same figure gives the same bytes."""
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "composer"}):
        made = [atomic.replace_with(folder / f"{name}.png", lambda beside: figure.savefig(beside, dpi=130))]
        return made + ([atomic.replace_with(folder / f"{name}.svg", lambda beside: figure.savefig(beside, metadata={"Date": None}))] if vector else [])


def pixels(values: Iterable[float]) -> tuple[float, str]:
    """(scale, unit): 255ths where all sizes are whole ones and small, else the share of the pixel range."""
    whole = [255 * v for v in values]
    if whole and all(abs(v - round(v)) < 1e-4 for v in whole) and 0 < max(whole) <= 50:
        return 255.0, "/255"
    return 1.0, "pixels in [0, 1]"


def finite(values: Iterable[Any]) -> list[float]:
    return [float(v) for v in values if isinstance(v, (int, float)) and math.isfinite(v)]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
