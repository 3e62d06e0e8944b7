"""What a measure and an evaluation hand back, and the interval a rate is shown with. No torch at import."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from composer.shapes import Tensor


@dataclass
class Measured:
    """One measure's answer.

    values   [n] bool, a verdict on every image (True: the model withstood): the printed number is an accuracy, their mean. Or float, of a
             diagnostic (a measure registered with a `unit`): the printed number is the mean of those that are not NaN, in that unit; NaN
             says that an image does not count (misclassified, where the mean is over correct ones)
    extra    further [n] tensors by name (`clean`: correct before the attack; `zero_grad`: the first input gradient was exactly zero)
    details  JSON-able facts: counts, settings, seconds
    """

    values: Tensor
    extra: dict[str, Tensor] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def counted(self) -> Tensor:
        """The values that enter the mean."""
        return self.values[~self.values.isnan()] if self.values.is_floating_point() else self.values

    @property
    def metric(self) -> float:
        counted = self.counted
        return float(counted.double().mean()) if counted.numel() else float("nan")


@dataclass
class Evaluation:
    """All measures of a protocol on one model. Accuracies are in [0,1]; `flags` holds the per-image values on the CPU by printed name.

    units  of the diagnostics alone, by printed name: what stands here is no accuracy, is never shown in percent and never selects
    n      images behind each number; of a diagnostic, those that count
    """

    metrics: dict[str, float]
    n: dict[str, int]
    flags: dict[str, Tensor]
    trust: dict[str, Any]                 # {"ok": bool, "flags": [str]}
    seconds: float
    details: dict[str, dict[str, Any]]
    units: dict[str, str] = field(default_factory=dict)
    extra: dict[str, dict[str, Tensor]] = field(default_factory=dict)      # of each measure, further tensors by name
    seen: dict[str, Any] = field(default_factory=dict)                     # by the trust checks, of the model itself (trust_probe.Probe)


class Run(Protocol):
    """What a measure may ask of the run whose weights are judged, by the need `run`; None where a bare model is judged.

    key    what decides the run's bits: part of the key of what such a measure stores
    """

    key: str

    def images(self, split: str, n: int | None = None) -> tuple[Tensor, Tensor]:
        """(float images in [0,1], labels), the first n: `train` (the images trained on, as they are) or `val` (those held out)."""

    def radii(self, point: str = "") -> Tensor:
        """[n] pixels: the radius of the inner maximum in the last stretch, at every training image, for the judged weights."""

    def reference(self, text: str) -> Any:
        """A second network (images -> logits): a file of weights, a finished run, or the run of a recipe beside this one."""

    def reference_digest(self, text: str) -> str:
        """Of that network's weights."""

    def step_seconds(self) -> Tensor:
        """[epochs] seconds of one training step, as the run's own record says; NaN where it says nothing."""


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
