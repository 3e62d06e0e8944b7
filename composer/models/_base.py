"""What all networks share: normalisation inside, an embedding, a head."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Head = Callable[[int], nn.Module]


class Normalise(nn.Module):
    """(x - mean) / std per channel, so that attacks and measures live in [0,1]. The numbers belong to the recipe, not to the weights."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Classifier(nn.Module):
    """Images [N,C,H,W] in [0,1] -> logits [N,K]. A subclass defines `features(x) -> [N,D]` and sets `head`."""

    head: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.normalise: nn.Module = nn.Identity()

    def embed(self, x: Tensor) -> Tensor:
        """The head's input [N,D]."""
        return self.features(self.normalise(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x))


class Normalised(nn.Module):
    """A network of another kind (embed and head are all that is known of it) behind a normalisation."""

    def __init__(self, body: nn.Module, normalise: Normalise):
        super().__init__()
        self.normalise, self.body = normalise, body

    @property
    def head(self) -> nn.Module:
        return self.body.head

    def embed(self, x: Tensor) -> Tensor:
        return self.body.embed(self.normalise(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x))


class Foreign(Classifier):
    """A network of a library: `body` gives [N,D] in place of logits. Its own construction has set its weights."""

    own_weights = ("body",)      # not drawn anew by build_model

    def __init__(self, body: nn.Module, features: int, head: Head):
        super().__init__()
        self.body = body
        self.head = head(features)

    def features(self, x: Tensor) -> Tensor:
        return self.body(x)


class FanOutConv(nn.Conv2d):
    """A convolution that starts from N(0, 2 / (kernel area * output channels))."""

    def reset_parameters(self) -> None:
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        if self.bias is not None:
            nn.init.zeros_(self.bias)


def average(x: Tensor) -> Tensor:
    """Global average pool: [N,C,H,W] -> [N,C]."""
    return x.mean((2, 3))
