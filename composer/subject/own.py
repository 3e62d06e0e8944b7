"""Models that composer trained: a run by name or folder, or one of its files of weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from composer.engine import checkpoint
from composer.engine.checkpoint import weights_digest
from composer.engine.facts import Facts
from composer.engine.judge import Cosines, subject_of
from composer.engine.record import read_json
from composer.engine.session import Session, pick_device
from composer.errors import ComposerError
from composer.models.build import build_model
from composer.models.weights import check_fit
from composer.recipe.load import load
from composer.registry import REGISTRY
from composer.subject.asked import judging, read, settled
from composer.subject.types import Asked, Bench, Subject

FINAL, RECIPE = "final.safetensors", "recipe.toml"


@dataclass(frozen=True)
class Own:
    """A run's folder in the store, and the file of weights that is meant."""

    folder: Path
    weights: Path

    @property
    def result(self) -> dict[str, Any]:
        return read_json(self.folder / "result.json") or {}


def locate(target: str, out: Path) -> Own | None:
    """The run or checkpoint of ours that is meant; None where it is none. Errors: ComposerError for an unfinished run, or several that fit."""
    path = Path(target)
    if path.is_file():
        return _of_file(path, out)
    for folder in (path, out / "experiments" / target):
        if folder.is_dir() and ((folder / RECIPE).is_file() or (folder / "record.json").is_file()):
            return _of_folder(folder)
    experiments = out / "experiments"
    fitting = sorted(p for p in experiments.glob(f"{target}-*") if p.is_dir()) if experiments.is_dir() and "/" not in target and ":" not in target else []
    if len(fitting) > 1:
        raise ComposerError(f"{len(fitting)} runs begin with '{target}'", where=str(experiments), fix="one of\n" + "\n".join(p.name for p in fitting))
    return _of_folder(fitting[0]) if fitting else None


def _of_folder(folder: Path) -> Own:
    if not (folder / FINAL).is_file():
        raise ComposerError(f"the run {folder.name} is not finished", where=str(folder), why="it has no final weights yet",
                            fix="run its command again, or name a checkpoint file below nodes/")
    return Own(folder, folder / FINAL)


def _of_file(file: Path, out: Path) -> Own | None:
    """A run's final weights, or a checkpoint of its nodes; both know which run they are of, or lie in its store."""
    facts = checkpoint.facts(file) if file.suffix == ".safetensors" else {}
    if "run" in facts:
        beside = [file.parent, out / "experiments" / str(facts["run"])]
        folder = next((p for p in beside if (p / RECIPE).is_file()), None)
        return Own(folder, file) if folder else None
    if "progress" not in facts and "epoch" not in facts:
        return None
    node, store = file.resolve().parent.name, file.resolve().parent.parent.parent
    for record in sorted((store / "experiments").glob("*/record.json")):
        named = (read_json(record) or {}).get("nodes") or []
        if any(node in entry.values() for entry in named if isinstance(entry, dict)) and (record.parent / RECIPE).is_file():
            return Own(record.parent, file)
    return None


def recipe_of(own: Own, asked: Asked) -> Any:
    """The run's own recipe with what the command line says about judging. Errors: ComposerError for what belongs to strangers' files."""
    for flag, value in (("--model", asked.model), ("--normalise", asked.normalise), ("--setting", asked.setting)):
        if value:
            raise ComposerError(f"{flag} {value}", where="command line", why=f"{own.folder.name} is a run of composer, which knows its own",
                                fix="leave it out" + ("; --data judges it on other images" if flag == "--setting" else ""))
    data = [(f"--data {asked.data}", f'data={{ use = "{asked.data}" }}')] if asked.data else []
    return read(own.folder / RECIPE, [*data, *judging(asked)])


def from_run(asked: Asked, own: Own, bench: Bench) -> Subject:
    """The run's weights in a fresh network, with what measures may ask of the run."""
    recipe, dataset, result = bench.recipe, bench.dataset, own.result
    device = pick_device(asked.settings.device)
    weights = weights_of(own.weights)
    spec, first = recipe.model, int(result.get("seed") or 0)
    model = build_model(spec, dataset.shape, dataset.classes, first)
    check_fit(weights, model.state_dict(), own.weights)
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
    judged = Cosines(settled(model, device)) if recipe.evaluate.logits == "cosine" else settled(model, device)
    digest = subject_of(SimpleNamespace(model=spec, evaluate=recipe.evaluate), weights_digest(weights))
    inside = "none" if spec.mean is None and spec.std is None else "inside the model"
    name = own.folder.name if own.weights.name == FINAL else f"{own.folder.name}/{own.weights.name}"
    seed = asked.seed if asked.seed is not None else first
    facts = {"run": own.folder.name, "recipe": result.get("recipe", ""), "setting": result.get("setting", recipe.setting)}
    subject = Subject(name, "run" if own.weights.name == FINAL else "checkpoint", judged, digest, weights, inside, spec.mean, spec.std, spec, seed=seed,
                      source=own.weights, facts=facts)
    subject.run = facts_of(own, asked, weights, recipe)
    return subject


def weights_of(file: Path) -> dict[str, Tensor]:
    """A file of weights alone, or the network's part of a training checkpoint."""
    held = checkpoint.load(file).tensors
    inside = {k.removeprefix("model/"): v for k, v in held.items() if k.startswith("model/")}
    return inside or held


def facts_of(own: Own, asked: Asked, weights: dict[str, Tensor], recipe: Any) -> Any:
    """The run behind the weights, only where a measure asks for it and the store still has it as it was."""
    asking = [m for m in recipe.evaluate.measures
              if m.options.get("split", "test") != "test" or any(need.name == "run" for need in REGISTRY.get("measure", m.use).needs)]
    if not asking:
        return None
    result, name = own.result, own.folder.name
    precision = result.get("precision") or next((p for p in ("bf16-attack", "bf16", "tf32") if name.endswith(f"-{p}")), "fp32")
    store = own.folder.resolve().parent.parent
    settings = replace(asked.settings, out=store, precision=precision, micro_batch=(result.get("micro_batch") or {}).get("asked", "whole"))
    session = Session(load(own.folder / RECIPE), int(result.get("seed") or 0), settings)
    return Facts(session, weights) if session.nodes[-1].key == result.get("prefix_key") else None
