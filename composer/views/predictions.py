"""Predictions from logits."""

from __future__ import annotations

from typing import Literal

import torch

from composer.registry import view
from composer.shapes import Labels, Logits, LogProbs, PerExample, Probs


@view
def probs(logits: Logits) -> Probs:
    """Predicted probabilities.

    Formula: p_k = exp(z_k) / sum_j exp(z_j)  [1]
    Paper:   softmax
    """
    return torch.softmax(logits, 1)


@view
def logp(logits: Logits) -> LogProbs:
    """Logarithms of the predicted probabilities.

    Formula: z_k - log sum_j exp(z_j)  [nats]
    Paper:   log-softmax
    """
    return torch.log_softmax(logits, 1)


@view
def clean_miss(clean_probs: Probs, y: Labels, *, constants: Literal["mart", "exact"] = "mart") -> PerExample:
    """Probability that the natural image is given a wrong label, with its gradient.

    Formula: 1 - p_y(x); `mart` writes 1.0000001 - p_y(x)  [1]
    Paper:   Wang et al., ICLR 2020 (MART), the factor of its KL; PIAT eq. 5 is `exact`
    """
    right = clean_probs.gather(1, y.unsqueeze(1)).squeeze(1)
    return (1.0000001 if constants == "mart" else 1.0) - right
