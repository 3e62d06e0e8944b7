"""SPSA: ascent on the margin along gradients estimated from pairs of queries. No gradient of the model is used."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any

import torch

from composer.evaluate.memory import Fit
from composer.evaluate.results import Measured
from composer.options import Ref
from composer.registry import REGISTRY, measure
from composer.shapes import Ge, Gt, Images, Labels, Module, Norm, PerExample, Pixels, Tensor, ThreatPixels

BETAS, TINY = (0.9, 0.999), 1e-8        # Adam's


@measure(attack=True, blind=True, costly=True, key=lambda options, run: None if options["norm"].use == "linf" else "mean-square")
def spsa(model: Module, x: Images, y: Labels, draws: Any, batch_size: int, report: Callable[..., None], slot: Any, *, delta: Annotated[Pixels, Gt(0)] = 0.001,
         samples: Annotated[int, Ge(1)] = 100, steps: Annotated[int, Ge(1)] = 20, lr: Annotated[float, Gt(0)] = 0.01, eps: ThreatPixels,
         norm: Norm) -> Measured:
    """Accuracy under SPSA: the margin is climbed by Adam along slopes estimated from random pairs of queries, from the image itself.

    An image withstands if it is correct as it stands and after every step. A step costs 2·samples queries and one more for the verdict;
    the number of queries is in the details. Directions are independent over all pixels and channels; the queries may leave [0,1] by delta. In linf
    Adam's second moment is each pixel's own, as published; in every other norm it is the image's mean, so that a step keeps the slope's direction:
    steps nearly alike in all pixels would stay short of the best point of an l2 ball (by an eighth on a linear model).

    Formula: g = mean_s v_s (J(x' + delta v_s) - J(x' - delta v_s)) / (2 delta), v_s = +-1, J = max_{k != y} z_k - z_y; x' := P(x' + Adam(g))   [share of images]
    Paper:   Uesato et al., ICML 2018; the defaults are LMA-AT's, MWPB has samples = 256, steps = 100

    delta     half the distance of a pair of queries
    samples   pairs a step
    lr        Adam's, in pixels a step; an l1 ball, whose corners are far, wants a larger one
    """
    return run_spsa(model, x, y, draws, batch_size, report, slot, delta=delta, samples=samples, steps=steps, lr=lr, eps=eps, norm=norm)


def run_spsa(judge: Any, x: Tensor, y: Tensor, draws: Any, batch_size: int, report: Callable[..., None], slot: Any, *, eps: float, norm: Ref,
             **settings: Any) -> Measured:
    """Batch after batch of the correct images; what is done is kept, and each image's directions are its own, so a killed one goes on."""
    from composer.evaluate.attack import correct_flags

    held = slot.load_part()
    if held and "margin" in held[0]:
        clean, robust, margin, away = (held[0][name] for name in ("clean", "robust", "margin", "norm"))
        done, queries = held[1]["done"], held[1]["queries"]
    else:
        clean = correct_flags(judge, x, y, batch_size)
        robust, done, queries = clean.clone(), 0, 0
        margin, away = torch.full((len(y),), torch.nan), torch.full((len(y),), torch.nan)
    correct = clean.nonzero().flatten()
    fit = Fit(batch_size)
    while done < len(correct):
        rows, found = fit(lambda size, done=done: _some(judge, x, y, correct[done:done + max(1, size // 2)], draws, size, eps, norm, **settings))  # type: ignore[misc]
        robust[rows], margin[rows], away[rows] = found[:3]
        done, queries = done + len(rows), queries + found[3]
        slot.save_part({"clean": clean, "robust": robust, "margin": margin, "norm": away}, {"done": done, "queries": queries})
        report(done, len(correct))
    halved = {"batch_halved": fit.refused} if fit.refused else {}
    return Measured(robust, {"clean": clean, "margin": margin, "norm": away}, {"attacked": len(correct), "queries": queries, **halved})


def _some(judge: Any, x: Tensor, y: Tensor, rows: Tensor, *settings: Any, **more: Any) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, int]]:
    return rows, _batch(judge, x, y, rows, *settings, **more)


def _batch(judge: Any, x: Tensor, y: Tensor, rows: Tensor, draws: Any, limit: int, eps: float, norm: Ref, *, delta: float, samples: int, steps: int,
           lr: float) -> tuple[Tensor, Tensor, Tensor, int]:
    """([n] bool: still standing at the end, margin and distance of the last point, queries asked) for the images `rows`. An image leaves the batch as
    soon as it is broken."""
    from composer.evaluate.attack import _to, lead, length

    margin, away = torch.zeros(len(rows)), torch.zeros(len(rows))
    xb, yb = _to(judge, x[rows.to(x.device)], y[rows.to(y.device)])
    standing, queries = torch.arange(len(rows)), 0
    words = samples * math.ceil(xb[0].numel() / 32)
    state = (xb, yb, xb.clone(), torch.zeros_like(xb), torch.zeros_like(xb))             # image, label, point, Adam's two moments
    power = torch.square if norm.use == "linf" else mean_square
    for step in range(1, steps + 1):
        x0, label, point, first, second = state
        bits = draws.bits(f"directions/{step}", rows[standing], words).to(point.device)
        slope = estimate(lambda points, label=label: margin_loss(judge(points), label.repeat(len(points) // len(label))), point, bits, delta, samples, limit)
        first, second = BETAS[0] * first + (1 - BETAS[0]) * slope, BETAS[1] * second + (1 - BETAS[1]) * power(slope)
        move = (first / (1 - BETAS[0]**step)) / ((second / (1 - BETAS[1]**step)).sqrt() + TINY)
        point = REGISTRY.get("ball", norm.use).fn(x0, eps, **norm.options).project(point + lr * move)
        logits = judge.verdict(point)
        held = (logits.argmax(1) == label) & logits.isfinite().all(1)
        margin[standing], away[standing] = lead(logits, label).float().cpu(), length(point - x0, norm.use).float().cpu()
        queries += len(label) * (2 * samples + 1)
        state = tuple(each[held] for each in (x0, label, point, first, second))
        standing = standing[held.cpu()]
        if not len(standing):
            break
    return torch.zeros(len(rows), dtype=torch.bool).index_fill(0, standing, True), margin, away, queries


def estimate(objective: Callable[[Tensor], PerExample], point: Tensor, bits: Tensor, delta: float, samples: int, limit: int) -> Tensor:
    """[N,C,H,W] slope of the objective at `point`, averaged over `samples` random directions.

    objective  images [M·N,...], the N points M times over, -> [M·N]; at most `limit` at a time (or 2 N)
    bits       [N, samples·ceil(D/32)] int32: the signs of all directions
    """
    n, size = len(point), point[0].numel()
    bits = bits.view(n, samples, -1)
    total = torch.zeros_like(point)
    many = max(1, limit // (2 * n))
    for at in range(0, samples, many):
        signs = unpack(bits[:, at:at + many], size).to(point.dtype).transpose(0, 1).reshape(-1, *point.shape)             # [M,N,C,H,W]
        queries = torch.cat((point + delta * signs, point - delta * signs)).flatten(0, 1)
        above, below = objective(queries).view(2, len(signs), n)
        total += (signs * (above - below).view(len(signs), n, 1, 1, 1)).sum(0)
    return total / (2 * delta * samples)


def mean_square(slope: Tensor) -> Tensor:
    """Every pixel of an image the mean over it: Adam's step is then a length, and the direction is the slope's."""
    return slope.square().mean((1, 2, 3), keepdim=True).expand_as(slope)


def unpack(bits: Tensor, size: int) -> Tensor:
    """[..., W] int32 -> [..., size] of +1 and -1: one sign a bit."""
    each = torch.arange(32, device=bits.device, dtype=torch.int32)
    return ((bits.unsqueeze(-1) >> each) & 1).flatten(-2)[..., :size] * 2 - 1


def margin_loss(logits: Tensor, y: Tensor) -> PerExample:
    """How far the strongest wrong class leads, [N]."""
    own = y.unsqueeze(1)
    return logits.scatter(1, own, float("-inf")).amax(1) - logits.gather(1, own).squeeze(1)
