"""The sheets of a summary: results, differences, effects, the other checkpoint, collapses, print."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from composer.ablate.summary import Line, Metric, Summary, Table
from composer.report.ablation import numbers
from composer.report.ablation.sheet import Cell, Head, Sheet

DIM = "dim"


def sheets_of(summary: Summary) -> list[Sheet]:
    """In reading order; what has nothing to say is left out."""
    found: list[Sheet] = []
    for at, table in enumerate(summary.tables):
        number = f" {at + 1}" if len(summary.tables) > 1 else ""
        made = (results(table), differences(table), effects(table), second_line(table), unselected(table), equal_cost(table), trained(table), beside(table))
        found += [_numbered(sheet, number, table) for sheet in made if sheet is not None and not sheet.empty]
    return found


def _numbered(sheet: Sheet, number: str, table: Table) -> Sheet:
    title = f"Results{number}: {table.title}; {numbers.seeds_words(table)}" if sheet.key == "results" else f"{sheet.title}{f' (results{number})' if number else ''}"
    return replace(sheet.without_empty_columns(), title=title, key=f"{sheet.key}{number.strip()}")


def _rows(table: Table) -> Iterator[Line]:
    """Rows with something of ours to say."""
    return (line for line in table.lines if line.kind != "printed")


def _blank(line: Line, columns: int) -> tuple[Cell, ...]:
    """A row that is another one has its numbers there; else why it has none."""
    why = "" if line.same_as else "not judged" if line.kind == "external" else "no result"
    return (Cell(why, tone=DIM), *[Cell()] * (columns - 1))


def metric_head(table: Table, metric: Metric, group: str = "metrics") -> Head:
    mark = "*" if metric.name == table.primary and len(table.metrics) > 1 else ""
    return Head(f"{metric.name}{mark} {numbers.unit(metric)}".rstrip(), tuple(filter(None, (numbers.images(metric), numbers.interval_words(table)))), group)


# -- results -----------------------------------------------------------------------------------------------------------------------


def results(table: Table) -> Sheet:
    """One row a cell: every metric, the difference to the base and between checkpoints on the primary one, epoch, cost."""
    primary = table.metric(table.primary)
    heads = [Head("cell", left=True), *(metric_head(table, m) for m in table.metrics)]
    extra = _extra(table, primary)
    rows = []
    for line in _rows(table):
        first = Cell(numbers.label(line, table.seeds), tone=DIM if line.same_as else "bad" if line.failed and line.kind != "external" else "")
        if line.same_as or not line.metrics:
            rows.append((first, *_blank(line, len(heads) - 1 + len(extra))))
            continue
        shown = [Cell(numbers.mean(m, line.metrics.get(m.name), table.seeds)) for m in table.metrics]
        rows.append((first, *shown, *(make(line) for _, make in extra)))
    notes = ("* the primary metric",) if any("*" in h.name for h in heads) else ()
    return Sheet("results", table.title, (*heads, *(head for head, _ in extra)), tuple(rows), notes)


def _extra(table: Table, primary: Metric) -> list[tuple[Head, Any]]:
    """Columns behind the metrics, each with what fills it."""
    lines = [line for line in table.lines if line.metrics]
    shared = table.metric(_between(table, lines))
    collapsed = any(line.collapse.get("collapsed") for line in lines)
    made: list[tuple[Head, Any]] = []
    if table.base and any(primary.name in line.delta for line in lines):
        kind = next((numbers.interval_of(d) for line in lines if (d := line.delta.get(primary.name))), "ci95")
        words = "± 95 %, family" if kind == "ci_simultaneous" else "± 95 % t"
        made.append((Head(f"Δ {primary.name}", (f"to {table.base}", words), "delta"), lambda line: _delta_cell(primary, line, table.base)))
    if collapsed:
        made.append((Head("collapsed", ("runs", ""), "collapse"),
                     lambda line: Cell(f"{line.collapse['collapsed']}/{line.collapse['n']}" if line.collapse else "", tone="bad" if line.collapse.get("collapsed") else "")))
    if shared.name:
        title = f"{table.checkpoint} {numbers.MINUS} {table.other}"
        made.append((Head(title, (shared.name, "± 95 % t"), "checkpoint"), lambda line: Cell(numbers.contrast(shared, line.gap.get(shared.name)))))
    if any(numbers.epochs(line) for line in lines):
        made.append((Head("epoch", ("selected",), "checkpoint"), lambda line: Cell(numbers.epochs(line))))
    made += [(Head("passes", ("a step",), "cost"), lambda line: Cell(numbers.amount(line.cost.get("step")))),
             (Head("passes", ("in total",), "cost"), lambda line: Cell(numbers.amount(line.cost.get("total")))),
             (Head("×", (f"of {table.base}",), "cost"), lambda line: Cell(f"{line.cost['relative']:.2f}" if line.cost.get("relative") else ""))]
    return made


def _between(table: Table, lines: list[Line]) -> str:
    """The metric on which checkpoints are compared: the primary one, else of those the other checkpoint has the lowest accuracy, the strongest attack."""
    both = {m.name: record["mean"] for line in lines for m in table.metrics if m.rate and m.name in line.gap and (record := line.metrics.get(m.name))}
    return table.primary if table.primary in both else min(both, key=both.__getitem__) if both else ""


def _delta_cell(metric: Metric, line: Line, base: str) -> Cell:
    if line.name == base:
        return Cell("base", tone=DIM)
    record = line.delta.get(metric.name)
    return Cell(numbers.contrast(metric, record), bold=bool(record and record.get("bold")))


def differences(table: Table) -> Sheet | None:
    """Delta to the base on every metric, with both noises and the verdict on the primary one."""
    lines = [line for line in _rows(table) if line.delta and not line.same_as and line.name != table.base]
    if not lines:
        return None
    primary = table.metric(table.primary)
    order = [primary, *(m for m in table.metrics if m.name != primary.name)]
    family = any(numbers.interval_of(line.delta.get(primary.name) or {}) == "ci_simultaneous" for line in lines)
    heads = [Head("cell", left=True), Head(f"Δ {primary.name}", (_points(primary), "± 95 %, family" if family else "± 95 % t"), "primary"),
             Head("±", ("seeds and", "images"), "primary"), Head("p", ("Holm",), "primary"), Head("verdict", (), "primary", left=True),
             *(Head(f"Δ {m.name}", (_points(m), "± 95 % t"), "others") for m in order[1:])]
    rows = [(Cell(numbers.label(line, table.seeds)), *_tested(primary, line.delta.get(primary.name)),
             *(Cell(numbers.contrast(m, line.delta.get(m.name), "ci95")) for m in order[1:])) for line in lines]
    return Sheet("differences", f"Difference to {table.base}, paired by seed", tuple(heads), tuple(rows))


def _tested(metric: Metric, record: Mapping[str, Any] | None) -> tuple[Cell, Cell, Cell, Cell]:
    if not record:
        return Cell(), Cell(), Cell(), Cell()
    p = record.get("p_holm")
    return (Cell(numbers.contrast(metric, record), bold=bool(record.get("bold"))), Cell(numbers.half(metric, record.get("ci_both"))),
            Cell("" if p is None else f"{p:.3f}" if p >= 0.001 else "<0.001"), Cell(str(record.get("verdict") or "")))


def _points(metric: Metric) -> str:
    return "points" if metric.rate else metric.unit


# -- effects -----------------------------------------------------------------------------------------------------------------------


def effects(table: Table) -> Sheet | None:
    """On minus off over the levels of the others; where components interact, within each level of the other."""
    by: dict[str, dict[str, Mapping[str, Any]]] = {}
    for effect in table.effects:
        by.setdefault(effect["term"], {})[effect["metric"]] = effect
    primary = table.metric(table.primary)
    shown = {term: row for term, row in by.items() if (row.get(primary.name) or {}).get("shown", True)}
    if not shown:
        return None
    others = [m for m in table.metrics if m.name != primary.name]
    family = any(numbers.interval_of(row.get(primary.name) or {}) == "ci_simultaneous" for row in shown.values())
    heads = [Head("effect", left=True), Head(primary.name, (_points(primary), "± 95 %, family" if family else "± 95 % t"), "primary"),
             Head("±", ("seeds and", "images"), "primary"), Head("p", ("Holm",), "primary"), Head("verdict", (), "primary", left=True),
             Head("MDE", (_points(primary), "80 % power"), "mde"), *(Head(m.name, (_points(m), "± 95 % t"), "others") for m in others)]
    rows = []
    for term, row in shown.items():
        own = row.get(primary.name) or {}
        value, both, p, verdict = _tested(primary, own)
        mde = Cell(numbers.level(primary, own["mde"]) if own.get("mde") is not None else "")
        rest = (Cell(numbers.contrast(m, row.get(m.name), "ci95") if (row.get(m.name) or {}).get("estimate") is not None else "") for m in others)
        rows.append((Cell(term), value, both, p, verdict, mde, *rest))
    return Sheet("effects", "Effects: with the component minus without it", tuple(heads), tuple(rows))


def second_line(table: Table) -> Sheet | None:
    """Least squares, shown only where the statistics allow it."""
    line = (table.statistics.get("second_line") or {}).get(table.primary) or {}
    if line.get("withheld") or not line.get("effects"):
        return None
    metric = table.metric(table.primary)
    rows = tuple((Cell(e["term"], tone=DIM), Cell(numbers.contrast(metric, e, "ci95"), tone=DIM)) for e in line["effects"])
    return Sheet("least_squares", f"Second line: {line.get('label')}",
                 (Head("effect", left=True), Head(metric.name, (_points(metric), "± 95 %"), "")), rows)


# -- further readings --------------------------------------------------------------------------------------------------------------


def unselected(table: Table) -> Sheet | None:
    """The other checkpoint, on the metrics that it was judged by."""
    names = [m for m in table.metrics if any(m.name in line.other for line in table.lines)]
    if not names:
        return None
    title = f"{table.checkpoint} {numbers.MINUS} {table.other}"
    heads = [Head("cell", left=True)]
    for m in names:
        under = tuple(filter(None, (numbers.images(m), numbers.interval_words(table))))
        heads += [Head(f"{m.name} {numbers.unit(m)}".rstrip(), under, m.name), Head(title, (_points(m), "± 95 % t"), m.name)]
    rows = [(Cell(numbers.label(line, table.seeds)), *(cell for m in names for cell in (
        Cell(numbers.mean(m, line.other.get(m.name), table.seeds)), Cell(numbers.contrast(m, line.gap.get(m.name))))))
        for line in _rows(table) if line.other and not line.same_as]
    return Sheet("unselected", f"The {table.other} checkpoint", tuple(heads), tuple(rows))


def equal_cost(table: Table) -> Sheet | None:
    """Held-out accuracy where each row has spent what the cheapest one spends in all."""
    budget = table.budget
    if not budget:
        return None
    metric = Metric(budget["metric"], budget["n"])
    heads = [Head("cell", left=True), Head("passes", ("in total",), "cost"), Head("epoch", ("at the budget",), "cost"),
             Head(f"{metric.name} %", ("held out, there", "± 95 % t"), "at"), Head("Δ", (f"to {budget['of']}", "± 95 % t"), "at"),
             Head(f"{metric.name} %", ("held out,", "at its end"), "end")]
    rows = [(Cell(row["name"]), Cell(numbers.amount(row["passes"])), Cell(f"{row['epoch']} of {row['epochs']}" if row["epoch"] else row["why"], tone="" if row["epoch"] else DIM),
             Cell(_held_out(metric, row["at"])), Cell(numbers.contrast(metric, row["delta"])), Cell(_held_out(metric, row["end"]))) for row in budget["rows"]]
    return Sheet("equal_cost", f"At equal cost: {numbers.amount(budget['passes'])} passes, what {budget['of']} spends in all", tuple(heads), tuple(rows),
                 (f"accuracy under {metric.name} on {metric.n:,} held-out training images after that epoch; no test image, and not the protocol of the other tables",
                  "a row with more to spend is in the middle of its schedule there: for a claim, train it with train.epochs set to that epoch"))


def _held_out(metric: Metric, record: Mapping[str, Any] | None) -> str:
    if not record:
        return ""
    side = numbers.half(metric, record.get("ci95"))
    return numbers.level(metric, record["mean"]) + (f" ± {side}" if side else "")


def trained(table: Table) -> Sheet | None:
    """"All runs" and "if it trained" side by side, where any run collapsed."""
    lines = [line for line in _rows(table) if line.collapse and not line.same_as]
    if not any(line.collapse.get("collapsed") for line in lines):
        return None
    primary = table.metric(table.primary)
    metrics = [primary, *(m for m in table.metrics if m.name != primary.name)]
    left = next((r["n"] for line in lines for r in line.trained.values()), 0)
    heads = [Head("cell", left=True), Head("collapsed", ("of runs",), "rate"), Head("rate", ("exact 95 %",), "rate")]
    for m in metrics:
        heads += [Head(f"{m.name} {numbers.unit(m)}".rstrip(), ("all runs",), m.name),
                  Head(f"{m.name} {numbers.unit(m)}".rstrip(), ("if it trained", f"n = {left}"), m.name)]
    rows = [(Cell(numbers.label(line, table.seeds)), Cell(f"{line.collapse['collapsed']}/{line.collapse['n']}"), Cell(_rate(line.collapse)), *(
        cell for m in metrics for cell in (Cell(numbers.mean(m, line.metrics.get(m.name), table.seeds)), Cell(numbers.mean(m, line.trained.get(m.name), left)))))
        for line in lines]
    return Sheet("collapse", "Collapsed runs", tuple(heads), tuple(rows))


def _rate(collapse: Mapping[str, Any]) -> str:
    interval = collapse.get("ci95")
    return f"{100 * interval[0]:.0f}–{100 * interval[1]:.0f} %" if interval else ""


def beside(table: Table) -> Sheet | None:
    """A paper's numbers beside ours: does the printed run fall where one more run of ours would?"""
    lines = [line for line in table.lines if line.printed]
    columns = list(dict.fromkeys(name for line in lines for p in line.printed for name in p["values"]))
    if not columns:
        return None
    heads = [Head("row", left=True), Head("in print", (), "name", left=True)]
    for name in columns:
        heads += [Head(name, ("ours",), name), Head(name, ("as printed",), name), Head(name, ("one more run", "of ours"), name, left=True)]
    rows = []
    for line in lines:
        for p in line.printed:
            cells = [cell for name in columns for cell in _printed(table.metric(name), line, p, name, {m.name for m in table.metrics})]
            rows.append((Cell(numbers.label(line, table.seeds)), Cell(" ".join(filter(None, (p["row"], f"({p['group']})" if p["group"] else ""))), tone=DIM), *cells))
    return Sheet("print", "Beside the printed table", tuple(heads), tuple(rows),
                 ("a printed number is compared with the 95 % prediction interval of one more run; a printed ± enters no test",))


def _printed(metric: Metric, line: Line, printed: Mapping[str, Any], name: str, ours: set[str]) -> tuple[Cell, Cell, Cell]:
    value, pm = printed["values"].get(name), printed["pm"].get(name)
    text = "" if value is None else f"{value:g}" + (f" ± {pm:g}" if pm is not None else "")
    mine = line.metrics.get(name) if name in ours else None
    found = line.beside.get(name) or {}
    verdict = str(found.get("verdict") or ("" if value is None or not mine else "not compared"))
    if found.get("prediction"):
        low, high = (numbers.level(metric, edge) for edge in found["prediction"])
        verdict = f"{verdict} {low}–{high}"
    return (Cell(numbers.level(metric, mine["mean"]) if mine else ""), Cell(text), Cell(verdict, tone="bad" if verdict.startswith("outside") else ""))
