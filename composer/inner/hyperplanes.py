"""The nearest point of a hyperplane within [0,1], for many points at once: exact, by sorting, with shapes that depend on no value."""

from __future__ import annotations

import torch

from composer.shapes import PerExample, Tensor

TINY = 1e-30        # keeps 0/0 away


def step_onto(points: Tensor, slope: Tensor, value: PerExample, norm: str) -> Tensor:
    """The shortest change d [M,D] of `points` [M,D] in [0,1] that brings value + slope·d to zero without leaving [0,1].

    Where no change within [0,1] does, every coordinate goes as far as it can. `norm` is "linf" or "l2".

    Every coordinate moves against the slope, by s (linf) or s |slope_j| (l2), until it meets the pixel range; what that takes off the value
    is piecewise linear in s, and one sort of the places where coordinates stop gives the s that takes off all of it.
    """
    slope = slope * torch.where(value >= 0, 1.0, -1.0).unsqueeze(1)
    largest = slope.abs().amax(1, keepdim=True).clamp_min(TINY)
    slope, wanted = slope / largest, value.abs() / largest.squeeze(1)       # tiny slopes keep their digits when squared
    speed = torch.ones_like(slope) if norm == "linf" else slope.abs()
    room = torch.where(slope > 0, points, 1 - points)
    s = _length(slope.abs() * speed, room / speed.clamp_min(TINY), wanted)
    return -slope.sign() * torch.minimum(s.unsqueeze(1) * speed, room)


def _length(gain: Tensor, stop: Tensor, wanted: PerExample) -> PerExample:
    """The smallest s >= 0 with sum_j gain_j min(s, stop_j) = wanted, or the largest stop where that is never reached; [M,D], [M,D], [M]."""
    stop, order = stop.sort(1)
    gain = gain.gather(1, order)
    zero = torch.zeros_like(gain[:, :1])
    spent = torch.cat([zero, (gain * stop).cumsum(1)], 1)                   # by the coordinates that stop before place k, [M,D+1]
    left = torch.cat([gain.flip(1).cumsum(1).flip(1), zero], 1)             # gain of those that still move there
    reached = spent[:, 1:] + stop * left[:, 1:]                             # taken off when the k-th stops; never falls
    k = (reached <= wanted.unsqueeze(1)).sum(1, keepdim=True)
    s = (wanted.unsqueeze(1) - spent.gather(1, k)) / left.gather(1, k).clamp_min(TINY)
    return torch.minimum(s, stop[:, -1:]).squeeze(1).clamp_min(0)
