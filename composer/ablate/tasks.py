"""A tree's stems as tasks: what several cells still need is trained once, before them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from composer.ablate.tree import Course, Stem, Tree
from composer.ablate.types import Cell, Grid, Task
from composer.ablate.waits import behind_references

Tags = Callable[[Cell, int], dict[str, str]]


@dataclass(frozen=True)
class Maker:
    """What the tasks of one round have in common.

    files  cell -> the file of its recipe
    rungs  cell -> epoch, of those that are trained and judged up to there in this round; None: every cell is trained to its end
    more   (cell, seed, epoch or 0) -> what else the spec of its last task says
    """

    grid: Grid
    courses: Mapping[str, Course]
    tree: Tree
    files: Mapping[str, str]
    settings: Mapping[str, Any]
    tags: Tags
    rungs: Mapping[str, int] | None
    more: Callable[[str, int, int], dict[str, Any]]

    def of_seed(self, seed: int, done: set[tuple[str, int]]) -> list[Task]:
        """Parents before children, and runs that others are measured against before these."""
        made = list(self._down(seed, done))
        return made if self.rungs is not None else behind_references(made, self.grid)

    def _down(self, seed: int, done: set[tuple[str, int]]) -> Iterator[Task]:
        """Depth first; what only one cell still needs is that cell's own business."""
        waiting = [(stem, "", 0) for stem in self.tree.stems[::-1]]
        while waiting:
            stem, after, behind = waiting.pop()
            missing = [name for name in stem.cells if (name, seed) not in done]
            if not any(self._now(name) for name in missing):
                continue
            if len(missing) > 1:
                task = self._prefix(stem, seed, after, behind, missing)
                yield task
                after, behind = task.id, stem.last
            if len(stem.cells) > 1:
                waiting += [(child, after, behind) for child in stem.children[::-1]]
            yield from (self._last(name, seed, after, behind) for name in stem.ends if name in missing and self._now(name))

    def _now(self, name: str) -> bool:
        return self.rungs is None or name in self.rungs

    def _last(self, name: str, seed: int, after: str, behind: int) -> Task:
        """The task with which a cell's course ends: its run, or the way to a rung."""
        cell, epochs = self.grid.cell(name), self.tree.lengths[name]
        spec = {"recipe": self.files[name], "name": cell.recipe.name, "seed": seed}
        if self.rungs is None:
            spec |= {"kind": "run", "settings": dict(self.settings), "tags": self.tags(cell, seed), **self.more(name, seed, 0)}
            return Task(f"{name}/s{seed}", "run", f"{name}, seed {seed}", spec, after, epochs - behind, name, seed)
        spec |= {"kind": "rung", "until": epochs, "settings": {**self.settings, "track": False}, **self.more(name, seed, epochs)}
        return Task(f"1-{epochs} of {name}, judged/s{seed}", "rung", f"{name} to epoch {epochs}, seed {seed}", spec, after, epochs - behind, name, seed)

    def _prefix(self, stem: Stem, seed: int, after: str, behind: int, missing: list[str]) -> Task:
        host, *others = missing
        guests = [(self.files[n], self.grid.cell(n).recipe.name) for n in others if self.courses[n].passive]
        spec = {"kind": "prefix", "recipe": self.files[host], "name": self.grid.cell(host).recipe.name, "seed": seed, "until": stem.last,
                "guests": guests, "settings": {**self.settings, "track": False}}
        return Task(f"1-{stem.last} of {host}/s{seed}", "prefix", f"epochs {behind + 1}-{stem.last} of {len(missing)} cells, seed {seed}", spec, after,
                    stem.last - behind)
