"""A model as two files: its weights as safetensors, and a card that says what they are, how to feed them, and what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import nn

from composer import atomic
from composer.engine.checkpoint import weights_digest
from composer.engine.record import read_json
from composer.errors import ComposerError
from composer.models.build import build_model
from composer.models.weights import check_fit
from composer.options import Ref, plain
from composer.recipe.types import ModelSpec
from composer.subject.record import FOLDER, slug
from composer.subject.types import Asked, Bench, Subject

FORMAT = 1
TOLD = ("protocol", "n", "metrics", "units", "trust", "threat", "measures", "worst_of", "seed", "data", "seconds")


def name_of(subject: Subject) -> str:
    return slug(Path(subject.name).stem if Path(subject.name).is_file() else subject.name)


def write_card(subject: Subject, bench: Bench, asked: Asked, folder: Path) -> tuple[dict[str, Any], list[Path]]:
    """<name>.safetensors and <name>.json; the card last."""
    name = name_of(subject)
    weights = {k: v.detach().cpu().contiguous().clone() for k, v in subject.weights.items()}
    card = {
        "format": FORMAT, "name": name, "model": network_of(subject), "weights": f"{name}.safetensors", "weights_sha256": weights_digest(weights),
        "parameters": sum(v.numel() for v in weights.values() if v.is_floating_point()),
        "input": {"shape": list(bench.dataset.shape), "range": [0.0, 1.0], "order": "N, C, H, W", "normalisation": subject.normalisation,
                  "mean": subject.mean, "std": subject.std, "inside": True},
        "classes": bench.dataset.classes, "data": bench.dataset.name, "logits": bench.recipe.evaluate.logits, "trained": trained(subject),
        "evaluations": evaluations(subject, asked)}
    first = atomic.write_bytes(folder / f"{name}.safetensors", save(weights, metadata={"card": f"{name}.json"}))
    card = atomic.plain(card)
    return card, [first, atomic.write_json(folder / f"{name}.json", card)]


def network_of(subject: Subject) -> dict[str, Any]:
    """A model of composer's as its recipe says it, so that load_card can build it; else how it was named."""
    spec = subject.spec
    if spec is None:
        return {"kind": subject.kind, "named": subject.built or subject.name}
    return {"kind": "composer", "use": spec.use, "options": plain(spec.options), "head": plain(spec.head)}


def trained(subject: Subject) -> dict[str, Any]:
    """The recipe of a run, as text that composer reads."""
    recipe = subject.source.parent / "recipe.toml" if subject.source is not None and subject.facts else None
    text = recipe.read_text(encoding="utf-8") if recipe is not None and recipe.is_file() else ""
    return {**subject.facts, **({"recipe_toml": text} if text else {})}


def evaluations(subject: Subject, asked: Asked) -> list[dict[str, Any]]:
    """What `composer evaluate` measured on these weights; of a run that was never evaluated again, the result it ended with."""
    found = []
    for file in sorted((asked.settings.out / FOLDER).glob("*/result.json")):
        result = read_json(file) or {}
        if result.get("subject") == subject.digest:
            found.append({key: result[key] for key in TOLD if key in result})
    own = read_json(subject.source.parent / "result.json") if subject.kind == "run" and subject.source is not None else None
    unique = list({json.dumps({k: v for k, v in each.items() if k != "seconds"}, sort_keys=True): each for each in found}.values())
    return unique or ([{key: own[key] for key in TOLD if key in own}] if own else [])


def load_card(file: Path | str) -> nn.Module:
    """The network of a card of composer's own, in eval mode, normalisation inside: images in [0,1] -> logits. Runs no code of the card.

    Errors: ComposerError where the card is of another kind, or its weights are not those it names.
    """
    file = Path(file)
    card = read_json(file)
    if not card or card.get("format") != FORMAT:
        raise ComposerError(f"{file} is no card of a model")
    network, given = card["model"], card["input"]
    if network["kind"] != "composer":
        raise ComposerError(f"{file} is the card of {network['named']}", why="that network is not composer's: build it yourself, and load the weights")
    head = network["head"]
    spec = ModelSpec(network["use"], network["options"], Ref("head", head["use"], {k: v for k, v in head.items() if k != "use"}),
                     *(tuple(given[key]) if given[key] else None for key in ("mean", "std")))
    from composer.recipe.load import catalogue

    catalogue()
    model = build_model(spec, tuple(given["shape"]), card["classes"], 0)
    weights = load_file(file.parent / card["weights"])
    if weights_digest(weights) != card["weights_sha256"]:
        raise ComposerError(f"{file.parent / card['weights']} holds other weights than its card names")
    check_fit(weights, model.state_dict(), file)
    model.load_state_dict(weights)
    with torch.no_grad():
        return model.eval()
