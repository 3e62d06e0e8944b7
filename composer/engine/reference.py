"""A second network that a measure asks for by name: a file of weights, a finished run, or the run of a recipe beside this one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from composer.engine.record import read_json
from composer.engine.session import Session
from composer.errors import ComposerError

WEIGHTS, RECIPE = "final.safetensors", "recipe.toml"


def resolve_reference(text: str, session: Session) -> Path:
    """The file of weights that is meant.

    In this order: a file; a finished run of the store by its name; the finished run of the recipe of that name on this run's setting, with its
    seed and its number of epochs.

    Errors: ComposerError where there is none of them, or where such runs ended with different weights.
    """
    experiments = session.settings.out / "experiments"
    for path in (Path(text), experiments / text / WEIGHTS):
        if path.is_file():
            return path
    found = [folder for folder in sorted(experiments.glob(f"{text}-*")) if (folder / WEIGHTS).is_file() and _beside(folder, text, session)]
    fitting = list({(read_json(folder / "result.json") or {}).get("weights_sha256"): folder for folder in reversed(found)}.values())
    if len(fitting) == 1:
        return fitting[0] / WEIGHTS
    recipe, where = session.recipe, f"reference = \"{text}\""
    if fitting:
        raise ComposerError(f"{len(fitting)} finished runs of {text} on {recipe.setting} with seed {session.seed}", where=where,
                            fix="name one of them:\n" + "\n".join(f.name for f in fitting))
    raise ComposerError(f"there is neither a file, nor a finished run, nor a run of a recipe '{text}' on {recipe.setting} with seed {session.seed}", where=where,
                        why=f"looked for {text} and in {experiments}", fix=f"composer run {text} --setting {recipe.setting} --seed {session.seed} --set "
                        f"train.epochs={recipe.train.epochs} --out {session.settings.out}")


def _beside(folder: Path, name: str, session: Session) -> bool:
    facts, result = read_json(folder / "record.json") or {}, read_json(folder / "result.json") or {}
    own = [session.recipe.setting, session.seed, session.recipe.segments()[-1].last]
    return facts.get("recipe") == name and [facts.get("setting"), facts.get("seed"), result.get("epochs")] == own


def reference_model(path: Path, session: Session) -> nn.Module:
    """The network with these weights, in eval mode on the run's device: a run's own architecture and normalisation, for a bare file this run's.

    Errors: ComposerError where the weights do not fit.
    """
    from composer.models.build import build_model, load_weights
    from composer.recipe.load import load

    beside = path.parent / RECIPE
    spec = load(beside).model if path.name == WEIGHTS and beside.is_file() else session.recipe.model
    model = build_model(spec, session.dataset.shape, session.dataset.classes, session.seed)
    load_weights(model, path)
    return model.to(session.device).eval()


def built(session: Session, weights: dict[str, Tensor]) -> nn.Module:
    """The run's own network with these weights, float32 and in eval mode on its device."""
    from composer.models.build import build_model

    model = build_model(session.recipe.model, session.dataset.shape, session.dataset.classes, session.seed)
    model.load_state_dict({k: v.detach().float() if v.is_floating_point() else v for k, v in weights.items()})
    return model.to(session.device).eval()


def check_reference(spec: Any, session: Session) -> None:
    """Before hours of training. Errors: as resolve_reference."""
    named = spec.options.get("reference") or (spec.options.get("source") if spec.use == "transfer" else None)
    if named not in (None, session.recipe.name):
        resolve_reference(named, session)


__all__ = ["built", "check_reference", "reference_model", "resolve_reference"]
