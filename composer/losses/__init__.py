"""Losses: one value per example, never reduced."""

from composer.losses.cross_entropy import boosted_ce, ce, soft_ce
from composer.losses.distances import mae, modified_huber, mse, nmse
from composer.losses.divergence import kl
from composer.losses.margins import cw, dlr, margin

__all__ = ["boosted_ce", "ce", "cw", "dlr", "kl", "mae", "margin", "modified_huber", "mse", "nmse", "soft_ce"]
