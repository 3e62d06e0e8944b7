"""Measures of a trained model: accuracy, attacks, AutoAttack behind a ledger, diagnostics, and checks that say when not to trust the numbers."""

from composer.evaluate.blackbox import spsa
from composer.evaluate.breaking import breaking_eps
from composer.evaluate.diagnostics import effective_margin, mean_radius, seconds_per_step
from composer.evaluate.measures import aa, apgd_ce, clean, cw, fab, fgsm, mim, pgd, square
from composer.evaluate.results import Evaluation, Measured, wilson

__all__ = ["Evaluation", "Measured", "aa", "apgd_ce", "breaking_eps", "clean", "cw", "effective_margin", "fab", "fgsm", "mean_radius", "mim", "pgd",
           "seconds_per_step", "spsa", "square", "wilson"]
