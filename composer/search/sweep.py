"""`composer sweep`: draw trials, train them, choose winners on held-out images, write them down as recipes."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from composer import atomic
from composer.ablate.planned import threads_of
from composer.engine.lock import Held, Lock
from composer.errors import ComposerError, Stopped
from composer.recipe.recipe import Recipe
from composer.search.best import winners, write_bests
from composer.search.loops import work_through
from composer.search.options import SweepOptions
from composer.search.plots import importance, pictures
from composer.search.propose import Drawn, Points, Rungs, rungs
from composer.search.report import write_tables
from composer.search.space import Space, check_space, grid, space_of
from composer.search.store import Store, Trial
from composer.search.trial import Work, measures_of, validated
from composer.track import outlived
from composer.track_grid import GridRun, child_tags, close_grid, note_child, open_grid


@dataclass(frozen=True)
class Goal:
    """What is maximised, and what winners are chosen by. `keys`: selector -> the name under which trials hold its value."""

    metric: str
    selectors: tuple[str, ...]
    keys: dict[str, str]

    @property
    def further(self) -> tuple[str, ...]:
        """Measures beyond those of every epoch."""
        return tuple(dict.fromkeys(key for key in self.keys.values() if key not in self.each))

    each: tuple[str, ...] = ()


def sweep(recipe: Recipe, options: SweepOptions, *, space: Space | None = None) -> dict[str, Any]:
    """Search; the result as JSON (see docs/sweep.md). Called again it goes on, or answers from its record.

    space  in place of the recipe's [search]

    Errors: ComposerError where there is nothing to search or to search by, and where no trial has a result; Stopped after Ctrl-C or SIGTERM.
    """
    options, left = settled(options), {}
    goal = goal_of(recipe, options)
    if space is None:
        space, left = space_of(recipe)
    check_space(space, left, recipe)
    try_ends(recipe, space)
    points = grid(space, options.points) if options.grid else []
    epochs = recipe.segments()[-1].last
    at = rungs(epochs, options.grace, options.eta) if options.asha and not options.grid else ()
    facts = {"recipe": recipe.name, "setting": recipe.setting, "experiment_id": recipe.experiment_id, "space": space, "points": options.points if options.grid else 0,
             "seed": options.seed, "metric": goal.metric, "sampler": "grid" if options.grid else "tpe", "precision": options.settings.precision}
    store = Store(options.settings.out, options.name or name_of(recipe, facts))
    options = anew(store, options)
    held = store.begin(facts | {"threads": options.threads, "rungs": list(at)})
    options = replace(as_begun(options, held), trials=len(points) or options.trials)
    for path, why in left.items():
        options.say(f"{path} is not searched: {why}")
    parent = open_grid(store.out, store.name, {"metric": goal.metric, "trials": options.trials, **facts}, {"kind": "sweep", "recipe": recipe.name},
                       folder=store.folder, experiment=recipe.name, enabled=options.settings.track)
    deadline = time.time() + options.budget if options.budget else 0.0
    source: Any = Points(store, points, deadline=deadline) if options.grid else Drawn(
        store, space, options, goal.metric, Rungs(at, options.eta, goal.metric), deadline)
    began = time.monotonic()
    work_tracked(recipe, source, store, goal, options, parent)
    result = summary(recipe, store, goal, options, space, at) | {"not_searched": left, "seconds": round(time.monotonic() - began, 2)}
    return finish(recipe, store, goal, result, parent)


def settled(options: SweepOptions) -> SweepOptions:
    """Options checked, with the threads of a trial and quiet trials where several run at once."""
    options = options.checked()
    settings = replace(options.settings, out=options.settings.out.absolute(), data_root=options.settings.data_root.absolute(),
                       quiet=options.settings.quiet or not options.here)
    return replace(options, threads=options.threads or threads_of(options), settings=settings)


def as_begun(options: SweepOptions, held: dict[str, Any]) -> SweepOptions:
    """With the threads of the trials before: bits depend on their number."""
    if options.threads != held["threads"]:
        options.say(f"trials have {held['threads']} threads, as the sweep was begun, not {options.threads}: --fresh or another --name begins anew")
    return replace(options, threads=held["threads"])


def anew(store: Store, options: SweepOptions) -> SweepOptions:
    """--fresh: the sweep's record goes. Nodes stay: what is trained by the same bits again is the same again, and other trials may share it."""
    if not options.settings.fresh:
        return options
    shutil.rmtree(store.folder, ignore_errors=True)
    return replace(options, settings=replace(options.settings, fresh=False))


def goal_of(recipe: Recipe, options: SweepOptions) -> Goal:
    """Errors: ComposerError for a metric that validation does not give, for unknown measures."""
    each = validated(recipe)
    metric = options.metric.removeprefix("val/") or each[-1]
    if metric not in each:
        raise ComposerError(f"--metric {options.metric}", where="command line", fix=f"one of {', '.join(each)}; or change the attack of [select]; or "
                            "choose the winner alone by it: --select " + metric, why="what is climbed must be measured on held-out images after every epoch")
    selectors = tuple(dict.fromkeys(s.removeprefix("val/") for s in options.select)) or (metric,)
    keys = keys_of(recipe, selectors, each)
    measures_of(recipe, [key for key in keys.values() if key not in each])
    return Goal(metric, selectors, keys, each)


def keys_of(recipe: Recipe, selectors: Sequence[str], each: tuple[str, ...]) -> dict[str, str]:
    """"apgd-ce" is the attack of [select] where that is the registered `apgd_ce` and the protocol has no measure of this name."""
    named = {m.name for m in recipe.evaluate.measures}
    bare = {key.replace("_", "-"): key for key in each}
    return {s: s if s in each or s in named else bare.get(s, s) for s in selectors}


def try_ends(recipe: Recipe, space: Space) -> None:
    """Both ends of every range and all choices are tried as edits before anything is trained. Errors: ComposerError for the first that is none."""
    for path, one in space.items():
        for value in one.get("choices") or [one["low"], one["high"]]:
            try:
                recipe.edit(set={path: value}, name=f"search.{path}", where=recipe.where(("search", path)))
            except ComposerError as error:
                raise ComposerError(f'"{path}" cannot be {value!r}', where=recipe.where(("search", path)), why=error.text(), fix="change [search]") from None


def name_of(recipe: Recipe, facts: dict[str, Any]) -> str:
    import hashlib
    import json

    digest = hashlib.blake2b(json.dumps(facts, sort_keys=True, default=str).encode(), digest_size=5).hexdigest()
    return f"{recipe.name}-{digest}-s{facts['seed']}"


def work_tracked(recipe: Recipe, source: Any, store: Store, goal: Goal, options: SweepOptions, parent: GridRun, until: int = 0) -> None:
    """Work through the source; whatever happens, the parent run hears of it."""
    def make(number: int) -> Work:
        return Work(store, number, options.seed, options.settings, goal.further, until,
                    child_tags(parent, store.trial(number).name, options.seed, {}))

    try:
        work_through(recipe, source, store, make, options)
    except BaseException as error:
        note_dropped(parent, store)
        close_grid(parent, store.folder, {}, "KILLED" if isinstance(error, (Stopped, KeyboardInterrupt)) else "FAILED", children=folders(store))
        raise


def note_dropped(parent: GridRun, store: Store) -> None:
    """The runs of trials that were stopped at a rung say so, once. One that another process works on is left to it."""
    for trial in store.trials():
        folder = store.trial(trial.number)
        if trial.status == "pruned" and (folder / "track.jsonl").exists():
            with outlived(parent.tracker), contextlib.suppress(Held), Lock(folder):
                note_child(parent, folder, "", {}, {}, {"dropped": trial.why}, {}, "KILLED")


def folders(store: Store) -> list[Any]:
    return [store.trial(n) for n in range(store.count())]


def summary(recipe: Recipe, store: Store, goal: Goal, options: SweepOptions, space: Space, at: tuple[int, ...]) -> dict[str, Any]:
    """What the folder holds now, as a dict; nothing is trained for it."""
    trials = store.trials()
    left = [t.number for t in trials if t.status == "unfinished"]
    short = max(0, options.trials - len(trials))
    return {"sweep": store.name, "recipe": recipe.name, "setting": recipe.setting, "seed": options.seed, "metric": goal.metric,
            "sampler": "grid" if options.grid else "tpe", "rungs": list(at), "space": space, "trials": [row_of(t, goal) for t in trials],
            "unfinished": left, "stopped": "time budget" if left or short else "", "winners": winners(trials, goal.selectors, goal.keys),
            "importance": importance(trials, space, goal.metric), "epochs_trained": sum(t.epochs for t in trials), "out": str(store.folder)}


def row_of(trial: Trial, goal: Goal) -> dict[str, Any]:
    return {"number": trial.number, "status": trial.status, "values": trial.values, "epochs": trial.epochs, "score": trial.score(goal.metric),
            "metrics": trial.metrics, "selected_epoch": trial.selected_epoch, "seconds": round(trial.seconds, 2), "why": trial.why,
            "mlflow_run_id": trial.mlflow_run_id}


def finish(recipe: Recipe, store: Store, goal: Goal, result: dict[str, Any], parent: GridRun) -> dict[str, Any]:
    """Winners as recipes, tables, pictures; the parent run's end. Errors: ComposerError where no trial has a result."""
    files = write_bests(recipe, store, result)
    for selector, file in files.items():
        result["winners"][selector]["file"] = str(file)
    result["best"] = str(files[goal.selectors[-1] if goal.metric not in files else goal.metric]) if files else ""
    result["plots"] = [str(p) for p in pictures(store.trials(), result, store.folder / "plots")]
    write_tables(store.folder, result)
    atomic.write_json(store.folder / "results.json", result)
    note_dropped(parent, store)
    metrics = {f"best/{selector}": won["score"] for selector, won in result["winners"].items()}
    close_grid(parent, store.folder, metrics | {"trials": float(len(result["trials"]))}, children=folders(store))
    result["mlflow_parent_run_id"], result["note"] = parent.run_id, parent.note
    atomic.write_json(store.folder / "results.json", result)
    if not files and not result["stopped"]:
        raise nothing(store, result)
    return result


def nothing(store: Store, result: dict[str, Any]) -> ComposerError:
    whys = [f"trial {t['number']}: {t['status']}: {t['why'].splitlines()[0]}" for t in result["trials"] if t["why"]]
    error = ComposerError("no trial of the sweep has a result", where=str(store.folder), why="\n".join(whys[:5]), fix="mend [search], or read the trials' folders")
    error.exit_code = 3
    return error


__all__ = ["Goal", "goal_of", "sweep"]
