"""Where adversarial examples go, as a second network sees the classes."""

from __future__ import annotations

from typing import Any, Literal

import torch

from composer.errors import ComposerError
from composer.evaluate.figures_common import Report, in_batches, points
from composer.evaluate.guard import undisturbed
from composer.evaluate.results import Measured
from composer.registry import measure
from composer.shapes import Images, Labels, LossSpec, Module, Norm, Start, Tensor, ThreatPixels, ThreatSteps


@measure(unit="rank", figure="ranks", costly=True, key=lambda options, run: run.reference_digest(options["reference"]) if run is not None else "")
def rank(model: Module, x: Images, y: Labels, draws: Any, batch_size: int, report: Report, run: Any, *, reference: str,
         over: Literal["broken", "all"] = "broken", loss: LossSpec = "ce", eps: ThreatPixels, step: ThreatPixels, steps: ThreatSteps, start: Start,
         norm: Norm) -> Measured:
    """Mean rank, under a reference network at the clean image, of the class that the judged network gives to the adversarial one.

    Rank 1 is the reference's own answer. A small mean says that attacks take images to classes that resemble theirs. The share of each rank is in the
    details. The images are attacked by pgd against the judged network; the reference sees none of it.

    Formula: mean_i (1 + #{k: g_k(x_i) > g_c(x_i)}), c = argmax_k f_k(x_i'), g the reference's logits   [rank, from 1 to K]
    Paper:   LMA-AT figure 1

    reference   a normally trained network: a file of weights, a finished run of the store, or the name of a recipe that was run on this setting with
                this seed for as many epochs
    over        `broken`: images that are classified correctly as they stand and wrongly at x'; `all`: every image, also those that withstood
    loss        what pgd climbs; { use = "cw" } is the attack of Carlini and Wagner
    """
    with undisturbed(run.reference(reference)) as other:
        def one(rows: Tensor) -> tuple[Tensor, Tensor]:
            xb, yb = points(model, x, y, rows, draws, "clean", eps=eps, step=step, steps=steps, start=start, norm=norm)
            there, _ = points(model, x, y, rows, draws, "adv", eps=eps, step=step, steps=steps, start=start, norm=norm, loss=loss)
            with torch.no_grad():
                seen, given = other(xb), model(there)
            if seen.shape != given.shape:
                raise ComposerError(f"the reference '{reference}' answers with {seen.shape[1]} classes, the judged network with {given.shape[1]}", where="rank")
            place = ranks(seen, given.argmax(1))
            broken = model.correct(xb, yb) & ~model.correct(there, yb)
            counts = broken | torch.tensor(over == "all", device=broken.device)
            return torch.where(counts, place.float(), float("nan")).cpu(), given.argmax(1).cpu()

        pieces, refused = in_batches(len(y), batch_size, report, one)
        classes = other(x[:1].to(other.device or x.device)).shape[1]
    values, given = (torch.cat(column) for column in zip(*pieces))
    return distribution(values, given, classes, refused)


def ranks(logits: Tensor, of: Tensor) -> Tensor:
    """[n]: 1 + how many classes have a larger logit than class `of`."""
    return 1 + (logits > logits.gather(1, of[:, None])).sum(1)


def distribution(values: Tensor, given: Tensor, classes: int, refused: list[int]) -> Measured:
    """Ranks with NaN for images that do not count, and the share of each rank among those that do."""
    result = Measured(values, {"class": given})
    counts = torch.bincount(result.counted.long(), minlength=classes + 1)[1:]
    total = max(1, int(counts.sum()))
    result.details.update({"counts": counts.tolist(), "share": (counts / total).tolist(), "counted": int(counts.sum()), "of": len(values),
                           **({"batch_halved": refused} if refused else {})})
    return result
