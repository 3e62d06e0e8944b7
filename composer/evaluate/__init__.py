"""Measures of a trained model: accuracy, attacks, AutoAttack behind a ledger, diagnostics, and checks that say when not to trust the numbers."""

from composer.evaluate.blackbox import spsa
from composer.evaluate.breaking import breaking_eps
from composer.evaluate.corruptions import corruptions
from composer.evaluate.diagnostics import effective_margin, mean_radius, seconds_per_step
from composer.evaluate.figures_calibration import calibration
from composer.evaluate.figures_curve import curve, per_class
from composer.evaluate.figures_landscape import landscape
from composer.evaluate.figures_margins import fab_margin, taylor_margin
from composer.evaluate.figures_rank import rank
from composer.evaluate.measures import aa, apgd_ce, apgd_t, clean, cw, fab, fgsm, mim, pgd, square
from composer.evaluate.results import Evaluation, Measured, wilson
from composer.evaluate.transfer import transfer

__all__ = ["Evaluation", "Measured", "aa", "apgd_ce", "apgd_t", "breaking_eps", "calibration", "clean", "corruptions", "curve", "cw",
           "effective_margin", "fab", "fab_margin", "fgsm", "landscape", "mean_radius", "mim", "per_class", "pgd", "rank", "seconds_per_step",
           "spsa", "square", "taylor_margin", "transfer", "wilson"]
