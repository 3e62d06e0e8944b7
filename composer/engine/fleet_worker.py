"""One worker of a data-parallel run, whoever started it: it finds its process group, builds the run from plain facts, leads or follows.

What it has to say goes through files in a folder that all see (`--out` is shared anyway): what the display would show, and how it ended.
"""

from __future__ import annotations

import contextlib
import json
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

from composer import atomic
from composer.errors import ComposerError, Diverged, Stopped

EVENTS, APART = "events.jsonl", 0.25        # seconds between two told steps
SHOWN = ("phase", "stage", "resume", "step", "epoch", "progress", "say")      # what a display is told (composer.report.live.Live)


def spec_of(recipe: Any, seed: int, settings: Any, tags: Mapping[str, str], folder: Path, threads: int) -> dict[str, Any]:
    """Plain facts for `serve`; the recipe goes into the folder, filled in."""
    from composer.plugins import for_workers

    _write(recipe, folder / "recipe.toml")
    given = {k: str(v.absolute()) if isinstance(v, Path) else v for k, v in asdict(settings).items()}
    return {"recipe": str(folder / "recipe.toml"), "name": recipe.name, "setting": recipe.setting, "experiment_id": recipe.experiment_id,
            "expect": atomic.plain(recipe.expect), "seed": seed, "settings": given, "tags": dict(tags), "plugins": list(for_workers()),
            "folder": str(folder), "threads": threads}


def _write(recipe: Any, file: Path) -> None:
    """The recipe as a file that means the same; without its toggles where an edit has left them nothing to act on."""
    from composer.recipe.load import load

    for each in (recipe, replace(recipe, toggle={}, search={})):
        atomic.write_text(file, each.filled())
        with contextlib.suppress(ComposerError):
            if load(file).experiment_id == recipe.experiment_id:
                return
    raise RuntimeError(f"{file} does not say what the recipe {recipe.name} means")


def serve(spec: Mapping[str, Any], device: str = "cpu") -> None:
    """Do a worker's part, in an initialised process group. How it ended stands in outcome-<rank>.json afterwards, unless a peer was lost.

    Errors: those that end this worker alone, so that whoever started it ends the others; a stop or a divergence ends all by itself.
    """
    import torch.distributed as dist

    from composer.engine.fleet_group import PeerLost

    file = Path(spec["folder"]) / f"outcome-{dist.get_rank()}.json"
    try:
        atomic.write_json(file, {"result": _work(spec, device)})
    except PeerLost:
        raise
    except (Stopped, Diverged) as error:
        atomic.write_json(file, {"error": facts_of(error)})
    except ComposerError as error:
        atomic.write_json(file, {"error": facts_of(error)})
        raise
    except Exception:
        atomic.write_json(file, {"defect": traceback.format_exc()})
        raise


def _work(spec: Mapping[str, Any], device: str) -> dict[str, Any] | None:
    import torch

    from composer.engine.fleet_group import Group
    from composer.engine.fleet_train import FleetSession, Follower, LeadRunner
    from composer.engine.record import Record
    from composer.engine.session import Settings

    if spec["threads"]:
        torch.set_num_threads(spec["threads"])
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    recipe = _recipe(spec)
    given = {k: Path(v) if k in ("out", "data_root") else v for k, v in spec["settings"].items()}
    settings = Settings(**{**given, "device": device})
    group = Group(sync_bn=settings.sync_bn)
    if group.leads:
        record = Record(settings.out, recipe, spec["seed"], settings.variant)
        return LeadRunner(group, lambda *a, **more: Telling(Path(spec["folder"]), *a, **more), recipe, spec["seed"], settings, record, spec["tags"]).run()
    Follower(FleetSession(recipe, spec["seed"], settings, group), lambda: "").follow()
    return None


def _recipe(spec: Mapping[str, Any]) -> Any:
    """The driver's recipe. Errors: RuntimeError where it does not mean here what it means there."""
    from composer.plugins import load_all
    from composer.recipe.load import load

    load_all(spec["plugins"], exact=True)
    made = load(spec["recipe"])
    if made.experiment_id != spec["experiment_id"]:
        raise RuntimeError(f"{spec['recipe']} does not say what the recipe {spec['name']} means")
    return replace(made, name=spec["name"], expect=spec["expect"])


# -- telling -----------------------------------------------------------------------------------------------------------------------------


class Telling:
    """Takes the place of the display in the leader: what it is told goes into a file, which the driver shows."""

    def __init__(self, folder: Path, epochs: int, steps: int, title: str = "", quiet: bool = False):
        self.file, self._stepped = folder / EVENTS, 0.0
        self._tell("begin", epochs, steps, title)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held."""

    def __getattr__(self, name: str) -> Any:
        if name not in SHOWN:
            raise AttributeError(name)
        return lambda *arguments, **more: self._tell(name, *arguments, **more)

    def step(self, epoch: int, step: int, images: int = 0, terms: Any = None) -> None:
        self._images = getattr(self, "_images", 0) + images
        if time.monotonic() - self._stepped >= APART:
            self._tell("step", epoch, step, self._images)
            self._stepped, self._images = time.monotonic(), 0

    def _tell(self, name: str, *arguments: Any, **more: Any) -> None:
        with contextlib.suppress(OSError), open(self.file, "a", encoding="utf-8") as file:      # a full disk does not end a training for it
            file.write(json.dumps([name, arguments, more], default=str) + "\n")


class Told:
    """What was told since one last looked: [name, arguments, arguments by name]."""

    def __init__(self, folder: Path):
        self.file, self._at = folder / EVENTS, 0

    def new(self) -> list[list[Any]]:
        try:
            with open(self.file, "rb") as file:
                file.seek(self._at)
                body = file.read()
        except OSError:
            return []
        whole = body[:body.rfind(b"\n") + 1]
        self._at += len(whole)
        return [json.loads(line) for line in whole.decode().splitlines()]


# -- how it ended ------------------------------------------------------------------------------------------------------------------------


def facts_of(error: ComposerError) -> dict[str, Any]:
    """An error as plain facts; `error_of` makes it again."""
    return {"kind": type(error).__name__, "exit_code": error.exit_code,
            "all": [{"what": e.what, "where": e.where, "why": e.why, "fix": e.fix} for e in error.all]}


def error_of(facts: Mapping[str, Any]) -> ComposerError:
    """The error that `facts_of` wrote."""
    from composer.engine.lock import Held
    from composer.errors import Errors

    found = [ComposerError(**each) for each in facts["all"]]
    if len(found) > 1:
        return Errors(found)
    kind = {"Stopped": Stopped, "Diverged": Diverged, "Held": Held}.get(facts["kind"], ComposerError)
    made = kind(**facts["all"][0])
    made.exit_code = facts["exit_code"]
    return made


def outcomes(folder: Path, workers: int) -> list[dict[str, Any]]:
    """How the workers ended that said so, the leader first."""
    found = [folder / f"outcome-{rank}.json" for rank in range(workers)]
    return [json.loads(file.read_text()) for file in found if file.exists()]


__all__ = ["SHOWN", "Telling", "Told", "error_of", "outcomes", "serve", "spec_of"]
