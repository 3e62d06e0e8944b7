"""Inner maximisation: attacks that a recipe's loss terms climb with, their starts and their norm balls."""

from composer import registry
from composer.callmodule import make_callable
from composer.inner import ascent, balls, fab, fgsm, l1, mim, pgd, starts

make_callable(__name__, registry.inner)

__all__ = ["ascent", "balls", "fab", "fgsm", "l1", "mim", "pgd", "starts"]
