"""What a measure and an evaluation hand back, and the interval a rate is shown with. No torch at import."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from composer.shapes import Tensor


@dataclass
class Measured:
    """One measure's answer for n images.

    values   [n], bool for a verdict (True: the model withstood), float for a diagnostic; the printed number is their mean
    extra    further [n] tensors by name (`clean`: correct before the attack; `zero_grad`: the first input gradient was exactly zero)
    details  JSON-able facts: counts, settings, seconds
    """

    values: Tensor
    extra: dict[str, Tensor] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def metric(self) -> float:
        return float(self.values.double().mean()) if self.values.numel() else float("nan")


@dataclass
class Evaluation:
    """All measures of a protocol on one model. Accuracies are in [0,1]; `flags` holds the per-image values on the CPU by printed name."""

    metrics: dict[str, float]
    n: dict[str, int]
    flags: dict[str, Tensor]
    trust: dict[str, Any]                 # {"ok": bool, "flags": [str]}
    seconds: float
    details: dict[str, dict[str, Any]]


def wilson(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for k hits in n trials, as (low, high) in [0,1]; (0, 1) without a trial.

    Formula: (p + z²/2n ± z·sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n), p = k/n
    Paper:   Wilson, JASA 1927
    """
    if n <= 0:
        return 0.0, 1.0
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(k, n, alpha=1.0 - confidence, method="wilson")
    return max(0.0, float(low)), min(1.0, float(high))
