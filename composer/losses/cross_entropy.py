"""Cross entropies: with labels, with soft labels, and boosted by the strongest wrong class."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F

from composer.losses.rivals import at, without
from composer.registry import loss
from composer.shapes import Labels, Logits, PerExample, SoftLabels

FEW, MANY = 16, 512        # classes, rows: PyTorch's log-softmax on a CPU takes a row at a time, which fills no vector; along the rows it takes a third of the time


@loss
def ce(logits: Logits, y: Labels) -> PerExample:
    """Cross entropy of the label.

    Formula: -log p_y  [nats]
    Paper:   Madry et al., ICLR 2018, as the loss of adversarial training
    """
    if logits.is_cpu and logits.shape[1] <= FEW and len(logits) >= MANY:
        return F.cross_entropy(logits.t().unsqueeze(0), y.unsqueeze(0), reduction="none").squeeze(0)
    return F.cross_entropy(logits, y, reduction="none")


@loss
def soft_ce(logits: Logits, y_soft: SoftLabels) -> PerExample:
    """Cross entropy of a soft label, as mixup, cutmix and label smoothing make it.

    Formula: -sum_k q_k log p_k, q = y_soft  [nats]
    Paper:   Szegedy et al., CVPR 2016 (label smoothing); Zhang et al., ICLR 2018 (mixup)
    """
    return F.cross_entropy(logits, y_soft, reduction="none")


@loss
def boosted_ce(logits: Logits, y: Labels, *, constants: Literal["mart", "exact"] = "mart") -> PerExample:
    """Cross entropy that also pushes down the strongest wrong class.

    The index of that class is found without a gradient; its probability carries one.

    Formula: -log p_y - log(1 - p_k), k = argmax_{j != y} p_j; `mart` writes the second as -log(1.0001 - p_k + 1e-12)  [nats]
    Paper:   Wang et al., ICLR 2020 (MART); LMA-AT eq. 7 is `exact`, MART's public code has the constants
    """
    k = without(logits.detach(), y).argmax(1)
    plain = F.cross_entropy(logits, y, reduction="none")
    if constants == "mart":
        return plain - (1.0001 - at(logits.softmax(1), k) + 1e-12).log()
    # 1 - p_k = sigmoid(log sum_{j != k} exp(z_j - z_k)): finite where p_k rounds to 1
    return plain - F.logsigmoid(without(logits - at(logits, k).unsqueeze(1), k).logsumexp(1))
