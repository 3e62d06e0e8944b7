"""Statistics of an ablation: numbers in, estimates with intervals out. Knows no recipe and no file.

    from composer.ablate.statistics import Input, Settings, analyse
    result = analyse(Input(metrics={"aa": {"full": {0: .51, 1: .50}, "-ema": {0: .49, 1: .49}}}, levels={...}, reference="full", design="full"))
    result.all_runs.cells["full"]["aa"].ci95       result.all_runs.deltas["-ema"]["aa"].verdict       result.effects()       result.as_dict()

One-piece functions, for other commands:
    mcnemar(a, b)              two checkpoints' flags on the same images -> Pair (composer compare)
    paired_difference(a, b)    {cell: {seed: value}} twice (best, last) -> {cell: Contrast} of a minus b
    wilson(k, n), clopper_pearson(k, n)      interval of one accuracy, of one rate
    t_interval(values), prediction_interval(values)      over seeds
    sign_flip(values), wilcoxon(values)      tests of paired differences, from six seeds on
    planned_family(input)      names of the family, or the error in [analysis], before anything is trained (--dry-run)
    minimum_detectable(sd, n)                effect found with 80 % power
Plain words: docs/statistics.md. scipy and statsmodels are imported when a function needs them.
"""

from __future__ import annotations

from composer.ablate.statistics.analyse import analyse, paired_difference, planned_family
from composer.ablate.statistics.inputs import Input, Printed, Settings, Training
from composer.ablate.statistics.intervals import clopper_pearson, prediction_interval, t_interval, wilson
from composer.ablate.statistics.pairs import Pair, mcnemar, sign_flip, wilcoxon
from composer.ablate.statistics.power import minimum_detectable
from composer.ablate.statistics.types import Analysis, Beside, CollapseRow, Column, Contrast, Correlation, Estimate, SecondLine

__all__ = ["Analysis", "Beside", "CollapseRow", "Column", "Contrast", "Correlation", "Estimate", "Input", "Pair", "Printed", "SecondLine",
           "Settings", "Training", "analyse", "clopper_pearson", "mcnemar", "minimum_detectable", "paired_difference", "planned_family",
           "prediction_interval", "sign_flip", "t_interval", "wilcoxon", "wilson"]
