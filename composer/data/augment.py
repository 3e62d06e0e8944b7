"""Augmentations: pure functions of the batch and its random numbers, batched on the device. No gradient passes through them."""

from __future__ import annotations

from typing import Annotated, Literal

import torch

from composer.registry import augment
from composer.shapes import Ge, Gt, Images, Le, Lt, RowUniform, SoftLabels


@augment
def crop(x: Images, u: RowUniform, *, pad: Annotated[int, Ge(0)] = 4, mode: Literal["zeros", "reflect"] = "zeros") -> Images:
    """A window of the image's own size, at a random place of the image padded by `pad` pixels.

    Formula: out[i, j] = padded[i + floor(u_1 (2 pad + 1)), j + floor(u_2 (2 pad + 1))]   [pixels]
    Paper:   He et al., CVPR 2016 (section 4.2): 4 pixels of zeros on CIFAR
    """
    n, channels, height, width = x.shape
    shift = (u[:, :2] * (2 * pad + 1)).floor().long().clamp(max=2 * pad) - pad      # clamp: u * k may round up to k in float32
    rows = torch.arange(height, device=x.device) + shift[:, :1]
    cols = torch.arange(width, device=x.device) + shift[:, 1:]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((cols >= 0) & (cols < width))[:, None, :]
    rows, cols = _within(rows, height, mode), _within(cols, width, mode)
    index = (rows[:, :, None] * width + cols[:, None, :]).flatten(1)[:, None].expand(-1, channels, -1)
    out = x.flatten(2).gather(2, index).view(n, channels, height, width)
    return out if mode == "reflect" else torch.where(inside[:, None], out, torch.zeros_like(out))


def _within(index: torch.Tensor, size: int, mode: str) -> torch.Tensor:
    """Indices brought into 0..size-1: mirrored without repeating the edge, or clamped (those pixels are zeroed afterwards)."""
    if mode == "zeros" or size == 1:
        return index.clamp(0, size - 1)
    return size - 1 - (index.remainder(2 * size - 2) - (size - 1)).abs()


@augment
def flip(x: Images, u: RowUniform, *, p: Annotated[float, Ge(0), Le(1)] = 0.5) -> Images:
    """Mirror an image left to right with probability p.

    Formula: out = x mirrored where u_1 < p, else x   [pixels]
    Paper:   Krizhevsky et al., NeurIPS 2012 (section 4.1)
    """
    return torch.where((u[:, 0] < p)[:, None, None, None], x.flip(3), x)


@augment
def cutout(x: Images, u: RowUniform, *, size: Annotated[int, Gt(0)] = 16) -> Images:
    """Zero a square of `size` pixels around a random pixel; it may reach over the edge.

    Formula: out = 0 where -floor(size/2) <= i - floor(u_1 H) < ceil(size/2), likewise j with u_2 W; else x   [pixels]
    Paper:   DeVries & Taylor, arXiv 1708.04552
    """
    _, _, height, width = x.shape

    def band(length: int, draw: torch.Tensor) -> torch.Tensor:
        centre = (draw * length).floor().long().clamp(max=length - 1)[:, None]
        low = torch.arange(length, device=x.device) - centre + size // 2
        return (low >= 0) & (low < size)

    hole = band(height, u[:, 0])[:, :, None] & band(width, u[:, 1])[:, None, :]
    return torch.where(hole[:, None], torch.zeros_like(x), x)


@augment(soft=True)
def smooth(x: Images, y_soft: SoftLabels, *, amount: Annotated[float, Ge(0), Lt(1)] = 0.1) -> tuple[Images, SoftLabels]:
    """Label smoothing: move a share of each label's mass to all classes alike; the images stay.

    Formula: y_soft (1 - amount) + amount / K   [probability]
    Paper:   Szegedy et al., CVPR 2016 (section 7)
    """
    return x, y_soft * (1 - amount) + amount / y_soft.shape[1]
