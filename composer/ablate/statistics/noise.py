"""Noise of the test images: a bootstrap that resamples images, the same ones for all cells, seeds and contrasts together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from composer.ablate.statistics.intervals import around, clopper_pearson, wilson
from composer.ablate.statistics.types import Interval

if TYPE_CHECKING:
    from numpy.typing import NDArray

CHUNK = 64                                      # resamples averaged at once: 64 x 10,000 counts are 5 MB as float


@dataclass(frozen=True)
class ImageNoise:
    """Percentile intervals of one contrast at two levels; `ninety` serves the equivalence test."""

    ninety_five: Interval
    ninety: Interval


def per_image(weights: Mapping[str, float], seeds: Sequence[int], flags: Mapping[str, Mapping[int, NDArray]]) -> NDArray | None:
    """The contrast of every single image, averaged over seeds: [N]. None where a run has no flags or the runs judge other numbers of images."""
    parts = []
    for cell, weight in weights.items():
        runs = [flags.get(cell, {}).get(seed) for seed in seeds]
        if not runs or any(run is None for run in runs):
            return None
        parts += [(weight, np.asarray(run, dtype=float)) for run in runs]
    if len({array.shape for _, array in parts}) != 1:
        return None
    return sum(weight * array for weight, array in parts) / len(seeds)


def image_noise(columns: Sequence[NDArray | None], resamples: int = 2000, seed: int = 0) -> list[ImageNoise | None]:
    """Bootstrap of the mean of each column [N]: every resample of images is used for all columns of that N at once.

    A column whose images are all alike has no bootstrap spread, which is not certainty: it gets the exact (Clopper-Pearson) upper bound of
    the share of images that could differ, 1 - 0.025^(1/N), as half-width.
    """
    result: list[ImageNoise | None] = [None] * len(columns)
    sizes = {column.size for column in columns if column is not None}
    for size in sorted(sizes):
        where = [i for i, column in enumerate(columns) if column is not None and column.size == size]
        means = _resampled(np.column_stack([columns[i] for i in where]), resamples, seed)
        for j, i in enumerate(where):
            result[i] = _constant(columns[i]) if np.ptp(columns[i]) <= 1e-12 else ImageNoise(*(_percentiles(means[:, j], q) for q in (0.95, 0.90)))
    return result


def _resampled(matrix: NDArray, resamples: int, seed: int) -> NDArray:
    """Means of [N, M] under `resamples` draws of N rows with replacement: [resamples, M]."""
    counts = _counts(len(matrix), resamples, seed)
    return np.concatenate([counts[i:i + CHUNK] @ matrix for i in range(0, resamples, CHUNK)]) / len(matrix)


@lru_cache(maxsize=2)
def _counts(n: int, resamples: int, seed: int) -> NDArray:
    """How often each resample holds each image, [resamples, N]: 20 MB for 10,000 images, kept because every metric uses the same."""
    rng = np.random.default_rng(seed)
    counts = np.empty((resamples, n), dtype=np.uint8)           # an image drawn 256 times has a chance of 1e-500
    for row in counts:
        row[:] = np.bincount(rng.integers(0, n, n), minlength=n)
    return counts


def _percentiles(means: NDArray, level: float) -> Interval:
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _constant(column: NDArray) -> ImageNoise:
    middle, n = float(column.mean()), column.size
    return ImageNoise(*(around(middle, clopper_pearson(0, n, level)[1]) for level in (0.95, 0.90)))


def single_accuracy(value: float, images: int | None) -> Interval | None:
    """Wilson's interval of one checkpoint's accuracy, where only the number of images is known."""
    return wilson(value * images, images) if images else None


def disagreement(values: Mapping[str, Mapping[int, float]], flags: Mapping[str, Mapping[int, NDArray]]) -> str:
    """Why per-image results are not those behind the values, or nothing: each must average to its value, else its interval is of something else."""
    for cell, runs in flags.items():
        for seed, array in runs.items():
            value = values.get(cell, {}).get(seed)
            if value is not None and abs(float(np.mean(array)) - value) > 1e-5:
                return f"the per-image results of {cell}, seed {seed}, average to {np.mean(array):.6f} and the value is {value:.6f}"
    return ""
