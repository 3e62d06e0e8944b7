"""AWP: the weights, too, stand at a worst point when the loss is minimised."""

from __future__ import annotations

from typing import Annotated, Any

import torch

from composer import inner
from composer.shapes import Ge, Scalar, Tensor


@inner(over="weights", cost=(1, 0), neutral={"gamma": 0.0})
def awp(weights: dict[str, Tensor], climb: Any, eps: Scalar, draws: dict[str, list[Tensor]], *,
        gamma: Annotated[float, Ge(0)] = 0.005) -> dict[str, dict[str, Tensor]]:
    """Adversarial weight perturbation: every weight tensor moves up the loss by a fixed share of its own length.

    Formula: w + v, v = gamma ||w||_F g / (||g||_F + 1e-20), g the gradient of the outer loss at w; only tensors of two dimensions or more
             whose name holds "weight"   [unit of the weights]
    Paper:   Wu, Xia and Wang, NeurIPS 2020 (AWP): gamma 0.01 for AT, 0.005 for TRADES

    One gradient of the loss over the batch. v is a constant: the outer gradient reaches the live weights as it stands, which is the authors'
    update at the perturbed weights. Their copy of the network, one plain step up the loss, gives the same direction; its step length cancels.
    """
    gradients = climb(point=weights).grads["point"]
    with torch.no_grad():
        moves = {name: gamma * w.norm() / (gradients[name].norm() + 1e-20) * gradients[name]
                 for name, w in weights.items() if w.ndim > 1 and "weight" in name}
    return {"point": {name: w + moves[name] if name in moves else w for name, w in weights.items()}}
