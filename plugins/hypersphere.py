"""HE, the hypersphere embedding: cosines times a scale for logits, and an angular margin in the loss."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F

from composer import head, view
from composer.shapes import Ge, Gt, Labels, Logits, Module, Scalar


@head
def hypersphere(features: int, classes: int, *, scale: Annotated[float, Gt(0)] = 15.0) -> Module:
    """Scaled cosines between the features and one direction per class, without bias.

    Formula: z_k = scale · cos(h, w_k), |w_k| = 1   [logits]
    Paper:   HE, Pang et al., NeurIPS 2020; scale 15 (20 with ALP)

    The rows of the weight lie on the unit sphere by projection, outside the graph: when drawn, when loaded and after every step of the
    optimiser. The authors' code projects at every forward, which differs where a forward sees weights that no step has made: at AWP's
    perturbed weights. Features of length below 1e-12 are divided by that instead.
    """
    from torch import nn

    class Hypersphere(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = float(scale)
            self.weight = nn.Parameter(torch.empty(classes, features))
            self.reset_parameters()

        def reset_parameters(self) -> None:
            nn.init.normal_(self.weight)              # a normal vector has every direction alike
            self.project()

        def project(self) -> None:
            with torch.no_grad():
                self.weight.copy_(F.normalize(self.weight, dim=1))

        def forward(self, h: torch.Tensor) -> torch.Tensor:
            return self.scale * F.linear(F.normalize(h, dim=1), self.weight)

        def extra_repr(self) -> str:
            return f"{features}, {classes}, scale={self.scale:g}"

    return Hypersphere()


@view(neutral={"margin": 0.0})
def angular(logits: Logits, y: Labels, head_scale: Scalar, *, margin: Annotated[float, Ge(0)] = 0.2) -> Logits:
    """The logits with a margin taken off the label's cosine, so that the loss asks for more than the right answer.

    Formula: z_k - scale · margin · [k = y] = scale · (cos_k - margin · [k = y])   [logits]
    Paper:   HE, Pang et al., NeurIPS 2020; margin 0.2 (0.3 with ALP, scale 20)

    For losses only: attacks and evaluation see the logits without it, as in the authors' code.
    """
    own = torch.arange(logits.shape[1], device=logits.device) == y.unsqueeze(1)
    return torch.where(own, logits - head_scale * margin, logits)
