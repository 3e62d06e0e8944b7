"""How far a network's confidence is from its accuracy."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch

from composer.evaluate.figures_common import Report, in_batches, points
from composer.evaluate.results import Measured
from composer.registry import measure
from composer.shapes import Ge, Images, Labels, Module, Norm, Start, Tensor, ThreatPixels, ThreatSteps


@measure(unit="share", figure="reliability")
def calibration(model: Module, x: Images, y: Labels, draws: Any, batch_size: int, report: Report, *, bins: Annotated[int, Ge(1)] = 15,
                split: Literal["test", "train", "val"] = "test", at: Literal["clean", "adv"] = "clean", eps: ThreatPixels, step: ThreatPixels,
                steps: ThreatSteps, start: Start, norm: Norm) -> Measured:
    """Expected calibration error; the bins, the Brier score and the log loss are in the details.

    An image's value is its confidence minus its correctness, with the sign of its bin's gap, so that the mean over images is the error; the spread of
    such values is no standard error of it. Images whose logits are not finite do not count.

    Formula: sum_b (n_b / n) |mean_{i in b} conf_i - mean_{i in b} [argmax_k p_ik = y_i]|, bins (b/B, (b+1)/B] of conf_i = max_k p_ik   [share];
             Brier: mean_i sum_k (p_ik - [k = y_i])², from 0 to 2
    Paper:   Guo et al., ICML 2017 (15 bins); Brier, MWR 1950

    at   `adv`: at the end points of pgd on cross entropy with the threat's options
    """
    def one(rows: Tensor) -> tuple[Tensor, Tensor]:
        xb, yb = points(model, x, y, rows, draws, at, eps=eps, step=step, steps=steps, start=start, norm=norm)
        with torch.no_grad():
            return model(xb).double().cpu(), yb.cpu()

    pieces, refused = in_batches(len(y), batch_size, report, one)
    logits, labels = (torch.cat(column) for column in zip(*pieces))
    result = reliability(logits, labels, bins)
    result.details |= {"batch_halved": refused} if refused else {}
    return result


def reliability(logits: Tensor, y: Tensor, bins: int) -> Measured:
    """Of float64 logits [n,K]."""
    finite = logits.isfinite().all(1)
    logp = torch.where(finite[:, None], logits, torch.zeros_like(logits)).log_softmax(1)
    confidence, answer = logp.exp().max(1)
    right = (answer == y).double()
    where = (confidence * bins).ceil().long().clamp(1, bins) - 1
    counts, sums, hits = (torch.zeros(bins, dtype=torch.float64).index_add_(0, where[finite], each[finite])
                          for each in (torch.ones_like(confidence), confidence, right))
    sign = (sums - hits).sign()
    values = torch.where(finite, sign[where] * (confidence - right), float("nan"))
    truth = torch.nn.functional.one_hot(y, logits.shape[1]).double()
    brier, loss = (logp.exp() - truth).square().sum(1), -logp.gather(1, y[:, None]).squeeze(1)
    rows = [{"low": b / bins, "high": (b + 1) / bins, "n": int(counts[b]), "confidence": float(sums[b] / counts[b]) if counts[b] else None,
             "accuracy": float(hits[b] / counts[b]) if counts[b] else None} for b in range(bins)]
    gaps = [abs(row["confidence"] - row["accuracy"]) for row in rows if row["n"]]
    means = {name: float(each[finite].mean()) if bool(finite.any()) else None for name, each in
             (("brier", brier), ("log_loss", loss), ("confidence", confidence), ("accuracy", right))}
    return Measured(values.float(), {"confidence": confidence.float(), "correct": right.bool(), "brier": brier.float()},
                    {"bins": rows, "largest_gap": max(gaps, default=None), **means})
