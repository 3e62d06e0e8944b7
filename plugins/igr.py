"""Input-gradient regularisation: the loss itself should be flat around an image."""

from __future__ import annotations

from typing import Literal

import torch

from composer import loss
from composer.shapes import Labels, Leaf, Logits, PerExample


@loss(couples={"scale": "tf"}, couples_by="count")
def input_gradient(logits: Logits, y: Labels, x: Leaf, *, scale: Literal["mean", "tf"] = "mean") -> PerExample:
    """Squared length of the cross entropy's gradient with respect to the image.

    Formula: ||d(-log p_y)/dx||^2; `tf` divides it by 2 N  [nats squared / pixels squared]
    Paper:   Ross and Doshi-Velez, AAAI 2018 (IGR), eq. 5; the idea: Drucker and Le Cun, 1992 (double backpropagation)

    scale   `mean`: an average over images, whatever their number. `tf`: the authors' code, half the square of the gradient of the batch *mean*,
            summed over the batch; any published weight belongs to its own scale. N is the number of rows given here.

    One input gradient and one double backward. With bn = "eval" an image's gradient is its own; in train mode it holds its influence on the batch.
    """
    error = logits.softmax(1).scatter_add(1, y.unsqueeze(1), -torch.ones_like(logits[:, :1]))
    (slope,) = torch.autograd.grad(logits, x, error, retain_graph=True, create_graph=torch.is_grad_enabled())
    squared = slope.flatten(1).square().sum(1)
    return squared / (2 * logits.shape[0]) if scale == "tf" else squared
