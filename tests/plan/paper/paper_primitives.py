"""Signatures of primitives that the hard methods need, so that their plans can be checked on paper. The plan reads signatures only; none of these is
ever called."""

from __future__ import annotations

from typing import Annotated, Literal

from composer import gain, inner, loss, part, view
from composer.shapes import (Features, Ge, Images, Indices, Labels, Leaf, Logits, NeedName, Norm, PerExample, Pixels, Point, Scalar, Start, Tensor, ThreatPixels,
                             ThreatSteps)


@inner(cost=(1, 0))
def paper_awp(weights: Tensor, climb: Tensor, eps: Scalar, draws: Tensor, *, gamma: float = 0.005) -> dict[str, Tensor]:
    """Adversarial weight perturbation."""


@inner(makes=("kappa",), draws={"noise": ("gaussian", "steps")})
def paper_fat(x: Images, climb: Tensor, eps: Scalar, draws: Tensor, y: Labels, *, step: ThreatPixels, steps: ThreatSteps, start: Start, norm: Norm,
              tau: float = 1.0, omega: float = 0.001) -> dict[str, Tensor]:
    """Friendly adversarial training."""


@inner(makes=("x_col",))
def paper_squeeze(x: Images, climb: Tensor, eps: Scalar, draws: Tensor, *, step: ThreatPixels, steps: ThreatSteps, start: Start, norm: Norm) -> dict[str, Tensor]:
    """Two points, pushed apart."""


@inner(makes=("radius", "found", "keep", "dual"), surface=True)
def paper_fab(x: Images, climb: Tensor, eps: Scalar, draws: Tensor, *, steps: int = 20, start: Start, norm: Norm) -> dict[str, Tensor]:
    """The nearest boundary point."""


@inner(makes=("eps", "in"), surface=True, cost=(0, 10))
def paper_bisect(x: Images, climb: Tensor, eps: Scalar, draws: Tensor, *, outside: NeedName = "x_adv", steps: int = 10) -> dict[str, Tensor]:
    """Bisection towards the boundary."""


@loss
def paper_slm(logits: Logits, y: Labels) -> PerExample:
    """Soft logit margin."""


@loss
def paper_symmetric_kl(a: Logits, b: Logits) -> PerExample:
    """Both directions."""


@loss
def paper_approx_emr(logits: Logits, x: Leaf, *, t: float = 40.0) -> PerExample:
    """Squared input gradient."""


@loss
def paper_margin_exp(margin: PerExample, *, alpha: float = 3.0, gamma: Pixels = "16/255") -> PerExample:
    """Exponential loss of a margin in input space."""


@loss
def paper_l_softmax(features: Features, head_weight: Tensor, y: Labels, *, m: int = 4) -> PerExample:
    """Large-margin softmax."""


@view
def paper_margin_at(phi: PerExample, bd_radius: PerExample, bd_dual: PerExample, *, grad: Literal["none", "numerator", "closed_form"] = "numerator") -> PerExample:
    """Distance to a found boundary point."""


@view(second_order=True)
def paper_margin_taylor(logits: Logits, y: Labels, x: Leaf, *, grad: Literal["numerator", "full"] = "numerator") -> PerExample:
    """First-order distance to the boundary."""


@gain
def paper_gairat(adv_kappa: PerExample, *, lam: float = -1.0) -> PerExample:
    """Geometry-aware weights."""


@part
class paper_eps_memory:
    """The radius that last reached the boundary."""

    makes = ("eps",)

    def __init__(self, *, floor: Annotated[float, Ge(0)] = 0.005):
        self.floor = floor

    def read(self, i: Indices) -> dict[str, Tensor]: ...

    def after_step(self, i: Indices, found: PerExample) -> None: ...


@part
class paper_teacher:
    """A frozen teacher."""

    makes = ("logits",)
    per_point = True

    def __init__(self, *, init: str = "RUN"):
        self.init = init

    def read(self, x: Point, *, point: str) -> dict[str, Tensor]: ...
