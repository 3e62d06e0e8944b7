"""ST-AT: two points in the ball, one where the network is least sure of the label and one where it is surest, pushed apart and then together."""

from __future__ import annotations

from typing import Any, Literal

import torch

from composer import inner, loss, view
from composer.shapes import Images, Labels, Logits, Norm, PerExample, Pixels, Scalar, Tensor, ThreatPixels, ThreatSteps


def _sureness(y: Tensor, *logits: Tensor) -> Tensor:
    """p_y at each of the points, [points,N]."""
    own = y.unsqueeze(1)
    return torch.stack([z.softmax(1).gather(1, own).squeeze(1) for z in logits]).detach()


def _pick(which: Tensor, *values: Tensor) -> Tensor:
    """Row i of values[which[i]], by `where`; which [N]."""
    shaped = which.reshape(-1, *([1] * (values[0].ndim - 1)))
    made = values[0]
    for n, value in enumerate(values[1:], 1):
        made = torch.where(shaped == n, value, made)
    return made


@view
def least_sure(clean_logits: Logits, col_logits: Logits, adv_logits: Logits, y: Labels) -> Logits:
    """Logits at whichever of the clean, collaborative and adversarial image gives the label the least probability.

    Formula: z(x_m), m = argmin over clean, col, adv of p_y, the first of equals   [logits]
    Paper:   Li et al., ICLR 2023 (ST-AT)
    """
    return _pick(_sureness(y, clean_logits, col_logits, adv_logits).argmin(0), clean_logits, col_logits, adv_logits)


@view
def most_sure(clean_logits: Logits, col_logits: Logits, adv_logits: Logits, y: Labels) -> Logits:
    """Logits at whichever of the clean, collaborative and adversarial image gives the label the most probability.

    Formula: z(x_m), m = argmax over clean, col, adv of p_y, the first of equals   [logits]
    Paper:   Li et al., ICLR 2023 (ST-AT)
    """
    return _pick(_sureness(y, clean_logits, col_logits, adv_logits).argmax(0), clean_logits, col_logits, adv_logits)


@loss
def symmetric_kl(a: Logits, b: Logits, *, targets: Literal["constant", "attached"] = "constant") -> PerExample:
    """Mean of the two Kullback-Leibler divergences between two predictions.

    With constant targets its gradient is half that of KL(q || p_a) + KL(r || p_b), q and r being today's p_b and p_a.

    Formula: (KL(p_b || p_a) + KL(p_a || p_b)) / 2, the first argument of each a constant unless `attached`   [nats]
    Paper:   Li et al., ICLR 2023 (ST-AT), as in its released code (constant targets)
    """
    log_a, log_b = a.log_softmax(1), b.log_softmax(1)
    to_a, to_b = (log_b, log_a) if targets == "attached" else (log_b.detach(), log_a.detach())
    return ((to_a.exp() * (to_a - log_a)).sum(1) + (to_b.exp() * (to_b - log_b)).sum(1)) / 2


@inner(makes=("x_col",), climbs_x=True, sees=("logits", "col_logits", "clean_logits"), draws={"noise": ("gaussian", 2)}, optimum=False)
def squeeze(x: Images, climb: Any, eps: Scalar, draws: dict[str, list[Tensor]], y: Labels, *, step: ThreatPixels, steps: ThreatSteps, norm: Norm,
            sigma: Pixels = 0.001) -> dict[str, Tensor]:
    """Ascent of two points: at each step the least and the most sure of the clean and the two moving images both take a step.

    Which image is which is decided anew at every step, so a point may change sides, or begin again from the clean image.

    Formula: x_adv = P(u + step d(grad_u)), x_col = P(v + step d(grad_v)); u, v of x, x_col, x_adv with the least and the largest p_y; both from
             x + sigma n, n standard normal   [pixels]
    Paper:   Li et al., ICLR 2023 (ST-AT), as in its released code
    """
    ball = norm(x, eps)
    step = step.reshape(-1, 1, 1, 1) if torch.is_tensor(step) and step.ndim == 1 else step
    adv, col = (x + sigma * noise for noise in draws["noise"])
    if steps == 0:
        adv, col = ball.project(adv), ball.project(col)
    for _ in range(steps):
        seen = climb(point=adv, x_col=col, x=x)
        sure = _sureness(y, seen.tensors["clean_logits"], seen.tensors["col_logits"], seen.tensors["logits"])
        images, grads = (x, col, adv), (seen.grads["x"], seen.grads["x_col"], seen.grads["point"])
        low, high = sure.argmin(0), sure.argmax(0)
        adv, col = (ball.project(_pick(which, *images) + step * ball.steepest(_pick(which, *grads))) for which in (low, high))
    return {"point": adv, "x_col": col}
