"""The summary of an ablation: everything its tables say, as plain data that survives JSON. Knows no torch, no recipe and no layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class Metric:
    """A column. `rate`: a share of `n` images, shown in percent; a diagnostic (a mean smallest breaking radius) keeps its own `unit`."""

    name: str
    n: int = 0
    rate: bool = True
    unit: str = ""

    def scale(self) -> float:
        return 100.0 if self.rate else 1.0


@dataclass(frozen=True)
class Line:
    """A row of a table: a cell, the winner of a sweep, a foreign model, or what stands in print only.

    metrics, delta   metric -> the statistics' plain record: mean, ci95, ci_image, ci_both, values ...
    other, gap       the unselected checkpoint's record, and selected minus unselected, per metric
    trained          metric -> record of "if it trained", where any run of the table collapsed; `collapse` is its count
    cost             {"step", "total", "relative"}: passes (forwards + input gradients + weight gradients, in batches), relative to the base
    epochs           {"trained", "shared", "selected": {seed: epoch}}
    printed          [{"row", "group", "selector", "values", "pm"}]: a paper's row, in percent; `beside`: metric -> the comparison with it
    runs             [{"seed", "run", "out", "selected", "weights", "metrics", "metrics_other", "trust", "trust_other" where that is doubted, "seconds"}]
    """

    name: str
    kind: str = "cell"
    off: tuple[str, ...] = ()
    same_as: str = ""
    void: Mapping[str, str] = field(default_factory=dict)
    about: str = ""
    group: str = ""
    recipe: str = ""
    setting: str = ""
    experiment_id: str = ""
    point: Mapping[str, Any] = field(default_factory=dict)
    runs: tuple[Mapping[str, Any], ...] = ()
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    delta: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    other: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    gap: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    trained: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    collapse: Mapping[str, Any] = field(default_factory=dict)
    cost: Mapping[str, Any] = field(default_factory=dict)
    epochs: Mapping[str, Any] = field(default_factory=dict)
    printed: tuple[Mapping[str, Any], ...] = ()
    beside: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    failed: tuple[Mapping[str, Any], ...] = ()
    doubts: tuple[str, ...] = ()

    @property
    def n(self) -> int:
        """Seeds with a result."""
        return len(self.runs)


@dataclass(frozen=True)
class Table:
    """Rows that may be compared: one protocol, one threat, one data split, one choice of checkpoint.

    base       the row that deltas are taken to, "" where there is none
    protocol   {"digest", "name", "threat", "data", "held_out", "measures"}
    statistics the analysis without what its rows carry: family, second line, correlation, banners, notes, estimand
    budget     held-out accuracy where each row has spent what the cheapest spends in all: see `budget`; {} where all cost the same
    """

    title: str
    checkpoint: str
    metrics: tuple[Metric, ...]
    primary: str
    base: str
    lines: tuple[Line, ...]
    effects: tuple[Mapping[str, Any], ...] = ()
    protocol: Mapping[str, Any] = field(default_factory=dict)
    statistics: Mapping[str, Any] = field(default_factory=dict)
    budget: Mapping[str, Any] = field(default_factory=dict)

    def metric(self, name: str) -> Metric:
        return next((m for m in self.metrics if m.name == name), Metric(name))

    @property
    def other(self) -> str:
        """The unselected checkpoint, where any row has one."""
        return {"best": "last", "last": "best"}.get(self.checkpoint, "other") if any(line.other for line in self.lines) else ""

    @property
    def seeds(self) -> int:
        """The most seeds that a row has."""
        return max((line.n for line in self.lines), default=0)


@dataclass(frozen=True)
class Summary:
    """All tables of a grid and what the reader must know beside them: `as_dict` is what `--json` prints and results.json holds."""

    study: str
    design: str
    toggles: tuple[str, ...]
    seeds: tuple[int, ...]
    base: str
    primary: str
    tables: tuple[Table, ...]
    about: str = ""
    printed_table: str = ""
    banners: tuple[str, ...] = ()
    footer: tuple[tuple[str, str], ...] = ()
    failed: tuple[Mapping[str, Any], ...] = ()
    fractional: Mapping[str, Any] = field(default_factory=dict)      # {"resolution", "aliases"}
    nested: Mapping[str, Any] = field(default_factory=dict)
    epochs_trained: int = 0
    epochs_unshared: int = 0
    fork_epochs: tuple[int, ...] = ()
    sweeps: tuple[Mapping[str, Any], ...] = ()                        # rows whose points are dropped at rungs: see Outcome
    seconds: float = 0.0
    mlflow_parent_run_id: str | None = None
    out: str = ""

    def line(self, name: str) -> Line:
        return next(line for table in self.tables for line in table.lines if line.name == name)

    @property
    def results(self) -> int:
        """Runs with a result, each counted once."""
        return sum(line.n for table in self.tables for line in table.lines if not line.same_as)

    def as_dict(self) -> dict[str, Any]:
        """The JSON of `composer ablate`: cells and effects of all tables in one list each, each with the number of its table."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        found["cells"] = [{"table": at, **asdict(line)} for at, table in enumerate(self.tables) for line in table.lines]
        found["effects"] = [{"table": at, **effect} for at, table in enumerate(self.tables) for effect in table.effects]
        found["tables"] = [{f.name: getattr(t, f.name) for f in fields(t) if f.name not in ("lines", "effects", "metrics")}
                           | {"metrics": [asdict(m) for m in t.metrics]} for t in self.tables]
        head = ("study", "design", "toggles", "seeds", "cells", "effects", "failed", "epochs_trained", "epochs_unshared", "mlflow_parent_run_id", "out")
        return _plain({key: found[key] for key in (*head, *(k for k in found if k not in head))})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Summary:
        """What `as_dict` gave, read back. Errors: KeyError, TypeError for what is no summary."""
        tables = []
        for at, table in enumerate(data["tables"]):
            lines = tuple(_made(Line, cell) for cell in data["cells"] if cell.get("table") == at)
            effects = tuple({k: v for k, v in effect.items() if k != "table"} for effect in data["effects"] if effect.get("table") == at)
            tables.append(_made(Table, {**table, "metrics": tuple(_made(Metric, m) for m in table["metrics"]), "lines": lines, "effects": effects}))
        return _made(cls, {**data, "tables": tuple(tables), "footer": tuple((head, text) for head, text in data["footer"])})


def _made(cls: type, data: Mapping[str, Any]) -> Any:
    known = {f.name for f in fields(cls)}
    return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in data.items() if key in known})


def _plain(value: Any) -> Any:
    """As JSON would give it back; numbers that are not finite become None."""
    from composer.atomic import plain

    return plain(value)
