"""Measures of a trained model: accuracy, attacks, AutoAttack behind a ledger, diagnostics, and checks that say when not to trust the numbers."""

from composer.evaluate.blackbox import spsa
from composer.evaluate.breaking import breaking_eps
from composer.evaluate.corruptions import corruptions
from composer.evaluate.diagnostics import effective_margin, mean_radius, seconds_per_step
from composer.evaluate.measures import aa, apgd_ce, apgd_t, clean, cw, fab, fgsm, mim, pgd, square
from composer.evaluate.results import Evaluation, Measured, wilson

__all__ = ["Evaluation", "Measured", "aa", "apgd_ce", "apgd_t", "breaking_eps", "clean", "corruptions", "cw", "effective_margin", "fab", "fgsm", "mean_radius", "mim", "pgd",
           "seconds_per_step", "spsa", "square", "wilson"]
