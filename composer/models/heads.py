"""Heads: what turns the features into logits."""

from __future__ import annotations

from torch import nn

from composer.registry import head
from composer.shapes import Module


@head(cosines=False)
def linear(features: int, classes: int, *, bias: bool = True) -> Module:
    """A linear layer.

    Formula: z = W h + b   [logits]
    Paper:   PyTorch's nn.Linear, its default start
    """
    return nn.Linear(features, classes, bias=bias)
