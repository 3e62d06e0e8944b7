"""MIMAE-AT's regulariser: the mutual information of the predictions on the clean and the adversarial image. An interpretation."""

from __future__ import annotations

from composer import loss
from composer.shapes import Logits, PerExample


@loss(couples="batch")
def mutual_information(a: Logits, b: Logits) -> PerExample:
    """Minus the mutual information of two predicted classes, estimated over the batch; its mean is -I.

    Formula: -sum_{jk} p_j q_k log(P_jk / (P_j. P_.k)), p = softmax(a), q = softmax(b), P_jk = mean over the batch of p_j q_k,
             P_j. and P_.k its margins; I in [0, log K]   [nats]
    Paper:   MIMAE-AT, Atsague et al., ACML 2021 (the term is named there); the estimator is that of IIC, Ji et al., ICCV 2019:
             an interpretation, since no code is public

    I is high where the two agree, are sure, and use all classes. Its estimate needs batches well above K images. Cells of P below 1e-12 count
    as 1e-12.
    """
    p, q = a.softmax(1), b.softmax(1)
    joint = p.T @ q / p.shape[0]
    information = joint.clamp_min(1e-12).log() - joint.sum(1, keepdim=True).clamp_min(1e-12).log() - joint.sum(0, keepdim=True).clamp_min(1e-12).log()
    return -((p @ information) * q).sum(1)
