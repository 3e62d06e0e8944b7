"""From a grid and what came back to plain data that every table, page and file is written from.

    summary = summarise(grid, outcome, out)
    summary.as_dict()                  the JSON of `composer ablate`; Summary.from_dict reads it back
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from composer.ablate.summary.types import Line, Metric, Summary, Table
from composer.ablate.types import Grid, Outcome

__all__ = ["Line", "Metric", "Summary", "Table", "summarise"]

IN_ROWS = ("all_runs", "if_trained", "collapse", "beside")


def summarise(grid: Grid, outcome: Outcome, out: Path | str, *, mlflow_parent_run_id: str | None = None) -> Summary:
    """All tables of a grid, checked against mixing what may not be compared.

    out   the store, in which per-image results and curves are looked for; what it lacks (say, the images' noise) is left out

    Errors: ComposerError for an [analysis] that names what is not there.
    """
    from composer.ablate.summary.blocks import blocks_of
    from composer.ablate.summary.words import footer

    out = Path(out)
    tables, notes, banners = [], [], []
    for block in blocks_of(grid, outcome):
        table, said = _table(grid, outcome, block, out)
        tables.append(table)
        notes += said
        banners += [(len(tables), banner) for banner in table.statistics.get("banners", ())]
    made = _untrained(grid, outcome, tables)
    base = next((t.base for t in made if t.base == grid.base), next((t.base for t in made if t.base), grid.base))
    return Summary(
        study=grid.name, design=grid.design, toggles=grid.toggles, seeds=grid.seeds, base=base, primary=made[0].primary if made else "",
        tables=made, about=grid.study.about if grid.study else "", printed_table=grid.study.table if grid.study else "",
        banners=tuple(dict.fromkeys(f"results {at}: {banner}" if len(made) > 1 else banner for at, banner in banners)), footer=footer(grid, outcome, made, notes),
        failed=tuple({"name": f.cell, "seed": f.seed, "why": f.why, "diverged": f.diverged, "exit_code": f.exit_code} for f in outcome.failed),
        fractional={"resolution": grid.resolution, "aliases": {k: list(v) for k, v in grid.aliases.items()}} if grid.resolution else {},
        nested={k: list(v) for k, v in grid.nested.items()}, epochs_trained=outcome.epochs_trained, epochs_unshared=outcome.epochs_unshared,
        fork_epochs=tuple(outcome.fork_epochs), sweeps=tuple(outcome.sweeps), seconds=outcome.seconds, mlflow_parent_run_id=mlflow_parent_run_id, out=str(out))


def _table(grid: Grid, outcome: Outcome, block: Any, out: Path) -> tuple[Table, list[str]]:
    from composer.ablate.rungs import source
    from composer.ablate.statistics import analyse
    from composer.ablate.summary.blocks import found_of, title_of
    from composer.ablate.summary.budget import budget_of
    from composer.ablate.summary.gather import input_of
    from composer.ablate.summary.lines import lines_of
    from composer.ablate.summary.sweeps import winners_of

    winners, notes = winners_of(block, outcome, out, grid.name)
    data, metrics = input_of(grid, block, outcome, winners, out)
    analysis = analyse(data) if data.metrics else None
    wanted = grid.analysis.get("primary")
    if analysis and wanted and wanted != analysis.primary:
        notes = (*notes, f"{wanted} was to be the primary metric and is not measured here: {analysis.primary} stands in for it.")
    base = data.reference or ""
    lines = lines_of(block, outcome, winners, analysis, metrics, base)
    effects = tuple(e.as_dict() for e in analysis.all_runs.effects) if analysis else ()
    rest = {k: v for k, v in analysis.as_dict().items() if k not in IN_ROWS} if analysis else {}
    primary = analysis.primary if analysis else (metrics[-1].name if metrics else "")
    named = {c.name: c for c in block.cells if not c.same_as and not c.point} | {w.label: w.cell for w in winners}
    budget = budget_of(named, {name: found_of(outcome, source(cell)) for name, cell in named.items()}, out)
    return Table(title_of(block, grid), block.checkpoint, metrics, primary, base, lines, effects, block.protocol,
                 {**rest, "common_epochs": data.common_epochs}, budget), list(notes)


def _untrained(grid: Grid, outcome: Outcome, tables: list[Table]) -> tuple[Table, ...]:
    """Rows of the study that are never trained: a foreign model where its protocol is, what is only printed where its group is, else in the first."""
    from composer.ablate.summary.lines import external, only_printed

    for row in grid.study.rows if grid.study is not None and tables else ():
        if row.kind not in ("external", "printed"):
            continue
        made = external(row, outcome) if row.kind == "external" else only_printed(row)
        at = next((i for i, t in enumerate(tables) if _fits(row, t, made)), 0)
        tables[at] = replace(tables[at], lines=(*tables[at].lines, *made))
    return tuple(tables)


def _fits(row: Any, table: Table, made: list[Line]) -> bool:
    from composer.ablate.summary.blocks import protocol_of

    if made and made[0].runs:                                   # what was judged stands beside what was judged alike
        return table.protocol.get("digest") == protocol_of(row.recipe)["digest"]
    return any(line.group == row.group for line in table.lines)

