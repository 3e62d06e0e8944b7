"""Views: tensors made from the model's outputs."""

from composer.views.effective import effective_margin
from composer.views.input_margins import margin_at, margin_taylor
from composer.views.margins import margin_logit, margin_prob, margin_soft
from composer.views.predictions import clean_miss, logp, probs

__all__ = ["clean_miss", "effective_margin", "logp", "margin_at", "margin_logit", "margin_prob", "margin_soft", "margin_taylor", "probs"]
