"""`composer bench --precision-gate RECIPE`: does a lower precision change what is learnt by more than another seed would?

The recipe is trained short in float32 and in the other precision, with the same seeds: same initial weights, order, augmentation, starts of the attack.
The robust accuracy of each pair is compared. Seed noise is the standard deviation of float32's accuracy over the seeds; the interval is that of Student's t
for the mean of the paired differences. Runs are kept under `out`, so a gate that was stopped goes on, and more seeds cost only themselves.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from composer.bench.machine import machine
from composer.errors import ComposerError
from composer.recipe.load import load

METRIC = "pgd-20"
EVALUATE = "evaluate={clean={}, 'pgd-20'={use='pgd', steps=20}}"      # cheap, and graded enough: AutoAttack would cost more than the training
SHORT, LEAST = 10, 3                                                  # a tenth of the epochs, three at least
LOWER = ("bf16", "bf16-attack", "tf32")


def gate(recipe: str, *, settings: Any, seeds: int = 5, epochs: int = 0, precision: str = "bf16", setting: str | None = None, sets: Sequence[str] = (),
         say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """The report as plain data; `say` is told it as it grows.

    settings  where and on what to run (composer.engine.session.Settings); its precision is not looked at
    epochs    of each run; 0: a tenth of the recipe's

    Errors: ComposerError for fewer than two seeds, an unknown precision, and whatever is wrong with the recipe.
    """
    from composer.engine.run import run

    if seeds < 2 or epochs < 0 or precision not in LOWER:
        raise ComposerError(f"--seeds {seeds} --epochs {epochs} --precision {precision}", where="command line",
                            why="seed noise takes two seeds at least, and the precision is held against fp32", fix=f"--precision {', '.join(LOWER)}")
    whole = load(recipe, setting=setting, sets=sets).train.epochs
    length = epochs or min(whole, max(LEAST, whole // SHORT))
    made = load(recipe, setting=setting, sets=[*sets, f"train.epochs={length}", "select.report='last'", EVALUATE])
    say(f"{made.name} on {made.setting}, {length} of {whole} epochs, {seeds} seeds in fp32 and {precision}; {METRIC} of the last weights")
    found: dict[str, list[float]] = {"fp32": [], precision: []}
    clean: dict[str, list[float]] = {"fp32": [], precision: []}
    for seed in range(seeds):
        for each in ("fp32", precision):
            result = run(made, seed=seed, settings=replace(settings, precision=each, track=False, quiet=True))
            found[each].append(result["metrics"][METRIC])
            clean[each].append(result["metrics"]["clean"])
            images = result["n"][METRIC]
        say(f"seed {seed}: fp32 {100 * found['fp32'][-1]:.2f} %, {precision} {100 * found[precision][-1]:.2f} %, "
            f"difference {100 * (found[precision][-1] - found['fp32'][-1]):+.2f}")
    report = {"recipe": made.name, "setting": made.setting, "precision": precision, "epochs": length, "of": whole, "seeds": seeds, "metric": METRIC, "n": images,
              "robust": found, "clean": clean, **compared(found["fp32"], found[precision]), "machine": machine(str(settings.device).replace("auto", _auto()))}
    say(report["verdict"])
    return report


def compared(full: Sequence[float], lower: Sequence[float]) -> dict[str, Any]:
    """Paired differences (lower minus full, accuracies in [0,1]), their mean with its 95 % t interval, the seed noise, and a verdict in words."""
    from composer.ablate.statistics import t_interval

    differences = [b - a for a, b in zip(full, lower, strict=True)]
    mean, noise = statistics.fmean(differences), statistics.stdev(full)
    found = t_interval(differences)
    interval = (mean, mean) if found is None else (float(found[0]), float(found[1]))      # all seeds differ by the same
    return {"differences": differences, "mean_difference": mean, "ci95": list(interval), "seed_noise": noise, "verdict": verdict(mean, interval, noise, len(full))}


def verdict(mean: float, interval: tuple[float, float], noise: float, seeds: int) -> str:
    """In words, with the numbers: within seed noise, beyond it, or not to be told from so few seeds."""
    low, high = interval
    numbers = (f"mean difference {100 * mean:+.2f} points, 95 % interval {100 * low:+.2f} to {100 * high:+.2f} from {seeds} paired seeds; "
               f"another seed moves fp32 by {100 * noise:.2f} (standard deviation)")
    if -noise <= low and high <= noise:
        told = "within seed noise" + (", though the difference is not zero" if low > 0 or high < 0 else "")
    elif low > noise or high < -noise:
        told = "beyond seed noise: this precision changes what is learnt"
    else:
        told = "undecided: the interval reaches across the seed noise; more seeds would tell"
    return f"{told}. {numbers}"


def _auto() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


__all__ = ["compared", "gate", "verdict"]
