"""What pictures are drawn from: each measure's facts in figures.json, and the values by image of those that are shown as histograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from composer import atomic
from composer.report.read import read_json

FACTS, VALUES, FOLDER = "figures.json", "figures.safetensors", "figures"


@dataclass(frozen=True)
class Shown:
    """One measure of one model. `values`: float32 by image, where a histogram is drawn of them; NaN for images that do not count."""

    name: str
    use: str
    figure: str
    unit: str
    metric: float | None
    n: int
    details: Mapping[str, Any]
    values: Any = None


@dataclass(frozen=True)
class Series:
    """What one line or panel shows: a model, or a row of a study with its seeds."""

    label: str
    seeds: tuple[Mapping[str, Shown], ...] = ()
    folders: tuple[Path, ...] = field(default=(), repr=False)      # of the runs, for their epochs and recipes

    def of(self, name: str) -> list[Shown]:
        return [seed[name] for seed in self.seeds if name in seed]


def write(folder: Path, judged: Any, measures: Sequence[Any]) -> bool:
    """Keep what the evaluation says of the measures that have a picture; whether there are any.

    judged    composer.evaluate.Evaluation
    measures  their MeasureSpecs
    """
    from safetensors.numpy import save

    from composer.registry import REGISTRY

    kinds = {m.name: (m.use, REGISTRY.get("measure", m.use).flags) for m in measures if m.name in judged.metrics}
    kinds = {name: (use, flags) for name, (use, flags) in kinds.items() if flags.get("figure")}
    if not kinds:
        return False
    values = {name: judged.flags[name].float().cpu().numpy() for name, (_, flags) in kinds.items() if flags["figure"] == "histogram"}
    atomic.write_bytes(folder / VALUES, save(values))
    facts = {name: {"use": use, "figure": flags["figure"], "unit": judged.units.get(name, ""), "metric": judged.metrics[name], "n": judged.n[name],
                    "details": judged.details[name]} for name, (use, flags) in kinds.items()}
    atomic.write_json(folder / FACTS, atomic.plain({"format": 1, "measures": facts}))
    return True


def read(folder: Path) -> dict[str, Shown]:
    """By printed name; nothing where there is none, or where it cannot be read."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    found = read_json(folder / FACTS)
    if not isinstance(found, dict) or found.get("format") != 1:
        return {}
    try:
        values = load_file(folder / VALUES)
    except (OSError, SafetensorError):
        values = {}
    return {name: Shown(name, each["use"], each["figure"], each["unit"], each["metric"], each["n"], each["details"], values.get(name))
            for name, each in found["measures"].items()}
