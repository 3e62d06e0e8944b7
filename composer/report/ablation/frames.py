"""The numbers themselves, unrounded and in fractions, as tables for pandas, R or a spreadsheet."""

from __future__ import annotations

from typing import Any

from composer.ablate.summary import Line, Summary

INTERVALS = ("ci95", "ci_simultaneous", "ci_image", "ci_both")


def cell_records(summary: Summary) -> list[dict[str, Any]]:
    """A row a cell. Accuracies are fractions; `<metric>.<what>`, with low and high ends of every interval there is."""
    return [_cell(at, table.checkpoint, line) for at, table in enumerate(summary.tables, 1) for line in table.lines]


def effect_records(summary: Summary) -> list[dict[str, Any]]:
    """A row for each effect and metric, and for each delta."""
    made = []
    for at, table in enumerate(summary.tables, 1):
        deltas = [{"term": line.name, "metric": m, "kind": "delta", "against": table.base, **d, "estimate": d.get("mean")}
                  for line in table.lines if not line.same_as for m, d in line.delta.items()]
        for e in [*table.effects, *deltas]:
            made.append({"table": at, "term": e["term"], "metric": e["metric"], "kind": e.get("kind"), "against": e.get("against", ""),
                         "estimate": e.get("estimate"), "n": e.get("n"), **_ends("", e), "p_holm": e.get("p_holm"), "q_bh": e.get("q_bh"),
                         "mde": e.get("mde"), "in_family": e.get("in_family"), "shown": e.get("shown"), "status": e.get("status"), "verdict": e.get("verdict")})
    return made


def run_records(summary: Summary) -> list[dict[str, Any]]:
    """A row for each run, checkpoint and metric."""
    made = []
    for at, table in enumerate(summary.tables, 1):
        for line in (each for each in table.lines if not each.same_as):
            for run in line.runs:
                for checkpoint, values in ((table.checkpoint, run["metrics"]), (table.other or "other", run["metrics_other"])):
                    made += [{"table": at, "cell": line.name, "seed": run["seed"], "checkpoint": checkpoint, "metric": m, "value": value,
                              "n": run["n"].get(m), "run": run["run"], "trusted": run["trust"].get("ok")} for m, value in values.items()]
    return made


def csv_text(records: list[dict[str, Any]]) -> str:
    """Errors: none; no records give an empty text."""
    import pandas

    return pandas.DataFrame.from_records(records).to_csv(index=False) if records else ""


def _cell(at: int, checkpoint: str, line: Line) -> dict[str, Any]:
    found: dict[str, Any] = {"table": at, "cell": line.name, "kind": line.kind, "off": " ".join(line.off), "same_as": line.same_as, "recipe": line.recipe,
                             "setting": line.setting, "checkpoint": checkpoint, "seeds": line.n, "failed": len(line.failed),
                             "collapsed": line.collapse.get("collapsed"), "trusted": not line.doubts, "epochs": line.epochs.get("trained"),
                             "epochs_shared": line.epochs.get("shared"), "passes_step": line.cost.get("step"), "passes": line.cost.get("total"),
                             "passes_relative": line.cost.get("relative")}
    for prefix, records in (("", line.metrics), ("delta.", line.delta), ("other.", line.other), ("gap.", line.gap), ("trained.", line.trained)):
        for metric, record in records.items():
            found[f"{prefix}{metric}.mean"] = record.get("mean")
            found |= {f"{prefix}{metric}.{key}": value for key, value in _ends("", record).items() if value is not None}
            if prefix == "delta.":
                found[f"{prefix}{metric}.p_holm"] = record.get("p_holm")
    for p in line.printed:
        found |= {f"printed.{metric}": value for metric, value in p["values"].items()}
    return found


def _ends(prefix: str, record: Any) -> dict[str, Any]:
    """`ci95_low`, `ci95_high` and so on."""
    found = {}
    for name in INTERVALS:
        interval = record.get(name)
        found[f"{prefix}{name}_low"], found[f"{prefix}{name}_high"] = interval if interval else (None, None)
    return found
