"""The footer: what the reader must know beside the numbers, a heading and a sentence each."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from composer.ablate.bench import is_bench
from composer.ablate.summary.lines import flags_of
from composer.ablate.summary.types import Line, Metric, Table
from composer.ablate.types import Grid, Outcome

Said = tuple[str, str]
NUMBER = re.compile(r"(?<![\w-])\d+(?:[.,]\d+)*(?:e[+-]?\d+)?")
UNTUNED = ("nothing here: every cell runs at the hyper-parameters of its recipe. This answers \"what if it is removed\", not \"is it needed\"; "
           "ablate --tune T gives each cell the same trials.")


def footer(grid: Grid, outcome: Outcome, tables: tuple[Table, ...], notes: Iterable[str]) -> tuple[Said, ...]:
    """In reading order; what does not apply is left out."""
    trained = not is_bench(grid)
    made = [*_times(outcome, tables), *_seeds(tables), *_images(tables), *_failed(outcome), *_doubts(tables), *_apart(tables), *_shared(outcome, tables),
            *(_selection(tables) if trained else []), *_design(grid), *(_tuned(grid) if trained else []), *_dropped(outcome), *_winners(tables),
            *_deviations(grid), *[("statistics", note) for note in _statistics(tables)], *_cost(tables), *[("note", note) for note in (*grid.notes, *notes)]]
    return tuple(dict.fromkeys(made))


def _times(outcome: Outcome, tables: tuple[Table, ...]) -> list[Said]:
    """A bench: what was measured, on what, and the ratios, which may be compared with those of another machine."""
    found = [result["bench"] for result in outcome.results.values() if result.get("bench")]
    if not found:
        return []
    one = found[0]
    spread = max(max(b["blocks"]) / min(b["blocks"]) for b in found)
    made = [("times", (f"mean seconds of {one['steps']} steps after {one['warm']} that are not counted, one cell at a time, on "
                      f"{', '.join(dict.fromkeys(b['device'] for b in found))}; within one measurement the slowest fifth took up to {spread:.2f} times the fastest."))]
    for table in tables:
        means = {line.name: line.metrics[table.primary]["mean"] for line in table.lines if table.primary in line.metrics and not line.same_as}
        if table.base in means and len(means) > 1:
            ratios = ", ".join(f"{name} {value / means[table.base]:.2f}" for name, value in means.items() if name != table.base)
            made.append(("times", f"relative to {table.base}: {ratios}."))
    return made


def _seeds(tables: tuple[Table, ...]) -> list[Said]:
    seeds = sorted({run["seed"] for table in tables for line in table.lines for run in line.runs})
    runs = sum(line.n for table in tables for line in table.lines if not line.same_as)
    if not seeds:
        return []
    text = f"{_count(len(seeds), 'seed')} ({', '.join(map(str, seeds))}), the same for every cell: initial weights, batches, augmentation and noise are paired."
    told = any(table.statistics.get("common_epochs") for table in tables)                     # then the statistics say it with the epochs
    return [("seeds", text + (f" Means have n = {len(seeds)}, not {runs}, independent draws." if runs > len(seeds) > 1 and not told else ""))]


def _images(tables: tuple[Table, ...]) -> list[Said]:
    sizes: dict[str, int] = {m.name: m.n for table in tables for m in table.metrics if m.rate}
    if not any(sizes.values()):
        return []
    same = len(set(sizes.values())) == 1
    text = f"{next(iter(sizes.values())):,} test images" if same else "test images: " + ", ".join(f"{name} {n:,}" for name, n in sizes.items() if n)
    return [("images", text + ".")]


def _failed(outcome: Outcome) -> list[Said]:
    if not outcome.failed:
        return []
    every = len(outcome.results) + len(outcome.failed)
    return [("failed", f"{len(outcome.failed)} of {every} runs have no result.")] + [
        ("failed", f"{f.cell}, seed {f.seed}: {'diverged: ' if f.diverged else ''}{f.why}") for f in outcome.failed]


def _doubts(tables: tuple[Table, ...]) -> list[Said]:
    """Each kind of doubt once, with the cells that have it and how many of their runs: two doubts that differ in numbers alone are one kind."""
    kinds: dict[str, tuple[str, dict[str, set[Any]]]] = {}
    runs: dict[str, int] = {}
    for at, table in enumerate(tables):
        for line in (line for line in table.lines if not line.same_as):
            name = line.name if len(tables) == 1 or sum(line.name == o.name for t in tables for o in t.lines) == 1 else f"{line.name} (results {at + 1})"
            runs[name] = line.n
            for run in line.runs:
                for flag in flags_of(run):
                    kinds.setdefault(NUMBER.sub("…", flag), (flag, {}))[1].setdefault(name, set()).add(run.get("seed"))
    return [("† doubt", _doubt(flag, cells, runs)) for flag, cells in kinds.values()]


def _doubt(flag: str, cells: dict[str, set[Any]], runs: dict[str, int]) -> str:
    """`…: full (3 of 5 seeds), -ema (seed 2)`; the first run's numbers stand for all."""
    several = sum(map(len, cells.values())) > 1
    where = ", ".join(f"{name} ({len(seeds)} of {runs[name]} seeds)" if runs[name] > 1 else name for name, seeds in cells.items())
    return f"{flag}{' (numbers of the first such run)' if several and NUMBER.search(flag) else ''}: {where}"


def _apart(tables: tuple[Table, ...]) -> list[Said]:
    if len(tables) < 2:
        return []
    return [("tables", f"{len(tables)} tables: rows that differ in protocol, threat, data split or chosen checkpoint are not compared.")]


def _shared(outcome: Outcome, tables: tuple[Table, ...]) -> list[Said]:
    if not outcome.epochs_unshared:
        return []
    made = []
    for table in tables:
        cells = [line for line in table.lines if line.n and not line.same_as]
        if len(cells) > 1 and not table.statistics.get("common_epochs"):
            last, most = max(line.epochs.get("trained", 0) for line in cells), max(line.epochs.get("shared", 0) for line in cells)
            made.append(("epochs", f"0 of {last} epochs are common to all of these cells" + (f"; some share up to {most} with others." if most else ".")))
    saved = outcome.epochs_unshared - outcome.epochs_trained
    text = f"{outcome.epochs_trained:,} epochs trained" + (f" in place of {outcome.epochs_unshared:,}: shared prefixes are trained once" if saved > 0 else "")
    return [*made, ("epochs", text + ".")]


def _selection(tables: tuple[Table, ...]) -> list[Said]:
    made = []
    for table in tables:
        held = table.protocol.get("held_out", [0])[0]
        if table.checkpoint == "best" and held:
            made.append(("checkpoint", f"best by robust accuracy on {held:,} held-out training images"
                         + (f"; their standard error is at most {50 / held ** 0.5:.1f} points." if held < 2000 else ".")
                         + (" last is the final epoch; best − last is paired by seed." if table.other else "")))
        elif table.checkpoint == "last":
            made.append(("checkpoint", "last: the final epoch; nothing selects."))
    return made


def _design(grid: Grid) -> list[Said]:
    made = []
    if grid.design == "fractional":
        roman = {3: "III", 4: "IV", 5: "V", 6: "VI", 7: "VII", 8: "VIII"}.get(grid.resolution, str(grid.resolution))
        made.append(("design", f"fractional, resolution {roman}: {len(grid.cells)} of {2 ** len(grid.toggles)} cells."))
        made += [("aliases", f"{effect} cannot be told from {', '.join(others)}.") for effect, others in grid.aliases.items() if others]
    return made


def _tuned(grid: Grid) -> list[Said]:
    said = getattr(grid, "tuned", "") or grid.analysis.get("tuned", "")
    if said:
        return [("tuned", str(said))]
    sweeps = {c.row.name: c.row.size for c in grid.cells if c.row is not None and c.row.kind == "sweep"}
    if sweeps:
        rows = ", ".join(f"{name} {size}" for name, size in sweeps.items())
        return [("tuned", f"sweep rows by their own grids ({rows} runs); winners are chosen on held-out images; the rest is untuned.")]
    return [("tuned", UNTUNED)]


def _dropped(outcome: Outcome) -> list[Said]:
    """Points that did not go on, by their rung. Their numbers are those of the row's points; results.json has each with its values and accuracies."""
    made: list[Said] = []
    for sweep in outcome.sweeps:
        points, seeds = sweep["points"], len({seed for _, seed in outcome.results})
        mean = f", mean of {seeds} seeds" if seeds > 1 else ""
        for epoch in sorted({p["dropped"] for p in points if p["dropped"]}):
            gone = [p for p in points if p["dropped"] == epoch]
            judged = max(p["of"] for p in gone)
            numbers = _spans([int(p["cell"].rpartition("#")[2]) for p in gone])
            best = f"the best {judged - len({p['place'] for p in gone})} of {judged} by {sweep['selector']} on held-out images{mean}"
            made.append(("dropped", f"{sweep['row']}: after epoch {epoch} {best} went on; dropped: {numbers}."))
    return made


def _spans(numbers: list[int]) -> str:
    """`#1, #3–5`."""
    found: list[list[int]] = []
    for n in sorted(numbers):
        found = [*found[:-1], [found[-1][0], n]] if found and n == found[-1][1] + 1 else [*found, [n, n]]
    return ", ".join(f"#{a}" if a == b else f"#{a}–{b}" for a, b in found)


def _winners(tables: tuple[Table, ...]) -> list[Said]:
    return [("winner", f"{line.name}: {', '.join(f'{path} = {value}' for path, value in line.point.items())}")
            for table in tables for line in table.lines if line.kind == "sweep" and line.point]


def _deviations(grid: Grid) -> list[Said]:
    """Where this run leaves the study's file or the recipe, and what the study's file says of its paper."""
    made: list[Said] = []
    if grid.study is not None:
        command = grid.study.command.words()
        made += [("deviates", f"command line: {command}")] if command else []
        if not grid.study.command.seeds and tuple(grid.study.seeds) != tuple(grid.seeds):
            made.append(("deviates", f"the study names {_count(len(grid.study.seeds), 'seed')}; this has {len(grid.seeds)}."))
        return [*made, *[("study", line) for line in _head(grid.study.file)]]
    recipes = [cell.recipe for cell in grid.cells]
    commanded = sorted({_show(path) for recipe in recipes for path in recipe.stack.commanded})
    return [("deviates", "set on the command line: " + ", ".join(f"{path}{_value(recipes, path)}" for path in commanded) + ".")] if commanded else []


def _head(file: Any) -> list[str]:
    """The comments at the head of the study's file: bullet points apart, other lines joined to sentences."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, AttributeError):
        return []
    made, before = list[str](), False
    for line in lines:
        if not line.startswith("#"):
            break
        text = line.lstrip("#").rstrip()
        listed = text.startswith("   ") or text.lstrip().startswith(("- ", "* "))
        fresh = not made or listed or before or made[-1].endswith((".", ":"))
        made = [*made, text.strip()] if fresh else [*made[:-1], f"{made[-1]} {text.strip()}"]
        before = text.startswith("   ")
    return [line for line in made if line]


def _show(path: Any) -> str:
    from composer.recipe.paths import show

    return show(path)


def _value(recipes: list[Any], path: str) -> str:
    from composer.recipe.paths import MISSING, get, split

    values = {str(v) for r in recipes if (v := get(r.tables, split(path))) is not MISSING}
    return f" = {values.pop()}" if len(values) == 1 else ""


def _statistics(tables: tuple[Table, ...]) -> list[str]:
    told = [note for table in tables for note in table.statistics.get("notes", ()) if " is aliased with " not in note]       # the design says those
    return [*told, *filter(None, map(_detectable, tables))]


def _detectable(table: Table) -> str:
    """What the family could have found, from the spread that was seen."""
    rows = [*table.effects, *[d for line in table.lines for d in [line.delta.get(table.primary)] if d]]
    found = [(r["mde"], r["n"]) for r in rows if r.get("in_family") and r.get("mde") is not None and r.get("metric", table.primary) == table.primary]
    if not found:
        return ""
    metric, n = table.metric(table.primary), min(n for _, n in found)
    low, high = point(metric, min(m for m, _ in found)), point(metric, max(m for m, _ in found))
    span = low if low == high else f"{low} to {high}"
    return f"minimum detectable effect on {metric.name} (80 % power, n = {n}, the spread seen): {span}{' points' if metric.rate else ' ' + metric.unit}"


def _cost(tables: tuple[Table, ...]) -> list[Said]:
    if not any(line.cost for table in tables for line in table.lines):
        return []
    base = next((table.base for table in tables if table.base), "")
    return [("cost", "forwards, input gradients and weight gradients of a step in batches, as the plan counts them (mean over the run)"
             + (f"; × is the whole run relative to {base}." if base else "."))]


def point(metric: Metric, value: float) -> str:
    """A number in the metric's unit, without the unit."""
    return f"{metric.scale() * value:.2f}" if metric.rate else f"{value:.4g}"


def collapsed(lines: Iterable[Line]) -> bool:
    return any(line.collapse.get("collapsed") for line in lines)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
