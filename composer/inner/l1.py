"""The ball of the sum of absolute changes, cut by the pixel range [0,1]."""

from __future__ import annotations

from typing import Annotated

import torch

from composer.inner.balls import per_image
from composer.registry import ball
from composer.shapes import Ge, Images, Le, Scalar, Uniform

HALVINGS = 60       # of the bracket of one number an image: past the last digit of float64
TINY = 1e-30


@ball
class l1:
    """Sum of the absolute changes of all pixels at most eps.

    Formula: sum_j |x'_j - x_j| <= eps, 0 <= x' <= 1  [pixels]
    Paper:   Duchi et al., ICML 2008 (the projection); within [0,1] as Croce and Hein, ICML 2021; share: Tramer and Boneh, NeurIPS 2019

    share   0: the steepest direction moves one pixel; else the signs of that share of the pixels whose slopes are largest, which an attack
            of few steps needs
    """

    def __init__(self, x: Images, eps: Scalar, *, share: Annotated[float, Ge(0), Le(1)] = 0.0) -> None:
        self.x, self.eps, self.share = x, per_image(eps), share

    def draw(self, noise: Uniform) -> Images:
        """Uniform direction on the sphere of l1, length uniform in [0, eps]; not cut by the pixel range.

        Exponential variates with random signs have such a direction, and the distribution function of their sum is uniform and independent of it.
        """
        centred = (2 * noise - 1).clamp(-0.9999999, 0.9999999)
        size = -torch.log1p(-centred.abs())
        total = size.sum((1, 2, 3), keepdim=True)
        length = torch.special.gammainc(torch.full_like(total, float(noise[0].numel())), total)
        return self.x + centred.sign() * size * (self.eps * length / total.clamp_min(TINY))

    def steepest(self, grad: Images) -> Images:
        """Of length 1: the pixel of the largest slope, or the chosen share of them alike; zero where the gradient is."""
        flat = grad.flatten(1)
        many = max(1, round(self.share * flat.shape[1]))
        chosen = flat.abs().topk(many, 1).indices
        return torch.zeros_like(flat).scatter(1, chosen, flat.gather(1, chosen).sign() / many).view_as(grad)

    def project(self, point: Images) -> Images:
        """The nearest image that is both in the ball and in [0,1].

        Every change shrinks by one number lam and is cut at the pixel range; lam is the smallest that brings their sum down to eps.
        """
        change = point - self.x
        size, room = change.abs(), torch.where(change > 0, 1 - self.x, self.x)
        low = torch.zeros_like(size[:, :1, :1, :1])
        high = size.amax((1, 2, 3), keepdim=True)
        fits = torch.minimum(size, room).sum((1, 2, 3), keepdim=True) <= self.eps
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            over = torch.minimum((size - middle).clamp_min(0), room).sum((1, 2, 3), keepdim=True) > self.eps
            low, high = torch.where(over, middle, low), torch.where(over, high, middle)
        lam = torch.where(fits, torch.zeros_like(high), high)
        return (self.x + change.sign() * torch.minimum((size - lam).clamp_min(0), room)).clamp(0, 1)
