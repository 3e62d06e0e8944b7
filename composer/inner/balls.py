"""Norm balls around natural images, cut by the pixel range [0,1]."""

from __future__ import annotations

from typing import Any

import torch

from composer.registry import ball
from composer.shapes import Images, Scalar, Tensor, Uniform

TINY = 1e-30        # keeps 0/0 away; far below any norm of a perturbation


def per_image(v: Any) -> Any:
    """Let a number, a 0-dim tensor or one value per example [N] broadcast over images [N,C,H,W]."""
    return v.reshape(-1, 1, 1, 1) if torch.is_tensor(v) and v.ndim == 1 else v


def _norm(v: Images) -> Tensor:
    """Euclidean norm of each image, [N,1,1,1]."""
    return torch.linalg.vector_norm(v, dim=(1, 2, 3), keepdim=True)


@ball
class linf:
    """Largest change of a pixel at most eps.

    The box is worked out once, so that a projection is one clamp.

    Formula: max_j |x'_j - x_j| <= eps, 0 <= x' <= 1  [pixels]
    Paper:   Goodfellow et al., ICLR 2015; Madry et al., ICLR 2018
    """

    def __init__(self, x: Images, eps: Scalar) -> None:
        self.x, self.eps = x, per_image(eps)
        self.low, self.high = (x - self.eps).clamp(0, 1), (x + self.eps).clamp(0, 1)

    def draw(self, noise: Uniform) -> Images:
        """Uniform in the box of side 2 eps; not cut by the pixel range."""
        return self.x + (2 * noise - 1) * self.eps

    def steepest(self, grad: Images) -> Images:
        """The sign, zero where the gradient is."""
        return grad.sign()

    def project(self, point: Images) -> Images:
        """The nearest image of the ball within [0,1]."""
        return torch.clamp(point, self.low, self.high)


@ball
class l2:
    """Euclidean norm of the change at most eps.

    A projection shortens the change, then clamps to the pixel range, which shortens it further.

    Formula: sqrt(sum_j (x'_j - x_j)^2) <= eps, 0 <= x' <= 1  [pixels]
    Paper:   Madry et al., ICLR 2018, as usually implemented
    """

    def __init__(self, x: Images, eps: Scalar) -> None:
        self.x, self.eps = x, per_image(eps)

    def draw(self, noise: Uniform) -> Images:
        """Direction uniform on the sphere, length uniform in [0, eps]; not cut by the pixel range.

        Both come from the one noise: normal variates have a direction, and the distribution function of chi-square at their squared
        norm is uniform in [0,1] and independent of it.
        """
        normal = (2 * noise - 1).clamp(-0.9999999, 0.9999999).erfinv() * 2**0.5      # the ends would be infinite
        norm = _norm(normal)
        half = torch.full_like(norm, noise[0].numel() / 2)
        return self.x + normal * (self.eps * torch.special.gammainc(half, norm.square() / 2) / norm.clamp_min(TINY))

    def steepest(self, grad: Images) -> Images:
        """The gradient over its norm, zero where the gradient is."""
        largest = grad.abs().amax((1, 2, 3), keepdim=True)
        unit = grad / largest.clamp_min(torch.finfo(grad.dtype).tiny)      # a saturated loss has entries whose squares would vanish
        return unit / _norm(unit).clamp_min(1)                             # by now the norm is 1 or more, unless the gradient is zero

    def project(self, point: Images) -> Images:
        """Onto the sphere where outside it, then into [0,1]."""
        change = point - self.x
        shrink = (self.eps / _norm(change).clamp_min(TINY)).clamp_max(1)
        return torch.addcmul(self.x, change, shrink).clamp_(0, 1)
