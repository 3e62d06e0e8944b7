"""Data sets and augmentations."""

from composer import registry
from composer.callmodule import make_callable
from composer.data import arrays, augment, cifar, digits, folders, idx, svhn

__all__ = ["arrays", "augment", "cifar", "digits", "folders", "idx", "svhn"]

make_callable(__name__, registry.data)
