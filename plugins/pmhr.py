"""PMHR-AT's strength: how unlike the predictions on the clean and the adversarial image are. An interpretation."""

from __future__ import annotations

from composer import gain
from composer.shapes import PerExample, Probs, Tensor


@gain
def dissimilarity(adv_probs: Probs, clean_probs: Probs) -> PerExample:
    """One minus the cosine of the two predictions: 0 where they agree, close to 1 where each is sure of another class.

    Formula: 1 - p · q / (|p| |q|), p and q the adversarial and the clean probabilities   [1]
    Paper:   PMHR-AT, as LMA-AT describes it (a strength by the similarity of the two); this form is an interpretation

    No code of PMHR-AT is public and LMA-AT gives no formula. Attached, as MART's weight is; `detach = ["gain"]` makes it a constant.
    """
    return 1 - (_unit(adv_probs) * _unit(clean_probs)).sum(1)


def _unit(p: Probs) -> Tensor:
    return p / p.square().sum(1, keepdim=True).sqrt()       # at least 1/sqrt(K), so never zero
