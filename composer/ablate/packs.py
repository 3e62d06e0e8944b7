"""Seeds of one cell as one task: the tasks of several seeds that are alike, stem by stem, become tasks that train those seeds together.

Shared prefixes stay shared: a stem is trained once for its cells, and for the seeds of a pack at once. Cells that share a stem are packed all or
none, since a pack's epochs have keys of their own. A sweep judges its points one by one and is not packed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from composer.ablate.equal import table_text
from composer.ablate.tree import Tree
from composer.ablate.types import Grid, Task
from composer.errors import ComposerError


@dataclass(frozen=True)
class Packs:
    """seeds of each pack, the cells whose runs are packed, and why others are not."""

    seeds: tuple[tuple[int, ...], ...] = ()
    cells: frozenset[str] = frozenset()
    note: str = ""

    def of(self, seed: int) -> tuple[int, ...]:
        return next((pack for pack in self.seeds if seed in pack and len(pack) > 1), ())


def packs_for(grid: Grid, tree: Tree, asked: str, settings: Any, held: Sequence[Sequence[int]]) -> Packs:
    """The packs of a grid, as `--pack` asks for them; those that were begun (`held`) stay.

    Errors: ComposerError where a number was asked for and some cell cannot be packed.
    """
    from composer.engine.pack_seeds import Packing, packs_of

    packing = Packing.parse(asked)
    if not packing.most:
        return Packs()
    kept = [tuple(pack) for pack in held]
    seeds = (*kept, *packs_of([s for s in grid.seeds if not any(s in pack for pack in kept)], packing.most))
    width = max((len(pack) for pack in seeds), default=0)
    if width < 2:
        return Packs(note="nothing is packed: one seed has nobody to be packed with")
    reasons = _reasons(grid, packing.auto, settings, width)
    if reasons and not packing.auto:
        cell, why = next(iter(reasons.items()))
        raise ComposerError(f"--pack {asked}: the cell {cell} cannot be packed", where="command line", why=why,
                            fix="--pack auto packs what can be, --pack off nothing")
    fit = frozenset(name for stem in tree.stems if not any(cell in reasons for cell in stem.cells) for name in stem.cells)
    return Packs(seeds if fit else (), fit, _note(seeds if fit else (), reasons, [c.name for c in grid.distinct if c.name not in fit]))


def _reasons(grid: Grid, auto: bool, settings: Any, width: int) -> dict[str, str]:
    """Why cells cannot be packed."""
    from composer.engine.pack_fit import refusal, seated, too_large, unfit
    from composer.engine.session import Session

    if reason := unfit(settings):
        return {cell.name: reason for cell in grid.distinct}
    found: dict[str, str] = {}
    data: dict[str, Any] = {}
    for cell in grid.distinct:
        if cell.point:
            found[cell.name] = "the points of a sweep are judged one by one"
            continue
        key = table_text(cell.recipe, "data")
        sessions = []
        for seat, seed in enumerate((*grid.seeds, *grid.seeds)[:2]):
            sessions.append(Session(cell.recipe, seed, seated(settings, seat, width), data.get(key)))
            data[key] = sessions[-1].dataset
        if reason := (too_large(sessions[0]) if auto else "") or refusal(sessions):
            found[cell.name] = reason
    return found


def _note(packs: Sequence[tuple[int, ...]], reasons: Mapping[str, str], alone: list[str]) -> str:
    sets = " and ".join("{" + ", ".join(map(str, p)) + "}" for p in packs if len(p) > 1)
    said = [f"Seeds {sets} are trained together; that equals training them alone to rounding, not bit for bit."] if sets else []
    if alone:
        why = "; ".join(f"{cell}: {reason}" for cell, reason in list(reasons.items())[:3])
        said.append(f"Not packed: {', '.join(alone[:5])}{', …' if len(alone) > 5 else ''} ({why}).")
    return " ".join(said)


def packed(tasks: Iterable[Task], packs: Packs) -> list[Task]:
    """The tasks, with those that differ in the seed alone made into one for each pack; parents still stand before their children."""
    tasks = list(tasks)
    by_id = {task.id: task for task in tasks}
    fit: set[str] = set()
    for task in tasks:
        at = task if task.kind == "run" and task.cell in packs.cells else None
        while at is not None and at.id not in fit:
            fit.add(at.id)
            at = by_id.get(at.after)
    groups: dict[Any, list[Task]] = {}
    for task in tasks:
        pack = packs.of(task.spec["seed"]) if task.id in fit else ()
        groups.setdefault((pack or task.spec["seed"], _alike(task, by_id)), []).append(task)
    names = {task.id: _name(key[0], group) for key, group in groups.items() for task in group}
    return [_together(group, pack, names) if isinstance(pack, tuple) else replace(group[0], after=names.get(group[0].after, ""))
            for (pack, _), group in groups.items()]


def _alike(task: Task, by_id: Mapping[str, Task]) -> str:
    """What tasks of several seeds must have in common: all but the seed, here and in what comes before."""
    said = {k: v for k, v in task.spec.items() if k not in ("seed", "tags", "record")}
    return repr((task.kind, task.cell, sorted(said.items()), task.after and _alike(by_id[task.after], by_id)))


def _name(pack: Any, group: Sequence[Task]) -> str:
    first = group[0]
    return f"{first.id.rpartition('/s')[0]}/s{'+'.join(str(t.spec['seed']) for t in group)}" if isinstance(pack, tuple) else first.id


def _together(group: Sequence[Task], pack: tuple[int, ...], names: Mapping[str, str]) -> Task:
    first, only = group[0], [task.spec["seed"] for task in group]
    spec = {k: v for k, v in first.spec.items() if k not in ("seed", "tags")}
    spec |= {"seeds": list(pack), "only": only, "tags": {str(t.spec["seed"]): dict(t.spec.get("tags") or {}) for t in group}}
    title = first.title.rpartition(", seed")[0] + f", seeds {', '.join(map(str, only))} together"
    return replace(first, id=names[first.id], title=title, spec=spec, after=names.get(first.after, ""), seeds=tuple(only))


def answers_of(task: Task, answer: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    """The answers of a task by seed."""
    if not task.seeds:
        return {task.seed: answer}
    each = answer.get("packed", {})
    return {seed: each.get(str(seed), answer) for seed in task.seeds}


def work_packed(spec: Mapping[str, Any], recipe: Any, guests: Sequence[Any], settings: Any, observer: Any, fork: str) -> dict[str, Any]:
    """Do a task of several seeds: {"packed": {seed: answer as of the task of one}}, and {"failed": …} where no seed came through."""
    from composer.ablate.forest import failed
    from composer.engine.pack_run import marked, run_pack, train_pack_prefix
    from composer.errors import Diverged

    if spec["kind"] == "prefix":
        found: Mapping[int, Any] = train_pack_prefix(recipe, spec["seeds"], until=spec["until"], settings=settings, guests=guests, only=spec["only"],
                                                     observer=observer)
        marked(settings, [each["node"] for each in found.values() if isinstance(each, dict)], fork)
    else:
        found = run_pack(recipe, spec["seeds"], settings=settings, only=spec["only"], tags=lambda seed: spec["tags"][str(seed)], observer=observer)
        found = {seed: each if isinstance(each, Diverged) else {"result": each} for seed, each in found.items() if seed in spec["only"]}
    answers = {str(seed): failed(str(each), diverged=True, exit_code=3) if isinstance(each, Diverged) else each for seed, each in found.items()}
    trouble = [each for each in answers.values() if "failed" in each]
    return {"packed": answers} | (trouble[0] if len(trouble) == len(answers) else {})
