"""Rows of a table: a cell's runs, its statistics, its cost, what is printed beside it, and every reason to doubt it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from composer.ablate.statistics import Analysis, Contrast, paired_difference, t_interval
from composer.ablate.summary.blocks import Block, Found, found_of
from composer.ablate.summary.gather import kind_of
from composer.ablate.summary.sweeps import Winner
from composer.ablate.summary.types import Line, Metric
from composer.ablate.types import Cell, Outcome
from composer.recipe.studies import Row

Records = dict[str, dict[str, Any]]


def lines_of(block: Block, outcome: Outcome, winners: tuple[Winner, ...], analysis: Analysis | None, metrics: tuple[Metric, ...], base: str) -> tuple[Line, ...]:
    """The block's rows in the order of the grid; a sweep's points give way to its winners."""
    made: dict[str, Line] = {}
    for cell in block.cells:
        if kind_of(cell) == "sweep":
            mine = [w for w in winners if w.row == cell.row.name]                                       # type: ignore[union-attr]
            for winner in (w for w in mine if w.label not in made):
                made[winner.label] = _line(winner.label, winner.cell, outcome, analysis, metrics, winner)
            if not mine and cell.row is not None:
                made.setdefault(cell.row.name, Line(cell.row.name, "sweep", about=cell.row.about, group=cell.row.group, setting=cell.row.setting,
                                                    printed=_printed(cell.row, cell.row.select[0] if cell.row.select else "")))
        else:
            made[cell.name] = _line(cell.name, cell, Outcome({}) if cell.same_as else outcome, None if cell.same_as else analysis, metrics)
    lines = [twin(line, made.get(line.same_as)) if line.same_as and line.kind != "sweep" else line for line in made.values()]
    return tuple(_relative(line, made.get(base)) for line in lines)


def _line(name: str, cell: Cell, outcome: Outcome, analysis: Analysis | None, metrics: tuple[Metric, ...], winner: Winner | None = None) -> Line:
    source = winner.source if winner else cell.name
    found = found_of(outcome, source)
    own = tuple({"seed": f.seed, "why": f.why, "diverged": f.diverged, "exit_code": f.exit_code} for f in outcome.failed if f.cell == source)
    column = analysis.all_runs if analysis else None
    trained = analysis.if_trained if analysis else None
    other, gap = _unselected(name, found, metrics)
    collapse = next((r.as_dict() for r in analysis.collapse if r.cell == name), {}) if analysis else {}
    return Line(
        name=name, kind=kind_of(cell), off=cell.off, same_as="" if winner else cell.same_as, void=dict(cell.void), about=cell.row.about if cell.row else "",
        group=cell.row.group if cell.row else "", recipe=cell.recipe.name, setting=cell.recipe.setting, experiment_id=cell.recipe.experiment_id,
        point=dict(cell.point), runs=tuple(_run(seed, r) for seed, r in found.items()),
        metrics=_records(column.cells.get(name, {}) if column else {}, metrics),
        delta=_records(column.deltas.get(name, {}) if column else {}, metrics), other=other, gap=gap,
        trained=_records(trained.cells.get(name, {}) if trained else {}, metrics), collapse=collapse, cost=_cost(found),
        epochs={"trained": max((int(r.get("epochs") or 0) for r in found.values()), default=0), "shared": outcome.epochs_common.get(source, 0),
                "selected": {str(seed): r.get("selected_epoch") for seed, r in found.items()}},
        printed=_printed(cell.row, winner.selector if winner else ""),
        beside={m: b.as_dict() for m, b in (analysis.beside.get(name, {}) if analysis else {}).items()}, failed=own, doubts=_doubts(found))


def _records(by: Mapping[str, Any], metrics: tuple[Metric, ...]) -> Records:
    return {m.name: by[m.name].as_dict() for m in metrics if m.name in by}


def _bare(found: Found, metrics: tuple[Metric, ...]) -> Records:
    """Means and t intervals of what no analysis speaks of (a foreign model)."""
    values = {m.name: {s: float(r["metrics"][m.name]) for s, r in found.items() if r["metrics"].get(m.name) is not None} for m in metrics}
    return {name: record(by) for name, by in values.items() if by}


def record(by: Mapping[int, float]) -> dict[str, Any]:
    values = list(by.values())
    interval = t_interval(values)
    return {"mean": sum(values) / len(values), "n": len(values), "ci95": list(interval) if interval else None, "values": values, "seeds": list(by)}


def _unselected(name: str, found: Found, metrics: tuple[Metric, ...]) -> tuple[Records, Records]:
    """The other checkpoint's numbers, and selected minus other, paired by seed. A run that has only one enters neither."""
    other, gap = {}, {}
    for m in metrics:
        pairs = {s: (float(r["metrics"][m.name]), float(r["metrics_other"][m.name])) for s, r in found.items()
                 if r["metrics"].get(m.name) is not None and (r.get("metrics_other") or {}).get(m.name) is not None}
        if pairs:
            other[m.name] = record({s: last for s, (_, last) in pairs.items()})
            contrast: Contrast = paired_difference({name: {s: a for s, (a, _) in pairs.items()}}, {name: {s: b for s, (_, b) in pairs.items()}})[name]
            gap[m.name] = {"mean": contrast.estimate, "ci95": list(contrast.ci95) if contrast.ci95 else None, "n": contrast.n,
                           "values": list(contrast.values.values()), "seeds": list(contrast.values)}
    return other, gap


def _run(seed: int, result: Mapping[str, Any]) -> dict[str, Any]:
    return {"seed": seed, "run": result.get("run"), "out": result.get("out"), "selected": result.get("selected"),
            "selected_epoch": result.get("selected_epoch"), "weights_sha256": result.get("weights_sha256"), "prefix_key": result.get("prefix_key"),
            "metrics": dict(result.get("metrics") or {}), "metrics_other": dict(result.get("metrics_other") or {}), "n": dict(result.get("n") or {}),
            "trust": dict(result.get("trust") or {}), **({"trust_other": result["trust_other"]} if result.get("trust_other") else {}), "seconds": result.get("seconds"), "mlflow_run_id": result.get("mlflow_run_id")}


def _cost(found: Found) -> dict[str, Any]:
    """Passes of a run in batches: {"step": mean over its steps, "total"}. The plan counts them, so all seeds agree."""
    for result in found.values():
        total, steps = sum((result.get("passes") or {}).values()), int(result.get("steps") or 0)
        if total and steps:
            return {"step": total / steps, "total": total, "steps": steps}
    return {}


def _relative(line: Line, base: Line | None) -> Line:
    own, its = line.cost.get("total"), base.cost.get("total") if base else None
    return replace(line, cost={**line.cost, "relative": own / its}) if own and its else line


def _printed(row: Row | None, selector: str) -> tuple[dict[str, Any], ...]:
    rows = [p for p in (row.printed if row else ()) if p.selector == selector]
    return tuple({"row": p.row, "group": p.group, "selector": p.selector, "values": {k: v for k, v in p.values.items() if not math.isnan(v)}, "pm": dict(p.pm)}
                 for p in rows)


def flags_of(result: Mapping[str, Any]) -> list[str]:
    """What the trust checks hold against a result, that of its other checkpoint (`trust_other`) included, whose numbers stand in the same row."""
    found = []
    for key, whose in (("trust", ""), ("trust_other", f"the {'last' if result.get('selected') == 'best' else 'best'} checkpoint: ")):
        trust = result.get(key) or {}
        if trust.get("ok") is False:
            found += [f"{whose}{flag}" for flag in trust.get("flags") or ["the evaluation doubts itself"]]
    return found


def _doubts(found: Found) -> tuple[str, ...]:
    """Why results are not to be trusted; seeds that share a reason stand together."""
    seeds: dict[str, list[int]] = {}
    for seed, result in found.items():
        for flag in flags_of(result):
            seeds.setdefault(flag, []).append(seed)
    return tuple(f"seed{'s' if len(those) > 1 else ''} {', '.join(map(str, those))}: {flag}" for flag, those in seeds.items())


def twin(line: Line, original: Line | None) -> Line:
    """A cell that is another one: it was not run again, and its numbers are that cell's."""
    if original is None:
        return line
    return replace(line, metrics=original.metrics, delta=original.delta, other=original.other, gap=original.gap, trained=original.trained,
                   collapse=original.collapse, cost=original.cost, epochs=original.epochs, doubts=original.doubts, failed=original.failed)


def external(row: Row, outcome: Outcome) -> list[Line]:
    """A model of others, judged by the same protocol: results stand under the row's name, or the reason why there are none."""
    found = found_of(outcome, row.name)
    names = dict.fromkeys(name for result in found.values() for name in result.get("metrics") or {})
    failed = [{"seed": f.seed, "why": f.why, "diverged": False, "exit_code": f.exit_code} for f in outcome.failed if f.cell == row.name]
    why = [] if found or failed else [{"seed": 0, "why": row.absent or "it was not judged here", "diverged": False, "exit_code": 1}]
    return [Line(name=row.name, kind="external", about=row.about, group=row.group, recipe=row.recipe.name if row.recipe else "", setting=row.setting,
                 runs=tuple(_run(seed, r) for seed, r in found.items()), metrics=_bare(found, tuple(map(Metric, names))), printed=_printed(row, ""),
                 failed=(*failed, *why), doubts=_doubts(found))]


def only_printed(row: Row) -> list[Line]:
    """A row of the study that is never trained: what stands in print, once for each of its printed lines."""
    return [Line(name=row.name + (f" [by {p.selector}]" if p.selector else ""), kind="printed", about=row.about, group=row.group, setting=row.setting,
                 printed=_printed(row, p.selector)) for p in row.printed]
