"""L-Softmax: the label's angle to its weight row is multiplied, so that the loss asks for a margin of angle."""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F

from composer import loss
from composer.shapes import Features, Ge, Labels, Logits, PerExample, Weight


@loss
def l_softmax(features: Features, head_weight: Weight, y: Labels, *, m: Annotated[int, Ge(1)] = 4, lam: Annotated[float, Ge(0)] = 0.0) -> PerExample:
    """Large-margin softmax: cross entropy in which the label's logit counts as if its angle were m times as wide.

    Formula: -log softmax_y of z_k = w_k · h, with z_y replaced by (lam · z_y + |w_y| |h| psi(theta)) / (1 + lam);
             psi(theta) = (-1)^k cos(m theta) - 2k, k = floor(m theta / pi), theta the angle of w_y and h   [nats]
    Paper:   L-Softmax, Liu et al., ICML 2016, eq. 4-6; its annealing is lam = { use = "l_softmax" }

    h is the head's input and w its weight; a bias has no place here, so say `model.head.bias = false`. k carries no gradient; cos(m theta) is a
    polynomial of cos(theta), so that no arc cosine is differentiated. m = 1 is plain softmax. Attacks and evaluation see the plain logits.
    """
    z = F.linear(features, head_weight)
    plain = z.gather(1, y.unsqueeze(1)).squeeze(1)
    size = torch.linalg.vector_norm(features, dim=1) * torch.linalg.vector_norm(head_weight, dim=1)[y]
    cos = plain / size.clamp_min(1e-12)
    k = (m * cos.detach().clamp(-1, 1).acos() / math.pi).floor().clamp(max=m - 1)       # at theta = pi the last piece, not a piece beyond it
    psi = (1 - 2 * k.remainder(2)) * _multiple_angle(cos, m) - 2 * k
    target = (lam * plain + size * psi) / (1 + lam)
    own = torch.arange(z.shape[1], device=z.device) == y.unsqueeze(1)
    return F.cross_entropy(torch.where(own, target.unsqueeze(1), z), y, reduction="none")


def _multiple_angle(cos: PerExample, m: int) -> Logits:
    """cos(m theta) from cos(theta): Chebyshev's T_{n+1} = 2 c T_n - T_{n-1}."""
    before, now = torch.ones_like(cos), cos
    for _ in range(m - 1):
        before, now = now, 2 * cos * now - before
    return now
