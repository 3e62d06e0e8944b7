"""Runs that are known to diverge: another try would end alike. They lie in diverged.json of the study's folder, and are forgotten where the cell has
another key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from composer import atomic
from composer.ablate.tree import Course
from composer.ablate.types import Failure, Grid
from composer.engine.record import read_json

FILE = "diverged.json"


def known(folder: Path, grid: Grid, courses: Mapping[str, Course]) -> dict[tuple[str, int], Failure]:
    """(cell, seed) -> how it ended."""
    held = read_json(folder / FILE) or {}
    return {(cell, seed): Failure(cell, seed, found[text]["why"], diverged=True, exit_code=3)
            for cell, found in held.items() if cell in courses for seed in grid.seeds
            if (text := str(seed)) in found and found[text]["key"] == courses[cell].key}


def note(folder: Path, grid: Grid, courses: Mapping[str, Course], lost: Mapping[tuple[str, int], Failure]) -> None:
    """Beside those of other seeds and cells, which an earlier call may have run."""
    asked = {(cell.name, seed) for cell in grid.cells for seed in grid.seeds}
    held = {cell: {seed: why for seed, why in found.items() if (cell, int(seed)) not in asked} for cell, found in (read_json(folder / FILE) or {}).items()}
    for failure in lost.values():
        if failure.diverged:
            held.setdefault(failure.cell, {})[str(failure.seed)] = {"key": courses[failure.cell].key, "why": failure.why}
    atomic.write_json(folder / FILE, {cell: found for cell, found in held.items() if found})
