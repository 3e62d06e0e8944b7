"""What a sweep shows: which values mattered (fANOVA), and how they went together (parallel coordinates)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from composer import atomic
from composer.recipe.write import quote
from composer.search.options import installed
from composer.search.space import Space, distributions, encode
from composer.search.store import Trial

FEWEST = 4                      # finished trials below which a forest says nothing


def importance(trials: Sequence[Trial], space: Space, metric: str) -> dict[str, float]:
    """Share of the metric's variance over the finished trials that each value explains; {} where there are too few trials, or all are alike.

    Formula: fANOVA over a random forest, shares that sum to 1   [1]
    Paper:   Hutter, Hoos, Leyton-Brown, ICML 2014
    """
    done = [t for t in trials if t.status == "done" and t.score(metric) is not None and set(t.values) == set(space)]
    live = [path for path in space if len({quote(t.values[path]) for t in done}) > 1]
    if len(done) < FEWEST or not live or len({t.score(metric) for t in done}) < 2 or not (installed("optuna") and installed("sklearn")):
        return {}
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    dists = {path: each for path, each in distributions(space).items() if path in live}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study(direction="maximize")
        for t in done:
            params = encode(space, {path: t.values[path] for path in live})
            study.add_trial(optuna.trial.create_trial(params=params, distributions=dists, value=t.score(metric)))
        found = optuna.importance.get_param_importances(study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0))
    return {path: float(found.get(path, 0.0)) for path in sorted(live, key=lambda p: -found.get(p, 0.0))}


def pictures(trials: Sequence[Trial], result: Mapping[str, Any], folder: Path) -> list[Path]:
    """importance.png and parallel.png, each also as .svg; none without matplotlib, or where there is nothing to draw."""
    if not installed("matplotlib"):
        return []
    import matplotlib

    matplotlib.use("Agg")
    drawn = [("importance", _importance(result)), ("parallel", _parallel(trials, result))]
    return [path for name, figure in drawn if figure is not None for path in _save(figure, folder, name)]


def _save(figure: Any, folder: Path, name: str) -> list[Path]:
    from matplotlib import pyplot

    try:
        return [atomic.replace_with(folder / f"{name}.{kind}", lambda beside: figure.savefig(beside, dpi=140)) for kind in ("png", "svg")]
    finally:
        pyplot.close(figure)


def _importance(result: Mapping[str, Any]) -> Any:
    from matplotlib import pyplot

    shares = dict(reversed(result["importance"].items()))
    if not shares:
        return None
    figure, axis = pyplot.subplots(figsize=(6, 1.2 + 0.4 * len(shares)), constrained_layout=True)
    axis.barh(list(shares), list(shares.values()), color="tab:blue")
    axis.set(xlim=(0, 1), xlabel=f"share of the variance of {result['metric']} (fANOVA)")
    return figure


def _parallel(trials: Sequence[Trial], result: Mapping[str, Any]) -> Any:
    """A line for each trial across an axis for each value, coloured by the metric; stopped trials are thin and dashed."""
    from matplotlib import pyplot
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    space, metric = result["space"], result["metric"]
    shown = [t for t in trials if t.score(metric) is not None and t.status in ("done", "pruned") and set(t.values) == set(space)]
    if not shown:
        return None
    scores = [t.score(metric) for t in shown]
    colour = ScalarMappable(Normalize(min(scores), max(max(scores), min(scores) + 1e-9)), cmap="viridis")
    axes = [Axis(path, one, [t.values[path] for t in shown]) for path, one in space.items()]
    axes.append(Axis(metric, {"low": min(scores), "high": max(scores)}, scores, percent=True))
    figure, plot = pyplot.subplots(figsize=(max(6.0, 1.9 * len(axes)), 4.5), constrained_layout=True)
    for t in sorted(shown, key=lambda t: t.score(metric)):
        heights = [a.height(v) for a, v in zip(axes, [*(t.values[p] for p in space), t.score(metric)], strict=True)]
        plot.plot(range(len(axes)), heights, color=colour.to_rgba(t.score(metric)), linewidth=1.5 if t.status == "done" else 0.7,
                  linestyle="-" if t.status == "done" else "--", alpha=0.85)
    for k, each in enumerate(axes):
        plot.axvline(k, color="0.3", linewidth=0.8)
        for value in each.ticks():
            plot.annotate(each.label(value), (k, each.height(value)), xytext=(3, 0), textcoords="offset points", fontsize=7, va="center", color="0.2", zorder=5,
                          bbox={"boxstyle": "square,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85})
    plot.set_xticks(range(len(axes)), [a.name for a in axes], fontsize=8, rotation=12)
    plot.set_yticks([])
    dashed = "; dashed: stopped at a rung" if any(t.status != "done" for t in shown) else ""
    plot.set(ylim=(-0.05, 1.05), title=f"{result['sweep']}: {len(shown)} trials, {metric} on held-out images{dashed}")
    return figure


class Axis:
    """One upright axis: heights in [0, 1], evenly in the logarithm of a logarithmic range, one step a choice."""

    def __init__(self, name: str, one: Mapping[str, Any], values: Sequence[Any], percent: bool = False):
        self.name, self.log, self.percent = name, bool(one.get("log")), percent
        self.choices = [quote(v) for v in one["choices"]] if "choices" in one else []
        if not self.choices:
            self.low, self.high = min([one["low"], *values]), max([one["high"], *values])

    def height(self, value: Any) -> float:
        if self.choices:
            return self.choices.index(value if value in self.choices else quote(value)) / max(1, len(self.choices) - 1)
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return (at - low) / (high - low) if high > low else 0.5

    def ticks(self) -> list[Any]:
        return self.choices or [self.low, self.high]

    def label(self, value: Any) -> str:
        if self.percent:
            return f"{100 * value:.1f} %"
        return f"{value:.3g}" if isinstance(value, (int, float)) else str(value)[:24]
