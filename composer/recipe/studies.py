"""Studies: rows of one table over recipes. A file's name in, a checked Study out, or every error at once.

    recipe = "lma_at"                        what a row edits, where it names no recipe of its own
    setting = "lma_at/cifar10-resnet18"      or settings = [...]: every row on each of them
    seeds = 6                                0 to 5, or a list
    table = "lma_at/12"                      the printed table beside
    set, drop, put                           an edit below that of every row
    [groups]                                 setting (or selector of a sweep) -> what the printed table calls it
    [analysis]                               as in a recipe
    [cells.<row>]                            an edit; its own recipe, setting, settings; printed = "row", { row, column, <column> = value } or false
                                             kind = "sweep": grid, rungs, keep, select; "external": checkpoint, model, normalisation; "printed"
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from composer.errors import ComposerError, Errors, suggest
from composer.recipe import find
from composer.recipe.edit import Edit
from composer.recipe.layers import assemble
from composer.recipe.load import Look, catalogue, known, sorted_errors, survey, try_toggles, what_is
from composer.recipe.paths import Dotted, split
from composer.recipe.recipe import Recipe, realise
from composer.recipe.source import Doc, read
from composer.recipe.study_command import NOTHING_SAID, Command, command

Kind = Literal["cell", "sweep", "external", "printed"]


@dataclass(frozen=True)
class Printed:
    """A row of a printed table. `selector`: the choice among a sweep's runs that it is the winner of."""

    row: str
    group: str
    values: dict[str, float]                        # column -> as printed: accuracies in percent, nan where none is printed
    pm: dict[str, float] = field(default_factory=dict)
    selector: str = ""


@dataclass(frozen=True)
class Row:
    """A row on one setting. `recipe` is what a cell trains, a sweep starts from, and what says how an external model is judged."""

    name: str                                       # unique in the study: the id, with @group where it stands on several settings
    id: str
    kind: Kind
    setting: str
    group: str
    where: str
    about: str = ""
    recipe: Recipe | None = None
    printed: tuple[Printed, ...] = ()
    edits: tuple[Edit, ...] = ()
    grid: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    rungs: tuple[int, ...] = ()                     # epochs of the whole run after which runs are dropped; the last is the end
    keep: int | None = None                         # runs that go on after the first rung: the best by the last of `select`
    select: tuple[str, ...] = ()                    # measures on held-out images; each has a winner of its own
    checkpoint: str = ""
    absent: str = ""                                # an external row: why it cannot be judged here ("there is no file …")

    @property
    def size(self) -> int:
        """How many runs a seed it starts: the points of its grid, 1 for a cell, none for what is not trained."""
        return math.prod(map(len, self.grid.values())) if self.kind in ("cell", "sweep") else 0

    def points(self) -> Iterator[tuple[dict[str, Any], Recipe]]:
        """A sweep's runs: the values of its grid, and the recipe with them. A cell is its own only point."""
        if self.recipe is None or self.kind not in ("cell", "sweep"):
            return
        for values in itertools.product(*self.grid.values()):
            point = dict(zip(self.grid, values, strict=True))
            yield point, self.recipe.edit(set=point, name=self.name, where=self.where) if point else self.recipe


@dataclass(frozen=True)
class Study:
    """A checked study. `bench`: its columns are times of a step, and no row is trained to the end."""

    name: str
    about: str
    kind: Literal["train", "bench"]
    table: str
    seeds: tuple[int, ...]
    analysis: dict[str, Any]
    rows: tuple[Row, ...]
    file: Path
    command: Command = NOTHING_SAID                 # what the command line said over all rows
    notes: tuple[str, ...] = ()                     # what it did to them, one sentence each

    def row(self, name: str) -> Row:
        """Errors: ComposerError for an unknown name."""
        found = next((r for r in self.rows if r.name == name), None)
        if found is None:
            raise ComposerError(f"there is no row '{name}'", where=f"study {self.name}", fix=suggest(name, [r.name for r in self.rows], "rows"))
        return found

    @property
    def cells(self) -> tuple[Row, ...]:
        return tuple(r for r in self.rows if r.kind == "cell")

    def runs(self) -> dict[str, tuple[str, ...]]:
        """Experiment id -> the cells that are this experiment. Cells that say the same are one run a seed."""
        found: dict[str, tuple[str, ...]] = {}
        for row in self.cells:
            if row.recipe is not None:
                found[row.recipe.experiment_id] = (*found.get(row.recipe.experiment_id, ()), row.name)
        return found

    def same(self) -> list[tuple[str, ...]]:
        """Cells that are one experiment, where there are several."""
        return [names for names in self.runs().values() if len(names) > 1]


@dataclass(frozen=True)
class Base:
    """A recipe on a setting before any row's edit, what is wrong with it, and whether it can be edited at all."""

    recipe: Recipe | None
    errors: tuple[ComposerError, ...]


class Bases:
    """Recipes on settings, each read once, also over several studies.

    root  folder of the shipped recipes; default the installed one
    look  compiles what is read, so that what only a plan shows is told in the same answer
    said  the command line: its --set and --drop hold for every recipe, its --setting for every row
    """

    def __init__(self, root: Path | None = None, look: Look | None = None, said: Command = NOTHING_SAID):
        catalogue()
        self.root = Path(root) if root is not None else find.shipped()
        self.look, self.said = look, said
        self.tables = _tables(self.root / "papers.toml")
        self._held: dict[tuple[str, str], Base] = {}

    def get(self, name: str, setting: str) -> Base:
        """`setting` "": the recipe's own."""
        if (name, setting) not in self._held:
            self._held[name, setting] = self._read(name, setting)
        return self._held[name, setting]

    def _read(self, name: str, setting: str) -> Base:
        errors: list[ComposerError] = []
        try:
            stack = assemble(name, setting=setting or None, sets=self.said.sets, drops=self.said.drops, root=self.root, known=known, errors=errors)
        except ComposerError as error:
            return Base(None, (*errors, *error.all))
        recipe, found = realise(stack)
        seen = survey(recipe, self.look)
        errors += [*found, *seen.errors]
        if self.look and not errors and not self.said:     # where the recipe is at fault itself, or cut short, its toggles prove nothing
            errors += [_on(recipe.setting, e) for e in try_toggles(stack, seen, self.look)]
        return Base(recipe, tuple(errors))

    def edited(self, base: Recipe, edits: tuple[Edit, ...], *, plan: bool = True) -> tuple[Recipe, list[ComposerError]]:
        """The recipe with the edits, in order, and what they make wrong."""
        recipe, errors = realise(base.stack, base.off, (*base.edits, *edits))
        return recipe, [*errors, *survey(recipe, self.look if plan else None).errors]


def _on(setting: str, error: ComposerError) -> ComposerError:
    return ComposerError(error.what, where=error.where, why="\n".join(filter(None, [error.why, f"on {setting}, where a study runs this recipe"])),
                         fix=error.fix)


def _tables(file: Path) -> dict[str, dict[str, Any]]:
    tables = read(file).table.get("table", []) if file.is_file() else []
    return {table["id"]: table for table in tables}


def study_names(root: Path) -> list[str]:
    return sorted(p.stem for p in (root / "studies").glob("*.toml"))


def find_study(name: str | Path, root: Path | None = None) -> Path | None:
    """The file of a study: a path to a file in a folder `studies` or with [cells], or the name of a shipped one. None: it is no study."""
    root = Path(root) if root is not None else find.shipped()
    text = str(name).removesuffix(".toml")
    for path in (Path(text + ".toml"), root / (text + ".toml"), root / "studies" / (text + ".toml")):
        if path.is_file() and (path.resolve().parent.name == "studies" or _has_cells(path)):
            return path
    return None


def _has_cells(path: Path) -> bool:
    try:
        return "cells" in read(path).table
    except ComposerError:
        return False


def load_study(path_or_name: str | Path, *, root: Path | None = None, look: Look | None = None, bases: Bases | None = None,
               setting: str | None = None, sets: Sequence[str] = (), drops: Sequence[str] = (), seeds: int | Sequence[int] | None = None) -> Study:
    """A checked study.

    bases    shares what was read with other studies; it carries its own root, look and command line, and stands for all other arguments
    setting  what every row runs on, in place of its own; sets, drops: "path=value" and paths of the command line; seeds: 5 is 0…4
    Errors: Errors with everything wrong; ComposerError where there is no such study.
    """
    study, errors = examine_study(path_or_name, bases=bases or Bases(root, look, command(setting, sets, drops, seeds)))
    if errors or study is None:
        raise Errors(errors)
    return study


def examine_study(path_or_name: str | Path, *, bases: Bases) -> tuple[Study | None, list[ComposerError]]:
    """As load_study, but errors are given back."""
    from composer.recipe.study_rows import Reading

    file = find_study(path_or_name, bases.root)
    if file is None:
        return None, [ComposerError(f"there is no study '{path_or_name}'", why="no such file with [cells], and no shipped study of that name",
                                    fix=suggest(Path(str(path_or_name)).stem, study_names(bases.root), "studies"))]
    try:
        doc = read(file)
    except ComposerError as error:
        return None, error.all
    reading = Reading(doc, bases)
    study = reading.read()
    errors = unique(reading.errors)
    return (None if errors else study), errors


def unique(errors: list[ComposerError]) -> list[ComposerError]:
    """In order of lines, the same mistake of the same line once."""
    return sorted_errors({what_is(e): e for e in errors}.values())


def as_path(text: str, where: str, errors: list[ComposerError]) -> Dotted | None:
    try:
        return split(text)
    except ValueError as error:
        errors.append(ComposerError(str(error), where=where))
        return None


def place_of(doc: Doc, path: Dotted) -> str:
    """file:line and the path, as errors of a study are told."""
    from composer.recipe.paths import show

    return f"{doc.place(path)}  {show(path)}"
