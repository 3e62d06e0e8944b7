"""The gate: how often the primary interval holds the truth, by simulation, in the situations an ablation meets.

    python -m composer.ablate.statistics.gate --grids 40000

prints docs/statistics.md's table and exits 1 if a primary interval covers less than 93 % or more than 97 %. Weights and intervals are the ones
that `analyse` uses (`design.effects`, `intervals.t_halfwidths`); only the data are made up, in units of one run's noise.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from composer.ablate.statistics.design import effects
from composer.ablate.statistics.intervals import t_halfwidths

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Draw = Callable[[np.random.Generator, int, int], NDArray]   # generator, grids, seeds -> noise [grids, cells, seeds]

LOW, HIGH = 0.93, 0.97
SEEDS = (3, 5, 8)
FALL = 38.0                                     # points between a trained run and chance
Weights = dict[str, float]


@dataclass(frozen=True)
class Scenario:
    """Cells with true means, a way to draw noise around them, and the contrasts judged. `keep` maps runs to the seeds that are analysed."""

    name: str
    cells: tuple[str, ...]
    means: tuple[float, ...]
    draw: Draw
    contrasts: dict[str, Weights]
    keep: Callable[[NDArray], NDArray] = lambda runs: runs


@dataclass(frozen=True)
class Coverage:
    """Share of grids whose interval holds the truth, by contrast."""

    scenario: str
    n: int
    by_contrast: dict[str, float]

    @property
    def span(self) -> tuple[float, float]:
        return min(self.by_contrast.values()), max(self.by_contrast.values())

    @property
    def ok(self) -> bool:
        return self.span[0] >= LOW and self.span[1] <= HIGH


SQUARE = ("full", "-A", "-B", "-A-B")
LEVELS = {"full": {"A": 1, "B": 1}, "-A": {"A": -1, "B": 1}, "-B": {"A": 1, "B": -1}, "-A-B": {"A": -1, "B": -1}}
MEANS = (51.0, 49.5, 50.2, 48.1)
CUBE = {"".join(f"-{t}" for t, s in zip("ABC", signs, strict=True) if s < 0) or "full": dict(zip("ABC", signs, strict=True))
        for signs in product((1, -1), repeat=3)}


def weights(levels: dict[str, dict[str, int]], present: tuple[str, ...], nested: dict[str, tuple[str, ...]] | None = None) -> dict[str, Weights]:
    """All contrasts of these cells: the effects that can be estimated and the deltas to the full recipe."""
    found = {t.name: t.weights for t in effects(levels, present, nested or {}, "full", {}) if t.status == "ok"}
    return found | {f"delta {cell}": {cell: 1.0, "full": -1.0} for cell in present if cell != "full"}


def correlated(covariance: NDArray) -> Draw:
    """Normal noise with this covariance between the cells of a seed."""
    root = np.linalg.cholesky(covariance + 1e-12 * np.eye(len(covariance)))
    return lambda rng, grids, n: np.einsum("cd,gdn->gcn", root, rng.standard_normal((grids, len(covariance), n)))


def tree(early: float, late: float) -> NDArray:
    """Covariance of the 2 x 2 grid where A forks early (cells that differ in A correlate by `early`) and B late (`late`)."""
    same_a = np.array([[LEVELS[c]["A"] == LEVELS[d]["A"] for d in SQUARE] for c in SQUARE])
    return np.where(np.eye(4, dtype=bool), 1.0, np.where(same_a, late, early))


def seed_by_effect(rng: np.random.Generator, grids: int, n: int) -> NDArray:
    """A's effect differs from seed to seed, as much as a run's own noise; B's half as much."""
    noise = rng.standard_normal((grids, 4, n))
    for toggle, spread in (("A", 1.0), ("B", 0.5)):
        sign = np.array([LEVELS[c][toggle] for c in SQUARE])
        noise += spread * sign[:, None] * rng.standard_normal((grids, 1, n)) / 2
    return noise + rng.standard_normal((grids, 1, n))


def collapsed(rng: np.random.Generator, grids: int, n: int) -> NDArray:
    """Exactly one run of each grid, at a random cell and seed, is far below: at chance."""
    noise = correlated(tree(0.35, 0.35))(rng, grids, n)
    noise[np.arange(grids), rng.integers(4, size=grids), rng.integers(n, size=grids)] -= FALL
    return noise


def without_collapsed(runs: NDArray) -> NDArray:
    """The seed of the collapsed run leaves every cell (statistics of "if it trained")."""
    lowest = runs.min(axis=1).argmin(axis=-1)
    rest = np.arange(runs.shape[-1] - 1)[None, :]
    return np.take_along_axis(runs, (rest + (rest >= lowest[:, None]))[:, None, :], axis=-1)


def scenarios() -> Iterator[Scenario]:
    """What the primary interval must survive."""
    all_four = weights(LEVELS, SQUARE)

    def square(name: str, draw: Draw, keep: Callable[[NDArray], NDArray] = lambda runs: runs) -> Scenario:
        return Scenario(name, SQUARE, MEANS, draw, all_four, keep)

    yield square("equal variances, no correlation", correlated(np.eye(4)))
    for early, late in ((0.0, 0.35), (0.0, 0.7), (0.35, 0.7), (0.7, 0.7)):
        yield square(f"A forks early (correlation {early}), B late ({late})", correlated(tree(early, late)))
    yield square("seed x effect", seed_by_effect)
    yield square("unequal cell variances (sd 0.3, 1, 1, 3)", correlated(np.diag([0.09, 1.0, 1.0, 9.0])))
    yield square("one collapsed run, \"if it trained\" (n - 1 seeds)", collapsed, without_collapsed)
    nested = ("full", "-A", "-B")
    three = correlated(tree(0.35, 0.7)[:3, :3])
    yield Scenario("nested: A void without B, three plans", nested, MEANS[:3], three, weights(LEVELS, nested, {"A": ("B",)}))
    yield Scenario("a missing cell: 2 x 2 without -A-B", nested, MEANS[:3], three, weights(LEVELS, nested))
    seven = tuple(cell for cell in CUBE if cell != "-A-B-C")
    means = tuple(50 + sum((0.9, 0.4, 0.2)["ABC".index(t)] * s for t, s in CUBE[c].items()) + 0.3 * CUBE[c]["A"] * CUBE[c]["B"] for c in seven)
    yield Scenario("a missing cell: 2 x 2 x 2 without -A-B-C", seven, means, correlated(0.5 * np.eye(7) + 0.5), weights(CUBE, seven))
    yield square("a missing run: n - 1 seeds in common", correlated(tree(0.35, 0.7)), lambda runs: runs[..., 1:])


def contrast_of(scenario: Scenario, runs: NDArray, by_cell: Weights) -> tuple[NDArray, float]:
    """Per-seed contrasts [grids, seeds] and the true value."""
    row = np.array([by_cell.get(cell, 0.0) for cell in scenario.cells])
    return np.einsum("c,gcn->gn", row, runs), float(row @ np.array(scenario.means))


def simulate(scenario: Scenario, n: int, grids: int, rng: np.random.Generator) -> NDArray:
    """Accuracies [grids, cells, seeds], in points."""
    return np.array(scenario.means)[:, None] + scenario.draw(rng, grids, n)


def coverage(scenario: Scenario, n: int, grids: int, seed: int = 0) -> Coverage:
    """Of the primary interval: the t interval of the per-seed contrast."""
    runs = scenario.keep(simulate(scenario, n, grids, np.random.default_rng([seed, n])))
    found = {}
    for name, by_cell in scenario.contrasts.items():
        values, truth = contrast_of(scenario, runs, by_cell)
        found[name] = float(np.mean(np.abs(values.mean(axis=-1) - truth) <= t_halfwidths(values)))
    return Coverage(scenario.name, n, found)


def least_squares(scenario: Scenario, n: int, grids: int, seed: int = 0) -> Coverage:
    """Of the second line, for the effects of a complete grid: seeds as blocks, one residual variance with (cells - 1)(n - 1) degrees of freedom."""
    from scipy.stats import t

    runs = simulate(scenario, n, grids, np.random.default_rng([seed, n]))
    rest = runs - runs.mean(axis=1, keepdims=True) - runs.mean(axis=2, keepdims=True) + runs.mean(axis=(1, 2), keepdims=True)
    df = (runs.shape[1] - 1) * (n - 1)
    spread = np.sqrt((rest ** 2).sum(axis=(1, 2)) / df)
    found = {}
    for name, by_cell in scenario.contrasts.items():
        if not name.startswith("delta"):
            values, truth = contrast_of(scenario, runs, by_cell)
            half = t.ppf(0.975, df) * spread * np.sqrt(sum(w * w for w in by_cell.values()) / n)
            found[name] = float(np.mean(np.abs(values.mean(axis=-1) - truth) <= half))
    return Coverage(scenario.name, n, found)


def comparisons() -> Iterator[tuple[Scenario, Callable[[Scenario, int, int, int], Coverage]]]:
    """What is not gated, and is printed to be seen: the second line, noise that is not normal, and "all runs" where one cell collapses at times."""
    gated = {s.name: s for s in scenarios()}
    for name in [n for n, s in gated.items() if s.cells == SQUARE and ("fork" in n or "effect" in n or "unequal" in n)]:
        yield replace(gated[name], name=f"least squares: {name}"), least_squares
    plain = gated["equal variances, no correlation"]
    yield replace(plain, name="skewed noise (exponential), of unequal size (1, 1, 1, 3)", draw=_skewed), coverage
    heavy = replace(plain, name="noise with heavy tails (t, 3 degrees of freedom)", draw=lambda rng, grids, n: rng.standard_t(3, (grids, 4, n)))
    yield heavy, coverage
    for share in (1 / 8, 1 / 40):
        name = f"\"all runs\", each run of -A-B collapses with probability 1/{round(1 / share)}"
        yield replace(plain, name=name, means=(*MEANS[:3], MEANS[3] - FALL * share), draw=_at_random(share)), coverage


def _skewed(rng: np.random.Generator, grids: int, n: int) -> NDArray:
    return np.array([1.0, 1.0, 1.0, 3.0])[:, None] * (rng.exponential(size=(grids, 4, n)) - 1)


def _at_random(share: float) -> Draw:
    """Noise of mean 0 that holds the collapses of the last cell."""
    def draw(rng: np.random.Generator, grids: int, n: int) -> NDArray:
        noise = rng.standard_normal((grids, 4, n))
        noise[:, 3] -= FALL * ((rng.random((grids, n)) < share) - share)
        return noise

    return draw


def table(rows: list[Coverage]) -> str:
    """Markdown: a row per scenario, a column per n with the lowest and highest coverage over the contrasts, in per cent."""
    names = list(dict.fromkeys(row.scenario for row in rows))
    by = {(row.scenario, row.n): row for row in rows}
    lines = ["| scenario | " + " | ".join(f"n = {n}" for n in SEEDS) + " |", "|---|" + "---|" * len(SEEDS)]
    for name in names:
        spans = [by[name, n].span for n in SEEDS]
        lines.append(f"| {name} | " + " | ".join(f"{100 * low:.1f} to {100 * high:.1f}" for low, high in spans) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m composer.ablate.statistics.gate", description="coverage of the intervals, by simulation")
    parser.add_argument("--grids", type=int, default=40_000, help="simulated grids a scenario and n (default 40000)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    rows = [coverage(s, n, given.grids, given.seed) for s in scenarios() for n in SEEDS]
    beyond = [judge(s, n, given.grids, given.seed) for s, judge in comparisons() for n in SEEDS]
    sys.stdout.write(f"{table(rows)}\n\nNot gated:\n\n{table(beyond)}\n")
    return 0 if all(row.ok for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
