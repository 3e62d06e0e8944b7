"""Networks and heads."""

from composer.models import external, heads, nets

__all__ = ["external", "heads", "nets"]
