"""What the analysis of an ablation reads: frozen records of plain data, without numpy or scipy at import.

Accuracies and margins are fractions in [0, 1]; a *point* in prose is 0.01. A cell is named by the caller; a seed is an int. A metric maps
`{cell: {seed: value}}`: a crashed run is simply absent, a diverged one stands in `Input.runs` with `diverged=True`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np

    Flags = Mapping[str, Mapping[int, "np.ndarray"]]            # cell -> seed -> one result per image, bool or float, same images in all

Values = Mapping[str, Mapping[int, float]]                      # cell -> seed -> value
Design = Literal["full", "one-out", "one-in", "fractional", "study"]


@dataclass(frozen=True)
class Settings:
    """`[analysis]` of a recipe or study, and what the command adds.

    primary      the metric claims are made on; default the first of `Input.metrics`
    family       names of the contrasts tested together (effects' terms, or cells for deltas); None: all effects of a full or fractional
                 design, all deltas of the others
    equivalence  margin of "does nothing", a fraction; None: no such verdict
    thresholds   `chance` (accuracy at or below it is chance), `overfit_gap` (single-step minus pgd-10, default 0.25), `overfit_drop`
                 (pgd-10 falls to this share of itself between two epochs, default 0.5)
    exploratory  "bh" gives the effects outside the family a false discovery rate `q_bh`
    """

    primary: str | None = None
    family: Sequence[str] | None = None
    equivalence: float | None = None
    thresholds: Mapping[str, float] = field(default_factory=dict)
    exploratory: Literal["bh"] | None = None
    beside_margin: float = 0.01
    alpha: float = 0.05
    bootstrap: int = 2000
    bootstrap_seed: int = 0


@dataclass(frozen=True)
class Training:
    """How one run went, for the count of collapses: accuracies on validation. `history` is the pgd-10 accuracy epoch by epoch."""

    diverged: bool = False
    single_step: float | None = None
    pgd10: float | None = None
    history: Sequence[float] = ()
    epochs: Sequence[int] = ()                                  # of `history`; default 1, 2, ...


@dataclass(frozen=True)
class Printed:
    """A number of a paper. `text` is what it prints (a ± of unknown meaning stays in it and enters no test)."""

    value: float
    text: str = ""


@dataclass(frozen=True)
class Input:
    """Everything `analyse` reads.

    metrics    metric -> cell -> seed -> value; every metric of one protocol, weights (best or last) and split
    levels     planned cell -> toggle -> +1 (on) or -1 (off), also cells without results; {} for the rows of a study without toggles
    same_as    planned cell -> the cell whose plan it has: it was not run, has no values and is no row; its combination reads the other's
    reference  the cell deltas are taken to: the full recipe (one-in: the bare one); None: no deltas
    nested     toggle -> the toggles it is void without: {"ema": ("align",)}
    aliases    fractional designs: term -> the terms it cannot be told from
    flags      metric -> cell -> seed -> per-image results; gives `ci_image` and `ci_both`
    images     metric -> number of images, where no flags are handed in (Wilson interval of a single seed, chance level)
    one_fork   all cells fork at one epoch: the least squares line may be shown
    common_epochs, epochs   "k of E epochs are common to these cells"
    val_images images of the validation behind `Training.history` (default the images of the clean metric)
    classes    K, for chance and for the accuracy of a diverged run that was not evaluated (1/K)
    clean      name of the clean accuracy; chance is judged on it
    graded     metrics that are not accuracies (mean smallest breaking epsilon)
    selected_on_test   cells that are the best of a sweep on test data: never bold
    """

    metrics: Mapping[str, Values]
    levels: Mapping[str, Mapping[str, int]]
    reference: str | None = None
    design: Design = "study"
    nested: Mapping[str, Sequence[str]] = field(default_factory=dict)
    aliases: Mapping[str, Sequence[str]] = field(default_factory=dict)
    flags: Mapping[str, Flags] = field(default_factory=dict)
    images: Mapping[str, int] = field(default_factory=dict)
    settings: Settings = field(default_factory=Settings)
    one_fork: bool = False
    common_epochs: int | None = None
    epochs: int | None = None
    runs: Mapping[str, Mapping[int, Training]] = field(default_factory=dict)
    classes: int | None = None
    clean: str = "clean"
    val_images: int | None = None
    graded: Sequence[str] = ()
    printed: Mapping[str, Mapping[str, Printed]] = field(default_factory=dict)
    selected_on_test: Sequence[str] = ()
    same_as: Mapping[str, str] = field(default_factory=dict)

    @property
    def own(self) -> list[str]:
        """Cells with runs of their own."""
        return [cell for cell in self.levels if cell not in self.same_as]
