"""The smallest radius at which an attack breaks an image: a graded number where a flag is too coarse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import torch

from composer.evaluate.results import Measured
from composer.options import Ref
from composer.registry import measure
from composer.shapes import Ge, Gt, Images, Labels, LossSpec, Module, Norm, Pixels, Start, Tensor

ORDER = {"linf": float("inf"), "l2": 2.0, "l1": 1.0}


@measure(unit="pixels")
def breaking_eps(model: Module, x: Images, y: Labels, draws: Any, batch_size: int, report: Callable[..., None], *, loss: LossSpec = "ce",
                 largest: Annotated[Pixels, Gt(0)] = "2*threat", rungs: Annotated[int, Ge(1)] = 16, steps: Annotated[int, Ge(1)] = 5,  # type: ignore[assignment]
                 step: Annotated[float, Gt(0)] = 0.25, halvings: Annotated[int, Ge(0)] = 6, start: Start, norm: Norm) -> Measured:
    """Mean smallest radius at which projected gradient ascent breaks an image, found in one pass over growing radii.

    Each rung of the ladder starts from the perturbation of the one before, scaled up to the new radius. An image that breaks is done: the
    line from it to the point that broke it is halved, and the shortest length that still breaks it is its value. Images that are wrong as they stand
    count 0. Those that no rung breaks count `largest`, and their share is in the details: with many of them the mean says little.

    Formula: mean_i min(eps_i, largest), eps_i the smallest found with argmax f(x_i + d) != y_i, ||d|| <= eps_i   [pixels]
    Paper:   ours; an upper bound of the mean distance to the boundary, as FAB and FMN estimate it

    largest    last rung; the rungs are largest·k/rungs
    steps      of ascent on each rung; step: their length, as a share of the rung's radius
    halvings   0: the value is the radius of the rung
    """
    ladder = [largest * k / rungs for k in range(1, rungs + 1)]
    return run_ladder(model, x, y, draws, batch_size, report, loss=loss, ladder=ladder, steps=steps, step=step, halvings=halvings, start=start, norm=norm)


def run_ladder(judge: Any, x: Tensor, y: Tensor, draws: Any, batch_size: int, report: Callable[..., None], *, ladder: list[float], **settings: Any) -> Measured:
    """Each image's value; `extra` has who was correct and who was broken."""
    from composer.evaluate.attack import correct_flags

    clean = correct_flags(judge, x, y, batch_size)
    values, broken = torch.zeros(len(y)), ~clean
    correct = clean.nonzero().flatten()
    for done in range(0, len(correct), batch_size):
        rows = correct[done:done + batch_size]
        values[rows], broken[rows] = _batch(judge, x, y, rows, draws, ladder, **settings)
        report(done + len(rows), len(correct))
    share = float((~broken).double().mean()) if len(y) else 0.0
    return Measured(values, {"clean": clean, "broken": broken}, {"attacked": len(correct), "unbroken": int((~broken).sum()), "unbroken_share": share,
                                                                 "median": float(values.median()) if len(y) else None, "largest": ladder[-1]})


def _batch(judge: Any, x: Tensor, y: Tensor, rows: Tensor, draws: Any, ladder: list[float], *, loss: Ref, steps: int, step: float, halvings: int,
           start: Ref, norm: Ref) -> tuple[Tensor, Tensor]:
    """(value [n], broken [n]) of the correct images `rows`, on the CPU."""
    from composer.evaluate.attack import _ball, _start, _to

    x0, label = _to(judge, x[rows.to(x.device)], y[rows.to(y.device)])
    values, broken, standing = torch.full((len(rows),), ladder[-1]), torch.zeros(len(rows), dtype=torch.bool), torch.arange(len(rows))
    make, (kind, first) = _ball(norm), _start(start)
    point = first(x0, make(x0, ladder[0]), draws.rows(kind, "start", rows, x0) if kind else None)
    radius = ladder[0]
    for eps in ladder:
        ball = make(x0, eps)
        point = ball.project(x0 + (point - x0) * (eps / radius))
        point, found = _rung(judge, x0, label, point, ball, loss, steps, step * eps)
        hit = found.flatten(1).isfinite().all(1)
        if hit.any():
            which = standing[hit.cpu()]
            values[which] = _shortest(judge, x0[hit], label[hit], found[hit], ORDER[norm.use], halvings, eps).cpu()
            broken[which] = True
            x0, label, point, standing = x0[~hit], label[~hit], point[~hit], standing[~hit.cpu()]
        if not len(standing):
            break
        radius = eps
    return values, broken


def _rung(judge: Any, x: Tensor, y: Tensor, point: Tensor, ball: Any, loss: Ref, steps: int, length: float) -> tuple[Tensor, Tensor]:
    """(the last point, the first point that is misclassified or NaN where none is)."""
    from composer.evaluate.attack import Climb

    climb, found = Climb(judge, x, y, loss), torch.full_like(x, float("nan"))
    for taken in range(steps + 1):
        climb.missed.zero_()
        seen = climb(point=point, grad=taken < steps)
        fresh = climb.missed & found.flatten(1).isnan().any(1)
        found = torch.where(fresh.view(-1, 1, 1, 1), point, found)
        if taken < steps:
            point = ball.project(point + length * ball.steepest(seen.grads["point"]))
    return point, found


def _shortest(judge: Any, x: Tensor, y: Tensor, found: Tensor, order: float, halvings: int, eps: float) -> Tensor:
    """[n] length of the shortest part of the line from the image to `found` that is seen to break it; the rung's eps without halvings."""
    length = torch.linalg.vector_norm((found - x).flatten(1), ord=order, dim=1).clamp_max(eps)
    if halvings == 0:
        return torch.full_like(length, eps)
    low, high = torch.zeros_like(length), torch.ones_like(length)
    for _ in range(halvings):
        middle = (low + high) / 2
        held = judge.correct(x + middle.view(-1, 1, 1, 1) * (found - x), y)
        low, high = torch.where(held, middle, low), torch.where(held, high, middle)
    return high * length
