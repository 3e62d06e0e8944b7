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
        self.file, self.of = spec.get("progress_file", ""), epochs

    def epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        self.tell(epoch, "train" if epoch < self.of else "evaluate")

    def tell(self, epoch: int, stage: str) -> None:
        from composer.ablate.progress import tell

        if self.file:
            tell(self.file, epoch, self.of, stage)

    def stop(self) -> str:
        return ""


def work(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Do a task: {"result": …} of a run, {"node": …} of a prefix.

    spec   kind, recipe (a file), name, seed, settings; until and guests of a prefix; tags of a run; stop_file, progress_file
    Errors: as those of a run (Diverged, Stopped, …).
    """
    from composer.engine.prefix import train_prefix
    from composer.engine.run import run

    recipe = load_cell(spec["recipe"], spec["name"])
    settings = settings_of(spec)
    epochs = spec.get("until") or recipe.segments()[-1].last
    watch = Watch(spec, epochs)
    watch.tell(0, "start")
    if spec["kind"] == "prefix":
        guests = [load_cell(file, name) for file, name in spec["guests"]]
        trained = train_prefix(recipe, seed=spec["seed"], until=spec["until"], guests=guests, settings=settings, observer=watch)
        atomic.write_text(settings.out / "nodes" / trained["node"] / FORK, "")
        return trained
    return {"result": run(recipe, seed=spec["seed"], settings=settings, tags=dict(spec.get("tags") or {}), observer=watch)}


def load_cell(file: str, name: str) -> Any:
    """A cell's recipe as its file says it, under the name of the recipe it comes from: nothing else of that recipe or its setting is applied again."""
    from composer.recipe.load import load

    return replace(load(file), name=name)


def settings_of(spec: Mapping[str, Any]) -> Any:
    from composer.engine.session import Settings

    given = {k: Path(v) if k in ("out", "data_root") else v for k, v in spec["settings"].items()}
    return Settings(**{**given, "stop_file": str(spec.get("stop_file") or "")})
