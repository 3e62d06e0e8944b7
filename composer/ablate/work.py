"""One task of a grid, in whatever process: train a prefix that cells share, or one cell to its end. Can be killed and begun again at any moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from composer import atomic

FORK = "fork"             # a mark in a node's folder: runs part here, so its checkpoint stays


class Watch:
    """Tells the progress file at every epoch's end."""

    def __init__(self, spec: Mapping[str, Any], epochs: int):
        self.file, self.of, self.since = spec.get("progress_file", ""), epochs, 0

    def epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        self.tell(epoch, "train" if epoch < self.of else "evaluate")

    def resumed(self, epoch: int) -> None:
        """Epochs that were there already: another attempt's, or another task's."""
        self.since = epoch
        self.tell(epoch, "resumed" if epoch < self.of else "evaluate")

    def tell(self, epoch: int, stage: str) -> None:
        from composer.ablate.progress import tell

        if self.file:
            tell(self.file, epoch, self.of, stage, self.since)

    def stop(self) -> str:
        return ""


def work(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Do a task: {"result": …} of a run, {"node": …} of a prefix, {"rung": …} of a sweep's point on its way.

    spec   kind, recipe (a file), name, seed, settings; until and guests of a prefix; tags of a run; measures, record and key of what a sweep
           compares on held-out images; stop_file, progress_file
    Errors: as those of a run (Diverged, Stopped, …).
    """
    from composer.engine.peak import trim

    try:
        return _done(spec)
    finally:
        trim()


def _done(spec: Mapping[str, Any]) -> dict[str, Any]:
    from composer.ablate.bench import bench
    from composer.ablate.rung_work import judge_end, judge_rung
    from composer.engine.prefix import train_prefix
    from composer.engine.run import run

    recipe = load_cell(spec["recipe"], spec["name"])
    settings = settings_of(spec)
    epochs = spec.get("until") or recipe.segments()[-1].last
    watch = Watch(spec, epochs)
    watch.tell(0, "start")
    if spec.get("seeds") or spec.get("runs"):
        from composer.ablate.pack_tasks import work_packed

        return work_packed(spec, recipe, [load_cell(file, name) for file, name in spec.get("guests", ())], settings, watch, FORK)
    if spec["kind"] == "prefix":
        guests = [load_cell(file, name) for file, name in spec["guests"]]
        trained = train_prefix(recipe, seed=spec["seed"], until=spec["until"], guests=guests, settings=settings, observer=watch)
        atomic.write_text(settings.out / "nodes" / trained["node"] / FORK, "")
        return trained
    if spec["kind"] == "bench":
        return {"result": bench(spec, recipe, settings)}
    if spec["kind"] == "rung":
        return judge_rung(spec, recipe, settings, watch)
    result = run(recipe, seed=spec["seed"], settings=settings, tags=dict(spec.get("tags") or {}), observer=watch)
    if spec.get("measures"):
        judge_end(spec, recipe, settings, result)
    return {"result": result}


def load_cell(file: str, name: str) -> Any:
    """A cell's recipe as its file says it, under the name of the recipe it comes from: nothing else of that recipe or its setting is applied again."""
    from composer.recipe.load import load

    return replace(load(file), name=name)


def settings_of(spec: Mapping[str, Any]) -> Any:
    from composer.engine.session import Settings

    given = {k: Path(v) if k in ("out", "data_root") else v for k, v in spec["settings"].items()}
    return Settings(**{**given, "stop_file": str(spec.get("stop_file") or "")})
