"""Grid and outcome to what the statistics read: values by cell and seed, per-image results, how each run went, the printed numbers beside."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from composer.ablate.statistics import Input, Printed, Settings, Training
from composer.ablate.summary.blocks import Block, Found, found_of
from composer.ablate.summary.sweeps import Winner
from composer.ablate.summary.types import Metric
from composer.ablate.types import ANALYSIS, Cell, Design, Grid, Outcome

CLEAN = "clean"


def metrics_of(found: Mapping[str, Found], measures: Iterable[Mapping[str, Any]]) -> tuple[Metric, ...]:
    """The block's columns, in the protocol's order; measures that no run has are left out. A measure with a unit is no accuracy."""
    from composer.registry import REGISTRY

    results = [result for by in found.values() for result in by.values()]
    made = []
    for measure in measures:
        name = measure["name"]
        sizes = [int((r.get("n") or {}).get(name) or 0) for r in results if (r.get("metrics") or {}).get(name) is not None]
        if sizes:
            unit = str(REGISTRY.get("measure", measure["use"]).flags.get("unit") or "")
            made.append(Metric(name, max(sizes), not unit, unit))
    return tuple(made)


def input_of(grid: Grid, block: Block, outcome: Outcome, winners: tuple[Winner, ...], out: Path) -> tuple[Input, tuple[Metric, ...]]:
    """The statistics' input of one table, and its columns."""
    cells = {cell.name: cell for cell in block.cells if not cell.same_as and not cell.point and kind_of(cell) == "cell"}
    found = {name: found_of(outcome, name) for name in cells} | {w.label: found_of(outcome, w.source) for w in winners}
    named = cells | {w.label: w.cell for w in winners}
    flags = flags_of(named, found, block, out)
    metrics = metrics_of(found, block.protocol["measures"])
    lost = {f.cell: {g.seed for g in outcome.failed if g.cell == f.cell and g.diverged} for f in outcome.failed}
    runs = {name: training_of(named[name], by, lost.get(named[name].name, set()), out) for name, by in found.items()}
    design, base = design_of(grid, block), base_of(grid, block, cells)
    chosen = {key: value for key, value in grid.analysis.items() if key in ANALYSIS and value is not None}
    names = [m.name for m in metrics]
    if chosen.get("primary") not in names:
        chosen.pop("primary", None)
    if "primary" not in chosen and names:
        chosen["primary"] = primary_of([m.name for m in metrics if m.rate] or names)
    if chosen.get("family"):                                   # a cell in another table is of that one's family; one without results has no contrast
        known = {cell.name for cell in grid.cells} | {w.label for w in winners}
        chosen["family"] = [n for n in chosen["family"] if (base and found.get(n) and n != base if n in known else design != "study")]
    last = max((int(r.get("epochs") or 0) for by in found.values() for r in by.values()), default=0)
    made = Input(
        metrics={m.name: {c: {s: float(r["metrics"][m.name]) for s, r in by.items() if r["metrics"].get(m.name) is not None} for c, by in found.items()}
                 for m in metrics},
        levels=levels_of(grid, block, cells, design) | {w.label: {} for w in winners},
        same_as={c.name: c.same_as for c in block.cells if c.same_as and not c.row},
        reference=base, design=design, nested=grid.nested, aliases=grid.aliases, flags=flags,
        images={m.name: m.n for m in metrics if m.n}, settings=Settings(**chosen), one_fork=len(outcome.fork_epochs) == 1,
        common_epochs=common_of(outcome, cells), epochs=last or None, runs=runs, classes=classes_of(found), clean=CLEAN,
        val_images=block.protocol["held_out"][0] or None, graded=tuple(m.name for m in metrics if not m.rate),
        printed=printed_of(named, winners, metrics), selected_on_test=tuple(w.label for w in winners))
    return made, metrics


def design_of(grid: Grid, block: Block) -> Design:
    """A table without the grid's base is no design: the rows that a toggle has moved to another protocol stand side by side."""
    return grid.design if any(cell.name == grid.base for cell in block.cells) else "study"


def levels_of(grid: Grid, block: Block, cells: Mapping[str, Cell], design: Design) -> dict[str, dict[str, int]]:
    """Cell -> toggle -> +1 or -1. Cells that are another one follow those that are run: a combination takes the first that fits it."""
    if design == "study":
        return {name: {} for name in cells}
    planned = cells | {cell.name: cell for cell in block.cells if cell.same_as and not cell.row}
    return {name: {t: -1 if t in cell.off else 1 for t in grid.toggles} for name, cell in planned.items()}


def kind_of(cell: Cell) -> str:
    return cell.row.kind if cell.row else "cell"


def base_of(grid: Grid, block: Block, cells: Mapping[str, Cell]) -> str | None:
    """The grid's base where it stands in this table, else the table's first cell."""
    base = next((c.same_as or c.name for c in grid.cells if c.name == grid.base), grid.base)
    return base if base in cells else next(iter(cells), None) if len(cells) > 1 and grid.base else None


def primary_of(names: list[str]) -> str:
    """Without a declared one: AutoAttack, else the last attack of the protocol. `names`: of accuracies, where there are any."""
    return "aa" if "aa" in names else next((n for n in reversed(names) if n != CLEAN), names[0])


def common_of(outcome: Outcome, cells: Mapping[str, Cell]) -> int | None:
    """Epochs that every cell of the table shares with all others: up to the first fork. 0 where one shares nothing."""
    if len(cells) < 2 or not outcome.epochs_common:
        return None
    least = min(outcome.epochs_common.get(name, 0) for name in cells)
    return min([least, *outcome.fork_epochs])


def classes_of(found: Mapping[str, Found]) -> int | None:
    return next((int(r["classes"]) for by in found.values() for r in by.values() if r.get("classes")), None)


# -- how the runs went -------------------------------------------------------------------------------------------------------------


def training_of(cell: Cell, found: Found, diverged: set[int], out: Path) -> dict[int, Training]:
    """Validation accuracies epoch by epoch; only an attack that iterates can show a collapse."""
    made = {seed: Training(diverged=True) for seed in sorted(diverged - set(found))}
    attack = cell.recipe.select.attack
    single = next((m.name for m in cell.recipe.trace.measures if m.use == "fgsm"), "") if cell.recipe.trace.on == "val" else ""
    for seed, result in found.items():
        rows = history(out, str(result.get("run") or ""))
        robust = f"val/{attack.name}" if attack is not None and attack.use == "pgd" else ""
        points = [(row["epoch"], row[robust]) for row in rows if robust and row.get(robust) is not None]
        steps = [row[f"trace-val/{single}"] for row in rows if single and row.get(f"trace-val/{single}") is not None]
        made[seed] = Training(single_step=steps[-1] if steps else None, pgd10=points[-1][1] if points else None,
                              history=tuple(value for _, value in points), epochs=tuple(epoch for epoch, _ in points))
    return made


def history(out: Path, run: str) -> list[dict[str, Any]]:
    """Lines of a run's metrics.jsonl; none where it is gone."""
    from composer import atomic

    path = out / "experiments" / run / "metrics.jsonl"
    return [row for row in atomic.read_lines(path) if isinstance(row, dict) and "epoch" in row] if run else []


# -- per-image results -------------------------------------------------------------------------------------------------------------


def flags_of(cells: Mapping[str, Cell], found: Mapping[str, Found], block: Block, out: Path) -> dict[str, dict[str, dict[int, Any]]]:
    """Metric -> cell -> seed -> one result per image. A metric stands here only if every run has it, on the same images."""
    whole = {}
    measures = {m["name"]: m for m in block.protocol["measures"]}
    total = sum(len(by) for by in found.values())
    for name, measure in measures.items():
        held: dict[str, dict[int, Any]] = {}
        data = set()
        for cell, by in found.items():
            for seed, result in by.items():
                one = images_of(out, cells[cell], result, measure)
                if one is not None:
                    data.add(one[0])
                    held.setdefault(cell, {})[seed] = one[1]
        if total and len(data) == 1 and all(whole_numbers(array) for by in held.values() for array in by.values()) and sum(len(by) for by in held.values()) == total:
            whole[name] = held
    return whole


def whole_numbers(array: Any) -> bool:
    """No image is left out of the mean: a diagnostic over the correct ones alone has no image in common between two models."""
    return array.dtype == bool or not any(map(math.isnan, array.tolist()))


def images_of(out: Path, cell: Cell, result: Mapping[str, Any], measure: Mapping[str, Any]) -> tuple[str, Any] | None:
    """(digest of the images, results) of one measure on a run's selected weights; None where the store has none that agrees with the result."""
    value = (result.get("metrics") or {}).get(measure["name"])
    if value is None or not result.get("weights_sha256"):
        return None
    from composer.engine.judge import subject_of

    for path in sorted((out / "evaluations" / subject_of(cell.recipe, result["weights_sha256"])).glob(f"*/{measure['use']}-*.json")):
        record = read(path)
        if record and record.get("use") == measure["use"] and _agree(record.get("options") or {}, measure["options"]) \
                and abs(float(record.get("metric", -1)) - value) < 1e-9:
            array = _values(path.with_suffix(".safetensors"))
            if array is not None and len(array) == (result.get("n") or {}).get(measure["name"], len(array)):
                return str(record.get("data")), array
    return None


def read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _agree(held: Mapping[str, Any], meant: Mapping[str, Any]) -> bool:
    """Every option that is meant as a number or a component is the one that ran; words ("eps/4") were settled then."""
    return all(held.get(key) == value for key, value in meant.items() if key in held and not isinstance(value, str) and value is not None)


def _values(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as source:
            return source.get_tensor("values")
    except (OSError, ValueError, SafetensorError):
        return None


# -- print -------------------------------------------------------------------------------------------------------------------------


def printed_of(cells: Mapping[str, Cell], winners: tuple[Winner, ...], metrics: tuple[Metric, ...]) -> dict[str, dict[str, Printed]]:
    """Cell -> metric -> the paper's number, in our unit. Columns of print are named as our measures are."""
    selectors = {w.label: w.selector for w in winners}
    made: dict[str, dict[str, Printed]] = {}
    for name, cell in cells.items():
        row = next((p for p in (cell.row.printed if cell.row else ()) if p.selector == selectors.get(name, "")), None)
        for m in metrics if row else ():
            value = row.values.get(m.name)
            if value is not None and not math.isnan(value):
                text = f"{value:g}" + (f" ± {row.pm[m.name]:g}" if row.pm.get(m.name) is not None else "")
                made.setdefault(name, {})[m.name] = Printed(value / m.scale(), text)
    return made
