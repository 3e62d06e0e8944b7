"""What the store knows of a run: its nodes, its MLflow run, its result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from composer import atomic


class Record:
    """experiments/<name>-<experiment id>-s<seed>: which nodes a run consists of, its MLflow run, and its result.

    Another precision or a divided batch is another experiment, so it stands in the name too (`variant`, of Settings).
    """

    def __init__(self, out: Path, recipe: Any, seed: int, variant: str = "fp32"):
        self.name = f"{recipe.name}-{recipe.experiment_id[:10]}-s{seed}{'' if variant == 'fp32' else '-' + variant}"
        self.folder = out / "experiments" / self.name
        self.facts: dict[str, Any] = self._read("record.json") or {}
        self.result: dict[str, Any] | None = self._read("result.json")

    def _read(self, name: str) -> Any:
        return read_json(self.folder / name)

    def keep(self, **facts: Any) -> None:
        self.facts.update(facts)
        atomic.write_json(self.folder / "record.json", self.facts)


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None


def flat(tables: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted paths, for the tracker's parameters."""
    found: dict[str, Any] = {}
    for key, value in tables.items():
        if isinstance(value, dict):
            found.update(flat(value, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = value
    return found
