"""WAT: examples with a small margin weigh exponentially more, in the attack and in the loss."""

from __future__ import annotations

from composer import gain
from composer.shapes import Labels, PerExample, Probs


@gain(neutral={"alpha": 0.0})
def wat(probs: Probs, y: Labels, *, alpha: float = 0.5) -> PerExample:
    """Exponential weight of the probabilistic margin, attached: the gradient pushes the margin through the weight as well.

    Formula: exp(-alpha m), m = p_y - max_{k != y} p_k   [1]
    Paper:   Zeng et al., AAAI 2021 (WAT), the closed form of its released code; alpha 0.5

    The paper's learnable weights of a minimax problem are not in its code. Neither normalised nor detached there; `normalise = true` beside it
    makes the mean 1, `detach = ["gain"]` in the term cuts the gradient.
    """
    own = y.unsqueeze(1)
    margin = probs.gather(1, own).squeeze(1) - probs.scatter(1, own, -1.0).amax(1)
    return (-alpha * margin).exp()
