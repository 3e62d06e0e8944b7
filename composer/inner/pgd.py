"""Projected gradient ascent."""

from __future__ import annotations

from typing import Annotated, Any

import torch

from composer.inner.ascent import Climb, move
from composer.inner.balls import per_image
from composer.registry import inner
from composer.shapes import Ge, Images, Norm, Scalar, Start, Tensor, ThreatPixels, ThreatSteps


@inner
def pgd(x: Images, climb: Climb, eps: Scalar, draws: dict[str, list[Tensor]], *, step: ThreatPixels, steps: ThreatSteps, start: Start,
        norm: Norm, restarts: Annotated[int, Ge(1)] = 1) -> dict[str, Tensor]:
    """Projected gradient ascent: steps of fixed length in the steepest direction, each put back into the ball and [0,1].

    One restart costs `steps` gradients. More restarts cost a forward each besides, and every example keeps its worst end point.

    Formula: x'_{t+1} = P(x'_t + step d(grad)), d the sign (linf) or the unit gradient (l2)  [pixels]
    Paper:   Madry et al., ICLR 2018
    """
    ball, step = norm(x, eps), per_image(step)
    noise = draws.get("start") or [None] * restarts
    best = _run(start(x, ball, noise.pop(0)), climb, ball, step, steps)       # popped: noise is not held through the steps
    if restarts == 1:
        return {"point": best}
    worst = climb(point=best, grad=False).objective
    for _ in range(1, restarts):
        point = _run(start(x, ball, noise.pop(0)), climb, ball, step, steps)
        reached = climb(point=point, grad=False).objective
        best = torch.where(per_image(reached > worst), point, best)
        worst = torch.maximum(reached, worst)
    return {"point": best}


def _run(point: Images, climb: Climb, ball: Any, step: Any, steps: int) -> Images:
    if steps == 0:
        return ball.project(point)      # a start may lie outside [0,1]
    for _ in range(steps):
        point = ball.project(move(point, ball.steepest(climb(point=point).grads["point"]), step))
    return point
