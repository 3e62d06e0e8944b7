"""Augmentations: pure functions of the batch and its random numbers, batched on the device. No gradient passes through them."""

from __future__ import annotations

import math
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


@augment(soft=True, couples="batch")
def mixup(x: Images, u: RowUniform, y_soft: SoftLabels, *, alpha: Annotated[float, Gt(0)] = 1.0,
          share: Literal["batch", "row"] = "batch") -> tuple[Images, SoftLabels]:
    """Mixup: every image and its label are averaged with another image of the batch and its label.

    Formula: lam · x_i + (1 - lam) · x_j, labels alike; lam ~ Beta(alpha, alpha), j the partner of i   [pixels; probability]
    Paper:   Zhang et al., ICLR 2018 (mixup); alpha 1 on CIFAR-10; one lam a batch (`row`: one an image), as in the authors' code

    Partners are the next row in a random cyclic order, so nobody is his own partner; the authors' code takes any permutation.
    """
    partner, first = _partners(u[:, 0])
    lam = _beta(u[:, 1], u[:, 2], alpha)
    lam = lam[first] if share == "batch" else lam
    return _mix(lam[:, None, None, None], x, x[partner]), _mix(lam[:, None], y_soft, y_soft[partner])


@augment(soft=True, couples="batch")
def cutmix(x: Images, u: RowUniform, v: RowUniform, y_soft: SoftLabels, *, alpha: Annotated[float, Gt(0)] = 1.0, p: Annotated[float, Ge(0), Le(1)] = 1.0,
           share: Literal["batch", "row"] = "batch") -> tuple[Images, SoftLabels]:
    """CutMix: a box of every image is filled from another image of the batch; the label is mixed by the area.

    Formula: x_j inside the box, x_i outside; label (1 - area) y_i + area y_j. The box has sides 2 floor(floor(H r) / 2), likewise W,
             r = sqrt(1 - lam), lam ~ Beta(alpha, alpha), around a random pixel, cut at the edges; area is what is left of it   [pixels; probability]
    Paper:   Yun et al., ICCV 2019 (CutMix); alpha 1; their code mixes a CIFAR batch with probability p = 0.5; one box a batch (`row`: one an image)

    Partners as in mixup.
    """
    height, width = x.shape[2:]
    partner, first = _partners(u[:, 0])
    r = (1 - _beta(u[:, 1], u[:, 2], alpha)).clamp_min(0).sqrt()
    r = torch.where(v[:, 2] < p, r, torch.zeros_like(r))
    rows, cols = _box(height, r, v[:, 0]), _box(width, r, v[:, 1])
    box = (rows[:, :, None] & cols[:, None, :])
    box = box[first] if share == "batch" else box
    area = box.to(x.dtype).mean((1, 2))
    return torch.where(box[:, None], x[partner], x), _mix((1 - area)[:, None], y_soft, y_soft[partner])


def _partners(u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row's partner [N], and for each row the row that speaks for the batch [N]. Both follow the numbers, not the places in the batch."""
    order = u.argsort(stable=True)
    partner = torch.empty_like(order).scatter(0, order, order.roll(-1))
    return partner, order[:1].expand(len(u))


def _beta(u: torch.Tensor, v: torch.Tensor, alpha: float) -> torch.Tensor:
    """Beta(alpha, alpha) from two uniform numbers.

    (1 + t / sqrt(2 alpha + t^2)) / 2 has this law where t is Student's t with 2 alpha degrees of freedom, and Bailey (1994) gives
    t = sqrt(2 alpha (u^(-1/alpha) - 1)) cos(2 pi v). Written with w = u^(1/alpha), which cannot overflow. alpha = 1 is uniform.
    """
    w, c = u ** (1 / alpha), (2 * math.pi * v).cos()
    return (1 + c / (w / (1 - w) + c * c).sqrt()) / 2


def _box(length: int, r: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """Mask [N,length] of a stretch of 2 floor(floor(length r) / 2) pixels around a random one."""
    half = ((length * r).floor() / 2).floor()[:, None]
    offset = torch.arange(length, device=r.device) - (centre * length).floor().clamp(max=length - 1)[:, None]
    return (offset >= -half) & (offset < half)


def _mix(lam: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return lam * a + (1 - lam) * b
