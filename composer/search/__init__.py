"""Searching hyper-parameters: `composer sweep`, the grids of a study's rows, and the tuning of an ablation's cells.

The only room that imports Ray Tune and Optuna. A trial is a run of the edited recipe that stops before the test split: it is trained, judged
on held-out images, and kept in the store's nodes, so that the winner need not be trained again.
"""

from __future__ import annotations

from composer.search.grid import run_grid
from composer.search.options import SweepOptions
from composer.search.report import show
from composer.search.sweep import sweep
from composer.search.tune import tune

__all__ = ["SweepOptions", "run_grid", "show", "sweep", "tune"]
