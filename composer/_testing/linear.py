"""A linear classifier, whose margins and best attacks are known in closed form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

DUAL = {"linf": 1.0, "l2": 2.0, "l1": float("inf")}


class Linear(nn.Module):
    """Logits W x + b over flattened images, centred at mid-grey so that no class is preferred. `embed` flattens, `head` is the layer."""

    def __init__(self, classes: int, shape: tuple[int, ...], seed: int, dtype: torch.dtype):
        super().__init__()
        size = torch.Size(shape).numel()
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(classes, size, generator=generator, dtype=torch.float64) * (8.0 / size**0.5)
        self.head = nn.Linear(size, classes, dtype=dtype)
        with torch.no_grad():
            self.head.weight.copy_(weight)
            self.head.bias.copy_(-0.5 * weight.sum(1))

    def embed(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x))

    def margin(self, x: Tensor, y: Tensor, norm: str = "linf") -> Tensor:
        """Signed distance [N], in pixels, to the nearest decision boundary of class y; the range [0,1] of pixels is ignored.

        Formula: min_{k != y} (z_y - z_k) / ||w_y - w_k||_dual, dual of linf, l2, l1 = l1, l2, linf. Where the image is classified
        correctly this is the exact distance; elsewhere it is negative, and its size bounds the distance to class y from below.
        """
        with torch.no_grad():
            logits, weight = self(x), self.head.weight
            gap = logits.gather(1, y[:, None]) - logits                                             # [N,K]
            size = torch.linalg.vector_norm(weight[y][:, None] - weight[None], ord=DUAL[norm], dim=2)
            own = torch.nn.functional.one_hot(y, logits.shape[1]).bool()
            return (gap / size.masked_fill(own, 1.0)).masked_fill(own, float("inf")).amin(1)


def linear_model(classes: int = 10, shape: tuple[int, ...] = (3, 8, 8), seed: int = 0, dtype: torch.dtype | None = None) -> Linear:
    """A fresh linear classifier; the same seed gives the same weights in every dtype (up to rounding)."""
    return Linear(classes, shape, seed, dtype or torch.get_default_dtype())
