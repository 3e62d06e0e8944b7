"""A paper's printed number beside ours."""

from __future__ import annotations

from composer.ablate.statistics.inputs import Printed
from composer.ablate.statistics.intervals import around, both, inside, prediction_interval, t_interval
from composer.ablate.statistics.noise import ImageNoise
from composer.ablate.statistics.types import Beside, Estimate


def beside(ours: Estimate, printed: Printed, image: ImageNoise | None = None, margin: float = 0.01) -> Beside:
    """A printed single run against the interval of one more run of ours, and our mean's equivalence with it within `margin`.

    The prediction interval is mean ± t * s * sqrt(1 + 1/n). Equivalence is two one-sided tests at 5 %: the 90 % interval of (mean - printed)
    with seed and image noise lies within the margin. A printed ± is carried as text and enters neither.
    """
    numbers = list(ours.values.values())
    prediction = prediction_interval(numbers)
    if ours.n < 2:
        word = "no interval: one seed"
    elif prediction is None:
        word = "no interval: all seeds tie"
    else:
        word = "inside" if prediction[0] <= printed.value <= prediction[1] else "outside"
    gap = ours.mean - printed.value
    ninety = both(gap, t_interval(numbers, 0.90), image.ninety if image else None)
    return Beside(ours.cell, ours.metric, float(printed.value), printed.text, ours.mean, ours.n, prediction, word,
                  None if ninety is None else inside(around(gap, (ninety[1] - ninety[0]) / 2), margin), margin)
