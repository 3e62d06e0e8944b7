"""A file of weights by somebody else: which tensors it holds, the network they fit, and the normalisation they were trained behind."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from composer.engine.checkpoint import weights_digest
from composer.engine.judge import Cosines, subject_of
from composer.engine.session import pick_device
from composer.errors import ComposerError
from composer.models.build import build_model
from composer.models.weights import UNUSED, check_fit, find_state, project, read_file, rename_head, strip
from composer.subject.asked import settled
from composer.subject.normalise import Normalisation, find, parse
from composer.subject.types import Asked, Bench, Subject

MEAN, STD = ("mean", "mu", "_mean"), ("std", "sigma", "_std")
SHOWN = 4


@dataclass(frozen=True)
class Held:
    """The tensors of a file, made to fit: `lines` say what was done; `inside` is the normalisation found among them."""

    state: dict[str, Tensor]
    lines: tuple[str, ...]
    inside: Normalisation | None


def held(file: Path, wanted: dict[str, Tensor]) -> Held:
    """Read, unwrap and rename until the names are those of `wanted`. Errors: ComposerError where they do not fit."""
    raw, kind = read_file(file)
    state, under = find_state(raw, file)
    state, stripped = strip(state)
    state, inside = take_normalisation(state, file)
    state, wrapper = unwrap(state, wanted)
    dropped = [k for k in state if k not in wanted and any(part in k for part in UNUSED)]
    state, renamed = rename_head({k: v for k, v in state.items() if k not in dropped}, wanted)
    _check_classes(state, wanted, file)
    check_fit(state, wanted, file)
    lines = [f"{len(state)} tensors from {file} ({kind})" + (f", found under '{under}'" if under else "")]
    lines += [f"took off the prefix '{prefix}'" for prefix in (*stripped, *wrapper)]
    lines += ["the last layer is called " + ", ".join(sorted({old.split(".")[0] for old in renamed})) + " there, head here"] if renamed else []
    lines += [f"left out {len(dropped)} tensors that its network never uses: {', '.join(dropped[:SHOWN])}"] if dropped else []
    return Held(state, tuple(lines), inside)


def take_normalisation(state: dict[str, Tensor], file: Path) -> tuple[dict[str, Tensor], Normalisation | None]:
    """Without the buffers of a normalisation layer, and its numbers: a mean and a deviation of one value a channel under one prefix."""
    for name, value in state.items():
        prefix, last = re.fullmatch(r"(.*\.)?([^.]+)", name).groups(default="")         # type: ignore[union-attr]
        partner = next((prefix + s for s in STD if prefix + s in state), None) if last in MEAN else None
        if partner is None or max(value.numel(), state[partner].numel()) > 4:
            continue
        mean, std = (tuple(round(float(v), 8) for v in state[k].flatten()) for k in (name, partner))
        if min(std) <= 0:
            raise ComposerError(f"the weights {file} hold a normalisation with deviation {list(std)}", fix="--normalise, and a file without it")
        rest = {k: v for k, v in state.items() if k not in (name, partner)}
        return rest, Normalisation(f"inside the file ({name}, {partner})", mean, std)
    return state, None


def unwrap(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Take off what a wrapper put before every name ("model.", "1."), as long as no name is known."""
    taken: list[str] = []
    while state and not any(k in wanted for k in state) and len({k.split(".")[0] for k in state}) == 1 and all("." in k for k in state):
        prefix = next(iter(state)).split(".")[0] + "."
        state = {k.removeprefix(prefix): v for k, v in state.items()}
        taken.append(prefix)
    return state, taken


def _check_classes(state: dict[str, Tensor], wanted: dict[str, Tensor], file: Path) -> None:
    """One sentence where the first or the last layer alone tells other data."""
    fix = "name the data it was trained on: --data, or --setting"
    first, last = (next((k for k in names if wanted[k].ndim == dims), None) for names, dims in ((list(wanted), 4), (list(wanted)[::-1], 2)))
    for key, dim, text in ((last, 0, "{} classes, the data have {}"), (first, 1, "images with {} channels, the data have {}")):
        if key is None or key not in state or state[key].ndim != wanted[key].ndim:
            continue
        theirs, ours = list(state[key].shape), list(wanted[key].shape)
        if theirs[dim] != ours[dim] and theirs[:dim] + theirs[dim + 1:] == ours[:dim] + ours[dim + 1:]:
            raise ComposerError(f"the weights {file} are of {text.format(theirs[dim], ours[dim])}", fix=fix)


def from_file(asked: Asked, file: Path, bench: Bench, *, name: str = "", kind: str = "weights") -> Subject:
    """The subject of a state-dict file on the network of --model (or of the setting). Errors: ComposerError as `held`, and as `choose`."""
    recipe, dataset = bench.recipe, bench.dataset
    device, spec = pick_device(asked.settings.device), recipe.model
    bare = _network(replace(spec, mean=None, std=None), dataset)
    found = held(file, bare.state_dict())
    _put(bare, found.state)
    chosen, line = choose(asked, found.inside, bare, bench, device, name or str(file))
    spec = replace(spec, mean=chosen.mean, std=chosen.std)
    foreign = spec.use in ("torchvision", "timm")
    model = behind(bare, chosen) if foreign else _network(spec, dataset)
    if not foreign:
        _put(model, found.state)
    model = settled(model, device)
    weights = {k: v.detach().cpu() for k, v in bare.state_dict().items()}
    digest = subject_of(SimpleNamespace(model=spec, evaluate=recipe.evaluate), weights_digest(weights))
    judged = Cosines(model) if recipe.evaluate.logits == "cosine" else model
    return Subject(name or str(file), kind, judged, digest, weights, chosen.text, chosen.mean, chosen.std, None if foreign else spec, seed=asked.seed or 0,
                   notes=[*found.lines, line], source=file,
                   built=f"{spec.use}:{spec.options['name']}" if foreign else "")


def choose(asked: Asked, inside: Normalisation | None, bare: nn.Module, bench: Bench, device: torch.device, name: str) -> tuple[Normalisation, str]:
    """The file's own, what was said, or what trying shows; and the line that tells it.

    Errors: ComposerError where the file and the user say different things, or where trying does not tell.
    """
    said, spec = asked.normalise, bench.recipe.model
    if said == "inside" and inside is None:
        raise ComposerError("--normalise inside", where="command line", why=f"{name} holds no mean and deviation",
                            fix="name the numbers: --normalise cifar10, or mean=..,std=..")
    given = parse(said, bench.dataset) if said and said != "inside" else None
    if given is None and spec.mean is not None:
        given = Normalisation("as model.mean and model.std say", spec.mean, spec.std)
    if inside is not None:
        if given is not None and not _alike(given, inside):
            raise ComposerError(f"{name} holds a normalisation of its own: mean {list(inside.mean or ())}, deviation {list(inside.std or ())}",
                                why=f"'{given.text}' was said", fix="--normalise inside")
        return inside, f"normalisation: {inside.text}, mean {_plain(inside.mean)}, deviation {_plain(inside.std)}"
    if given is not None:
        return given, f"normalisation: {given.text}" + (f", mean {_plain(given.mean)}, deviation {_plain(given.std)}" if given.mean else "")
    model = settled(bare, device)
    return find(lambda each: behind(model, each).to(device), bench.x, bench.y, bench.dataset, name)


def _alike(one: Normalisation, other: Normalisation) -> bool:
    if one.mean is None or other.mean is None:
        return one.mean is other.mean
    pairs = zip((*one.mean, *(one.std or ())), (*other.mean, *(other.std or ())), strict=False)
    return len(one.mean) == len(other.mean) and all(abs(a - b) < 1e-4 for a, b in pairs)


def _plain(values: Any) -> str:
    return ", ".join(f"{v:.4g}" for v in values or ())


def behind(model: nn.Module, normalisation: Normalisation) -> nn.Module:
    """The network behind (x - mean) / std."""
    from composer.models._base import Normalise

    if normalisation.mean is None or normalisation.std is None:
        return model
    return nn.Sequential(Normalise(normalisation.mean, normalisation.std), model).train(model.training)


def _network(spec: Any, dataset: Any) -> nn.Module:
    """The recipe's network; of a library the library's own, whose names its files have."""
    if spec.use in ("torchvision", "timm"):
        from composer.subject.library import network

        return network(spec.use, spec.options["name"], dataset.shape, dataset.classes)
    return build_model(spec, dataset.shape, dataset.classes, 0)


def _put(model: nn.Module, state: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if key in state:
                value.copy_(state[key])
    project(model)


__all__ = ["Held", "behind", "choose", "from_file", "held", "take_normalisation", "unwrap"]
