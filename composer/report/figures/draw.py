"""Which pictures a run or a study has, and where they lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from composer import atomic
from composer.report.figures import classes, curve, histogram, landscape, numbers, ranks, record, reliability, rows, style, traces
from composer.report.figures.record import FOLDER, Series

KINDS: dict[str, Callable[[Sequence[str], Sequence[Series]], Any]] = {
    "curve": curve.draw, "histogram": histogram.draw, "ranks": ranks.draw, "reliability": reliability.draw, "classes": classes.draw, "landscape": landscape.draw}
HEADS = {"curve": "Accuracy by radius", "per_class": "Accuracy by class", "rank": "Where adversarial examples go", "calibration": "Calibration",
         "landscape": "Loss around the weights", "effective_margin": "Effective margins", "taylor_margin": "Taylor margins", "fab_margin": "Margins found by FAB",
         "mean_radius": "Training radii", "traces": "Measures over epochs", "rows": "Rows"}
PREFIX, OF, MOST_ROWS = "figure-", "-of-", 24
ALONE = {"landscape"}                 # kinds whose panels share their colours: measures of other scales stand apart


# -- a run -------------------------------------------------------------------------------------------------------------------------


def keep_run(folder: Path, judged: Any, measures: Sequence[Any], label: str) -> list[Path]:
    """Beside a result: figures.json and figures.safetensors, and a picture for each registered measure that has one; the pictures.

    Nothing is kept where the protocol asks for none of them, and no picture is made where matplotlib is missing. A picture that cannot be drawn costs no
    run its result: what went wrong stands in figures/not-drawn.txt, and `composer report` tries again.
    """
    if not record.write(folder, judged, measures) and not (folder / "metrics.jsonl").is_file():
        return []
    try:
        return run_pictures(folder, label)
    except ImportError:
        return []
    except Exception as error:  # noqa: BLE001 (hours of training are not lost to a drawing)
        atomic.write_text(folder / FOLDER / "not-drawn.txt", f"{type(error).__name__}: {error}\n")
        return []


def run_pictures(folder: Path, label: str = "") -> list[Path]:
    """Drawn anew from what the folder keeps: its measures, and the traces in its metrics.jsonl."""
    series = [Series(label or folder.name, (record.read(folder),), (folder,))]
    made = [path for name, figure in pictures(series) for path in style.save(figure, folder / FOLDER, name)]
    return _clean(made, folder / FOLDER, "*.*")


def pictures(series: Sequence[Series]) -> list[tuple[str, Any]]:
    """(name, figure): one for each registered measure that has values here, and one of the traces."""
    uses: dict[str, dict[str, None]] = {}
    kinds: dict[str, str] = {}
    for shown in (s for each in series for seed in each.seeds for s in seed.values()):
        uses.setdefault(shown.use, {})[shown.name] = None
        kinds[shown.use] = shown.figure
    made = []
    for use, names in uses.items():
        having = [each for each in series if any(each.of(name) for name in names)]
        draw, alone = KINDS.get(kinds[use]), kinds[use] in ALONE
        for each in [[name] for name in names] if alone else [list(names)]:
            if draw and (figure := draw(each, [s for s in having if any(s.of(name) for name in each)])) is not None:
                made.append((f"{use}{OF}{each[0]}" if alone and each[0] != use else use, figure))
    if (figure := traces.draw(series)) is not None:
        made.append(("traces", figure))
    return made


# -- a study -----------------------------------------------------------------------------------------------------------------------


def draw_study(summary: Any, folder: Path) -> list[Path]:
    """The pictures of a study in its folder of plots: a line or a panel a row; accuracies against the numbers that rows differ in.

    Where there are several tables, each has its own, numbered as the other plots are.
    """
    made = []
    for at, table in enumerate(summary.tables, 1):
        number = f"-{at}" if len(summary.tables) > 1 else ""
        series = series_of(table, Path(summary.out))
        found = [*pictures(series), *numbers.pictures(table, series)]
        if summary.design == "study" and (bars := rows.draw(table)) is not None:
            found.append(("rows", bars))
        made += [path for name, figure in found for path in style.save(figure, folder, f"{PREFIX}{name}{number}", vector=True)]
    return _clean(made, folder, f"{PREFIX}*")


def series_of(table: Any, out: Path) -> list[Series]:
    """The table's rows that have runs of their own, with what their folders keep."""
    found = []
    for line in [line for line in table.lines if line.runs and not line.same_as][:MOST_ROWS]:
        folders = tuple(Path(run.get("out") or out) / "experiments" / str(run.get("run") or "") for run in line.runs)
        found.append(Series(line.name, tuple(record.read(folder) for folder in folders), folders))
    return found


def study_pictures(folder: Path, tables: Sequence[Any]) -> list[tuple[Path, str]]:
    """(file, words) of the pictures that `draw_study` left, in the order they are shown."""
    order = list(HEADS)
    found = []
    for path in folder.glob(f"{PREFIX}*.png"):
        name = path.stem.removeprefix(PREFIX)
        head, _, number = name.rpartition("-")
        at = int(number) if head and number.isdigit() and len(tables) > 1 and 1 <= int(number) <= len(tables) else 0
        name = head if at else name
        use = name.partition(OF)[0]
        found.append((at, order.index(use) if use in order else len(order), path, head_of(name) + (f": {tables[at - 1].title}" if at else "")))
    return [(path, words) for _, _, path, words in sorted(found)]


def head_of(name: str) -> str:
    """What a picture shows, from its name."""
    use, _, measure = name.partition(OF)
    if measure and use in HEADS:
        return f"{HEADS[use]}: {measure}"
    return HEADS.get(name, name.replace("-over-", " over ").replace("numbers", "Accuracy"))


def _clean(made: list[Path], folder: Path, pattern: str) -> list[Path]:
    """Away with pictures of an earlier writing, with other measures."""
    names = {path.name for path in made}
    for path in folder.glob(pattern):
        if path.name not in names:
            path.unlink(missing_ok=True)
    return made


__all__ = ["HEADS", "draw_study", "head_of", "keep_run", "pictures", "run_pictures", "series_of", "study_pictures"]
