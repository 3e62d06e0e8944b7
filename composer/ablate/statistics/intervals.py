"""Intervals: t over seeds, Wilson and Clopper-Pearson over images or runs, prediction of one more run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from composer.ablate.statistics.types import Interval

if TYPE_CHECKING:
    from numpy.typing import NDArray

TIE = 1e-12                                     # two numbers nearer than this (relative) are the same number computed twice


def tied(values: Sequence[float]) -> bool:
    """No spread between seeds beyond rounding: then there is nothing to build an interval from."""
    array = np.asarray(values, dtype=float)
    return array.size > 1 and float(np.ptp(array)) <= TIE * max(1.0, float(np.abs(array).max()))


def t_halfwidths(values: NDArray, level: float = 0.95) -> NDArray:
    """Half-width of the t interval of the mean along the last axis: t(1-(1-level)/2, n-1) * s / sqrt(n)."""
    from scipy import stats

    n = values.shape[-1]
    return stats.t.ppf(0.5 + level / 2, n - 1) * values.std(axis=-1, ddof=1) / np.sqrt(n)


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval | None:
    """One-sample t interval of the mean. None for one value, and where all values tie.

    Bonferroni-t for m contrasts is `t_interval(values, 1 - 0.05 / m)`.
    """
    array = np.asarray(values, dtype=float)
    if array.size < 2 or tied(values):
        return None
    return around(float(array.mean()), float(t_halfwidths(array, level)))


def prediction_interval(values: Sequence[float], level: float = 0.95) -> Interval | None:
    """Where one more run of the same kind falls: mean ± t * s * sqrt(1 + 1/n). None for one value, and where all values tie."""
    array = np.asarray(values, dtype=float)
    if array.size < 2 or tied(values):
        return None
    return around(float(array.mean()), float(t_halfwidths(array, level)) * float(np.sqrt(array.size + 1)))


def t_p(values: Sequence[float]) -> float | None:
    """Two-sided p of the one-sample t test against 0; None where there is no interval."""
    from scipy import stats

    return None if len(values) < 2 or tied(values) else float(stats.ttest_1samp(values, 0.0).pvalue)


def wilson(successes: float, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of one proportion, such as one checkpoint's accuracy on n images."""
    return _proportion(successes, n, level, "wilson")


def clopper_pearson(successes: float, n: int, level: float = 0.95) -> Interval:
    """Exact interval of a rate k/n: never covers less than `level`, however small n."""
    return _proportion(successes, n, level, "beta")


def _proportion(successes: float, n: int, level: float, method: str) -> Interval:
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(successes, n, alpha=1 - level, method=method)
    return max(0.0, float(low)), min(1.0, float(high))


def around(middle: float, half: float) -> Interval:
    return middle - half, middle + half


def half(interval: Interval) -> float:
    return (interval[1] - interval[0]) / 2


def both(middle: float, seed: Interval | None, image: Interval | None) -> Interval | None:
    """Seed noise and image noise together: middle ± sqrt(a² + b²) of the two half-widths."""
    if seed is None or image is None:
        return None
    return around(middle, float(np.hypot(half(seed), half(image))))


def excludes_zero(interval: Interval | None) -> bool:
    return interval is not None and bool(interval[0] > 0 or interval[1] < 0)


def inside(interval: Interval | None, margin: float) -> bool:
    """The interval lies within (-margin, margin)."""
    return interval is not None and bool(-margin < interval[0] and interval[1] < margin)
