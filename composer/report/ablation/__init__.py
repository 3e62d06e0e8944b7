"""The table of an ablation in every form a reader may want."""

from __future__ import annotations

from composer.report.ablation.terminal import plain_text, show
from composer.report.ablation.write import read_summary, write_all

__all__ = ["plain_text", "read_summary", "show", "write_all"]
