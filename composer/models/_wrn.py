"""Wide residual networks. Attribute names are those of the released checkpoints' keys."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from composer.models._base import Classifier, FanOutConv, Head, average

Activation = Callable[[Tensor], Tensor]


def pool_pad(x: Tensor, extra: int, stride: int) -> Tensor:
    """Shortcut without weights: average pool, then zero channels on both sides."""
    x = F.avg_pool2d(x, stride, ceil_mode=True) if stride > 1 else x
    return F.pad(x, (0, 0, 0, 0, extra // 2, extra - extra // 2))


class WideBlock(nn.Module):
    """Norm and activation before each 3x3 convolution; dropout between them.

    A block that changes the width has a shortcut: a 1x1 convolution of the activated input (`conv`), or `pool_pad` of the raw input, except
    in the network's first block, where it too starts from the activated one.
    """

    def __init__(self, inside: int, outside: int, stride: int, shortcut: str, act: Activation, dropout: float, first: bool):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inside), FanOutConv(inside, outside, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(outside), FanOutConv(outside, outside, 3, 1, 1, bias=False)
        self.act, self.stride, self.extra = act, stride, outside - inside
        self.changes, self.first, self.kind = inside != outside or stride != 1, first, shortcut
        if self.changes and shortcut == "conv":
            self.convShortcut = FanOutConv(inside, outside, 1, stride, bias=False)
        if dropout > 0:
            self.dropout = nn.Dropout(dropout)
        self.drops = dropout > 0

    def forward(self, x: Tensor) -> Tensor:
        active = self.act(self.bn1(x))
        out = self.act(self.bn2(self.conv1(active)))
        out = self.conv2(self.dropout(out) if self.drops else out)
        return out + self.short(x, active)

    def short(self, x: Tensor, active: Tensor) -> Tensor:
        if self.changes and self.kind == "conv":
            return self.convShortcut(active)
        base = active if self.first and self.kind == "pool_pad" else x
        return pool_pad(base, self.extra, self.stride) if self.changes else base


class Stage(nn.Module):
    def __init__(self, blocks: list[WideBlock]):
        super().__init__()
        self.layer = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(Classifier):
    """Three stages of n blocks with 16w, 32w, 64w channels; strides 1, 2, 2."""

    def __init__(self, channels: int, n: int, width: int, shortcut: str, act: Activation, dropout: float, head: Head):
        super().__init__()
        self.act = act
        self.conv1 = FanOutConv(channels, 16, 3, 1, 1, bias=False)
        inside = 16
        for stage, stride in enumerate((1, 2, 2), 1):
            blocks = []
            for i in range(n):
                outside = 16 * width * 2 ** (stage - 1)
                blocks.append(WideBlock(inside, outside, stride if i == 0 else 1, shortcut, act, dropout, stage == 1 and i == 0))
                inside = outside
            setattr(self, f"block{stage}", Stage(blocks))
        self.bn1 = nn.BatchNorm2d(inside)
        self.head = head(inside)

    def features(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return average(self.act(self.bn1(x)))
