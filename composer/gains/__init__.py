"""Gains (a weight for each example) and radii (an epsilon for each example)."""

from composer.gains.outcomes import correct
from composer.gains.radii import mwpb

__all__ = ["correct", "mwpb"]
