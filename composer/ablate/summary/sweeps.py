"""Rows of kind sweep: the points of the grid are runs, the row is the winner of each selector on held-out images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from composer.ablate.summary.blocks import Block, found_of
from composer.ablate.types import Cell, Outcome


@dataclass(frozen=True)
class Winner:
    """The best point of a sweep by one selector, its score the mean over seeds on held-out images."""

    row: str
    selector: str
    cell: Cell
    score: float
    points: int
    scored: int

    @property
    def source(self) -> str:
        """The cell whose runs are its runs."""
        return self.cell.same_as or self.cell.name

    @property
    def label(self) -> str:
        return f"{self.row} [by {self.selector}]"


def winners_of(block: Block, outcome: Outcome, out: Path, study: str = "") -> tuple[tuple[Winner, ...], tuple[str, ...]]:
    """The winners of the block's sweeps, and a sentence for every one that cannot be told."""
    rows: dict[str, list[Cell]] = {}
    for cell in block.cells:
        if cell.row is not None and cell.row.kind == "sweep":
            rows.setdefault(cell.row.name, []).append(cell)
    made, notes = [], []
    for name, cells in rows.items():
        for selector in cells[0].row.select or ("clean",):                # type: ignore[union-attr]
            scores = {cell.name: score for cell in cells if (score := score_of(cell, selector, outcome, out, study)) is not None}
            if not scores:
                notes.append(f"{name} has no winner by {selector}: no run of its {len(cells)} kept that accuracy on held-out images.")
                continue
            best = max(cells, key=lambda c: scores.get(c.name, float("-inf")))
            made.append(Winner(name, selector, best, scores[best.name], len(cells), len(scores)))
    return tuple(made), tuple(notes)


def score_of(cell: Cell, selector: str, outcome: Outcome, out: Path, study: str = "") -> float | None:
    """Mean over seeds of the accuracy on held-out images at the selected epoch. Never a number of the test split."""
    source = cell.same_as or cell.name
    scores = [score for seed, result in found_of(outcome, source).items() if (score := _held_out(cell, selector, result, out, study, seed)) is not None]
    return sum(scores) / len(scores) if scores else None


def _held_out(cell: Cell, selector: str, result: Mapping[str, Any], out: Path, study: str, seed: int) -> float | None:
    """What validation said of the selected epoch, else what was measured of its weights at the end."""
    from composer.ablate.rungs import record_file
    from composer.ablate.summary.gather import history, read

    attack = cell.recipe.select.attack
    names = [f"val/{selector}", f"trace-val/{selector}"]
    if attack is not None and selector.replace("-", "_") == attack.use:
        names.append(f"val/{attack.name}")
    rows = {int(row["epoch"]): row for row in history(out, str(result.get("run") or ""))}
    row = rows.get(int(result.get("selected_epoch") or 0), {})
    measured = (read(record_file(out / "studies" / study, cell.same_as or cell.name, seed, 0)) or {}).get("metrics") or {} if study else {}
    known = {**{f"val/{name}": value for name, value in measured.items()}, **{k: v for k, v in row.items() if v is not None}}
    return next((float(known[name]) for name in names if name in known), None)
