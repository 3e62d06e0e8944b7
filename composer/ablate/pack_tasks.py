"""Tasks of runs that are trained together, made of the tasks of single runs; and the work of one such task.

A run's place in its pack is part of what it computes, so a task lists all runs of its pack (`runs`) and the places that it trains (`only`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from composer.ablate.packs import Packs, Pair, runs_text
from composer.ablate.types import Task
from composer.engine.record import read_json

OWN = ("recipe", "name", "seed", "tags", "measures", "record", "key")         # of a run's spec, what is its own in a pack
Source = Callable[[str], tuple[str, str]]                                     # cell -> the file of its recipe, and that recipe's name


def packed(tasks: Iterable[Task], packs: Packs, source: Source) -> list[Task]:
    """The tasks, with those of a pack made into one; parents still stand before their children."""
    tasks = list(tasks)
    by_id = {task.id: task for task in tasks}
    fit = _fit(by_id, packs)
    tasks = [_free(task, by_id, packs, fit) for task in tasks]
    by_id = {task.id: task for task in tasks}
    groups: dict[Any, list[Task]] = {}
    for task in tasks:
        joint = packs.joint_of(task.cell, task.seed) if task.kind == "run" else ()
        seeds = packs.of(task.spec["seed"]) if task.id in fit else ()
        key = ("joint", joint, task.after) if joint else ("seeds", seeds, _alike(task, by_id)) if seeds else ("alone", (), task.id)
        groups.setdefault(key, []).append(task)
    names = {task.id: _name(key[0], group) for key, group in groups.items() for task in group}
    made = []
    for (how, pack, _), group in groups.items():
        after = names.get(group[0].after, "")
        if how == "alone":
            made.append(replace(group[0], after=after))
        elif group[0].kind == "prefix":
            made.append(_prefix(group, pack, names[group[0].id], after))
        else:
            made.append(_runs(group, pack if how == "joint" else [(group[0].cell, seed) for seed in pack], names[group[0].id], after, source))
    return made


def _free(task: Task, by_id: Mapping[str, Task], packs: Packs, fit: set[str]) -> Task:
    """A run of a pack of cells trains all its epochs itself, whoever shares them by now; what is trained alone has nothing of a packed prefix."""
    joint = task.kind == "run" and packs.joint_of(task.cell, task.seed)
    while task.after and by_id[task.after].kind == "prefix" and (joint or task.id not in fit and task.after in fit):
        task = replace(task, after=by_id[task.after].after)
    return task


def _fit(by_id: Mapping[str, Task], packs: Packs) -> set[str]:
    """Runs that are packed by seed, and their prefixes. One that waits for a run that is trained alone is alone too: seeds of its pack would wait for
    several tasks."""
    fit: set[str] = set()
    for task in by_id.values():
        if task.kind != "run" or task.cell not in packs.cells or (task.cell, task.seed) in packs.alone:
            continue
        way, at = {task.id}, by_id.get(task.after)
        while at is not None and at.kind == "prefix":
            way.add(at.id)
            at = by_id.get(at.after)
        if at is None or at.id in fit:
            fit |= way
    return fit


def _alike(task: Task, by_id: Mapping[str, Task]) -> str:
    """What tasks of several seeds must have in common: all but the seed, here and in what comes before."""
    said = {k: v for k, v in task.spec.items() if k not in ("seed", "tags", "record")}
    return repr((task.kind, task.cell, sorted(said.items()), task.after and _alike(by_id[task.after], by_id)))


def _name(how: str, group: Sequence[Task]) -> str:
    first = group[0]
    if how == "joint":
        return first.id + (f"+{len(group) - 1}" if len(group) > 1 else "")
    return f"{first.id.rpartition('/s')[0]}/s{'+'.join(str(t.spec['seed']) for t in group)}" if how == "seeds" else first.id


def _prefix(group: Sequence[Task], pack: Sequence[int], name: str, after: str) -> Task:
    first, only = group[0], tuple(task.spec["seed"] for task in group)
    spec = {k: v for k, v in first.spec.items() if k != "seed"} | {"seeds": list(pack), "only": list(only)}
    return replace(first, id=name, title=_title(first, only), spec=spec, after=after, seeds=only)


def _runs(group: Sequence[Task], pack: Sequence[Pair], name: str, after: str, source: Source) -> Task:
    """Runs that are to be trained say all of theirs; of the others in the pack the recipe is enough."""
    first, own = group[0], {(task.cell, task.seed): {k: task.spec[k] for k in OWN if k in task.spec} for task in group}
    runs = []
    for cell, seed in pack:
        file, recipe = source(cell)
        runs.append({"recipe": file, "name": recipe, "seed": seed, "called": f"{cell}, seed {seed}", **own.get((cell, seed), {})})
    done, cells = [pair for pair in pack if pair in own], {cell for cell, _ in own}
    spec = {k: v for k, v in first.spec.items() if k not in OWN} | {"recipe": first.spec["recipe"], "name": first.spec["name"], "runs": runs,
                                                                   "only": [k for k, pair in enumerate(pack) if pair in own]}
    seeds = tuple(dict.fromkeys(seed for _, seed in done))
    title = _title(first, seeds) if len(cells) == 1 else f"{runs_text(done)} together"
    return replace(first, id=name, title=title, spec=spec, after=after, seeds=seeds, runs=tuple(done))


def _title(first: Task, seeds: Sequence[int]) -> str:
    return first.title.rpartition(", seed")[0] + f", seeds {', '.join(map(str, seeds))} together"


def outsider(out: Path, name: str) -> tuple[str, str]:
    """Where the recipe of a run lies that another grid began together with runs of this one; it is not trained here."""
    folder = out / "experiments" / name
    return str((folder / "recipe.toml").absolute()), str((read_json(folder / "record.json") or {}).get("recipe", name))


def answers_of(task: Task, answer: Mapping[str, Any]) -> dict[Pair, Mapping[str, Any]]:
    """The answers of a task by run."""
    if not task.runs:
        return {(task.cell, task.seed): answer}
    each = answer.get("packed", {})
    return {pair: each.get(str(place), answer) for pair, place in zip(task.runs, task.spec["only"], strict=True)}


# -- in a worker ---------------------------------------------------------------------------------------------------------------------


def work_packed(spec: Mapping[str, Any], recipe: Any, guests: Sequence[Any], settings: Any, observer: Any, fork: str) -> dict[str, Any]:
    """Do a task of several runs: {"packed": {place or, of a prefix, seed: answer as of the task of one}}, and {"failed": …} where none came through."""
    from composer.ablate.forest import failed
    from composer.engine.pack_run import marked, train_pack_prefix
    from composer.errors import Diverged

    if spec["kind"] == "prefix":
        found: Mapping[int, Any] = train_pack_prefix(recipe, spec["seeds"], until=spec["until"], settings=settings, guests=guests, only=spec["only"],
                                                     observer=observer)
        marked(settings, [each["node"] for each in found.values() if isinstance(each, dict)], fork)
    else:
        found = _work_runs(spec, settings, observer)
    answers = {str(key): failed(str(each), diverged=True, exit_code=3) if isinstance(each, Diverged) else each for key, each in found.items()}
    trouble = [each for each in answers.values() if "failed" in each]
    return {"packed": answers} | (trouble[0] if len(trouble) == len(answers) else {})


def _work_runs(spec: Mapping[str, Any], settings: Any, observer: Any) -> dict[int, Any]:
    """Place -> result or error; what a sweep selects by is measured where a run asks for it."""
    from composer.ablate.rung_work import judge_end
    from composer.ablate.work import load_cell
    from composer.engine.pack_run import run_pack
    from composer.errors import Diverged

    files: dict[tuple[str, str], Any] = {}
    runs, own = [], spec["runs"]
    for each in own:
        source = (each["recipe"], each["name"])
        files[source] = files.get(source) or load_cell(*source)
        runs.append((files[source], each["seed"]))
    found = run_pack(runs, settings=settings, only=spec["only"], tags=lambda place: dict(own[place].get("tags") or {}), observer=observer,
                     names=[each["called"] for each in own])
    answers: dict[int, Any] = {}
    for place in spec["only"]:
        answers[place] = found[place]
        if not isinstance(found[place], Diverged):
            answers[place] = {"result": found[place]}
            if own[place].get("measures"):
                judge_end(own[place], runs[place][0], settings, found[place])
    return answers
