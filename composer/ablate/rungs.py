"""Sweep rows of a study whose points are dropped on the way: all are trained to the first rung, judged there on held-out images, and the best go on.

What is dropped is a function of what was measured at the rungs. That lies in small files below the study's folder, one for each cell, seed and
epoch, each with the key of the weights that it speaks of: a killed grid goes on, a row with another `keep` or other rungs is decided anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from composer.ablate.names import slug
from composer.ablate.tree import Course
from composer.ablate.types import Cell, Grid
from composer.engine.record import read_json

Pair = tuple[str, int]


@dataclass(frozen=True)
class Dropped:
    """A point that was not among the best after an epoch: the `place`-th of `of`, where `keep` went on."""

    epoch: int
    score: float
    place: int
    of: int
    keep: int


@dataclass
class Ladder:
    """One row's points and rungs. Points that are one run count once.

    metric  the name under which records hold the last of the row's selectors
    scores  epoch of a rung -> cell -> mean over its seeds there
    dropped cell -> where and why
    """

    row: Any
    cells: tuple[Cell, ...]
    metric: str
    scores: dict[int, dict[str, float]] = field(default_factory=dict)
    dropped: dict[str, Dropped] = field(default_factory=dict)

    @property
    def sources(self) -> tuple[str, ...]:
        """The cells that are run, each once."""
        return tuple(dict.fromkeys(source(cell) for cell in self.cells))

    @property
    def rungs(self) -> tuple[int, ...]:
        """Those at which points are dropped; the row's last one is the end of its runs."""
        return tuple(self.row.rungs[:-1])

    def keeps(self, number: int) -> int:
        from composer.search.grid import places

        return places(len(self.sources), self.row.keep or len(self.sources), number)

    def on_the_way(self) -> tuple[str, ...]:
        return tuple(name for name in self.sources if name not in self.dropped)


class Ladders:
    """All such rows of a grid."""

    def __init__(self, grid: Grid, found: Mapping[str, Course], folder: Path):
        self.grid, self.courses, self.folder = grid, found, folder
        rows = {cell.row.name: cell.row for cell in grid.cells if cell.row is not None and cell.row.kind == "sweep"}
        made = {name: tuple(c for c in grid.cells if c.row is not None and c.row.name == name) for name in rows}
        self.all = [Ladder(rows[name], cells, names_of(cells[0])[rows[name].select[-1]]) for name, cells in made.items() if len(rows[name].rungs) > 1]
        self.fixed = {source(cell) for cell in grid.cells if cell.row is None or len(cell.row.rungs) < 2}     # somebody else needs them to their end
        self.settled = 0                                         # rungs at which every row has been decided

    @property
    def rounds(self) -> int:
        return max((len(ladder.rungs) for ladder in self.all), default=0)

    @property
    def dropped(self) -> dict[str, Dropped]:
        """Cells that nobody trains on: their last rung, over all rows that have them."""
        found: dict[str, Dropped] = {}
        for name in dict.fromkeys(name for ladder in self.all for name in ladder.dropped):
            mine = [ladder for ladder in self.all if name in ladder.sources]
            if name not in self.fixed and all(name in ladder.dropped for ladder in mine):
                found[name] = max((ladder.dropped[name] for ladder in mine), key=lambda d: d.epoch)
        return found

    def wanted(self, number: int) -> dict[str, int]:
        """Cell -> the epoch of the rung with this number, of all that are on their way there."""
        found: dict[str, int] = {}
        for ladder in self.all:
            if number < len(ladder.rungs):
                found.update({name: max(self.at(name, ladder.rungs[number]), found.get(name, 0)) for name in ladder.on_the_way()})
        return found

    def at(self, name: str, epoch: int) -> int:
        """A point may be shorter than its row."""
        return min(epoch, len(self.courses[name].tokens))

    def measures(self, name: str) -> tuple[str, ...]:
        """What its rows select by, as records name it."""
        cells = [cell for cell in self.grid.cells if source(cell) == name]
        return tuple(dict.fromkeys(key for cell in cells for key in names_of(cell).values()))

    def record(self, name: str, seed: int, epoch: int) -> Path:
        return record_file(self.folder, name, seed, epoch)

    def key(self, name: str, epoch: int) -> str:
        return str(self.courses[name].tokens[epoch - 1][0])

    def records(self, name: str, seed: int) -> dict[int, dict[str, Any]]:
        """Epoch -> what was kept of the point there, of the rungs and of its end. One may be both, of a point that is shorter than its row."""
        whole = len(self.courses[name].tokens)
        epochs = {self.at(name, epoch) for ladder in self.all if name in ladder.sources for epoch in ladder.rungs}
        found = {epoch: held for epoch in sorted(epochs) if (held := self._kept(name, seed, epoch, epoch))}
        if end := self._kept(name, seed, 0, whole):
            rung = found.get(whole, end)
            found[whole] = {**rung, "metrics": {**rung["metrics"], **end["metrics"]}}
        return found

    def judged(self, name: str, seed: int, epoch: int) -> dict[str, float] | None:
        """What was measured there; None where nothing was, or of other weights."""
        held = self._kept(name, seed, epoch, epoch)
        return held["metrics"] if held else None

    def _kept(self, name: str, seed: int, at: int, epoch: int) -> dict[str, Any] | None:
        """The record `at` (0: of the end) if it speaks of the weights after this epoch."""
        held = read_json(self.record(name, seed, at))
        return held if held and held.get("key") == self.key(name, epoch) else None

    # -- who goes on

    def settle(self, done: Mapping[Pair, Any], lost: Mapping[Pair, Any]) -> None:
        """Decide every rung whose points have all been judged, or have come to nothing. Anew each time: records are all that counts."""
        counts = []
        for ladder in self.all:
            ladder.dropped, ladder.scores, count = {}, {}, 0
            for number, epoch in enumerate(ladder.rungs):
                if not self._decide(ladder, number, epoch, done, lost):
                    break
                count += 1
            counts.append(count if count < len(ladder.rungs) else self.rounds)
        self.settled = min(counts, default=0)

    def _decide(self, ladder: Ladder, number: int, epoch: int, done: Mapping[Pair, Any], lost: Mapping[Pair, Any]) -> bool:
        """A run that diverged has accuracy 0 there; one that crashed none. One that was trained to its end elsewhere, and never judged here, goes
        on: it costs nothing."""
        scores: dict[str, float] = {}
        for name in ladder.on_the_way():
            values: list[float] = []
            for seed in self.grid.seeds:
                row = self.judged(name, seed, self.at(name, epoch))
                if row is not None and ladder.metric in row:
                    values.append(row[ladder.metric])
                elif (name, seed) in lost:
                    values += [0.0] if lost[name, seed].diverged else []
                elif (name, seed) not in done:
                    return False
            if values:
                scores[name] = sum(values) / len(values)
        places = {name: place for place, name in enumerate(ladder.sources)}
        order, keep = sorted(scores, key=lambda name: (-scores[name], places[name])), ladder.keeps(number)
        ladder.scores[epoch] = scores
        for place, name in enumerate(order[keep:], keep + 1):
            ladder.dropped[name] = Dropped(self.at(name, epoch), scores[name], place, len(order), keep)
        return True

    # -- in numbers

    def lengths(self, level: int | None = None) -> dict[str, int]:
        """Cell -> epochs of its course: as far as its rung, where it was dropped; with a level, none goes beyond the rung with that number."""
        found = {name: drop.epoch for name, drop in self.dropped.items()} | (self.wanted(level) if level is not None else {})
        return {name: min(found.get(name, len(course.tokens)), len(course.tokens)) for name, course in self.courses.items()}

    def sure(self) -> dict[str, int]:
        """Cell -> the epochs that are trained whatever the next rungs say."""
        found = self.lengths(self.settled)
        return {name: len(self.courses[name].tokens) if name in self.fixed else length for name, length in found.items()}

    def beyond(self) -> int:
        """Epochs of one seed that are still undecided: as many points as may go on, from the next rung to the end, with nothing shared."""
        total = 0
        for ladder in self.all:
            for number in range(self.settled, len(ladder.rungs)):
                total += ladder.keeps(number) * (ladder.row.rungs[number + 1] - ladder.row.rungs[number])
        return total

    def plain(self) -> tuple[dict[str, Any], ...]:
        """Every row with its points, for the tables and JSON."""
        return tuple({"row": ladder.row.name, "selector": ladder.row.select[-1], "metric": ladder.metric, "rungs": list(ladder.row.rungs),
                      "keep": ladder.row.keep, "points": [self._point(ladder, cell) for cell in ladder.cells]} for ladder in self.all)

    def _point(self, ladder: Ladder, cell: Cell) -> dict[str, Any]:
        name = source(cell)
        drop = ladder.dropped.get(name)
        return {"cell": cell.name, "same_as": cell.same_as, "values": dict(cell.point), "dropped": drop.epoch if drop else None,
                "place": drop.place if drop else None, "of": drop.of if drop else None,
                "scores": {str(epoch): rows[name] for epoch, rows in ladder.scores.items() if name in rows}}


def source(cell: Cell) -> str:
    """The cell whose runs are its runs."""
    return cell.same_as or cell.name


def record_file(folder: Path, cell: str, seed: int, epoch: int) -> Path:
    return folder / "rungs" / f"{slug(cell)}-s{seed}-e{epoch}.json"


def names_of(cell: Cell) -> dict[str, str]:
    """Selector of the cell's row -> the name under which held-out accuracies are kept; {} for what is no sweep. Errors: those of a search."""
    if cell.row is None or cell.row.kind != "sweep":
        return {}
    from composer.search.sweep import keys_of
    from composer.search.trial import validated

    return keys_of(cell.recipe, cell.row.select, validated(cell.recipe))


def further(cell: Cell) -> tuple[str, ...]:
    """Selectors of a sweep's row that no epoch's validation measures: they are, once, where its points are compared."""
    names = names_of(cell)
    if not names:
        return ()
    from composer.search.trial import validated

    trace = cell.recipe.trace
    known = {*validated(cell.recipe), *(m.name for m in trace.measures if trace.every == 1 and trace.on == "val")}
    return tuple(name for name in dict.fromkeys(names.values()) if name not in known)


def ends(cells: Sequence[Cell]) -> dict[str, tuple[str, ...]]:
    """Cell that is run -> the measures that are taken at its end beyond validation's, for the sweeps that have it as a point."""
    found: dict[str, tuple[str, ...]] = {}
    for cell in cells:
        names = further(cell)
        if names:
            found[source(cell)] = tuple(dict.fromkeys((*found.get(source(cell), ()), *names)))
    return found
