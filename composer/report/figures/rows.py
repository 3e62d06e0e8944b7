"""The primary metric of a study's rows, as bars; rows that extend others by name stand beside them."""

from __future__ import annotations

from typing import Any

from composer.report.figures import style

MOST = 40


def draw(table: Any) -> Any:
    """Mean with its 95 % t interval over seeds; marks are seeds. None with fewer than two rows."""
    metric = table.metric(table.primary)
    lines = [line for line in table.lines if metric.name in line.metrics and line.kind != "printed"][:MOST]
    if len(lines) < 2:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 1.1 + 0.32 * len(lines)), layout="constrained")
    axis = figure.subplots()
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25, linewidth=0.6, axis="x")
    axis.set_axisbelow(True)
    for at, line in enumerate(lines):
        record = line.metrics[metric.name]
        axis.barh(at, metric.scale() * record["mean"], 0.7, color=style.COLOURS[5], alpha=0.9 if line.kind != "external" else 0.4)
        if record.get("ci95"):
            axis.plot([metric.scale() * v for v in record["ci95"]], [at, at], color="0.2", linewidth=1.4)
        axis.plot([metric.scale() * v for v in record["values"]], [at] * len(record["values"]), "|", color="0.2", markersize=7)
    axis.set_yticks(range(len(lines)), [line.name + ("†" if line.doubts else "") for line in lines], fontsize=8)
    axis.set_ylim(len(lines) - 0.4, -0.6)
    values = [metric.scale() * v for line in lines for v in line.metrics[metric.name]["values"]]
    low = min(values)
    axis.set_xlim((min(0.0, low), 100) if metric.rate else (min(0.0, 1.1 * low), None))
    n = f", n = {metric.n:,}" if metric.n else ""
    axis.set_xlabel(f"{metric.name}{n}, {'%' if metric.rate else metric.unit}")
    style.title(figure, f"{table.title}\n" + (f"bar: mean; line: 95 % t interval over {table.seeds} seeds; marks: seeds" if table.seeds > 1 else "one seed")
                + ("; † doubted" if any(line.doubts for line in lines) else ""))
    return figure
