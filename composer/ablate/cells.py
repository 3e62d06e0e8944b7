"""A recipe and its toggles as a grid of cells: made, compiled and compared before anything runs. No torch.

Toggle A is nested in B where the cell with B off is the cell with both off: what A edits, B has removed. Such a pair is no extra data, and the
grid says so: the second cell has `same_as`, A stands in its `void`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from composer.ablate import design as plans
from composer.ablate.equal import content, undisturbed
from composer.ablate.types import Cell, Design, Grid
from composer.errors import ComposerError, Errors, suggest
from composer.recipe.recipe import Recipe, toggle_place
from composer.recipe.study_command import seed_list

DESIGNS = ("full", "one-out", "one-in", "fractional")
MOST_FULL = 4                   # toggles up to which a full design is the default
LEAST = 3                       # resolution of a fraction that keeps main effects apart


def grid_of(recipe: Recipe, toggles: Sequence[str], *, design: str | None = None, seeds: int | Sequence[int] = 5, name: str = "",
            resolution: int = 4) -> Grid:
    """All cells of a design, checked.

    design      full (the default up to four toggles), one-out, one-in, fractional (the default beyond)
    seeds       5 is 0…4, or a list
    resolution  the least one of a fraction
    Errors: Errors with unknown and dead toggles, toggles that contradict each other and cells that do not compile, each named by its cell.
    """
    toggles = _toggles(recipe, toggles)
    chosen = _design(design, len(toggles))
    wanted, fraction = _wanted(chosen, len(toggles), resolution)
    maker = Maker(recipe, toggles)
    with undisturbed():
        for bits in wanted:
            maker.make(bits)
        maker.raise_errors()
        nested = maker.nested()
    cells = maker.cells(wanted, chosen)
    notes = [*_nested_notes(nested), *_equal_notes(cells), *_weight_notes(recipe, toggles)]
    if fraction:
        notes = [_fraction_note(fraction), *notes]
        if nested:
            notes.append(f"{' and '.join(nested)} can be void, so the fraction is not balanced: read differences between cells, no effects")
    return Grid(name=name or recipe.name, design=chosen, toggles=toggles, seeds=seed_list(seeds), cells=cells,
                base="none" if chosen == "one-in" else "full", analysis=recipe.analysis, resolution=fraction.resolution if fraction else 0,
                aliases=alias_names(fraction, toggles) if fraction else {}, nested=nested, notes=tuple(notes))


def _toggles(recipe: Recipe, asked: Sequence[str]) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(asked))
    known = [name for name in recipe.toggle if name not in recipe.off]
    wrong = [ComposerError(f"toggle '{n}' is off already", where="--toggle") if n in recipe.off else
             ComposerError(f"{recipe.name} has no toggle '{n}'", where="--toggle", fix=suggest(n, known, "toggles")) for n in names if n not in known]
    if not names:
        wrong.append(ComposerError("no toggle is named", where="--toggle", fix=f"name some of {', '.join(known)}" if known else "write a [toggle] table"))
    if wrong:
        raise Errors(wrong)
    return names


def _design(asked: str | None, count: int) -> Design:
    if asked is None:
        return "full" if count <= MOST_FULL else "fractional"
    if asked not in DESIGNS:
        raise ComposerError(f"there is no design '{asked}'", where="--design", fix=suggest(asked, DESIGNS, "designs"))
    return asked                # type: ignore[return-value]


def _wanted(design: Design, count: int, resolution: int) -> tuple[list[int], plans.Fraction | None]:
    if design == "fractional":
        if not LEAST <= resolution < len(plans.ROMAN):
            raise ComposerError(f"--resolution {resolution}", where="command line", why="below III two main effects are one",
                                fix=f"{LEAST} to {len(plans.ROMAN) - 1}")
        fraction = plans.fraction(count, resolution)
        return plans.by_size(fraction.cells(), count), fraction
    return {"full": plans.full, "one-out": plans.one_out, "one-in": plans.one_in}[design](count), None


@dataclass
class Maker:
    """Cells by their bits, each made and compiled once; what is wrong with any is kept."""

    recipe: Recipe
    toggles: tuple[str, ...]
    recipes: dict[int, Recipe] = field(default_factory=dict)
    contents: dict[int, str] = field(default_factory=dict)
    wrong: dict[int, list[ComposerError]] = field(default_factory=dict)

    def names(self, bits: int) -> tuple[str, ...]:
        return tuple(self.toggles[k] for k in plans.letters(bits))

    def make(self, bits: int) -> str:
        """The cell's content, "" where it has none because it is wrong."""
        if bits not in self.contents:
            try:
                self.recipes[bits] = self.recipe.without(*self.names(bits)) if bits else self.recipe
                self.contents[bits] = content(self.recipes[bits])
            except ComposerError as error:
                self.contents[bits], self.wrong[bits] = "", error.all
        return self.contents[bits]

    def raise_errors(self) -> None:
        """Everything wrong with any cell, each mistake once, at the smallest cell that has it; and dead toggles."""
        found: dict[tuple[str, str], tuple[ComposerError, list[int]]] = {}
        for bits in sorted(self.wrong, key=lambda b: (b.bit_count(), plans.letters(b))):
            for error in self.wrong[bits]:
                found.setdefault((error.where, error.what), (error, []))[1].append(bits)
        errors = [self._told(error, cells) for error, cells in found.values()]
        errors += [self._dead(k) for k in range(len(self.toggles)) if self.contents.get(0) and self._single(k) == self.contents[0]]
        if errors:
            raise Errors(errors)

    def _single(self, k: int) -> str:
        """The cell with one toggle off, also where the design has none; there it need not compile."""
        held = 1 << k in self.contents
        made = self.make(1 << k)
        if not held:
            self.wrong.pop(1 << k, None)
        return made

    def _told(self, error: ComposerError, cells: list[int]) -> ComposerError:
        more = f" and {len(cells) - 1} more" if len(cells) > 1 else ""
        return ComposerError(error.what, where=error.where, why="\n".join(filter(None, [f"in cell {cell_name(self.names(cells[0]))}{more}", error.why])),
                             fix=error.fix)

    def _dead(self, k: int) -> ComposerError:
        name = self.toggles[k]
        return ComposerError(f"toggle '{name}' changes nothing here", where=toggle_place(self.recipe.stack, name, ()),
                             why="with it off the run is the same (a dead toggle)", fix="leave it out")

    @cached_property
    def inside(self) -> dict[int, list[int]]:
        """Toggle -> the toggles inside which it is void. Of two that are the same, the later is void inside the earlier."""
        found: dict[int, list[int]] = {}
        count = len(self.toggles)
        for outer in range(count):
            for inner in range(count):
                alone = self._single(outer)
                twins = inner < outer and self._single(inner) == alone
                if inner != outer and not twins and alone and self.make(1 << inner | 1 << outer) == alone:
                    found.setdefault(inner, []).append(outer)
        return found

    def nested(self) -> dict[str, tuple[str, ...]]:
        return {self.toggles[k]: tuple(self.toggles[o] for o in outer) for k, outer in sorted(self.inside.items())}

    def void(self, bits: int) -> dict[str, str]:
        """Toggles that are off here without effect -> the one that has removed what they edit."""
        found: dict[str, str] = {}
        for k in plans.letters(bits):
            by = next((o for o in self.inside.get(k, ()) if bits >> o & 1), None)
            if by is not None:
                found[self.toggles[k]] = self.toggles[by]
        return found

    def cells(self, wanted: list[int], design: Design) -> tuple[Cell, ...]:
        first: dict[str, str] = {}
        made = []
        for bits in wanted:
            off = self.names(bits)
            name = cell_name(off, self.toggles if design == "one-in" else ())
            same = first.setdefault(self.contents[bits], name)
            made.append(Cell(name, self.recipes[bits], off, "" if same == name else same, self.void(bits)))
        return tuple(made)


def cell_name(off: Sequence[str], every: Sequence[str] = ()) -> str:
    """"full", "-ema -margin"; where the toggles are put in one by one (`every`): "none", "+ema"."""
    if not off:
        return "full"
    if every and len(off) == len(every):
        return "none"
    if len(every) > 2 and len(off) == len(every) - 1 or len(every) == 2 and len(off) == 1:
        return f"+{next(name for name in every if name not in off)}"
    return " ".join(f"-{name}" for name in off)


def alias_names(fraction: plans.Fraction, toggles: Sequence[str], order: int = 2) -> dict[str, tuple[str, ...]]:
    """Main effects and two-way interactions -> the others that they cannot be told from; those without any are left out."""
    def effect(bits: int) -> str:
        return ":".join(toggles[k] for k in plans.letters(bits))

    every = [1 << a for a in range(len(toggles))] + [1 << a | 1 << b for a in range(len(toggles)) for b in range(a + 1, len(toggles))]
    found = {effect(bits): tuple(map(effect, fraction.aliases(bits, order))) for bits in every}
    return {name: others for name, others in found.items() if others}


def _nested_notes(nested: Mapping[str, tuple[str, ...]]) -> list[str]:
    notes = []
    for name, outer in nested.items():
        for each in outer:
            notes.append(f"{name} is void inside {each}: with {each} off it changes nothing, so its contrast is '{name} given {each}' and the "
                         f"interaction {each}:{name} is not defined")
    return notes


def _equal_notes(cells: Sequence[Cell]) -> list[str]:
    """Equal cells that no nested toggle explains."""
    by = {cell.name: cell for cell in cells}

    def bare(cell: Cell) -> set[str]:
        return set(cell.off) - set(cell.void)

    return [f"{cell.name} is the same run as {cell.same_as}" for cell in cells if cell.same_as and bare(cell) != bare(by[cell.same_as])]


def _weight_notes(recipe: Recipe, toggles: Sequence[str]) -> list[str]:
    """A toggle with a matched variant reweights what stays: the author of the recipe has said so by writing one."""
    return [f"{name} also changes the weight of what stays: {name}_matched takes that back"
            + ("" if f"{name}_matched" in toggles else ", and is not in this grid") for name in toggles if f"{name}_matched" in recipe.toggle]


def _fraction_note(fraction: plans.Fraction) -> str:
    what = {3: "main effects are mixed with two-way interactions", 4: "main effects are clear of two-way interactions, which are mixed with each other"}
    return (f"{2**fraction.base} of {2**fraction.factors} cells, resolution {plans.ROMAN[fraction.resolution]}: "
            + what.get(fraction.resolution, "main effects and two-way interactions are clear of each other"))
