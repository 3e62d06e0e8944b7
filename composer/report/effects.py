"""Pictures of an ablation, drawn without a display: clean against robust accuracy, effects, interactions, training curves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from composer.ablate.summary import Line, Metric, Summary, Table
from composer.ablate.summary.gather import history
from composer.report.figures.style import COLOURS, MARKERS, save, title

TITLES = {"clean-robust": "Clean against robust accuracy", "effects": "Effects", "deltas": "Differences", "interactions": "Interactions",
          "curves": "Training curves"}


def draw_all(summary: Summary, folder: Path | str) -> list[Path]:
    """Every picture that has something to show, as PNG and SVG; numbered where the summary has several tables."""
    made = []
    for at, table in enumerate(summary.tables, 1):
        number = f"-{at}" if len(summary.tables) > 1 else ""
        for name, draw in (("clean-robust", clean_robust), ("effects", effects), ("deltas", deltas), ("interactions", interactions), ("curves", curves)):
            figure = draw(summary, table)
            if figure is not None:
                made += save(figure, Path(folder), f"{name}{number}", vector=True)
    names = {path.name for path in made}
    for path in Path(folder).glob("*.*"):                     # of an earlier writing, with other tables
        if path.name not in names and ours(path.stem):
            path.unlink(missing_ok=True)
    return made


def ours(stem: str) -> bool:
    """Whether a picture of this name is one of these."""
    name, _, number = stem.rpartition("-")
    return stem in TITLES or name in TITLES and number.isdigit()


def _figure(columns: int, width: float, height: float, rows: int = 1) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes:
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _shown(table: Table, *metrics: str) -> list[Line]:
    return [line for line in table.lines if not line.same_as and all(m in line.metrics for m in metrics)]


def style(at: int) -> dict[str, Any]:
    return {"color": COLOURS[at % len(COLOURS)], "marker": MARKERS[(at + at // len(COLOURS)) % len(MARKERS)]}


def legend(axis: Any, count: int) -> None:
    """Outside, so that it covers nothing."""
    axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=8, frameon=False, ncols=1 + count // 26)


# -- clean against robust ----------------------------------------------------------------------------------------------------------


def clean_robust(summary: Summary, table: Table) -> Any:
    """One mark a cell: its mean with both intervals; small marks are its seeds. None without two accuracies."""
    robust = table.primary if table.metric(table.primary).rate and table.primary != "clean" else next(
        (m.name for m in reversed(table.metrics) if m.rate and m.name != "clean"), "")
    lines = _shown(table, "clean", robust) if robust else []
    if not lines:
        return None
    figure, (axis,) = _figure(1, 7.6, max(4.4, 0.19 * min(len(lines), 26)))
    for at, line in enumerate(lines):
        own, x, y = style(at), line.metrics["clean"], line.metrics[robust]
        pairs = [(a, b) for seed, a in zip(x["seeds"], x["values"]) for s, b in zip(y["seeds"], y["values"]) if s == seed]
        if len(pairs) > 1:
            axis.plot(*([100 * v for v in side] for side in zip(*pairs)), linestyle="", markersize=3, alpha=0.45, **own)
        axis.errorbar(100 * x["mean"], 100 * y["mean"], xerr=_sides(x), yerr=_sides(y), markersize=7, capsize=2.5, linewidth=1.1,
                      markerfacecolor="none" if line.kind == "external" else None, label=_name(line), **own)
    for side in ("x", "y"):                                   # with two seeds an interval can leave the picture far behind
        low, high = getattr(axis, f"get_{side}lim")()
        axis.set(**{f"{side}lim": (max(low, -3), min(high, 103))})
    n = table.metric(robust).n
    axis.set(xlabel="clean accuracy, %", ylabel=f"{robust} accuracy, %" + (f" (n = {n:,})" if n else ""))
    words = f"mean and 95 % t interval over {table.seeds} seeds; small marks: seeds" if table.seeds > 1 else "one seed, no interval over seeds"
    title(figure, f"{summary.study}: {words}{_doubted(lines)}\n{table.title}")
    legend(axis, len(lines))
    return figure


def _sides(record: Mapping[str, Any]) -> list[list[float]] | None:
    interval = record.get("ci95")
    return [[100 * (record["mean"] - interval[0])], [100 * (interval[1] - record["mean"])]] if interval else None


def _name(line: Line) -> str:
    return line.name + ("†" if line.doubts else "") + (" (not ours)" if line.kind == "external" else "")


def _doubted(lines: Iterable[Line]) -> str:
    """What the mark behind a name means, where one bears it: a picture goes where no footer is."""
    return "; † doubted" if any(line.doubts for line in lines) else ""


def _some_doubted(table: Table) -> str:
    """Of a picture in which cells have no names."""
    found = [line for line in table.lines if line.kind == "cell" and line.doubts and table.primary in line.metrics]
    return "; some cells are doubted" if found else ""


# -- effects -----------------------------------------------------------------------------------------------------------------------


def effects(summary: Summary, table: Table) -> Any:
    """Effects on the primary metric, those that simple effects replace left out."""
    rows = [(e["term"], e) for e in table.effects if e["metric"] == table.primary and e.get("shown", True) and e.get("estimate") is not None]
    return forest(table, rows, f"{summary.study}: effect on {table.primary} (with minus without){_some_doubted(table)}")


def deltas(summary: Summary, table: Table) -> Any:
    drawn = [line for line in table.lines if not line.same_as and line.name != table.base and line.delta.get(table.primary, {}).get("mean") is not None]
    base = [line for line in table.lines if line.name == table.base]
    rows = [(_name(line), line.delta[table.primary]) for line in drawn]
    of = "".join(map(_name, base)) or table.base
    return forest(table, rows, f"{summary.study}: {table.primary} minus that of {of}, paired by seed{_doubted([*drawn, *base])}")


def forest(table: Table, rows: Sequence[tuple[str, Mapping[str, Any]]], said: str) -> Any:
    """Thick: the interval over seeds; thin: seeds and images together; light: simultaneous within the family; ticks below: seeds. None without rows."""
    if not rows:
        return None
    metric = table.metric(table.primary)
    figure, (axis,) = _figure(1, 7.2, 1.7 + 0.36 * len(rows))
    axis.axvline(0, color="0.35", linewidth=0.9)
    bars = (("ci_simultaneous", 7, COLOURS[5], 0.4, "95 %, simultaneous in the family"), ("ci_both", 1, "0.25", 1.0, "95 %, seeds and images"),
            ("ci95", 2.8, COLOURS[0], 1.0, "95 %, seeds"))
    for key, width, colour, alpha, words in bars:
        drawn = [(at, row[key]) for at, (_, row) in enumerate(rows) if row.get(key)]
        for number, (at, interval) in enumerate(drawn):
            axis.plot([metric.scale() * edge for edge in interval], [at, at], linewidth=width, color=colour, alpha=alpha, solid_capstyle="butt",
                      label=words if number == 0 else None)
    for at, (_, row) in enumerate(rows):
        value = metric.scale() * float(row.get("estimate", row.get("mean")))
        axis.plot([value], [at], "o", color=COLOURS[0], markersize=6, zorder=3)
        axis.plot([metric.scale() * v for v in row["values"]], [at + 0.22] * len(row["values"]), "|", color="0.45", markersize=6,
                  label="one seed" if at == 0 and table.seeds > 1 else None)
    axis.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=8)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xlabel("percentage points" if metric.rate else metric.unit or metric.name)
    title(figure, f"{said}\n{table.title}")
    if axis.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", fontsize=7.5, frameon=False, ncols=4)
    return figure


# -- interactions ------------------------------------------------------------------------------------------------------------------


def interactions(summary: Summary, table: Table) -> Any:
    """For each pair of toggles the mean of the primary metric, one on and off, the other as two lines; parallel lines: no interaction.
    Toggles of which one is void inside the other have none."""
    metric = table.metric(table.primary)
    lines = [line for line in table.lines if line.kind == "cell" and metric.name in line.metrics]
    pairs = [(a, b) for a, b in combinations(summary.toggles, 2)
             if a not in summary.nested.get(b, ()) and b not in summary.nested.get(a, ()) and _means(lines, metric, a, b) is not None]
    if summary.design not in ("full", "fractional") or not pairs:
        return None
    columns = min(3, len(pairs))
    height = -(-len(pairs) // columns)
    figure, axes = _figure(columns, max(4.8, 3.4 * columns + 0.4), 3.4 * height + 0.4, rows=height)
    for axis, (first, second) in zip(axes, pairs):
        found = _means(lines, metric, first, second)
        for at, level in enumerate(("on", "off")):
            points = [found[side, level] for side in ("on", "off")]
            axis.errorbar([-0.02 + 0.04 * at, 0.98 + 0.04 * at], [p[0] for p in points], yerr=[p[1] for p in points], capsize=3, linewidth=1.6, linestyle="-" if level == "on" else "--",
                          label=f"{second} {level}", **style(at))
        axis.set_xticks([0, 1], [f"{first} on", f"{first} off"])
        axis.set_xlim(-0.25, 1.25)
        axis.set_ylabel(f"{metric.name}{' accuracy, %' if metric.rate else f', {metric.unit}'}")
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), fontsize=8, frameon=False, ncols=2)
    for axis in axes[len(pairs):]:
        axis.set_visible(False)
    over = "means over the other toggles" if len(summary.toggles) > 2 else "means"
    title(figure, f"{summary.study}: {over}, {f'± 95 % t over {table.seeds} seeds' if table.seeds > 1 else 'one seed'}; parallel lines: no interaction"
          f"{_some_doubted(table)}\n{table.title}")
    return figure


def _means(lines: Sequence[Line], metric: Metric, first: str, second: str) -> dict[tuple[str, str], tuple[float, float]] | None:
    """(first, second) on or off -> mean and half interval over seeds; None where one of the four has no cell of its own."""
    from composer.ablate.statistics import t_interval

    found = {}
    for a in ("on", "off"):
        for b in ("on", "off"):
            cells = [line for line in lines if (first in line.off) == (a == "off") and (second in line.off) == (b == "off")]
            if not cells or all(line.same_as for line in cells):
                return None
            by = [dict(zip(line.metrics[metric.name]["seeds"], line.metrics[metric.name]["values"])) for line in cells]
            seeds = [s for s in by[0] if all(s in each for each in by)]
            if not seeds:
                return None
            values = [metric.scale() * sum(each[s] for each in by) / len(by) for s in seeds]
            interval = t_interval(values)
            found[a, b] = (sum(values) / len(values), (interval[1] - interval[0]) / 2 if interval else 0.0)
    return found


# -- curves ------------------------------------------------------------------------------------------------------------------------

Pick = Callable[[Mapping[str, Any]], str]


def curves(summary: Summary, table: Table) -> Any:
    """Accuracies by epoch, a line a cell (mean over seeds) with a band from the lowest to the highest seed. None without records."""
    lines = [line for line in table.lines if not line.same_as and line.runs]
    held = {line.name: [rows for run in line.runs if (rows := history(Path(run.get("out") or summary.out), str(run.get("run") or "")))] for line in lines}
    panels = _panels([row for runs in held.values() for rows in runs for row in rows])
    if not panels:
        return None
    figure, axes = _figure(len(panels), 4.6 * len(panels) + 1.6, 4.0)
    for axis, (what, pick) in zip(axes, panels):
        for at, line in enumerate(lines):
            series = [{row["epoch"]: 100 * row[key] for row in rows if (key := pick(row)) and row.get(key) is not None} for rows in held[line.name]]
            _band(axis, [s for s in series if s], _name(line), style(at)["color"], "-" if at < len(COLOURS) else "--" if at < 2 * len(COLOURS) else ":")
        axis.set(xlabel="epoch", ylabel=f"{what}, %")
        axis.xaxis.get_major_locator().set_params(integer=True)
    seeds = f"mean over {table.seeds} seeds, band: lowest to highest" if table.seeds > 1 else "one seed"
    title(figure, f"{summary.study}: {seeds}{_doubted(lines)}\n{table.title}")
    legend(axes[-1], len(lines))
    return figure


def _panels(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, Pick]]:
    """Robust and clean accuracy on held-out images where they were taken; else accuracy in training."""
    keys = {key for row in rows for key in row}
    robust = sorted(key for key in keys if key.startswith("val/") and key != "val/clean")
    panels: list[tuple[str, Pick]] = []
    if robust:
        panels.append((f"{' or '.join(k.removeprefix('val/') for k in robust)} accuracy on held-out images", lambda row: next((k for k in robust if k in row), "")))
    if "val/clean" in keys:
        panels.append(("clean accuracy on held-out images", lambda row: "val/clean"))
    trained = sorted(key for key in keys if key.startswith("train/accuracy."))
    if not panels and trained:
        panels.append(("accuracy in training", lambda row: next((k for k in trained if k in row), "")))
    return panels


def _band(axis: Any, series: Sequence[Mapping[int, float]], name: str, colour: str, line: str) -> None:
    """Epochs that every seed has."""
    epochs = sorted(set.intersection(*map(set, series))) if series else []
    if not epochs:
        return
    values = [[s[e] for s in series] for e in epochs]
    axis.plot(epochs, [sum(v) / len(v) for v in values], line, color=colour, label=name, linewidth=1.5, marker="o" if len(epochs) == 1 else None)
    if len(series) > 1:
        axis.fill_between(epochs, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.15, linewidth=0)
