"""What the analysis of an ablation gives: frozen records of plain data, each with `as_dict()` for JSON.

Accuracies, differences and intervals are fractions in [0, 1]; an interval is a pair or None, and None always means "there is none".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Interval = tuple[float, float]
Kind = Literal["delta", "main", "conditional", "interaction", "simple"]
Status = Literal["ok", "not estimable", "not defined", "aliased"]

MIN_TEST_SEEDS = 5                                              # below it: intervals only


@dataclass(frozen=True)
class Estimate:
    """A cell's mean over seeds of one metric. `ci95` is the t interval over seeds, None for one seed or where all seeds tie."""

    cell: str
    metric: str
    mean: float
    values: dict[int, float]
    sd: float | None = None
    ci95: Interval | None = None
    ci_image: Interval | None = None
    ci_both: Interval | None = None

    @property
    def n(self) -> int:
        return len(self.values)

    def as_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "sd": self.sd, "n": self.n, "ci95": plain(self.ci95), "ci_image": plain(self.ci_image),
                "ci_both": plain(self.ci_both), "values": list(self.values.values()), "seeds": list(self.values)}


@dataclass(frozen=True)
class Contrast:
    """One number per seed and what follows from it: a delta (cell minus reference) or an effect (on minus off).

    term       the cell of a delta; "ema", "ema given align", "ema:margin", "ema with margin off" of an effect
    values     seed -> the contrast of that seed; `n` seeds are common to all cells it reads
    ci95       unadjusted t interval over seeds (`ci_seed`); ci_simultaneous: Bonferroni-t within the family
    p_holm     None below five seeds, outside the family and off the primary metric; `q_bh` where exploratory effects were asked for
    mde        smallest true effect found with 80 % power by a paired t at this n and the observed spread
    status     "ok", or why there is no estimate (`why` says it in words)
    shown      False: an interaction's interval excludes 0, read the simple effects instead
    """

    term: str
    metric: str
    kind: Kind
    estimate: float | None = None
    values: dict[int, float] = field(default_factory=dict)
    sd: float | None = None
    ci95: Interval | None = None
    ci_simultaneous: Interval | None = None
    ci_image: Interval | None = None
    ci_both: Interval | None = None
    p_holm: float | None = None
    q_bh: float | None = None
    mde: float | None = None
    verdict: str = ""
    bold: bool = False
    in_family: bool = False
    aliases: tuple[str, ...] = ()
    given: tuple[str, ...] = ()
    status: Status = "ok"
    why: str = ""
    shown: bool = True
    tied: bool = False
    weights: dict[str, float] = field(default_factory=dict)
    ci90_both: Interval | None = None

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def ci_seed(self) -> Interval | None:
        return self.ci95

    def as_dict(self) -> dict[str, Any]:
        name = "mean" if self.kind == "delta" else "estimate"
        head = {} if self.kind == "delta" else {"term": self.term, "metric": self.metric, "kind": self.kind}
        return {**head, name: self.estimate, "ci95": plain(self.ci95), "ci_simultaneous": plain(self.ci_simultaneous),
                "ci_image": plain(self.ci_image), "ci_both": plain(self.ci_both), "p_holm": self.p_holm, "q_bh": self.q_bh, "mde": self.mde,
                "n": self.n, "values": list(self.values.values()), "seeds": list(self.values), "verdict": self.verdict, "bold": self.bold,
                "in_family": self.in_family, "aliases": list(self.aliases), "given": list(self.given), "status": self.status, "why": self.why,
                "shown": self.shown, "tied": self.tied}


@dataclass(frozen=True)
class SecondLine:
    """Least squares with seeds as blocks. `withheld` says why it is not shown (then `effects` is empty)."""

    metric: str
    effects: tuple[Contrast, ...] = ()
    label: str = "assumes equal correlation"
    variance_ratio: float | None = None                         # largest to smallest variance of the per-seed contrasts, at equal weight
    residual_sd: float | None = None
    df: int | None = None
    withheld: str = ""

    def as_dict(self) -> dict[str, Any]:
        rows = [{"term": e.term, "estimate": e.estimate, "ci95": plain(e.ci95)} for e in self.effects]
        return {"metric": self.metric, "label": self.label, "effects": rows, "variance_ratio": self.variance_ratio,
                "residual_sd": self.residual_sd, "df": self.df, "withheld": self.withheld}


@dataclass(frozen=True)
class Correlation:
    """Correlation between cells over seeds: pooled covariance over pooled variance; `pays_above` is where a paired t beats an unpaired one."""

    metric: str
    pooled: float | None
    pairs: dict[str, float | None]                              # "full|-ema" -> Pearson's r
    pays_above: float | None
    n: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {"metric": self.metric, "pooled": self.pooled, "pairs": dict(self.pairs), "pays_above": self.pays_above, "n": self.n}


@dataclass(frozen=True)
class CollapseRow:
    """How many of a cell's runs collapsed, with the exact (Clopper-Pearson) 95 % interval of the rate, and why each did."""

    cell: str
    collapsed: int
    n: int
    rate: float | None
    ci95: Interval | None
    reasons: dict[int, str]

    def as_dict(self) -> dict[str, Any]:
        return {"cell": self.cell, "collapsed": self.collapsed, "n": self.n, "rate": self.rate, "ci95": plain(self.ci95),
                "reasons": {str(seed): why for seed, why in self.reasons.items()}}


@dataclass(frozen=True)
class Beside:
    """A printed number beside ours: the interval in which one more run of ours would fall, and equivalence of our mean within the margin."""

    cell: str
    metric: str
    printed: float
    text: str
    mean: float
    n: int
    prediction: Interval | None
    verdict: str                                                # "inside", "outside", or "no interval: one seed"
    equivalent: bool | None                                     # None: no `ci_both`
    margin: float

    def as_dict(self) -> dict[str, Any]:
        return {"printed": self.printed, "as_printed": self.text, "mean": self.mean, "n": self.n, "prediction": plain(self.prediction),
                "verdict": self.verdict, "equivalent": self.equivalent, "margin": self.margin}


@dataclass(frozen=True)
class Column:
    """One reading of the grid: "all runs", or "if it trained"."""

    name: str
    cells: dict[str, dict[str, Estimate]]                       # cell -> metric
    deltas: dict[str, dict[str, Contrast]]                      # cell -> metric
    effects: tuple[Contrast, ...]                               # of every metric, the primary first
    dropped_seeds: tuple[int, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "cells": {c: {m: e.as_dict() for m, e in by.items()} for c, by in self.cells.items()},
                "deltas": {c: {m: d.as_dict() for m, d in by.items()} for c, by in self.deltas.items()},
                "effects": [e.as_dict() for e in self.effects], "dropped_seeds": list(self.dropped_seeds)}


@dataclass(frozen=True)
class Analysis:
    """The whole result. `all_runs` is primary; `if_trained` is None where nothing collapsed. `banners` go above a table, `notes` below."""

    primary: str
    estimand: Literal["delta", "effect"]
    family: tuple[str, ...]
    all_runs: Column
    if_trained: Column | None = None
    collapse: tuple[CollapseRow, ...] = ()
    second_line: dict[str, SecondLine] = field(default_factory=dict)
    correlation: dict[str, Correlation] = field(default_factory=dict)
    beside: dict[str, dict[str, Beside]] = field(default_factory=dict)
    banners: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def effects(self, metric: str | None = None, shown_only: bool = True) -> list[Contrast]:
        """Effects of one metric (default the primary); without those that their simple effects replace, unless asked for."""
        wanted = metric or self.primary
        return [e for e in self.all_runs.effects if e.metric == wanted and (e.shown or not shown_only)]

    def as_dict(self) -> dict[str, Any]:
        return {"primary": self.primary, "estimand": self.estimand, "family": list(self.family), "all_runs": self.all_runs.as_dict(),
                "if_trained": self.if_trained.as_dict() if self.if_trained else None, "collapse": [r.as_dict() for r in self.collapse],
                "second_line": {m: s.as_dict() for m, s in self.second_line.items()},
                "correlation": {m: c.as_dict() for m, c in self.correlation.items()},
                "beside": {c: {m: b.as_dict() for m, b in by.items()} for c, by in self.beside.items()},
                "banners": list(self.banners), "notes": list(self.notes)}


def plain(interval: Interval | None) -> list[float] | None:
    """JSON's form of an interval."""
    return None if interval is None else [float(interval[0]), float(interval[1])]
