"""Losses of a margin in input space: the distance of an image to the decision boundary, in pixels, negative where it is misclassified."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F

from composer.registry import loss
from composer.shapes import Ge, Gt, PerExample, Pixels

STEEPEST = 30.0         # largest exponent; reached only by a misclassified image more than 30/alpha away from its class


@loss
def margin_hinge(margin: PerExample, *, gamma: Pixels = 16 / 255, clip: Annotated[float, Ge(0)] | None = None) -> PerExample:
    """Hinge on the distance to the boundary: examples nearer than gamma are pushed away from it, misclassified ones towards it.

    Formula: max(0, gamma - max(R, gamma (1 - clip))); without clip max(0, gamma - R)  [pixels]
    Paper:   Elsayed et al., NeurIPS 2018, eq. 3 and 7; their code clips at 2 (MNIST: 4) and subtracts the constant gamma

    clip   bounds what one example can cost to clip · gamma; beyond, it has no gradient
    """
    if clip is not None:
        margin = torch.maximum(margin, torch.as_tensor(gamma * (1 - clip), dtype=margin.dtype, device=margin.device))
    return F.relu(gamma - margin)


@loss
def margin_exp(margin: PerExample, *, alpha: Annotated[float, Gt(0)] = 3.0, gamma: Pixels = 16 / 255) -> PerExample:
    """Exponential of the distance to the boundary, for examples nearer than gamma: the nearer, the harder they are pushed away.

    Formula: exp(-alpha R) / alpha if R < gamma, else 0; its slope is -exp(-alpha R)  [pixels]
    Paper:   DyART, Xu et al., ICLR 2023, eq. 5; "Does simple trump complex?" eq. 7

    The jump at gamma has no gradient. Both papers apply it to correctly classified examples only: give the term a gain that says which.
    """
    near = (-alpha * margin).clamp_max(STEEPEST).exp() / alpha
    return torch.where(margin < gamma, near, torch.zeros_like(near))
