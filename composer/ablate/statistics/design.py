"""Contrasts of a two-level design as weights over cells: main effects, two-way interactions, nested toggles, missing cells, aliases.

Columns are ±1 per toggle; a toggle that is void (its parent is off) is 0, so that one plan counts once and "ema given align" is a column of its
own. Each level combination of the design has one row, and plans that several combinations share carry their joint weight. An effect is the
mean over the rows with + minus the mean over the rows with −, which is twice the coefficient of least squares. Where cells are missing the
weights are those of least squares over the rows that are left (pseudo-inverse), and an effect that these cannot tell apart from another is
reported, not estimated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, product

import numpy as np

from composer.ablate.statistics.inputs import Design
from composer.ablate.statistics.types import Status
from composer.errors import ComposerError

Levels = Mapping[str, Mapping[str, int]]
Nested = Mapping[str, Sequence[str]]
SMALL = 1e-9
MAX_ORDER = 4                                   # aliases of higher order are not looked for


@dataclass(frozen=True)
class Term:
    """An effect as weights over cells. `members` are its toggles, `given` the parents that must be on."""

    name: str
    members: tuple[str, ...]
    given: tuple[str, ...] = ()
    weights: dict[str, float] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    status: Status = "ok"
    why: str = ""

    @property
    def interaction(self) -> bool:
        return len(self.members) > 1


@dataclass(frozen=True)
class Grid:
    """The level combinations of a design and the cell that stands for each."""

    toggles: tuple[str, ...]
    rows: tuple[tuple[dict[str, int], str], ...]                # (levels, void ones 0) and the cell
    nested: dict[str, tuple[str, ...]]
    matrix: np.ndarray                                          # [rows, toggles]: the same levels

    def column(self, members: Sequence[str]) -> np.ndarray:
        return self.matrix[:, [self.toggles.index(t) for t in members]].prod(axis=1)


def ancestors(toggle: str, nested: Nested) -> tuple[str, ...]:
    """All toggles without which `toggle` is void: its parents and theirs."""
    found: list[str] = []
    waiting = list(nested.get(toggle, ()))
    while waiting:
        parent = waiting.pop(0)
        if parent == toggle:
            raise ComposerError(f"nested toggles: {toggle} is void without itself", why="nesting goes in a circle", fix="name parents only")
        if parent not in found:
            found.append(parent)
            waiting.extend(nested.get(parent, ()))
    return tuple(found)


def grid(levels: Levels, nested: Nested, design: Design, same_as: Mapping[str, str] | None = None) -> Grid:
    """Rows of the design. A full design has all 2^k combinations; a fractional one the combinations of its cells. A cell without levels is none."""
    twins = same_as or {}
    levels = {cell: on for cell, on in levels.items() if on}
    toggles = tuple(dict.fromkeys(t for cell in levels.values() for t in cell))
    closed = {t: ancestors(t, nested) for t in toggles if ancestors(t, nested)}
    cells: dict[tuple[int, ...], str] = {}
    for cell, on in sorted(levels.items(), key=lambda item: item[0] in twins):              # a twin stands only where no cell of its own does
        if missing := [t for t in toggles if t not in on and not any(on.get(p, 1) < 0 for p in closed.get(t, ()))]:
            raise ComposerError(f"cell {cell!r}: no level for {', '.join(missing)}", fix="write +1 (on) or -1 (off)",
                                why="a design gives every toggle a level in every cell, void ones apart")
        cells.setdefault(_canonical(on, toggles, closed), twins.get(cell, cell))
    combos = product((1, -1), repeat=len(toggles)) if design == "full" else [tuple(on.get(t, 1) for t in toggles) for on in levels.values()]
    rows = []
    for combo in combos:
        key = _canonical(dict(zip(toggles, combo, strict=True)), toggles, closed)
        rows.append((dict(zip(toggles, key, strict=True)), cells.get(key, _absent(toggles, key))))
    matrix = np.array([[on[t] for t in toggles] for on, _ in rows], dtype=float).reshape(len(rows), len(toggles))
    return Grid(toggles, tuple(rows), closed, matrix)


def _canonical(levels: Mapping[str, int], toggles: Sequence[str], closed: Nested) -> tuple[int, ...]:
    return tuple(0 if any(levels.get(p, 1) < 0 for p in closed.get(t, ())) else levels[t] for t in toggles)


def _absent(toggles: Sequence[str], key: Sequence[int]) -> str:
    return "off: " + ", ".join(t for t, level in zip(toggles, key, strict=True) if level < 0)


def candidates(plan: Grid) -> list[Term]:
    """Main effects and two-way interactions in the order of the toggles; what nesting leaves without meaning says so."""
    terms = []
    for members in [(t,) for t in plan.toggles] + list(combinations(plan.toggles, 2)):
        given = tuple(dict.fromkeys(p for t in members for p in plan.nested.get(t, ())))
        name = ":".join(members)
        if void := [t for t in members if t in given]:
            child = next(t for t in members if void[0] in plan.nested.get(t, ()))
            terms.append(Term(name, members, status="not defined", why=f"{child} is void where {void[0]} is off"))
        else:
            terms.append(Term(f"{name} given {', '.join(given)}" if given else name, members, given))
    return terms


def effects(levels: Levels, present: Sequence[str], nested: Nested, design: Design, aliases: Mapping[str, Sequence[str]],
            same_as: Mapping[str, str] | None = None) -> list[Term]:
    """Every main effect and two-way interaction with its weights over the cells that are present, or why it has none."""
    plan = grid(levels, nested, design, same_as)
    have = np.array([cell in set(present) for _, cell in plan.rows])
    terms = _fold_aliases(plan, candidates(plan))
    model = [t for t in terms if t.status == "ok"]
    if not have.any() or not model:
        return [t if t.status != "ok" else replace(t, status="not estimable", why="no cell has a result") for t in terms]
    full = np.column_stack([np.ones(len(plan.rows)), *(plan.column(t.members) for t in model)])
    inverse, seen = np.linalg.pinv(full[have]), full[have]
    missing = sorted({cell for (_, cell), there in zip(plan.rows, have, strict=True) if not there})
    solved = {}
    for i, term in enumerate(model, 1):
        mixing = inverse[i] @ seen                              # expectation of this coefficient in terms of all coefficients
        entangled = [model[j - 1].name for j in range(1, len(mixing)) if j != i and abs(mixing[j]) > SMALL]
        if abs(mixing[i] - 1) > SMALL or entangled or abs(mixing[0]) > SMALL:
            why = f"no result for {'; '.join(missing)}" + (f": aliased with {', '.join(entangled)}" if entangled else "")
            solved[term.name] = replace(term, status="not estimable", why=why, aliases=tuple(entangled))
        else:
            solved[term.name] = replace(term, weights=_by_cell(plan, have, 2 * inverse[i]),
                                         aliases=_aliases(plan, have, inverse[i], term, model, aliases))
    return [solved.get(t.name, t) for t in terms]


def _fold_aliases(plan: Grid, terms: list[Term]) -> list[Term]:
    """In a fraction some columns are one column: the first keeps the estimate, the others point to it."""
    kept: list[tuple[np.ndarray, str]] = []
    result = []
    for term in terms:
        if term.status == "ok":
            column = plan.column(term.members)
            twin = next((name for other, name in kept if np.allclose(other, column) or np.allclose(other, -column)), None)
            constant = np.ptp(column) == 0
            if twin or constant:
                why = f"aliased with {twin}: see there" if twin else "the design holds it at one level"
                term = replace(term, status="aliased" if twin else "not estimable", why=why, aliases=(twin,) if twin else ())
            else:
                kept.append((column, term.name))
        result.append(term)
    return result


def _aliases(plan: Grid, have: np.ndarray, inverse: np.ndarray, term: Term, model: list[Term],
             handed: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Effects outside the model that this estimate also contains: those handed in, and those of lowest order found in the rows there are."""
    if term.name in handed:
        return tuple(handed[term.name])
    inside = {frozenset(t.members) for t in model}
    for order in range(2, min(len(plan.toggles), MAX_ORDER) + 1):
        found = []
        for members in combinations(plan.toggles, order):
            if frozenset(members) in inside or any(p in members for t in members for p in plan.nested.get(t, ())):
                continue
            share = float(inverse @ plan.column(members)[have])
            if abs(share) > SMALL:
                found.append(("-" if share < 0 else "") + ":".join(members))
        if found:
            return tuple(found)
    return ()


def _by_cell(plan: Grid, have: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    total: dict[str, float] = {}
    for (_, cell), weight in zip([r for r, there in zip(plan.rows, have, strict=True) if there], weights, strict=True):
        total[cell] = total.get(cell, 0.0) + float(weight)
    return {cell: weight for cell, weight in total.items() if abs(weight) > SMALL}


def simple(term: Term, levels: Levels, present: Sequence[str], nested: Nested, design: Design,
           same_as: Mapping[str, str] | None = None) -> list[Term]:
    """The four simple effects of an interaction a:b: a with b on, a with b off, and the other way round.

    Each is the mean of a's + rows minus the mean of its − rows, among the rows where b has that level and the term's parents are on. One that
    needs a missing cell is left out.
    """
    plan = grid(levels, nested, design, same_as)
    result = []
    for one, other in (term.members, term.members[::-1]):
        for level, word in ((1, "on"), (-1, "off")):
            rows = [(on[one], cell) for on, cell in plan.rows if on[one] and on[other] == level and all(on[p] > 0 for p in term.given)]
            counts = {sign: sum(1 for s, _ in rows if s == sign) for sign in (1, -1)}
            if not all(counts.values()) or not {cell for _, cell in rows} <= set(present):
                continue
            weights: dict[str, float] = {}
            for sign, cell in rows:
                weights[cell] = weights.get(cell, 0.0) + sign / counts[sign]
            result.append(Term(f"{one} with {other} {word}" + (f" given {', '.join(term.given)}" if term.given else ""), (one,), term.given, weights))
    return result
