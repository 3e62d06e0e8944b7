"""Margins [N], positive where the example is classified correctly."""

from __future__ import annotations

from typing import Annotated

from composer.registry import view
from composer.shapes import Gt, Labels, Logits, PerExample, Probs, Tensor


@view
def margin_prob(probs: Probs, y: Labels) -> PerExample:
    """Margin of the label in probability.

    Formula: p_y - max_{k != y} p_k, in [-1, 1]  [1]
    Paper:   MWPB eq. 2; Wang et al., NeurIPS 2021 (MAIL), with the sign turned
    """
    own, others = _split(probs, y)
    return own - others.max(1).values


@view
def margin_logit(logits: Logits, y: Labels) -> PerExample:
    """Margin of the label in logits; zero on the decision boundary.

    Formula: z_y - max_{k != y} z_k  [logits]
    Paper:   Elsayed et al., NeurIPS 2018
    """
    own, others = _split(logits, y)
    return own - others.max(1).values


@view
def margin_soft(logits: Logits, y: Labels, *, beta: Annotated[float, Gt(0)] = 5.0) -> PerExample:
    """Smooth margin that never exceeds the margin in logits, so its zero lies inside the decision boundary.

    Formula: z_y - (1/beta) log sum_{k != y} exp(beta z_k)  [logits]
    Paper:   Xu et al., ICLR 2023 (DyART); beta = 1 is minus the loss of Ding et al., ICLR 2020 (MMA)
    """
    own, others = _split(logits, y)
    return -(beta * (others - own.unsqueeze(1))).logsumexp(1) / beta       # differences first: large logits keep their digits


def _split(scores: Logits, y: Labels) -> tuple[Tensor, Tensor]:
    """The label's entry [N], and the scores with it at -inf [N,K]."""
    k = y.unsqueeze(1)
    return scores.gather(1, k).squeeze(1), scores.scatter(1, k, float("-inf"))
