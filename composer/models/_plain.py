"""Networks without shortcuts: fully connected, small convolutional, VGG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from composer.models._base import Classifier, Head, average


class MLP(Classifier):
    """ReLU layers of the given widths over the flattened image."""

    def __init__(self, shape: tuple[int, int, int], widths: Sequence[int], head: Head):
        super().__init__()
        sizes = [math.prod(shape), *widths]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.head = head(sizes[-1])

    def features(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in self.layers:
            x = F.relu(layer(x))
        return x


class CNN4(Classifier):
    """5x5, 5x5, average pool 2/2, 3x3, 3x3, global average pool; ReLU, no padding, no batch norm."""

    def __init__(self, channels: int, widths: Sequence[int], head: Head):
        super().__init__()
        first, second, third, fourth = widths
        self.conv1, self.conv2 = nn.Conv2d(channels, first, 5), nn.Conv2d(first, second, 5)
        self.conv3, self.conv4 = nn.Conv2d(second, third, 3), nn.Conv2d(third, fourth, 3)
        self.head = head(fourth)

    def features(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        x = F.avg_pool2d(x, 2)
        return average(F.relu(self.conv4(F.relu(self.conv3(x)))))


class SmallCNN(Classifier):
    """Three 3x3 convolutions with batch norm; strides keep the last map near 4x4, which is flattened."""

    def __init__(self, shape: tuple[int, int, int], widths: Sequence[int], head: Head):
        super().__init__()
        inside, *sides = shape
        strides = small_strides(max(sides), len(widths))
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for width, stride in zip(widths, strides, strict=True):
            self.convs.append(nn.Conv2d(inside, width, 3, stride, 1, bias=False))
            self.norms.append(nn.BatchNorm2d(width))
            inside = width
            sides = [(side - 1) // stride + 1 for side in sides]
        self.head = head(inside * math.prod(sides))

    def features(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        return x.permute(0, 2, 3, 1).flatten(1)                     # by pixel, then channel: no copy of a map in channels_last


def small_strides(side: int, layers: int) -> list[int]:
    """Stride 2 from the second layer on while the map is wider than 4 pixels (8 -> 8, 4, 4; 28 -> 28, 14, 7; 32 -> 32, 16, 8)."""
    strides = []
    for layer in range(layers):
        strides.append(2 if layer > 0 and side > 4 else 1)
        side = (side - 1) // strides[-1] + 1
    return strides


VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)      # 0: max pool


class VGG(Classifier):
    """3x3 convolutions with batch norm and max pools, global average pool, then optional hidden layers before the head."""

    def __init__(self, channels: int, hidden: Sequence[int], head: Head, layout: Sequence[int] = VGG16):
        super().__init__()
        layers: list[nn.Module] = []
        for width in layout:
            if width == 0:
                layers.append(nn.MaxPool2d(2, 2, ceil_mode=True))      # ceil: a map of odd side (28 -> 7 -> 4) never vanishes
            else:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
        self.layers = nn.Sequential(*layers)
        sizes = [channels, *hidden]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.head = head(sizes[-1])

    def features(self, x: Tensor) -> Tensor:
        x = average(self.layers(x))
        for layer in self.hidden:
            x = F.relu(layer(x))
        return x
