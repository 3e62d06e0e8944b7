"""What an experiment could have found, and what it found, in words."""

from __future__ import annotations

from functools import lru_cache

from composer.ablate.statistics.intervals import excludes_zero, inside
from composer.ablate.statistics.types import MIN_TEST_SEEDS, Contrast


def minimum_detectable(sd: float, n: int, alpha: float = 0.05, power: float = 0.8) -> float | None:
    """Smallest true mean difference that a two-sided paired t test with n pairs finds with probability `power`, given their SD. None for n < 2."""
    return None if n < 2 else standardised(n, alpha, power) * sd


@lru_cache(maxsize=256)
def standardised(n: int, alpha: float = 0.05, power: float = 0.8) -> float:
    """The same in units of the SD of the paired differences (d_z)."""
    from scipy.optimize import brentq
    from statsmodels.stats.power import TTestPower

    def excess(d: float) -> float:              # the far tail, under 1e-6 here, is left out: statsmodels' noncentral t is not a number there
        return float(TTestPower().power(d, n, alpha / 2, alternative="larger")) - power

    high = 0.5
    while excess(high) < 0:
        high *= 1.5
    return float(brentq(excess, 1e-3, high))


def points(fraction: float) -> str:
    """0.003 -> "0.3": accuracies are fractions, prose speaks of points."""
    return f"{100 * fraction:.3g}" if round(100 * fraction, 1) != round(100 * fraction, 6) else f"{100 * fraction:.1f}"


def verdict(c: Contrast, alpha: float = 0.05, margin: float | None = None) -> str:
    """The result in words.

    "resolved" and "equivalent" are tests, so they need five seeds, and `ci_both`; the first also needs a place in the family. Elsewhere the
    interval speaks for itself. Equivalence is two one-sided tests at 5 %: the 90 % interval of both noises lies within the margin.
    """
    if c.status != "ok":
        return c.status
    if c.n < 2:
        return "one seed: no interval"
    if c.tied:
        return "tied at every seed" if abs(c.estimate or 0.0) <= 1e-12 else "the same at every seed: no interval"
    near = margin is not None and inside(c.ci90_both, margin)
    within = f"within ±{points(margin)} points" if near and margin is not None else ""
    if c.n < MIN_TEST_SEEDS or not c.in_family:
        words = "interval excludes 0" if excludes_zero(c.ci_both or c.ci95) else f"not resolved at n = {c.n}"
        if near:
            words = f"equivalent {within}" if c.n >= MIN_TEST_SEEDS and not words.startswith("interval") else f"{words}, interval {within}"
        return words
    if c.p_holm is not None and c.p_holm <= alpha:
        if c.ci_both is None:
            return "resolved over seeds; image noise not measured"
        if excludes_zero(c.ci_both):
            return f"resolved, and {within}" if near else "resolved"
    return f"equivalent {within}" if near else f"not resolved at n = {c.n}"


def may_be_bold(c: Contrast, alpha: float = 0.05) -> bool:
    """Bold needs five seeds, Holm's p, a simultaneous interval without 0, and `ci_both` without 0: a claim about the method."""
    return bool(c.n >= MIN_TEST_SEEDS and c.p_holm is not None and c.p_holm <= alpha and c.ci_simultaneous is not None and excludes_zero(c.ci_both))
