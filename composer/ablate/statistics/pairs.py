"""Two checkpoints on the same images (McNemar), and rank or permutation tests over seeds, which need six of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from composer.ablate.statistics.noise import image_noise
from composer.ablate.statistics.types import Interval, plain
from composer.errors import ComposerError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

EXACT_BELOW = 25                                # discordant images under which the chi-square is not trusted
MIN_RANK_SEEDS = 6


@dataclass(frozen=True)
class Pair:
    """Two checkpoints: accuracy of each, images that only one gets right, McNemar's p, and the bootstrap interval of the difference a - b."""

    n: int
    a: float
    b: float
    only_a: int
    only_b: int
    difference: float
    ci95: Interval
    p: float
    method: str

    def as_dict(self) -> dict[str, Any]:
        return {"n": self.n, "a": self.a, "b": self.b, "only_a": self.only_a, "only_b": self.only_b, "difference": self.difference,
                "ci95": plain(self.ci95), "p": self.p, "method": self.method}


def mcnemar(a: ArrayLike, b: ArrayLike, resamples: int = 2000, seed: int = 0) -> Pair:
    """McNemar's test of two checkpoints' right answers on the same images, in the same order.

    Exact (binomial) below 25 discordant images, else chi-square with continuity correction. It speaks of these two checkpoints, not of
    methods. Without a discordant image p is 1 and the interval is the exact bound on what N images could have missed.
    """
    from statsmodels.stats.contingency_tables import mcnemar as test

    first, second = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    if first.shape != second.shape or first.ndim != 1 or not first.size:
        raise ComposerError(f"two sets of answers with shapes {first.shape} and {second.shape}", fix="evaluate both under one protocol",
                            why="McNemar's test needs the same images in the same order")
    only_a, only_b = int((first & ~second).sum()), int((~first & second).sum())
    table = [[int((first & second).sum()), only_a], [only_b, int((~first & ~second).sum())]]
    exact = only_a + only_b < EXACT_BELOW
    p = float(test(table, exact=exact, correction=True).pvalue) if only_a + only_b else 1.0
    noise = image_noise([first.astype(float) - second], resamples, seed)[0]
    return Pair(first.size, float(first.mean()), float(second.mean()), only_a, only_b, (only_a - only_b) / first.size, noise.ninety_five, min(1.0, p),
                "exact" if exact else "chi-square")


def sign_flip(differences: Sequence[float]) -> float:
    """Two-sided exact p of the sign-flip permutation test that paired differences are symmetric about 0. From six seeds on."""
    from scipy.stats import permutation_test

    _enough(differences, "a sign-flip permutation test")
    result = permutation_test((np.asarray(differences, dtype=float),), lambda x, axis: x.mean(axis=axis), permutation_type="samples",
                              vectorized=True, n_resamples=np.inf if len(differences) <= 20 else 100_000, rng=np.random.default_rng(0))
    return float(result.pvalue)


def wilcoxon(differences: Sequence[float]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test of paired differences. From six seeds on."""
    from scipy.stats import wilcoxon as test

    _enough(differences, "Wilcoxon's signed-rank test")
    return 1.0 if not np.any(differences) else float(test(np.asarray(differences, dtype=float)).pvalue)


def _enough(differences: Sequence[float], name: str) -> None:
    n = len(differences)
    if n < MIN_RANK_SEEDS:
        least = f"the smallest two-sided p of {n} pairs is 2/2^{n} = {2 / 2**n:.3g}, which cannot reach 0.05" if n else "there are no pairs"
        raise ComposerError(f"{name} on {n} seeds", why=least, fix=f"run {MIN_RANK_SEEDS} seeds or more, or read the t interval")
