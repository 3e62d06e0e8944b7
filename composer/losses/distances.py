"""Distances between two outputs `a` and `b` [N,K], the same whichever comes first.

Means are over the classes, so that the mean over the batch is the mean over all elements.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch

from composer.registry import loss
from composer.shapes import Gt, Logits, PerExample


@loss
def mse(a: Logits, b: Logits) -> PerExample:
    """Mean squared difference of two outputs (adversarial logit pairing).

    Formula: (1/K) sum_k (a_k - b_k)^2  [logits squared]
    Paper:   Kannan et al., 2018 (ALP)
    """
    return (a - b).square().mean(1)


@loss
def mae(a: Logits, b: Logits) -> PerExample:
    """Mean absolute difference of two outputs.

    Formula: (1/K) sum_k |a_k - b_k|  [logits]
    Paper:   MIMAE-AT, as LMA-AT describes it
    """
    return (a - b).abs().mean(1)


@loss
def modified_huber(a: Logits, b: Logits, *, alpha: Annotated[float, Gt(0)] = 5.345) -> PerExample:
    """Huber loss with a cosine in place of the parabola: twice differentiable, slope at most alpha.

    Formula: (1/K) sum_k h(a_k - b_k); h(d) = alpha^2 (1 - cos(d/alpha)) where |d| <= alpha pi/2,
             else alpha |d| + (1 - pi/2) alpha^2  [logits squared]
    Paper:   PMHR-AT; LMA-AT, its regulariser of averaged logits
    """
    d = a - b
    size = d.abs()
    near = 2 * (alpha * (d / (2 * alpha)).sin()).square()       # 1 - cos u = 2 sin^2(u/2) keeps its digits for small u
    far = alpha * size + (1 - math.pi / 2) * alpha**2
    return torch.where(size <= alpha * (math.pi / 2), near, far).mean(1)


@loss
def nmse(a: Logits, b: Logits) -> PerExample:
    """Squared distance of two outputs scaled to length one: it aligns directions and leaves sizes alone.

    Formula: sum_k (a_k/(|a| + 1e-12) - b_k/(|b| + 1e-12))^2 = 2 - 2 cos(a, b), |.| the Euclidean norm  [1]
    Paper:   PIAT eq. 5 (its factor 1 - p_y is the term's gain)
    """
    return (_unit(a) - _unit(b)).square().sum(1)


def _unit(v: Logits) -> Logits:
    return v / (torch.linalg.vector_norm(v, dim=1, keepdim=True) + 1e-12)
