"""Gains from what the model decides."""

from __future__ import annotations

from composer.registry import gain
from composer.shapes import Labels, Logits, PerExample


@gain(cuts=("logits",))
def correct(logits: Logits, y: Labels) -> PerExample:
    """One where the example is classified correctly, else zero; constant, so it carries no gradient.

    Formula: 1 if argmax_k z_k = y, else 0  [1]
    Paper:   Ding et al., ICLR 2020 (MMA); EMR counts margins of such examples only
    """
    return (logits.argmax(1) == y).to(logits.dtype)
