"""Data sets and augmentations."""

from composer import registry
from composer.callmodule import make_callable

make_callable(__name__, registry.data)
