"""How a number is written: percent with half its interval for accuracies, four digits for what has a unit of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from composer.ablate.summary import Line, Metric, Table
from composer.report.table import half_width

MINUS = "−"


def level(metric: Metric, value: float | None, signed: bool = False) -> str:
    """`54.30` of an accuracy, `0.0431` of anything else; with a sign where it is a difference."""
    if value is None or not math.isfinite(value):
        return "–"
    number = metric.scale() * value
    number = 0.0 if metric.rate and abs(number) < 0.005 else number           # no "-0.00"
    text = f"{number:+.2f}" if signed and metric.rate else f"{number:.2f}" if metric.rate else f"{number:+.3g}" if signed else f"{number:.4g}"
    return text.replace("-", MINUS) if signed else text


def half(metric: Metric, interval: Any) -> str:
    """Half of an interval, in the metric's unit."""
    if not interval or interval[0] is None or interval[1] is None:
        return ""
    size = metric.scale() * (interval[1] - interval[0]) / 2
    return f"{size:.2f}" if metric.rate else f"{size:.2g}"


def beside(metric: Metric, value: float | None, interval: Any, signed: bool = False) -> tuple[str, str]:
    """(value, half of the interval) as they stand beside ±. Of what is no accuracy both end at one place, the second digit of the half."""
    side = half(metric, interval)
    size = (interval[1] - interval[0]) / 2 if side else 0.0
    if metric.rate or value is None or not size > 0 or not math.isfinite(size) or not math.isfinite(value):
        return level(metric, value, signed), side
    places = min(12, max(0, 1 - math.floor(math.log10(size))))
    value = value if round(value, places) else 0.0                            # no "-0.000"
    text = f"{value:+.{places}f}" if signed else f"{value:.{places}f}"
    return text.replace("-", MINUS) if signed else text, f"{size:.{places}f}"


def mean(metric: Metric, record: Mapping[str, Any] | None, seeds: int) -> str:
    """`54.30 ± 0.98`: the t interval over seeds, or Wilson's over images where the table has one seed."""
    if not record:
        return ""
    text, side = beside(metric, record.get("mean"), record.get("ci95"))
    if seeds > 1:
        return f"{text} ± {side or '–'}"
    return f"{text} ± {100 * half_width(record['mean'], metric.n):.2f}" if metric.rate and metric.n else text


def contrast(metric: Metric, record: Mapping[str, Any] | None, key: str = "") -> str:
    """`+1.20 ± 0.40`. `key`: which interval, default the one that `interval_of` names."""
    if not record:
        return ""
    value = record.get("mean", record.get("estimate"))
    if value is None:
        return str(record.get("status") or "–")
    text, side = beside(metric, value, record.get(key or interval_of(record)), signed=True)
    return text + (f" ± {side}" if side else "")


def interval_of(record: Mapping[str, Any]) -> str:
    """Within the family and from five seeds on the simultaneous interval, which is what may be bold; else the unadjusted one."""
    return "ci_simultaneous" if record.get("in_family") and record.get("n", 0) >= 5 and record.get("ci_simultaneous") else "ci95"


def interval_words(table: Table) -> str:
    """What stands behind ± of a mean."""
    return "± 95 % t" if table.seeds > 1 else "± 95 % Wilson"


def seeds_words(table: Table) -> str:
    """What stands behind those intervals, for a title."""
    if table.seeds > 1:
        return f"{table.seeds} seeds, mean ± half the 95 % t interval"
    return "1 seed, ± half the 95 % Wilson interval over images" if table.seeds else "no results"


def images(metric: Metric) -> str:
    return f"n = {metric.n:,}" if metric.n else ""


def unit(metric: Metric) -> str:
    return "%" if metric.rate else f"[{metric.unit}]" if metric.unit else ""


def label(line: Line, seeds: int) -> str:
    """The row's name with what must be seen beside it: †, failures, whose it is."""
    text = line.name + ("†" if line.doubts else "")
    if line.kind == "external":
        return f"{text} (not ours)"
    if line.kind == "printed":
        return f"{text} (in print)"
    if line.same_as:
        return f"{text} (same as {line.same_as})"
    if line.failed:
        word = "diverged" if all(f.get("diverged") for f in line.failed) else "failed"
        return f"{text} ({len(line.failed)} of {max(seeds, line.n + len(line.failed))} {word})"
    return text


def epochs(line: Line) -> str:
    """Selected epochs, seed by seed; once where they agree, their range where they are many."""
    found = [e for e in (line.epochs.get("selected") or {}).values() if e is not None]
    if not found:
        return ""
    if len(set(found)) == 1:
        return str(found[0])
    return " ".join(map(str, found)) if len(found) <= 3 else f"{min(found)}–{max(found)}"


def amount(value: float | None) -> str:
    """`22`, `18.4k`, `1.23M`."""
    if value is None:
        return ""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1e3 if letter == 'k' else size):.3g}{letter}"
    return f"{value:.4g}"
