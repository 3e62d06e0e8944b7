"""The loss around a network's weights, over two random directions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch

from composer.evaluate.figures_common import Report, in_batches, need_module, points
from composer.evaluate.results import Measured
from composer.registry import measure
from composer.shapes import Ge, Gt, Images, Labels, Module, Norm, Start, Tensor, ThreatPixels, ThreatSteps

Weights = dict[str, Tensor]


@measure(unit="nats", figure="landscape", costly=True, refuses=lambda options: None if int(options.get("grid", 21)) % 2 else
         ("grid", "the weights themselves must stand on the grid", "an odd number"))
def landscape(model: Module, x: Images, y: Labels, draws: Any, batch_size: int, report: Report, *, at: Literal["clean", "adv"] = "adv",
              directions: Literal["whole", "filter"] = "whole", length: Annotated[float, Gt(0)] = 1.0, reach: Annotated[float, Gt(0)] = 1.0,
              grid: Annotated[int, Ge(3)] = 21, split: Literal["test", "train", "val"] = "test", eps: ThreatPixels, step: ThreatPixels,
              steps: ThreatSteps, start: Start, norm: Norm) -> Measured:
    """Cross entropy over a square of weights around the trained ones; its number is how much the mean over the square exceeds the centre.

    The two directions are Gaussian, drawn from the evaluation's seed by the parameter's name, so networks of one architecture share them. Batch norm
    keeps its running statistics. Adversarial images are made once, at the centre.

    Formula: mean over the grid of mean_i L(w + m1 u + m2 v, x_i) minus mean_i L(w, x_i), m1, m2 in [-reach, reach]   [nats]
    Paper:   PIAT figure 6; Li et al., NeurIPS 2018 (filter-wise)

    directions   `whole`: a direction divided by its Euclidean norm over all weights, as PIAT has it, times `length`; `filter`: each filter (row of a
                 weight) of the direction has the norm of the network's own, and vectors (biases, batch norm) do not move
    at           the images as they are, or the end points of pgd on cross entropy with the threat's options
    grid         points a side, odd
    """
    module = need_module(model, "landscape")
    pieces, _ = in_batches(len(y), batch_size, lambda *_: None,
                           lambda rows: points(model, x, y, rows, draws, at, eps=eps, step=step, steps=steps, start=start, norm=norm))
    own = {name: value.detach() for name, value in module.named_parameters() if value.is_floating_point()}
    u, v = (direction(own, draws, axis, directions, length) for axis in (0, 1))
    axis = torch.linspace(-reach, reach, grid, dtype=torch.float64).tolist()
    axis[grid // 2] = 0.0
    rows = []
    for j, b in enumerate(axis):
        rows.append(torch.stack([_losses(module, moved(own, u, v, a, b), pieces, model.dtype) for a in axis]))
        report((j + 1) * grid, grid * grid)
    losses = torch.stack(rows)                                    # [m2, m1, n]
    centre = losses[grid // 2, grid // 2]
    surface = losses.double().mean(2)
    details = {"axis": axis, "loss": surface.tolist(), "centre": float(surface[grid // 2, grid // 2]), "lowest": float(surface.min()),
               "highest": float(surface.max()), "weights_norm": float(sum(w.double().square().sum() for w in own.values()) ** 0.5), "reach": reach}
    return Measured((losses.double().mean((0, 1)) - centre.double()).float(), {"centre": centre}, details)


def direction(own: Weights, draws: Any, axis: int, kind: str, length: float) -> Weights:
    """One random direction, by parameter, on the parameters' device."""
    raw = {}
    for name, weight in own.items():
        generator = torch.Generator().manual_seed(draws.seed(f"direction/{name}", axis))
        raw[name] = torch.randn(weight.shape, generator=generator).to(weight)
    if kind == "whole":
        size = sum(d.double().square().sum() for d in raw.values()) ** 0.5
        return {name: length * d / size.to(d) for name, d in raw.items()}
    return {name: torch.zeros_like(d) if d.ndim < 2 else length * d * (_rows(own[name]) / _rows(d).clamp_min(1e-12)) for name, d in raw.items()}


def _rows(weight: Tensor) -> Tensor:
    """[out, 1, …]: the norm of each filter, or of each row of a matrix."""
    return weight.flatten(1).norm(dim=1).view(-1, *[1] * (weight.ndim - 1))


def moved(own: Weights, u: Weights, v: Weights, a: float, b: float) -> Weights:
    return {name: w + a * u[name] + b * v[name] for name, w in own.items()} if a or b else own


def _losses(module: Any, weights: Weights, pieces: list[tuple[Tensor, Tensor]], dtype: Any) -> Tensor:
    """[n] on the CPU: cross entropy of every image at these weights. What is not finite counts as the largest float32."""
    with torch.no_grad():
        found = [torch.nn.functional.cross_entropy(torch.func.functional_call(module, weights, (x.to(dtype),)).float(), y, reduction="none") for x, y in pieces]
    return torch.nan_to_num(torch.cat(found).cpu(), nan=torch.finfo(torch.float32).max)
