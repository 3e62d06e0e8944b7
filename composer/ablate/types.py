"""What an ablation is made of: cells, the grid, the tasks that train it, and what came out. Plain data, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from composer.recipe.recipe import Recipe
from composer.recipe.studies import Row, Study

ANALYSIS = ("primary", "family", "equivalence", "thresholds", "exploratory")       # what [analysis] tells the statistics
Design = Literal["full", "one-out", "one-in", "fractional", "study"]


@dataclass(frozen=True)
class Cell:
    """One variant. With several seeds it is several runs.

    name     unique in the grid: "full" (nothing is off), "-ema", "-ema -margin"; in a study the row's name, for a sweep's point "row#3"
    recipe   the recipe with the cell's edits
    off      toggles that are off, in the order of the grid's toggles
    same_as  the name of the cell it is equal to (same plans, same dials, same judging): it is not run, its numbers are that cell's
    void     toggle that is off here without effect -> the toggle that has already removed what it edits
    row      a study's row, and `point` the values of a sweep's grid
    """

    name: str
    recipe: Recipe
    off: tuple[str, ...] = ()
    same_as: str = ""
    void: Mapping[str, str] = field(default_factory=dict)
    row: Row | None = None
    point: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Grid:
    """Everything that will run, checked.

    base        the cell that others are compared with: "full", or a study's first cell of kind "cell" ("" where there is none)
    resolution  of a fractional design (3: III, ...), else 0
    aliases     fractional: effect -> the effects it cannot be told from, as "ema:margin"
    nested      toggle -> the toggles inside which it is void: {"ema": ("align",)}
    tuned       how hyper-parameters were chosen, in a sentence; "": all stand where their recipe puts them
    notes       what the reader must know, one sentence each ("ema is void inside align: ...")
    """

    name: str
    design: Design
    toggles: tuple[str, ...]
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]
    base: str
    analysis: Mapping[str, Any]
    study: Study | None = None
    resolution: int = 0
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    nested: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    tuned: str = ""

    @cached_property
    def _named(self) -> dict[str, Cell]:
        return {cell.name: cell for cell in self.cells}

    def cell(self, name: str) -> Cell:
        return self._named[name]

    @property
    def distinct(self) -> tuple[Cell, ...]:
        """Cells that are run."""
        return tuple(c for c in self.cells if not c.same_as)


@dataclass(frozen=True)
class Task:
    """One piece of work for one process; it starts when `after` is done.

    kind    "prefix": train epochs that several cells share, up to the fork; "run": train the rest of one cell, evaluate, record; "rung": train a
            sweep's point to a rung and judge it on held-out images; "bench": measure a cell's steps
    spec    JSON-able arguments of `composer.ablate.work.work`
    epochs  that it trains beyond what `after` has trained (for the progress display)
    """

    id: str
    kind: Literal["prefix", "run", "rung", "bench"]
    title: str                                    # "-ema, seed 2", "epochs 1-16 of 5 cells, seed 0"
    spec: Mapping[str, Any]
    after: str = ""
    epochs: int = 0
    cell: str = ""
    seed: int = 0
    seeds: tuple[int, ...] = ()                   # of a task that trains several together (`packs`)
    runs: tuple[tuple[str, int], ...] = ()        # and the runs that it trains: cell, seed


@dataclass(frozen=True)
class Failure:
    """A run without a result. `diverged`: an outcome of the method; else a crash, a lost worker, or a prefix that failed."""

    cell: str
    seed: int
    why: str
    diverged: bool = False
    exit_code: int = 1


@dataclass(frozen=True)
class Outcome:
    """What came back: the result of `composer run` for each (cell, seed), and what failed."""

    results: Mapping[tuple[str, int], dict[str, Any]]
    failed: tuple[Failure, ...] = ()
    epochs_trained: int = 0
    epochs_unshared: int = 0
    epochs_common: Mapping[str, int] = field(default_factory=dict)     # cell -> epochs it shares with at least one other cell
    fork_epochs: tuple[int, ...] = ()                                  # the epochs after which cells part; one: all fork together
    seconds: float = 0.0
    sweeps: tuple[Mapping[str, Any], ...] = ()                         # rows whose points are dropped at rungs, as `rungs.Ladders.plain` says them
