"""MAIL: examples with a small probabilistic margin weigh more."""

from __future__ import annotations

import torch

from composer import gain
from composer.shapes import Labels, PerExample, Probs


@gain(neutral={"slope": 0.0})
def mail(probs: Probs, y: Labels, *, slope: float = 10.0, bias: float = -0.5) -> PerExample:
    """Sigmoid weight of the probabilistic margin: close to 3 where an example is clearly misclassified, close to 0 where it is safe.

    Formula: 3 · sigmoid(slope · (PM + bias)), PM = max_{k != y} p_k - p_y   [1]
    Paper:   MAIL, Liu et al., NeurIPS 2021; AT: slope 10, bias -0.5; TRADES: slope 2, bias 0

    PM is in [-1, 1] and positive where misclassified, the opposite sign of composer's margins. The factor 3 and the missing
    normalisation are those of the authors' code; `normalise = true` beside it makes the mean 1. Their weights carry no gradient:
    say `detach = ["gain"]` in the term.
    """
    own = y.unsqueeze(1)
    rival = probs.scatter(1, own, -1.0).amax(1)
    return 3 * torch.sigmoid(slope * (rival - probs.gather(1, own).squeeze(1) + bias))
