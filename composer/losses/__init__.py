"""Losses: one value per example, never reduced."""

from composer.losses.cross_entropy import boosted_ce, ce, soft_ce
from composer.losses.distances import mae, modified_huber, mse, nmse
from composer.losses.divergence import kl
from composer.losses.input_margins import margin_exp, margin_hinge
from composer.losses.input_slopes import approx_emr, emr
from composer.losses.margins import cw, dlr, margin

__all__ = ["approx_emr", "boosted_ce", "ce", "cw", "dlr", "emr", "kl", "mae", "margin", "margin_exp", "margin_hinge", "modified_huber", "mse", "nmse", "soft_ce"]
