"""What an inner maximum climbs, and one step of it."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch

from composer.shapes import Images, PerExample, Tensor


class Ascent(NamedTuple):
    """What the objective looks like at a point.

    objective  [N], what is climbed, in the units of its terms
    grads      of the summed objective with respect to each point; "point" is the inner's own; empty without gradients
    tensors    "logits" [N,K], detached, at the inner's own point; those of other points under their names, such as "col_logits"
    """

    objective: PerExample
    grads: dict[str, Tensor]
    tensors: dict[str, Tensor]


class Climb(Protocol):
    """Runs the objective at plain images; it makes them differentiable itself."""

    def __call__(self, *, point: Images, grad: bool = True, **points: Images) -> Ascent: ...


def move(point: Images, direction: Images, step: Any) -> Images:
    """point + step · direction in one operation; `step` is a number, or a tensor that broadcasts over images (`per_image`)."""
    if torch.is_tensor(step):
        return torch.addcmul(point, direction, step)
    return torch.add(point, direction, alpha=step)
