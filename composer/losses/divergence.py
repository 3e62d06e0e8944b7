"""Divergence between two predictions."""

from __future__ import annotations

from typing import Literal

from composer.registry import loss
from composer.shapes import LogProbs, PerExample


@loss
def kl(logp: LogProbs, target_logp: LogProbs, *, constants: Literal["exact", "mart"] = "exact") -> PerExample:
    """Kullback-Leibler divergence of the prediction from a target prediction; both carry gradients.

    With the default target, the clean prediction, it is the regulariser of TRADES.

    Formula: sum_k q_k (log q_k - log p_k), q = exp(target_logp), p = exp(logp); `mart` writes log(p_k + 1e-12)  [nats]
    Paper:   Zhang et al., ICML 2019 (TRADES); Wang et al., ICLR 2020 (MART), whose public code has the constant
    """
    if constants == "mart":
        logp = (logp.exp() + 1e-12).log()
    return (target_logp.exp() * (target_logp - logp)).sum(1)        # F.kl_div has no batching rule under vmap
