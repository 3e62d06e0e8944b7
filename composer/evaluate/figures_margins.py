"""Margins in input space as diagnostics: to first order, and as far as a search finds the boundary. Of correctly classified images alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Annotated, Any, Literal

import torch

from composer.evaluate.diagnostics import described
from composer.evaluate.figures_common import Report, in_batches, points
from composer.evaluate.results import Measured
from composer.options import Ref
from composer.registry import REGISTRY, measure
from composer.shapes import Ge, Images, Labels, Module, Norm, Start, Tensor, ThreatPixels, ThreatSteps

Split = Literal["test", "train", "val"]
Point = Literal["clean", "adv"]
Distance = Literal["threat", "linf", "l2", "l1"]


@measure(unit="pixels", figure="histogram")
def taylor_margin(model: Module, x: Images, y: Labels, draws: Any, batch_size: int, report: Report, *, split: Split = "test",
                  over: Literal["correct", "all"] = "correct", at: Point = "clean", distance: Distance = "threat",
                  classes: Literal["top1", "all"] = "top1", eps: ThreatPixels, step: ThreatPixels, steps: ThreatSteps, start: Start,
                  norm: Norm) -> Measured:
    """Mean distance from the images to the class boundary of the network's linearisation.

    Formula: mean_i min_k (z_y - z_k) / ||d(z_y - z_k)/dx||_*, k the strongest wrong class or all of them, by the view `margin_taylor`   [pixels]
    Paper:   Elsayed et al., NeurIPS 2018; "Does simple trump complex?" trains on it

    split      images of the test set, of those trained on (without augmentation), or of those held out
    over       `correct`: the mean of correctly classified images; `all`: wrong ones too, whose margins are negative
    at         `adv`: at the end point of pgd on cross entropy with the threat's options, where "correct" means correct there
    distance   the norm it is measured in; `threat`: that of the attack
    """
    view = REGISTRY.get("view", "margin_taylor").fn

    def one(rows: Tensor) -> Tensor:
        xb, yb = points(model, x, y, rows, draws, at, eps=eps, step=step, steps=steps, start=start, norm=norm)
        leaf = xb.detach().requires_grad_()
        with torch.enable_grad():
            logits = _on_tape(model(leaf), leaf)
        with torch.no_grad():
            return view(logits, yb, leaf, norm=norm.use if distance == "threat" else distance, classes=classes).detach().float().cpu()

    return _mean(*in_batches(len(y), batch_size, report, one), over == "correct")


@measure(unit="pixels", figure="histogram", costly=True, refuses=lambda options: None if _order(options) in ("linf", "l2") else
         ("distance", "FAB's projection here is onto linf and l2 balls", 'distance = "linf" or "l2"'))
def fab_margin(model: Module, x: Images, y: Labels, draws: Any, batch_size: int, report: Report, *, split: Split = "test", at: Point = "clean",
               distance: Distance = "threat", search: Annotated[int, Ge(1)] = 50, eps: ThreatPixels, step: ThreatPixels, steps: ThreatSteps, start: Start,
               norm: Norm) -> Measured:
    """Mean distance from correctly classified images to the nearest boundary point that FAB finds; an upper bound of the true distance.

    The search is the inner maximum `fab` on the margin in logits. Images without a boundary point do not count; how many is in the details
    (`unfound`), and with many of them the mean says little.

    Formula: mean_i min_s ||u_i^s - x_i||, over points u_i^s of the search with z_y <= max_{k != y} z_k   [pixels]
    Paper:   Croce and Hein, ICML 2020 (FAB)

    split, at   as in `taylor_margin`
    distance    the norm it is measured in, linf or l2
    search      steps of the search, two passes and one gradient each
    """
    primitive, name = REGISTRY.get("inner", "fab"), norm.use if distance == "threat" else distance
    ball = REGISTRY.get("ball", name)

    def shape(images: Tensor, radius: Any) -> Any:
        return ball.fn(images, radius)

    shape.__name__ = name

    def one(rows: Tensor) -> tuple[Tensor, Tensor]:
        xb, yb = points(model, x, y, rows, draws, at, eps=eps, step=step, steps=steps, start=start, norm=norm)
        made = primitive.fn(xb, Surface(model, yb), eps, {}, norm=shape, start=None, steps=search, filter=False)
        right = model.correct(xb, yb)
        return torch.where(right & (made["found"] > 0), made["radius"], float("nan")).float().cpu(), right.cpu()

    pieces, refused = in_batches(len(y), batch_size, report, one)
    values, right = (torch.cat(column) if pieces else torch.zeros(0) for column in zip(*pieces)) if pieces else (torch.zeros(0), torch.zeros(0, dtype=torch.bool))
    result = _mean([values], refused, False)
    result.details |= {"correct": int(right.sum()), "unfound": int((right.bool() & values.isnan()).sum())}
    return result


class Surface:
    """What `fab` climbs: the margin in logits, zero on the boundary, and its gradient."""

    def __init__(self, judge: Any, y: Tensor):
        self.judge, self.y, self.margin = judge, y, REGISTRY.get("view", "margin_logit").fn

    def __call__(self, point: Tensor, grad: bool = True) -> SimpleNamespace:
        point = point.detach().requires_grad_(grad)
        with torch.set_grad_enabled(grad):
            logits = self.judge(point)
            phi = self.margin(_on_tape(logits, point) if grad else logits, self.y)
        grads = {"point": torch.autograd.grad(phi.sum(), point)[0]} if grad else {}
        return SimpleNamespace(objective=phi.detach(), grads=grads, tensors={"logits": logits.detach()})


def _on_tape(logits: Tensor, leaf: Tensor) -> Tensor:
    """A model that cuts the graph has no slope: its margins are without bound, not an error."""
    return logits if logits.requires_grad else logits + 0 * leaf.flatten(1).sum(1, keepdim=True)


def _order(options: dict[str, Any]) -> str:
    norm, distance = options.get("norm"), options.get("distance", "threat")
    return str(distance) if distance != "threat" else norm.use if isinstance(norm, Ref) else str(norm or "linf")


def _mean(pieces: list[Tensor], refused: list[int], correct: bool) -> Measured:
    """`correct`: those with a positive margin, which are the correctly classified ones. Margins that are not finite do not count."""
    found = torch.cat(pieces) if pieces else torch.zeros(0)
    found = torch.where(found.isfinite() & ((found > 0) | torch.tensor(not correct)), found, float("nan"))
    result = described(found)
    result.details |= {"batch_halved": refused} if refused else {}
    return result
