"""Measures of a trained model: accuracy, attacks, AutoAttack behind a ledger, and checks that say when not to trust the numbers."""

from composer.evaluate.measures import aa, clean, cw, fgsm, pgd
from composer.evaluate.results import Evaluation, Measured, wilson

__all__ = ["Evaluation", "Measured", "aa", "clean", "cw", "fgsm", "pgd", "wilson"]
