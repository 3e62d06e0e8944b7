"""FAT: an attack that stops soon after it has succeeded."""

from __future__ import annotations

from typing import Annotated, Any

import torch

from composer import inner
from composer.errors import ComposerError
from composer.shapes import Ge, Images, Labels, Norm, Pixels, Scalar, Start, Tensor, ThreatPixels, ThreatSteps


@inner(makes=("kappa",), sees=("logits",), draws={"noise": ("gaussian", "steps")}, optimum=False)
def fat(x: Images, climb: Any, eps: Scalar, draws: dict[str, list[Tensor]], y: Labels, *, step: ThreatPixels, steps: ThreatSteps, start: Start,
        norm: Norm, tau: Annotated[float, Ge(0)] = 1.0, omega: Pixels = 0.001) -> dict[str, Tensor]:
    """Friendly adversarial training's ascent: every image stops `tau` steps after it was first seen misclassified.

    An image that is classified correctly moves on. One that is not, counts down from `tau`; at zero it stays where it is. `tau` may be a
    schedule; it is rounded. A little normal noise goes with every step. `kappa` counts the iterates that were classified correctly.

    Formula: x'_{t+1} = P(x'_t + step d(grad) + omega n_t) while c_t > 0 or correct, c_0 = tau, c_{t+1} = c_t - 1 where wrong; n standard normal
             [pixels]
    Paper:   Zhang et al., ICML 2020 (FAT), Algorithm 1; omega 0.001 in the authors' code for AT, 0 for TRADES and MART

    Their code hands the batch back in the order in which images stopped; here every image keeps its row, which changes no mean over the batch.
    All images go through all passes: stopping early saves nothing.
    """
    ball = norm(x, eps)
    step = step.reshape(-1, 1, 1, 1) if torch.is_tensor(step) and step.ndim == 1 else step
    point = start(x, ball, (draws.get("start") or [None])[0])
    point = ball.project(point) if steps == 0 else point
    moves = torch.ones_like(x[:, 0, 0, 0])                                          # 1 while an image moves
    left = (moves * tau).round()
    kappa = torch.zeros_like(moves)
    for noise in draws["noise"][:steps]:
        seen = climb(point=point)
        if "logits" not in seen.tensors:
            raise ComposerError("the attack stops where it has succeeded, and its terms read no logits of its own point", where="[inner.x_adv]",
                                fix="climb a loss of the logits there, such as ce")
        right = (seen.tensors["logits"].argmax(1) == y).to(x.dtype)
        kappa = kappa + moves * right
        moves = torch.where((right == 0) & (left <= 0), torch.zeros_like(moves), moves)
        left = left - moves * (1 - right)
        there = ball.project(point + step * ball.steepest(seen.grads["point"]) + omega * noise)
        point = torch.where(moves.reshape(-1, 1, 1, 1) > 0, there, point)
    return {"point": point, "kappa": kappa}
