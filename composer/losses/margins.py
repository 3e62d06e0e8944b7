"""Losses of the difference between the label's output and the others'."""

from __future__ import annotations

from typing import Annotated, Literal

import torch.nn.functional as F

from composer.errors import ComposerError
from composer.losses.rivals import at, largest_other
from composer.registry import loss
from composer.shapes import Ge, Labels, Logits, PerExample


@loss
def margin(logits: Logits, y: Labels, *, delta: Annotated[float, Ge(0)] = 0.9, hinge: Literal["squared", "linear"] = "squared",
           space: Literal["logits", "probs"] = "logits", class_reduction: Literal["sum", "mean"] = "sum") -> PerExample:
    """Hinge on the margin to every wrong class.

    `mean` divides by K, the true class counted, as torch's MultiMarginLoss does.

    Formula: sum_{j != y} max(0, delta - (z_y - z_j))^2, or its first power; z the logits or softmax  [logits squared]
    Paper:   LMA-AT eq. 12 (L'), delta 0.9
    """
    z = logits.softmax(1) if space == "probs" else logits
    own = y.unsqueeze(1)
    short = F.relu(z - z.gather(1, own) + delta).scatter(1, own, 0.0)      # the true class would add max(0, delta)
    if hinge == "squared":
        short = short.square()
    return short.sum(1) if class_reduction == "sum" else short.mean(1)


@loss
def cw(logits: Logits, y: Labels, *, confidence: float = 50.0) -> PerExample:
    """Carlini and Wagner's margin, for climbing: it rises until a wrong class leads by the confidence.

    Formula: -max(0, z_y - max_{k != y} z_k + confidence)  [logits]
    Paper:   Carlini and Wagner, S&P 2017, in the form of Madry et al., ICLR 2018
    """
    return -F.relu(at(logits, y) - largest_other(logits, y) + confidence)


@loss
def dlr(logits: Logits, y: Labels) -> PerExample:
    """Difference of logits ratio: the margin, free of the logits' shift and scale.

    Errors: fewer than three classes.

    Formula: -(z_y - max_{k != y} z_k) / (z_(1) - z_(3) + 1e-12), z_(i) the i-th largest  [1]
    Paper:   Croce and Hein, ICML 2020 (AutoAttack) eq. 6
    """
    if logits.shape[1] < 3:
        raise ComposerError(f"loss 'dlr' got {logits.shape[1]} classes", why="its scale is the first minus the third largest logit",
                            fix="use `cw` for fewer than three classes")
    top = logits.topk(3, dim=1).values
    return -(at(logits, y) - largest_other(logits, y)) / (top[:, 0] - top[:, 2] + 1e-12)
