"""Margins in input space [N]: distances to the decision boundary in pixels, positive where the example is classified correctly."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch

from composer.registry import view
from composer.shapes import Gt, Labels, Leaf, Logits, PerExample

DUAL = {"linf": 1.0, "l2": 2.0, "l1": float("inf")}
TINY = 1e-12            # keeps 0/0 away; far below any margin or slope that training meets


def _backward(options: dict[str, Any]) -> tuple[int | str, int | str]:
    """Input gradients it takes, and double backwards: one for every class it looks at."""
    many = "classes" if options["classes"] == "all" else 1
    return many, many if options["grad"] == "full" else 0


@view(backward=_backward)
def margin_taylor(logits: Logits, y: Labels, x: Leaf, *, norm: Literal["linf", "l2", "l1"] = "linf", classes: Literal["top1", "all"] = "top1",
                  over: Literal["logits", "probabilities"] = "logits", grad: Literal["numerator", "full"] = "numerator", floor: Annotated[float, Gt(0)] = 1e-8) -> PerExample:
    """Distance to the decision boundary of the network's linearisation at the image itself.

    Formula: min_k (z_y - z_k) / (||d(z_y - z_k)/dx||_* + floor), k the strongest wrong class or all of them; dual of linf, l2, l1 = l1, l2, linf  [pixels]
    Paper:   Elsayed et al., NeurIPS 2018, eq. 5 and 6, on logits as "Does simple trump complex?" eq. 4

    norm      in which distance is measured
    classes   `top1`: the wrong class of the largest logit, one input gradient; `all`: the nearest of all, an input gradient for every class
    over      what is linear: `logits`, as both papers write, or `probabilities` (softmax), as the first's code has it; both vanish on the same
              boundary, and away from it probabilities flatten: of two classes m apart they say sinh(m) / ||dm/dx|| where logits say m / ||dm/dx||
    grad      `numerator`: the denominator is a constant; `full`: it carries its gradient, for one double backward each

    Each image's slope must depend on that image alone: use it with bn = "eval".
    """
    own = y.unsqueeze(1)
    with torch.enable_grad():
        logits = logits.softmax(1) if over == "probabilities" else logits
        mine = logits.gather(1, own).squeeze(1)
        if classes == "top1":
            rival = logits.detach().scatter(1, own, float("-inf")).argmax(1, keepdim=True)
            return _distance(mine - logits.gather(1, rival).squeeze(1), x, DUAL[norm], grad == "full", floor)
        each = [_distance(mine - logits[:, k], x, DUAL[norm], grad == "full", floor) for k in range(logits.shape[1])]
    return torch.stack(each, 1).scatter(1, own, float("inf")).amin(1)


def _distance(gap: PerExample, x: Leaf, dual: float, full: bool, floor: float) -> PerExample:
    (slope,) = torch.autograd.grad(gap.sum(), x, retain_graph=True, create_graph=full)
    return gap / (torch.linalg.vector_norm(slope.flatten(1), ord=dual, dim=1) + floor)


@view(cuts=lambda options: {"none": ("phi", "bd_dual"), "numerator": ("bd_dual",), "closed_form": ()}[options["grad"]])
def margin_at(phi: PerExample, bd_radius: PerExample, bd_dual: PerExample, *,
              grad: Literal["none", "numerator", "closed_form"] = "numerator") -> PerExample:
    """Distance to a boundary point that a search has found, with the gradient the search itself cannot give.

    Formula: R + (phi - const(phi)) / scale; scale = const(phi) / R (`numerator`) or ||grad_x phi||_* at the boundary point (`closed_form`)  [pixels]
    Paper:   "Does simple trump complex?" does not say how a found distance is differentiated; closed_form: DyART, Xu et al., ICLR 2023, eq. 4

    phi    the margin whose zero is the boundary: at the image for `numerator`, at the boundary point for `closed_form`
    grad   `numerator`: the rule of the Taylor margin, with the slope that the found distance implies; `closed_form`: the derivative of the
           exact distance with respect to the weights; `none`: a constant, which trains nothing

    Rows without a boundary point have R = 0: multiply the term by a mask of those found.
    """
    if grad == "none":
        return bd_radius
    now = phi.detach()
    if grad == "closed_form":
        return bd_radius + (phi - now) / bd_dual.clamp_min(TINY)
    return bd_radius + (phi - now) * (bd_radius.detach() / torch.where(now.abs() < TINY, TINY, now))
