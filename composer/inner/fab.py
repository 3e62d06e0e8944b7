"""The nearest boundary point: FAB on a scalar surface."""

from __future__ import annotations

from typing import Annotated, Any

import torch

from composer.errors import ComposerError
from composer.inner.ascent import Climb
from composer.inner.balls import per_image
from composer.inner.fgsm import OptionalStart
from composer.inner.hyperplanes import step_onto
from composer.registry import inner
from composer.shapes import Ge, Gt, Images, Le, Norm, PerExample, Scalar, Tensor

ORDER = {"linf": float("inf"), "l2": 2.0}
DUAL = {"linf": 1.0, "l2": 2.0}
PAST, NEAR, LARGE, AGREE = -0.3, 1e-7, 0.8, 0.9      # DyART's filter of boundary points


def _refuses(options: dict[str, Any]) -> tuple[str, str, str] | None:
    norm = getattr(options.get("norm"), "use", "linf")
    return None if norm in ORDER else ("norm", f"inner 'fab' cannot project in the norm '{norm}'", f"one of {', '.join(ORDER)}")


@inner(makes=("radius", "found", "keep", "dual"), surface=True, refuses=_refuses,
       cost=lambda options: (options["steps"] + 1, options["steps"] + (options["start"] is not None)))
def fab(x: Images, climb: Climb, eps: Scalar, draws: dict[str, list[Tensor]], *, norm: Norm, start: OptionalStart = None,
        steps: Annotated[int, Ge(1)] = 20, eta: Annotated[float, Ge(1)] = 1.05, back: Annotated[float, Gt(0), Le(1)] = 0.9,
        alpha_max: Annotated[float, Ge(0), Le(1)] = 0.1, filter: bool = True) -> dict[str, Tensor]:
    """Fast adaptive boundary search: a point just past the zero of a margin, as near to the image as can be found.

    Each step linearises the margin phi where it stands, projects that point and the image onto the hyperplane of its zero within [0,1],
    and goes to a mixture of both, a little too far; once past the boundary it steps back towards the image and tries again. It costs a
    gradient and a forward a step.

    Formula: u' = (1-a)(u + eta d_u) + a(x + eta d_x), a = min(|d_u| / (|d_u| + |d_x|), alpha_max); if phi(u') < 0 then u' := x + back (u' - x)  [pixels]
    Paper:   Croce and Hein, ICML 2020 (FAB); on a margin instead of class differences: DyART, Xu et al., ICLR 2023

    start    the image itself, or a start in the ball of half the radius eps (DyART: uniform); eps means nothing else here
    filter   DyART's: `keep` only what has phi > -0.3 and looks like a nearest point. In linf, at more than nine tenths of the pixels that
             moved nearly the whole radius, the slope of phi points against the change (its third test, which always holds, is left out);
             in l2 (ours), the cosine between change and downhill slope is above 0.9

    Makes, beside the point: `radius` [N] its distance; `found` [N] 1 where the image is correct and the boundary was reached; `keep` [N]
    those past the filter; `dual` [N] the dual norm of the slope of phi at the point. Where nothing is found the point is x, the radius 0.
    """
    name = getattr(norm, "__name__", "")
    if name not in ORDER:
        raise ComposerError(f"inner 'fab' cannot project in the norm '{name}'", fix=f"one of {', '.join(ORDER)}")
    point = x if start is None else start(x, norm(x, eps / 2), (draws.get("start") or [None])[0]).clamp(0, 1)
    right = None if start is None else climb(point=x, grad=False).objective > 0
    best, radius = x, torch.full_like(x[:, 0, 0, 0], float("inf"))
    for _ in range(steps):
        here = climb(point=point)
        right = here.objective > 0 if right is None else right
        point = _move(x, point, here.objective, here.grads["point"], name, eta, alpha_max)
        far = _length(point - x, ORDER[name])
        past = (climb(point=point, grad=False).objective < 0) & right
        best = torch.where(per_image(past & (far < radius)), point, best)
        radius = torch.where(past, torch.minimum(radius, far), radius)
        point = torch.where(per_image(past), x + back * (point - x), point)
    found = radius.isfinite()
    radius = torch.where(found, radius, torch.zeros_like(radius))
    there = climb(point=best)
    slope = there.grads["point"]
    keep = found & _nearest(best - x, slope, radius, there.objective, name) if filter else found
    return {"point": best, "radius": radius, "found": found.to(x.dtype), "keep": keep.to(x.dtype), "dual": _length(slope, DUAL[name])}


def _length(change: Images, order: float) -> PerExample:
    return torch.linalg.vector_norm(change.flatten(1), ord=order, dim=1)


def _move(x: Images, point: Images, phi: PerExample, slope: Images, norm: str, eta: Any, alpha_max: Any) -> Images:
    """Onto the linearised boundary from the point and from the image, and between the two."""
    n, flat = len(x), slope.flatten(1)
    at_x = phi + (slope * (x - point)).flatten(1).sum(1)
    both = step_onto(torch.cat([point, x]).flatten(1), flat.repeat(2, 1), torch.cat([phi, at_x]), norm).view(2 * n, *x.shape[1:])
    d_point, d_x = both[:n], both[n:]
    a_point, a_x = (_length(d, ORDER[norm]).clamp_min(1e-8) for d in (d_point, d_x))
    a = per_image((a_point / (a_point + a_x)).clamp_max(alpha_max))
    return ((1 - a) * (point + eta * d_point) + a * (x + eta * d_x)).clamp(0, 1)


def _nearest(change: Images, slope: Images, radius: PerExample, phi: PerExample, norm: str) -> Tensor:
    """[N] bool: barely past the boundary, and the slope as it must be at a nearest point."""
    change, slope = change.flatten(1), slope.flatten(1)
    if norm == "l2":
        shape = -torch.nn.functional.cosine_similarity(change, slope, dim=1) > AGREE
    else:
        large = change.abs() > LARGE * radius.unsqueeze(1)
        downhill = large & (change * slope < -NEAR)
        shape = downhill.sum(1) > AGREE * large.sum(1)
    return shape & (phi > PAST)
