"""Views: tensors made from the model's outputs."""

from composer.views.margins import margin_logit, margin_prob, margin_soft
from composer.views.predictions import clean_miss, logp, probs

__all__ = ["clean_miss", "logp", "margin_logit", "margin_prob", "margin_soft", "probs"]
