"""Where an inner maximum starts. `clamp` puts the start into the ball and [0,1] before the first gradient; every later iterate is there anyway."""

from __future__ import annotations

from typing import Any

from composer.registry import start
from composer.shapes import Gaussian, Images, Pixels, Uniform


@start
def zero(x: Images, ball: Any, noise: Any = None) -> Images:
    """The natural image itself.

    Formula: x  [pixels]
    Paper:   Kurakin et al., 2017 (basic iterative method)
    """
    return x


@start
def uniform(x: Images, ball: Any, noise: Uniform, *, clamp: bool = True) -> Images:
    """Uniform noise over the ball.

    Formula: x + u, u uniform in [-eps, eps] (linf) or of uniform direction and length (l2)  [pixels]
    Paper:   Madry et al., ICLR 2018; TRADES' evaluation attack leaves out the clamp
    """
    point = ball.draw(noise)
    return ball.project(point) if clamp else point


@start
def gaussian(x: Images, ball: Any, noise: Gaussian, *, sigma: Pixels = 0.001, clamp: bool = False) -> Images:
    """A little normal noise, enough to leave the point where a divergence from the natural image has no gradient.

    Formula: x + sigma n, n standard normal  [pixels]
    Paper:   Zhang et al., ICML 2019 (TRADES): sigma 0.001, not clamped before the first gradient
    """
    point = x + sigma * noise
    return ball.project(point) if clamp else point
