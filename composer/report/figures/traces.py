"""Traced measures over epochs: a panel a measure, a line a row, the mean over seeds with a band from the lowest to the highest."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from composer import atomic
from composer.report.figures import style
from composer.report.figures.record import Series

KINDS = ("trace-", "diagnostic-")
MOST_PANELS = 9


def draw(series: Sequence[Series]) -> Any:
    """None where nothing was traced."""
    held = {each.label: [rows for folder in each.folders if (rows := epochs(folder))] for each in series}
    keys = list(dict.fromkeys(key for runs in held.values() for rows in runs for row in rows for key in row if key.startswith(KINDS)))[:MOST_PANELS]
    if not keys:
        return None
    unit_of = units(folder for each in series for folder in each.folders)
    shown = [each for each in series if any(key in row for rows in held[each.label] for row in rows for key in keys)]
    figure, axes = style.canvas(len(keys), columns=min(3, len(keys)), legend=len(shown), names=[s.label for s in shown])
    for axis, key in zip(axes, keys):
        for at, each in enumerate(shown):
            _band(axis, held[each.label], key, each.label, at)
        kind, _, name = key.partition("/")
        split = kind.partition("-")[2]
        of = f" ({split} images)" if split != "test" else ""
        axis.set(xlabel="epoch", ylabel=f"{name}, %{of}" if key.startswith("trace-") else f"{name}, {unit_of.get(name, '')}".rstrip(", "))
        axis.xaxis.get_major_locator().set_params(integer=True)
    on_test = any(key.split("/")[0].endswith("-test") for key in keys)
    style.title(figure, ("mean over seeds, band: lowest to highest seed" if max(map(len, held.values())) > 1 else "one seed")
                        + ("; traced on the test images, closed to selection" if on_test else ""))
    style.legend(figure, axes)
    return figure


def epochs(folder: Path) -> list[dict[str, Any]]:
    """The epochs' records of a run; none where they are gone."""
    return [row for row in atomic.read_lines(folder / "metrics.jsonl") if isinstance(row, dict) and "epoch" in row]


def units(folders: Iterable[Path]) -> dict[str, str]:
    """Units of traced diagnostics by printed name, from the recipe that lies beside a run."""
    from composer.registry import REGISTRY

    for folder in folders:
        trace = (recipe(folder).get("trace") or {}).items()
        found = {name: each.get("use", name) for name, each in trace if isinstance(each, Mapping)}
        if found:
            return {name: str(REGISTRY.get("measure", use).flags.get("unit") or "") for name, use in found.items() if REGISTRY.has("measure", use)}
    return {}


def recipe(folder: Path) -> dict[str, Any]:
    """A run's recipe, filled in; empty where it is gone."""
    try:
        return tomllib.loads((folder / "recipe.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _band(axis: Any, runs: Sequence[Sequence[Mapping[str, Any]]], key: str, label: str, at: int) -> None:
    """Epochs that every seed has."""
    scale = 100.0 if key.startswith("trace-") else 1.0
    seeds = [{row["epoch"]: scale * row[key] for row in rows if row.get(key) is not None} for rows in runs]
    seeds = [seed for seed in seeds if seed]
    common = sorted(set.intersection(*map(set, seeds))) if seeds else []
    if not common:
        return
    values = [[seed[e] for seed in seeds] for e in common]
    axis.plot(common, [style.mean(v) for v in values], style.line(at), color=style.colour(at), linewidth=1.5, label=label, marker="o" if len(common) < 4 else None,
              markersize=3)
    if len(seeds) > 1:
        axis.fill_between(common, [min(v) for v in values], [max(v) for v in values], color=style.colour(at), alpha=0.15, linewidth=0)
