"""The effective margin: how far an image is from the nearest class boundary of the network's linearisation."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F

from composer.registry import view
from composer.shapes import Labels, Leaf, Logits, PerExample

TINY = 1e-24            # under the root: a network without slope has a finite margin and gradient


@view(backward=lambda options: ("classes", "classes" if options["grad"] == "full" else 0))
def effective_margin(logits: Logits, y: Labels, x: Leaf, *, grad: Literal["full", "numerator"] = "full") -> PerExample:
    """Euclidean distance to the nearest of all class boundaries, to first order; negative where the image is misclassified.

    Formula: min_{j != y} (z_y - z_j) / ||d(z_y - z_j)/dx||_2  [pixels]
    Paper:   Liu and Chan, BMVC 2022 (EMR) eq. 3; exact for a linear network. The minimum is over all j, not only the runner-up

    grad   `full`: the slope carries its gradient too, for one double backward a class; `numerator`: it is a constant

    One input gradient a class. With bn = "eval" an image's slope is its own. As a diagnostic call it under `torch.no_grad()` on logits made
    with a tape: it then builds none of its own. EMR averages it over correctly classified images.
    """
    own = y.unsqueeze(1)
    mine = F.one_hot(y, logits.shape[1]).to(logits.dtype)
    tape = torch.is_grad_enabled() and grad == "full"
    sizes = []
    for row in torch.eye(logits.shape[1], dtype=logits.dtype, device=logits.device):
        (slope,) = torch.autograd.grad(logits, x, mine - row, retain_graph=True, create_graph=tape)
        sizes.append((slope.flatten(1).square().sum(1) + TINY).sqrt())
    distances = (logits.gather(1, own) - logits) / torch.stack(sizes, 1)
    return distances.scatter(1, own, float("inf")).amin(1)
