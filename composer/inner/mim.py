"""Projected ascent with momentum."""

from __future__ import annotations

from typing import Annotated

import torch

from composer.inner.ascent import Climb, move
from composer.inner.balls import per_image
from composer.registry import inner
from composer.shapes import Ge, Images, Norm, Scalar, Start, Tensor, ThreatPixels, ThreatSteps


@inner
def mim(x: Images, climb: Climb, eps: Scalar, draws: dict[str, list[Tensor]], *, step: ThreatPixels, steps: ThreatSteps, start: Start,
        norm: Norm, mu: Annotated[float, Ge(0)] = 1.0) -> dict[str, Tensor]:
    """Momentum iterative method: the direction of a step is steepest for the decayed sum of all gradients so far, each of length 1 in l1.

    Costs `steps` gradients, as pgd; with mu = 0 it is pgd.

    Formula: g_{t+1} = mu g_t + grad / ||grad||_1, x'_{t+1} = P(x'_t + step d(g_{t+1})), d the sign (linf) or the unit vector (l2)  [pixels]
    Paper:   Dong et al., CVPR 2018; their code divides by the mean of |grad|, which scales every g alike and changes nothing
    """
    ball, step = norm(x, eps), per_image(step)
    point = start(x, ball, (draws.get("start") or [None])[0])
    if steps == 0:
        return {"point": ball.project(point)}      # a start may lie outside [0,1]
    momentum = torch.zeros_like(x)
    for _ in range(steps):
        momentum = mu * momentum + _unit(climb(point=point).grads["point"])
        point = ball.project(move(point, ball.steepest(momentum), step))
    return {"point": point}


def _unit(grad: Images) -> Images:
    """Each image's gradient over the sum of its absolute values; zero where it is zero."""
    grad = grad / grad.abs().amax((1, 2, 3), keepdim=True).clamp_min(torch.finfo(grad.dtype).tiny)      # a saturated loss has entries that vanish in a sum
    return grad / grad.abs().sum((1, 2, 3), keepdim=True).clamp_min(1)                                  # 1 or more by now, unless the gradient is zero
