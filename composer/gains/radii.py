"""Radii: an epsilon for each example, without a gradient."""

from __future__ import annotations

from typing import Annotated, Literal

from composer.registry import radius
from composer.shapes import Gt, Labels, Logits, PerExample, Scalar


@radius
def mwpb(clean_logits: Logits, y: Labels, eps: Scalar, *, alpha: float = 0.58, margin: Literal["prob", "logit"] = "prob",
         clip: Annotated[float, Gt(0)] = 1.0) -> PerExample:
    """Radius that grows with the margin of the natural image: wider where it is classified with confidence, narrower where it is not.

    The margin is cut to [-clip, clip]. At 1, a margin of probabilities is left as it is; one of logits, without bound by itself, needs it.

    Formula: eps exp(alpha m), m = s_y - max_{k != y} s_k, s the probabilities or logits of the natural image  [pixels]
    Paper:   MWPB eq. 2 and 3; alpha 0.58 (AT), 0.42 (TRADES), 0.55 (MART) on CIFAR-10
    """
    scores = clean_logits.detach()
    if margin == "prob":
        scores = scores.softmax(1)
    own = y.unsqueeze(1)
    ahead = scores.gather(1, own).squeeze(1) - scores.scatter(1, own, float("-inf")).amax(1)
    return eps * (alpha * ahead.clamp(-clip, clip)).exp()
