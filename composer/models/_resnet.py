"""Residual networks in their CIFAR form: 3x3 stem, no max pool. Attribute names are those of the released checkpoints' keys."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from composer.models._base import Classifier, Head, average

WIDTHS, STRIDES, BLOCKS = (64, 128, 256, 512), (1, 2, 2, 2), (2, 2, 2, 2)


def conv3x3(inside: int, outside: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, 3, stride, 1, bias=False)


class Block(nn.Module):
    """Convolution, norm, ReLU, convolution, norm; plus the shortcut; ReLU."""

    def __init__(self, inside: int, outside: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = conv3x3(inside, outside, stride), nn.BatchNorm2d(outside)
        self.conv2, self.bn2 = conv3x3(outside, outside), nn.BatchNorm2d(outside)
        self.shortcut = nn.Sequential()
        if stride != 1 or inside != outside:
            self.shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class PreActBlock(nn.Module):
    """Norm and ReLU before each convolution; a shortcut of another shape starts from the first activation."""

    def __init__(self, inside: int, outside: int, stride: int):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inside), conv3x3(inside, outside, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outside), conv3x3(outside, outside)
        self.projects = stride != 1 or inside != outside
        if self.projects:
            self.shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        short = self.shortcut(active) if self.projects else x
        return self.conv2(F.relu(self.bn2(self.conv1(active)))) + short


def stages(block: type[nn.Module]) -> list[nn.Sequential]:
    built, inside = [], WIDTHS[0]
    for width, stride, count in zip(WIDTHS, STRIDES, BLOCKS, strict=True):
        blocks = []
        for i in range(count):
            blocks.append(block(inside, width, stride if i == 0 else 1))
            inside = width
        built.append(nn.Sequential(*blocks))
    return built


class ResNet18(Classifier):
    def __init__(self, channels: int, head: Head):
        super().__init__()
        self.conv1, self.bn1 = conv3x3(channels, WIDTHS[0]), nn.BatchNorm2d(WIDTHS[0])
        self.layer1, self.layer2, self.layer3, self.layer4 = stages(Block)
        self.head = head(WIDTHS[-1])

    def features(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return average(self.layer4(self.layer3(self.layer2(self.layer1(x)))))


class PreActResNet18(Classifier):
    def __init__(self, channels: int, head: Head, final_bn: bool):
        super().__init__()
        self.conv1 = conv3x3(channels, WIDTHS[0])
        self.layer1, self.layer2, self.layer3, self.layer4 = stages(PreActBlock)
        self.final_bn = final_bn
        if final_bn:
            self.bn = nn.BatchNorm2d(WIDTHS[-1])
        self.head = head(WIDTHS[-1])

    def features(self, x: Tensor) -> Tensor:
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        return average(F.relu(self.bn(x)) if self.final_bn else x)
