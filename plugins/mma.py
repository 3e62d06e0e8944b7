"""MMA training: every example at its own distance from the decision boundary.

Three pieces: the soft logit margin that the attack climbs, a bisection towards the boundary along the attack's direction, and the memory of each
training image's last distance, which is the radius of its next attack.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch

from composer import inner, loss, part
from composer.errors import ComposerError
from composer.shapes import Ge, Gt, Images, Indices, Labels, Logits, PerExample, Scalar, Tensor


@loss
def slm(logits: Logits, y: Labels) -> PerExample:
    """Soft logit margin: a smooth bound from above on how far the strongest wrong class leads; below zero means safely correct.

    Formula: log sum_{k != y} exp(z_k) - z_y  [logits]
    Paper:   Ding et al., ICLR 2020 (MMA), eq. 10; minus it is the view margin_soft with beta = 1
    """
    own = y.unsqueeze(1)
    return (logits.scatter(1, own, float("-inf")) - logits.gather(1, own)).logsumexp(1)


@inner(makes=("eps", "in"), surface=True, optimum=False, cost=lambda options: (0, options["steps"] + 1))
def bisect(x: Images, climb: Any, eps: Scalar, draws: dict[str, list[Tensor]], outside: Images, radius: PerExample, *,
           steps: Annotated[int, Ge(1)] = 10, reach: Annotated[float, Ge(1)] = 1.05) -> dict[str, Tensor]:
    """The boundary on the line from the image through another point: the bracket of its distance is halved at every step.

    Formula: x + r u, u = (outside - x) / radius, r the last midpoint of the bracket of phi(x + r u) = 0 within [0, reach eps]  [pixels]
    Paper:   Ding et al., ICLR 2020 (MMA), Algorithm 1 (AN-PGD) as in its code: the first look is at `outside`, the last midpoint is not looked at

    eps             the largest distance that matters, d_max
    outside radius  a point and how far it was meant to be from x, say outside = "x_adv", radius = "memory_eps"

    Makes `eps` [N], the distance r, 0 where x itself is not correct (there the point is x); and `in` [N], 1 where r < d_max. A forward a
    step and one at x.
    """
    unit = (outside - x) / _images(radius + 1e-12)
    top = reach * eps * torch.ones_like(radius)
    correct = climb(point=x, grad=False).objective > 0
    low, high, r = torch.zeros_like(radius), top, torch.minimum(radius, top)
    for k in range(steps):
        here = outside if k == 0 else (x + _images(r) * unit).clamp(0, 1)
        inside = climb(point=here, grad=False).objective > 0
        low, high = torch.where(inside, torch.maximum(low, r), low), torch.where(inside, high, torch.minimum(high, r))
        r = (low + high) / 2
    r = torch.where(correct, r, torch.zeros_like(r))
    return {"point": torch.where(_images(correct), (x + _images(r) * unit).clamp(0, 1), x), "eps": r, "in": (r < eps).to(x.dtype)}


def _images(rows: Tensor) -> Tensor:
    """[N] as [N,1,1,1]."""
    return rows.view(-1, 1, 1, 1)


@part
class eps_memory:
    """Each training image's last distance to the boundary, never below a floor.

    Formula: read max(floor, eps_i); kept after the step: eps_i := found_i, at first 0   [pixels]
    Paper:   Ding et al., ICLR 2020 (MMA), section 2.5: d_min 0.005 in its code

    The need `found` is the distance to keep: say found = "bd_eps". Wrong examples store 0 and begin again at the floor.
    """

    makes = ("eps",)
    per_point = False
    writes_model = False

    def __init__(self, *, floor: Annotated[float, Gt(0)] = 0.005):
        self.floor = floor

    def start(self, facts: Any) -> None:
        self._eps = torch.zeros(facts.train_size, device=facts.device)

    def read(self, i: Indices) -> dict[str, Tensor]:
        return {"eps": self._eps[i].clamp_min(self.floor)}

    def after_step(self, i: Indices, found: PerExample) -> None:
        self._eps.index_copy_(0, i, found.to(self._eps.dtype))

    def state_dict(self) -> dict[str, Tensor]:
        return {"eps": self._eps}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if "eps" not in state or state["eps"].shape != self._eps.shape:
            raise ComposerError("the saved state of part 'eps_memory' is not of these training images", fix="train anew (--fresh)")
        self._eps.copy_(state["eps"])
