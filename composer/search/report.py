"""A sweep's tables: for a terminal, as text, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from composer import atomic
from composer.errors import ComposerError, suggest
from composer.search.store import read


def show(out: Path, name: str = "") -> dict[str, Any]:
    """The result of a sweep of the store (of the only one where no name is given). Errors: ComposerError where there is none of that name."""
    folder = Path(out) / "sweeps"
    known = sorted(p.parent.name for p in folder.glob("*/results.json"))
    name = name or (known[0] if len(known) == 1 else "")
    result = read(folder / name / "results.json") if name else None
    if result is None:
        raise ComposerError(f"there is no finished sweep '{name}'" if name else "which sweep?", where=str(folder), fix=suggest(name, known, "sweeps"))
    return result


def columns(result: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """(paths, measures) of the table."""
    trials = result["trials"]
    return list(result["space"]), list(dict.fromkeys(m for t in trials for m in t["metrics"]))


def rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The trials, best first; those that were stopped stand below those that were finished, since they are numbers of an earlier epoch."""
    metric = result["metric"]
    return sorted(result["trials"], key=lambda t: (t["status"] != "done", -(t["metrics"].get(metric) or 0.0), t["number"]))


def cells(result: Mapping[str, Any]) -> list[list[str]]:
    paths, measures = columns(result)
    won = {w["trial"]: [s for s, each in result["winners"].items() if each["trial"] == w["trial"]] for w in result["winners"].values()}
    table = [["trial", *paths, *measures, "epochs", "status"]]
    for t in rows(result):
        values = [short(t["values"].get(p)) for p in paths]
        numbers = [f"{100 * t['metrics'][m]:.2f}" if t["metrics"].get(m) is not None else "-" for m in measures]
        state = "best by " + ", ".join(won[t["number"]]) if t["number"] in won else t["status"]
        table.append([str(t["number"]), *values, *numbers, str(t["epochs"]), state])
    return table


def short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "-" if value is None else value if isinstance(value, str) else json.dumps(value)


def text(result: Mapping[str, Any]) -> str:
    """The whole result for a terminal or a pipe."""
    table = cells(result)
    widths = [max(len(row[k]) for row in table) for k in range(len(table[0]))]
    body = ["  ".join(c.ljust(w) if k in (0, len(widths) - 1) else c.rjust(w) for k, (c, w) in enumerate(zip(row, widths, strict=True))).rstrip()
            for row in table]
    return "\n".join([title(result), "", *body, "", *foot(result)])


def title(result: Mapping[str, Any]) -> str:
    how = "grid" if result["sampler"] == "grid" else "Optuna" + (f", ASHA at epochs {', '.join(map(str, result['rungs']))}" if result["rungs"] else "")
    return f"{result['sweep']}: {result['recipe']} on {result['setting']}, {how}, climbing {result['metric']} on held-out images (%)"


def foot(result: Mapping[str, Any]) -> list[str]:
    lines = []
    for selector, won in result["winners"].items():
        values = ", ".join(f"{path} = {short(value)}" for path, value in won["values"].items())
        lines.append(f"best by {selector}: trial {won['trial']}, {100 * won['score']:.2f} %  {values}")
        lines += [f"  {won['file']}"] if won.get("file") else []
    if result["importance"]:
        lines.append("importance (fANOVA): " + ", ".join(f"{path} {100 * share:.0f} %" for path, share in result["importance"].items()))
    if result["stopped"]:
        lines.append(f"stopped by the {result['stopped']}: {len(result['unfinished'])} trials are unfinished; the same command goes on")
    lines.append("one seed, and the highest of several: a claim about a winner needs fresh seeds (composer ablate) and the test split")
    return lines


def rich_table(result: Mapping[str, Any]) -> Any:
    """The result as a renderable of rich."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    head, *body = cells(result)
    for k, name in enumerate(head):
        table.add_column(Text(name, style="bold"), justify="left" if k in (0, len(head) - 1) else "right", overflow="fold")
    for row in body:
        table.add_row(*map(Text, row), style="bold" if row[-1].startswith("best") else "" if row[-1] == "done" else "dim")
    return Group(Text(title(result), style="bold"), table, *(Text(line) for line in foot(result)))


def csv_text(result: Mapping[str, Any]) -> str:
    """A line a trial, accuracies in [0, 1]."""
    paths, measures = columns(result)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["trial", "status", *paths, *measures, "epochs", "selected_epoch", "seconds", "why"])
    for t in sorted(result["trials"], key=lambda t: t["number"]):
        values = [v if isinstance(v := t["values"].get(p), (int, float, str)) else json.dumps(v) for p in paths]
        first = (t["why"].splitlines() or [""])[0]
        writer.writerow([t["number"], t["status"], *values, *(t["metrics"].get(m, "") for m in measures), t["epochs"], t["selected_epoch"], t["seconds"], first])
    return stream.getvalue()


def write_tables(folder: Path, result: Mapping[str, Any]) -> None:
    atomic.write_text(folder / "trials.csv", csv_text(result))
    atomic.write_json(folder / "trials.json", result["trials"])
    atomic.write_text(folder / "table.md", markdown(result))


def markdown(result: Mapping[str, Any]) -> str:
    head, *body = cells(result)
    lines = [head, ["---"] * len(head), *body]
    return f"{title(result)}\n\n" + "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in lines) + "\n\n" + "\n\n".join(foot(result)) + "\n"
