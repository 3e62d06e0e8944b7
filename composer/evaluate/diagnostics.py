"""Diagnostics: numbers about a network or its training that are no accuracy. Each is registered with the unit of its mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch

from composer.evaluate.results import Measured
from composer.options import Ref
from composer.registry import REGISTRY, measure
from composer.shapes import Images, Labels, Module, Norm, Start, Tensor, ThreatPixels, ThreatSteps


@measure(unit="pixels", figure="histogram")
def effective_margin(model: Module, x: Images, y: Labels, draws: Any, batch_size: int, report: Callable[..., None], *,
                     split: Literal["test", "train", "val"] = "test", over: Literal["correct", "all"] = "correct", at: Literal["clean", "adv"] = "clean",
                     eps: ThreatPixels, step: ThreatPixels, steps: ThreatSteps, start: Start, norm: Norm) -> Measured:
    """Mean distance, in l2 and to first order, from the images to the nearest class boundary.

    Formula: mean_i min_{j != y} (z_y - z_j) / ||d(z_y - z_j)/dx||_2, by the view `effective_margin`   [pixels]
    Paper:   Liu and Chan, BMVC 2022 (EMR) eq. 3; their tables print it with the standard deviation over images, which is in the details

    split   images of the test set, of those trained on (without augmentation), or of those held out
    over    `correct`: the mean of correctly classified images, as the paper has it; `all`: wrong ones too, whose margins are negative
    at      `adv`: at the end point of pgd on cross entropy with the options below, which mean nothing else
    """
    values = []
    for done in range(0, len(y), batch_size):
        rows = torch.arange(done, min(done + batch_size, len(y)))
        values.append(_margins(model, x, y, rows, draws, None if at == "clean" else _attack(eps, step, steps, start, norm)))
        report(done + len(rows), len(y))
    found = torch.cat(values) if values else torch.zeros(0)
    if over == "correct":
        found = torch.where(found > 0, found, float("nan"))
    return described(found)


def _attack(eps: float, step: float, steps: int, start: Ref, norm: Ref) -> Any:
    from composer.evaluate.attack import Attack

    return Attack("pgd", Ref("loss", "ce"), eps, norm, start, {"step": step, "steps": steps})


def _margins(judge: Any, x: Tensor, y: Tensor, rows: Tensor, draws: Any, attack: Any) -> Tensor:
    """[n] on the CPU; logits that are not finite have no margin."""
    from composer.evaluate.attack import _to, attack_points

    xb, yb = _to(judge, x[rows.to(x.device)], y[rows.to(y.device)])
    point = (xb if attack is None else attack_points(attack, judge, xb, yb, rows, draws)).detach().requires_grad_()
    with torch.enable_grad():
        logits = judge(point)
    if not logits.requires_grad:
        logits = logits + 0 * point.flatten(1).sum(1, keepdim=True)      # a model that cuts the graph has no slope: its margins are without bound
    with torch.no_grad():
        return REGISTRY.get("view", "effective_margin").fn(logits, yb, point, grad="numerator").float().cpu()


def described(values: Tensor) -> Measured:
    """The values with what a reader wants to know of their spread."""
    result = Measured(values)
    counted = result.counted.double()
    spread = {"std": float(counted.std()), "median": float(counted.median())} if len(counted) > 1 else {}
    ends = {"min": float(counted.min()), "max": float(counted.max())} if len(counted) else {}
    result.details.update({"counted": len(counted), "of": len(values), **spread, **ends})
    return result


@measure(unit="pixels", figure="histogram")
def mean_radius(run: Any, *, point: str = "") -> Measured:
    """Mean radius that the run's attack takes at the training images, for the judged weights: what the last stretch's inner maximum gives each.

    The radius is computed as in training (a radius of MWPB from the margins, MMA's from its memory, a number where it is one), with batch norm in
    eval mode and without augmentation. A memory is that of the run's end. A stretch that attacks nothing has radius 0.

    Formula: mean_i eps_i over the images trained on   [pixels]
    Paper:   MWPB table 6

    point   which inner maximum, by the point it makes ("adv"); left out: the first whose radius is each image's own
    """
    return described(run.radii(point).float())


@measure(unit="s", record=True)
def seconds_per_step(run: Any) -> Measured:
    """Mean seconds of a training step, from the run's own record; validation and checkpoints are not in it.

    The values are means over epochs. The first epoch, in which kernels are chosen, is left out where there are others. Never stored with the weights: the
    same weights are trained in other times on other machines.

    Formula: mean over epochs of (seconds in steps / steps)   [s]
    Paper:   EMR table 10 prints seconds of an update
    """
    values = run.step_seconds()
    if int((~values[1:].isnan()).sum()):
        values = torch.cat((torch.full_like(values[:1], float("nan")), values[1:]))
    return described(values)
