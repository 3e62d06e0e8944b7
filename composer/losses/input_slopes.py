"""Losses of the network's slope in input space: squared lengths of gradients with respect to the image, differentiated once more to train."""

from __future__ import annotations

from typing import Annotated, Literal

import torch

from composer.registry import loss
from composer.shapes import Gt, Leaf, Logits, PerExample, Tensor


@loss(backward=("classes", "classes"))
def emr(logits: Logits, x: Leaf) -> PerExample:
    """Effective-margin regularisation: how steeply every logit rises, so that keeping it small moves all class boundaries away.

    Formula: sum_j ||d z_j / dx||^2  [logits squared / pixels squared]
    Paper:   Liu and Chan, BMVC 2022 (EMR) eq. 5

    On a linear network a row of the sum is a row of the weights, and the loss is their squared Frobenius norm: weight decay. One input gradient
    and one double backward a class. With bn = "eval" an image's slope is its own; in train mode it holds its influence on the whole batch.
    """
    rows = torch.eye(logits.shape[1], dtype=logits.dtype, device=logits.device)
    total = torch.zeros_like(logits[:, 0])
    for row in rows:
        total = total + _squared(logits, row.expand_as(logits), x)
    return total


@loss(couples={"scale": "code"}, couples_by="count")
def approx_emr(logits: Logits, x: Leaf, *, t: Annotated[float, Gt(0)] = 1.0, scale: Literal["paper", "code"] = "paper") -> PerExample:
    """Effective-margin regularisation with one gradient: the slope of the logits' mean, weighed by a tempered prediction.

    Formula: ||d/dx sum_j p_j z_j||^2, p = softmax(z / t) taken as a constant; `code` divides it by N  [logits squared / pixels squared]
    Paper:   Liu and Chan, BMVC 2022 (EMR) eq. 7 is `paper`; their code is `code`

    t       small: the slope of the largest logit alone; large: that of the plain mean of the logits
    scale   the authors' code squares the gradient of the batch *mean*, which puts 1/N^2 where eq. 7 has 1/N. Its published weights belong to it.
            N is the number of rows given here, so a partial last batch weighs more, and a batch must not be cut in pieces.
    """
    squared = _squared(logits, (logits.detach() / t).softmax(1), x)
    return squared / logits.shape[0] if scale == "code" else squared


def _squared(logits: Logits, direction: Tensor, x: Leaf) -> PerExample:
    """[N]: squared length of the gradient of <direction, logits>, with a graph of its own where a tape is wanted."""
    (slope,) = torch.autograd.grad(logits, x, direction, retain_graph=True, create_graph=torch.is_grad_enabled())
    return slope.flatten(1).square().sum(1)
