"""PC: a hinge on every gap between the label's probability and another one, and a limit on the gap of the logits."""

from __future__ import annotations

from typing import Annotated

from composer import loss
from composer.shapes import Ge, Labels, Le, Logits, PerExample, Probs


@loss
def pc(probs: Probs, y: Labels, *, margin: Annotated[float, Ge(0), Le(1)] = 0.8) -> PerExample:
    """Probabilistically compact loss: the label's probability is to exceed every other one by a margin.

    Formula: (1/(K - 1)) sum_{k != y} max(0, margin + p_k - p_y)   [probability]
    Paper:   PC loss, Li et al., AAAI 2021; margin 0.8, in its training notebook 0.995

    The authors' code sums over all classes and takes off the margin, which is what the label itself adds: the same number. From random weights
    its gradient is small (every gap is open, and softmax saturates): the authors start from a network trained with cross entropy.
    """
    own = y.unsqueeze(1)
    gaps = (margin + probs - probs.gather(1, own)).clamp_min(0)
    return gaps.scatter(1, own, 0.0).sum(1) / (probs.shape[1] - 1)


@loss
def logit_constraint(logits: Logits, y: Labels) -> PerExample:
    """Limits how far the label's logit stands above the strongest wrong ones, so that no small step in the image can turn a large gap.

    Formula: sum_{k != y} q_k · max(0, z_y - z_k), q the softmax of the wrong logits alone   [logits]
    Paper:   PC loss with logit constraints, Li et al., AAAI 2021; weight 0.05 in its code

    q picks the strongest wrong class smoothly and carries gradient, as in the authors' code (theirs masks the label with -1000, here with
    minus infinity).
    """
    own = y.unsqueeze(1)
    q = logits.scatter(1, own, float("-inf")).softmax(1)
    return (q * (logits.gather(1, own) - logits).clamp_min(0)).sum(1)
