"""The strongest wrong class, as several losses need it."""

from __future__ import annotations

from composer.shapes import Indices, Labels, Logits, PerExample

MASKED = float("-inf")


def without(scores: Logits, k: Indices) -> Logits:
    """`scores` [N,K] with entry k of each row at -inf, which carries no gradient."""
    return scores.scatter(1, k.unsqueeze(1), MASKED)


def at(scores: Logits, k: Indices) -> PerExample:
    """Entry k of each row, [N]."""
    return scores.gather(1, k.unsqueeze(1)).squeeze(1)


def largest_other(scores: Logits, y: Labels) -> PerExample:
    """Largest entry but that of y, [N]; where two tie, one of them carries the gradient."""
    return without(scores, y).max(1).values
