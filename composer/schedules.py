"""Schedules: numbers that change over a run. They stand wherever a float option stands and are called with Python numbers.

All count epochs completed, `epoch - 1` at the (1-based) epoch now running, so a border of 80 acts from epoch 81 on.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated

from composer.errors import ComposerError
from composer.options import whole_epochs
from composer.registry import schedule
from composer.shapes import Epochs, Ge, Gt, Le


def _line(at: float, x0: float, y0: float, x1: float, y1: float) -> float:
    """The line through two points, flat outside them; exact at both ends. Equal abscissae are a jump."""
    if at >= x1:
        return y1
    return y0 if at <= x0 else y0 + (y1 - y0) * (at - x0) / (x1 - x0)


@schedule
def ramp(epoch: int, epochs: int, *, first: float, last: float, after: Epochs = 0.0, until: Epochs = "1/1") -> float:  # type: ignore[assignment]
    """A straight line from one value to another, flat before and behind it.

    Formula: first + (last - first) · clip((epoch - 1 - after) / (until - after), 0, 1)   [unit of first]
    Paper:   common practice (warm-up and cool-down of a weight)
    """
    return _line(epoch - 1, whole_epochs(after, epochs), first, whole_epochs(until, epochs), last)


@schedule
def cosine(epoch: int, epochs: int, *, value: float, floor: float = 0.0, until: Epochs = "1/1") -> float:  # type: ignore[assignment]
    """Half a cosine from a value down to a floor, once, without restarts; the floor holds afterwards.

    Formula: floor + (value - floor) · (1 + cos(pi · (epoch - 1) / until)) / 2   [unit of value]
    Paper:   Loshchilov and Hutter, ICLR 2017 (SGDR), eq. 5 without restarts
    """
    done = min(max((epoch - 1) / max(1, whole_epochs(until, epochs)), 0.0), 1.0)
    return floor + (value - floor) * (1.0 + math.cos(math.pi * done)) / 2.0


@schedule
def multistep(epoch: int, epochs: int, *, value: float, at: list[Epochs], factor: float = 0.1, values: tuple[float, ...] = ()) -> float:
    """Steps: the value is multiplied by `factor` at every border, or becomes the next of `values` there.

    Formula: value · factor^k, or values[k-1] where values are given; k = number of borders m with epoch - 1 >= m   [unit of value]
    Paper:   common practice; `values` for tables whose steps differ (FAT, Zhang et al., ICML 2020: 0.1, 0.01, 0.001, 0.0005)

    Errors: `values` that are not one for each border.
    """
    if values and len(values) != len(at):
        raise ComposerError(f"multistep has {len(at)} borders and {len(values)} values", fix="give one value for each border in `at`")
    passed = sum(epoch - 1 >= whole_epochs(border, epochs) for border in at)
    if values:
        return values[passed - 1] if passed else value
    return value * factor**passed


@schedule
def linear(epoch: int, epochs: int, *, points: list[tuple[Epochs, float]]) -> float:
    """Straight lines between given points, flat before the first and behind the last.

    Formula: piecewise linear through (epochs completed, value)   [unit of the values]
    Paper:   PIAT's learning rate: [[60, 0.01], [90, 0.001], [120, 0.0001]], set once an epoch; SEAT's code has the same shape

    Errors: no point, or epochs that go backwards.
    """
    knots = [(whole_epochs(border, epochs), value) for border, value in points]
    if not knots or any(a > b for (a, _), (b, _) in pairwise(knots)):
        raise ComposerError(f"linear needs points in order of their epochs, given {[list(p) for p in points]}",
                            fix='points = [["60/120", 0.01], ["90/120", 0.001]]')
    done = epoch - 1
    for (x0, y0), (x1, y1) in pairwise(knots):
        if done < x1:
            return _line(done, x0, y0, x1, y1)
    return knots[-1][1]


@schedule
def cyclic(progress: float, *, value: float, peak: Annotated[float, Gt(0), Le(1)] = 0.5, start: float = 0.0, end: float = 0.0) -> float:
    """One cycle: up in a straight line to the value, down in another; as fine as the progress it is given (every step).

    Formula: start + (value - start) · t / peak for t <= peak, then value + (end - value) · (t - peak) / (1 - peak); t = progress   [unit of value]
    Paper:   Smith, WACV 2017 (cyclical learning rates); fast AT, Wong et al., ICLR 2020 (peak 0.4 or 0.5)
    """
    return _line(progress, 0.0, start, peak, value) if progress <= peak else _line(progress, peak, value, 1.0, end)


@schedule
def follow(ratio: float, *, path: str, value: float, early: Annotated[int, Ge(0)] = 0) -> float:
    """A number that scales with another scheduled path, `early` epochs before it.

    Formula: value · (path's value `early` epochs ahead) / (path's first value)   [unit of value]
    Paper:   EMR: the penalty's weight falls with the learning rate; its code does so one epoch earlier (early = 1)

    The engine works the ratio out from `path` and `early`.
    """
    return value * ratio


@schedule
def piat(epoch: int) -> float:
    """PIAT's growing weight of the interpolated parameters.

    Formula: (n + 1) / (n + 10) at epoch n = 1, 2, …   [1]
    Paper:   PIAT, Algorithm 1 (the same numbers as SEAT's decay, counted in epochs)
    """
    return (epoch + 1) / (epoch + 10)


@schedule
def seat(step: int, *, cap: Annotated[float, Ge(0), Le(1)] = 0.999) -> float:
    """SEAT's decay of the weight average: short memory first, so that the random start is forgotten.

    Formula: min(cap, (t + 1) / (t + 10)) at step t = 0, 1, …   [1]
    Paper:   Wang and Wang, ICLR 2022 (SEAT), as in its code
    """
    return min(cap, (step + 1) / (step + 10))


@schedule
def l_softmax(step: int, *, base: Annotated[float, Ge(0)] = 1000.0, gamma: Annotated[float, Ge(0)] = 2.5e-5, power: Annotated[float, Ge(0)] = 35.0,
              floor: Annotated[float, Ge(0)] = 0.0) -> float:
    """L-Softmax's annealing: the share of the plain logit is large at first and falls with the steps of training.

    Formula: max(floor, base · (1 + gamma · t)^-power) at step t = 0, 1, …   [1]
    Paper:   L-Softmax, Liu et al., ICML 2016, values of its code: MNIST 1000, 2.5e-5, 35; CIFAR-10 1000, 2e-5, 45

    Steps of the optimiser are counted. One public port counts forwards, and so the attack's passes too.
    """
    return max(floor, base * (1 + gamma * step) ** -power)
