"""A sweep's record on disk: one folder a trial, written piece by piece, so that a sweep goes on after any death.

    <out>/sweeps/<name>/sweep.json            what is searched, by what
                       /trial-007/values.json the draw, written before the trial starts
                                 /epochs.jsonl   a line for each epoch: what validation measured
                                 /rung-28.json   measures on held-out images at a rung of a grid
                                 /end.json       how it ended; without it the trial is unfinished and goes on in the next sitting
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from composer import atomic
from composer.errors import ComposerError

ENDED = ("done", "pruned", "diverged", "invalid", "failed")      # failed: a crash; tried again in the next sitting


@dataclass(frozen=True)
class Trial:
    """One trial as its folder tells. `metrics` are held-out accuracies: of the selected epoch if it is done, else of the last one trained."""

    number: int
    values: dict[str, Any]
    status: str = "unfinished"
    epochs: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    curve: tuple[dict[str, float], ...] = ()
    experiment_id: str = ""
    why: str = ""
    selected_epoch: int = 0
    seconds: float = 0.0
    mlflow_run_id: str | None = None

    def score(self, measure: str) -> float | None:
        return self.metrics.get(measure)


class Store:
    """The folder of one sweep."""

    def __init__(self, out: Path, name: str):
        self.out, self.name = Path(out).absolute(), name
        self.folder = self.out / "sweeps" / name

    def begin(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Write what is searched, or check that it is what the folder holds. Returns what is held.

        Errors: ComposerError where another sweep has this name.
        """
        held = read(self.folder / "sweep.json")
        same = ("experiment_id", "space", "points", "seed", "metric", "sampler", "precision")
        now = atomic.plain(dict(facts))
        different = [key for key in same if held and held.get(key) != now.get(key)]
        if different:
            raise ComposerError(f"the sweep {self.name} is another one", where=str(self.folder), fix="give this one a name of its own with --name",
                                why=f"{different[0]} was {json.dumps(held.get(different[0]))}, and is {json.dumps(now.get(different[0]))}")
        if not held:
            atomic.write_json(self.folder / "sweep.json", now)
        return held or now

    def trial(self, number: int) -> Path:
        return self.folder / f"trial-{number:03d}"

    def count(self) -> int:
        """Trials proposed so far; they are numbered without gaps."""
        number = 0
        while (self.trial(number) / "values.json").exists():
            number += 1
        return number

    def propose(self, number: int, values: Mapping[str, Any], experiment_id: str = "") -> None:
        atomic.write_json(self.trial(number) / "values.json", {"number": number, "values": values, "experiment_id": experiment_id})

    def end(self, number: int, status: str, **facts: Any) -> None:
        if status not in ENDED:
            raise ValueError(f"status {status!r} is none of {', '.join(ENDED)}")
        atomic.write_json(self.trial(number) / "end.json", {"status": status, **facts})

    def read(self, number: int) -> Trial:
        folder = self.trial(number)
        said, end = read(folder / "values.json") or {}, read(folder / "end.json") or {}
        curve = tuple({row["epoch"]: row for row in atomic.read_lines(folder / "epochs.jsonl")}.values())
        metrics = end.get("metrics") or ({k: v for k, v in curve[-1].items() if k != "epoch"} if curve else {})
        return Trial(number=number, values=said.get("values", {}), experiment_id=said.get("experiment_id", ""), status=end.get("status", "unfinished"),
                     epochs=max((int(row["epoch"]) for row in curve), default=0), metrics=metrics, curve=curve, why=end.get("why", ""),
                     selected_epoch=end.get("selected_epoch", 0), seconds=end.get("seconds") or 0.0, mlflow_run_id=end.get("mlflow_run_id"))

    def trials(self) -> list[Trial]:
        return [self.read(number) for number in range(self.count())]


def read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
