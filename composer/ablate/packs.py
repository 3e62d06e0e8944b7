"""Which runs of a grid are trained together: seeds of a cell, and cells that are one up to numbers.

Cells whose epochs nobody shares, and whose plans have one shape, make packs of cells and seeds. Cells that share epochs are packed by seed, all or
none: a stem is trained once for its cells, and for the seeds of a pack at once, and a pack's epochs have keys of their own. Points of a sweep that
are dropped at rungs are judged one by one and not packed. `pack_tasks` makes tasks of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from composer.ablate.equal import table_text
from composer.ablate.tree import Tree
from composer.ablate.types import Grid
from composer.ablate.waits import named
from composer.errors import ComposerError

Pair = tuple[str, int]                # a run: cell, seed
TOLD = 3                              # cells whose reason is said
NOBODY = "nothing is packed: one seed has nobody to be packed with"


@dataclass(frozen=True)
class Packs:
    """seeds: those of each pack by seed; cells: those that are so packed; joint: packs of cells and seeds; alone: runs that were begun alone, in no pack
    therefore; note: all that, and why others are not."""

    seeds: tuple[tuple[int, ...], ...] = ()
    cells: frozenset[str] = frozenset()
    joint: tuple[tuple[Pair, ...], ...] = ()
    alone: frozenset[Pair] = frozenset()
    note: str = ""

    def of(self, seed: int) -> tuple[int, ...]:
        """The pack by seed."""
        return next((pack for pack in self.seeds if seed in pack and len(pack) > 1), ())

    def joint_of(self, cell: str, seed: int) -> tuple[Pair, ...]:
        """The pack of cells and seeds, () where there is none."""
        return next((pack for pack in self.joint if (cell, seed) in pack and len(pack) > 1), ())

    def noted(self) -> dict[str, Any]:
        """For the study's record."""
        return {"packs": [list(pack) for pack in self.seeds], "packed_cells": sorted(self.cells)}


def packs_for(grid: Grid, tree: Tree, asked: str, settings: Any, held: Mapping[str, Any], record: Callable[[str, int], Any]) -> Packs:
    """The packs of a grid, as `--pack` asks for them. Those that were begun stay, also where none are asked for any more.

    held    the study's record: packs by seed that the grid was begun with, and their cells
    record  (cell, seed) -> the store's record of the run, which says how it was begun

    Errors: ComposerError where a number was asked for and some cell cannot be packed.
    """
    from composer.engine.pack_seeds import Packing, packs_of

    packing = Packing.parse(asked)
    begun = [tuple(pack) for pack in held.get("packs") or ()]
    sole = [stem.cells[0] for stem in tree.stems if len(stem.cells) == 1]
    known = _Begun(grid, sole, settings, record)
    joint = [*known.joint]
    if not packing.most and not any(len(pack) > 1 for pack in (*begun, *joint)):
        return Packs()
    free = [s for s in grid.seeds if not any(s in pack for pack in begun)]
    seeds = (*begun, *packs_of(free, packing.most))
    if max((len(pack) for pack in seeds), default=0) < 2 and len(grid.distinct) < 2:
        return Packs(note=NOBODY)
    stay = known.cells | set(held.get("packed_cells") or ())
    stay |= {name for stem in tree.stems if stay & set(stem.cells) for name in stem.cells}
    found = _Look(grid, packing.auto or not packing.most, settings, stay)
    if found.reasons and not packing.auto and packing.most:
        cell, why = next(iter(found.reasons.items()))
        raise ComposerError(f"--pack {asked}: the cell {cell} cannot be packed", where="command line", why=why,
                            fix="--pack auto packs what can be, --pack off nothing")
    fit = frozenset(name for stem in tree.stems if not any(cell in found.reasons for cell in stem.cells) for name in stem.cells)
    for group in found.alike([name for name in sole if name in fit]) if packing.most else ():
        if len(group) > 1:
            joint += packs_of([(c, s) for c in group for s in grid.seeds if (c, s) not in known.taken], packing.most)
    places = {cell.name: k for k, cell in enumerate(grid.distinct)}
    joint = sorted(_mixed(joint, seeds, fit), key=lambda pack: min((places[cell], seed) for cell, seed in pack if cell in places))
    cells = fit - {cell for pack in joint for cell, _ in pack}
    by_seed = seeds if cells and any(len(pack) > 1 for pack in seeds) else ()
    return Packs(by_seed, cells if by_seed else frozenset(), tuple(joint), frozenset(known.alone),
                 _note(by_seed, cells, joint, found, [c.name for c in grid.distinct if c.name not in fit], known.alone))


def _mixed(joint: Sequence[tuple[Pair, ...]], seeds: Sequence[tuple[int, ...]], fit: frozenset[str]) -> list[tuple[Pair, ...]]:
    """Without the packs of cells that are as well packed by seed."""
    plain = {tuple((cell, seed) for seed in pack) for cell in fit for pack in seeds}
    mixed = {cell for pack in joint if pack not in plain for cell, _ in pack}
    return [pack for pack in joint if any(cell in mixed for cell, _ in pack)]


class _Begun:
    """How the grid's runs were begun.

    joint  packs, by whatever grid (a run that is not of this one stands there by the name of its record)
    taken  the runs that join no new pack; alone: those of them that are half trained alone
    cells  those with a run that was begun in a pack
    sole   (given) cells whose epochs nobody shares; others go on by seed, as the grid's own record says
    """

    def __init__(self, grid: Grid, sole: Sequence[str], settings: Any, record: Callable[[str, int], Any]):
        from composer.engine.pack_seeds import begun_as

        records = {(cell.name, seed): record(cell.name, seed) for cell in grid.distinct for seed in grid.seeds}
        names = {each.name: pair for pair, each in records.items()}
        self.taken, self.alone, self.cells, packs = set[Pair](), list[Pair](), set[str](), dict[tuple[Pair, ...], None]()
        for pair, each in records.items():
            pack, begun = begun_as(each, settings)
            if "runs" in pack:
                packs[tuple(names.get(name) or (name, seed) for name, seed in pack["runs"])] = None
            elif "seeds" in pack and pair[0] in sole:
                packs[tuple((pair[0], seed) for seed in pack["seeds"])] = None
            if pack:
                self.cells.add(pair[0])
            if begun:
                self.taken.add(pair)
            if begun and not pack and not each.result:
                self.alone.append(pair)
        self.joint = list(packs)
        self.taken |= {pair for pack in self.joint for pair in pack}


class _Look:
    """reasons: why cells cannot be packed at all; apart: why they are packed with no other cell.

    auto   where it does not pay is a reason too, but for cells that `stay` packed: they were begun so
    """

    def __init__(self, grid: Grid, auto: bool, settings: Any, stay: Collection[str]):
        from composer.engine.pack_fit import unfit

        self.grid, self.auto, self.settings, self.stay = grid, auto, settings, stay
        self.apart: dict[str, str] = {}
        self._data: dict[str, Any] = {}
        whole = unfit(settings)
        self.reasons = {cell.name: whole for cell in grid.distinct} if whole else {}
        for cell in grid.distinct if not whole else ():
            if reason := self._why_not(cell):
                self.reasons[cell.name] = reason
        lead = next((cell.name for cell in grid.distinct if cell.name in self.reasons and cell.recipe.name in named(grid)), "")
        if lead and not whole:
            self.reasons |= {cell.name: f"it waits for {lead}, which is trained alone" for cell in grid.distinct if cell.name not in self.reasons}

    def _why_not(self, cell: Any) -> str:
        from composer.engine.pack_fit import refusal, too_large

        if any(c.row is not None and c.point and len(c.row.rungs) > 1 for c in self.grid.cells if cell.name in (c.name, c.same_as)):
            return "the points of a sweep with rungs are judged one by one"
        sessions = [self._session(cell, seat, seed) for seat, seed in enumerate((*self.grid.seeds, *self.grid.seeds)[:2])]
        return (too_large(sessions[0]) if self.auto and cell.name not in self.stay else "") or refusal(sessions)

    def _session(self, cell: Any, seat: int, seed: int) -> Any:
        from composer.engine.pack_fit import seated
        from composer.engine.session import Session

        key = table_text(cell.recipe, "data")
        made = Session(cell.recipe, seed, seated(self.settings, seat, 2), self._data.get(key))
        self._data[key] = made.dataset
        return made

    def alike(self, names: Sequence[str]) -> list[list[str]]:
        """These cells in groups that are one up to numbers."""
        from composer.engine.pack_fit import unlike

        if named(self.grid):                 # a row that is measured against another row's run waits for it
            return []
        groups: list[tuple[Any, list[str]]] = []
        for name in names:
            session, why = self._session(self.grid.cell(name), 0, self.grid.seeds[0]), ""
            for lead, group in groups:
                reason = unlike([lead, session]) or _sizes(lead, session)
                if not reason:
                    group.append(name)
                    break
                why = why or f"{reason}, beside {group[0]}"
            else:
                groups.append((session, [name]))
                self.apart |= {name: why} if why else {}
        alone = {group[0] for _, group in groups if len(group) == 1}
        self.apart = {name: why for name, why in self.apart.items() if name in alone}
        return [group for _, group in groups]


def _sizes(a: Any, b: Any) -> str:
    return "" if len(a.rows) == len(b.rows) else f"it has {len(b.rows)} training images and not {len(a.rows)}"


# -- in words ------------------------------------------------------------------------------------------------------------------------------


def _note(seeds: Sequence[tuple[int, ...]], cells: frozenset[str], joint: Sequence[tuple[Pair, ...]], found: _Look, alone: list[str],
          before: Sequence[Pair]) -> str:
    rounding = "; that equals training them alone to rounding, not bit for bit."
    sets = " and ".join("{" + ", ".join(map(str, p)) + "}" for p in seeds if len(p) > 1)
    said = [f"{runs_text(pack)} are trained together{rounding}" for pack in joint if len(pack) > 1]
    if sets:
        of = f" of {_some(sorted(cells))}" if said else ""
        said.append(f"Seeds {sets}{of} are trained together{rounding}")
    if said and before:
        said.append(f"{runs_text(before)} were begun alone and go on alone.")
    if found.apart:
        said.append(f"With no other cell: {_because(found.apart)}.")
    if alone:
        said.append(f"Not packed: {_some(alone)} ({_because(found.reasons)}).")
    return " ".join(said) or NOBODY


def runs_text(pairs: Sequence[Pair]) -> str:
    """Cells with their seeds: "Cells a, b with seeds {0, 1} and c with seeds {0}"."""
    seeds: dict[str, tuple[int, ...]] = {}
    for cell, seed in pairs:
        seeds[cell] = (*seeds.get(cell, ()), seed)
    groups: dict[tuple[int, ...], list[str]] = {}
    for cell, own in seeds.items():
        groups.setdefault(own, []).append(cell)
    return "Cells " + " and ".join(f"{', '.join(names)} with seeds {{{', '.join(map(str, own))}}}" for own, names in groups.items())


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def _because(reasons: Mapping[str, str]) -> str:
    return "; ".join(f"{cell}: {reason}" for cell, reason in list(reasons.items())[:TOLD])
