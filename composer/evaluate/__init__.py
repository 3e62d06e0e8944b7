"""Measures of a trained model: accuracy, attacks, AutoAttack behind a ledger, and checks that say when not to trust the numbers."""

from composer.evaluate.measures import aa, apgd_ce, clean, cw, fab, fgsm, pgd, square
from composer.evaluate.results import Evaluation, Measured, wilson

__all__ = ["Evaluation", "Measured", "aa", "apgd_ce", "clean", "cw", "fab", "fgsm", "pgd", "square", "wilson"]
