"""GAIRAT: an example weighs more the fewer steps of the attack it takes to fool the network."""

from __future__ import annotations

from typing import Any, Literal

import torch

from composer import gain, inner
from composer.errors import ComposerError
from composer.shapes import Images, Labels, Norm, PerExample, Scalar, Start, Tensor, ThreatPixels, ThreatSteps


@gain
def gairat(adv_kappa: PerExample, *, lam: float = -1.0, assign: Literal["tanh", "sigmoid", "discrete"] = "tanh", steps: ThreatSteps) -> PerExample:
    """Weight that falls with the number of steps at which the attack had not yet succeeded.

    Formula: (tanh(lam + 5 (h - kappa)/h) + 1)/2, h = floor(steps/2); sigmoid of the same number; or (steps + 1 - kappa)/(steps + 1)   [1]
    Paper:   Zhang et al., ICLR 2021 (GAIRAT), eq. 5; lam -1 in the authors' script, 0 in the paper

    `adv_kappa` comes from an attack that counts, `ga_pgd` or `fat`. `steps` is that attack's number of steps: left out, the threat's. The
    authors divide by the batch mean: say `normalise = true` beside it. kappa is a count, so the weight carries no gradient.
    """
    if assign == "discrete":
        return (steps + 1 - adv_kappa) / (steps + 1)
    half = steps // 2 + (steps < 2)                          # one step has half a step, which nobody can divide by
    nearness = lam + 5 * (half - adv_kappa) / half
    return (nearness.tanh() + 1) / 2 if assign == "tanh" else nearness.sigmoid()


@inner(makes=("kappa",), sees=("logits",))
def ga_pgd(x: Images, climb: Any, eps: Scalar, draws: dict[str, list[Tensor]], y: Labels, *, step: ThreatPixels, steps: ThreatSteps, start: Start,
           norm: Norm) -> dict[str, Tensor]:
    """Projected gradient ascent that counts, for every example, the iterates that are still classified correctly.

    The points are those of `pgd`; the counts come from the logits of the passes it makes anyway, so they cost nothing.

    Formula: x'_{t+1} = P(x'_t + step d(grad)); kappa = #{t = 0 … steps-1: argmax_k z_k(x'_t) = y}   [pixels; 1]
    Paper:   Zhang et al., ICLR 2021 (GAIRAT), Algorithm 1: the start is counted, the end point is not
    """
    ball = norm(x, eps)
    step = step.reshape(-1, 1, 1, 1) if torch.is_tensor(step) and step.ndim == 1 else step
    point = start(x, ball, (draws.get("start") or [None])[0])
    kappa = torch.zeros_like(x[:, 0, 0, 0])
    for _ in range(steps):
        seen = climb(point=point)
        kappa = kappa + correct(seen.tensors, y)
        point = ball.project(point + step * ball.steepest(seen.grads["point"]))
    return {"point": ball.project(point) if steps == 0 else point, "kappa": kappa}


def correct(tensors: dict[str, Tensor], y: Labels) -> PerExample:
    """1 where the label has the largest logit, else 0. Errors: the terms of the ascent read no logits at its point."""
    if "logits" not in tensors:
        raise ComposerError("the attack counts how often it has failed, and its terms read no logits of its own point", where="[inner.x_adv]",
                            fix="climb a loss of the logits there, such as ce")
    return (tensors["logits"].argmax(1) == y).to(tensors["logits"].dtype)
