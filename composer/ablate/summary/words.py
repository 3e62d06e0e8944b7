"""The footer: what the reader must know beside the numbers, a heading and a sentence each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from composer.ablate.summary.types import Line, Metric, Table
from composer.ablate.types import Grid, Outcome

Said = tuple[str, str]
UNTUNED = ("nothing here: every cell runs at the hyper-parameters of its recipe. This answers \"what if it is removed\", not \"is it needed\"; "
           "ablate --tune T gives each cell the same trials.")


def footer(grid: Grid, outcome: Outcome, tables: tuple[Table, ...], notes: Iterable[str]) -> tuple[Said, ...]:
    """In reading order; what does not apply is left out."""
    made = [*_seeds(tables), *_images(tables), *_failed(outcome), *_doubts(tables), *_apart(tables), *_shared(outcome, tables), *_selection(tables),
            *_design(grid), *_tuned(grid), *_winners(tables), *_deviations(grid), *[("statistics", note) for note in _statistics(tables)], *_cost(tables),
            *[("note", note) for note in (*grid.notes, *notes)]]
    return tuple(dict.fromkeys(made))


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
    return [("† doubt", f"{line.name}, {why}") for table in tables for line in table.lines if not line.same_as for why in line.doubts]


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
