"""Networks of torchvision and timm with the weights their libraries offer, where those lie on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from composer.errors import ComposerError, suggest
from composer.models.weights import read_file
from composer.subject.normalise import Normalisation

Found = tuple[nn.Module, Normalisation, list[str]]


def network(library: str, name: str, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """The library's own network, untrained, its last layer for so many classes. Errors: ComposerError for an unknown name."""
    if library == "torchvision":
        from torchvision import models

        _known(name, models.list_models(module=models), "torchvision")
        side = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
        return models.get_model(name, weights=None, num_classes=classes, **side)
    timm = _timm(name)
    _known(name, timm.list_models(), "timm")
    return timm.create_model(name, pretrained=False, num_classes=classes, in_chans=shape[0])


def pretrained(library: str, name: str, download: bool) -> Found:
    """The network with the library's weights (`resnet50`, or `resnet50:IMAGENET1K_V1`), its normalisation, and lines that tell them.

    Errors: ComposerError where the weights are unknown, or are not on this machine and may not be fetched.
    """
    return _torchvision(name, download) if library == "torchvision" else _of_timm(name, download)


def _torchvision(text: str, download: bool) -> Found:
    from torchvision import models

    name, _, wanted = text.partition(":")
    _known(name, models.list_models(module=models), "torchvision")
    kinds = models.get_model_weights(name)
    if not wanted and not list(kinds):
        raise ComposerError(f"torchvision has no weights for {name}", fix=f"give a file of them: composer evaluate FILE --model torchvision:{name}")
    if wanted and wanted not in kinds.__members__:
        raise ComposerError(f"torchvision has no weights '{wanted}' for {name}", fix=suggest(wanted, list(kinds.__members__), "weights"))
    weights = kinds[wanted] if wanted else kinds.DEFAULT
    file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[-1]
    if not file.is_file():
        _fetch(weights.url, file, f"torchvision:{name}:{weights.name}", download)
    state, _ = read_file(file)
    net = models.get_model(name, weights=None, num_classes=len(weights.meta["categories"]))
    net.load_state_dict(state)
    crop = weights.transforms()
    lines = [f"weights {weights.name} of torchvision, made for images of {crop.crop_size[0]}x{crop.crop_size[0]}",
             "normalisation: the one of these weights, put before the network"]
    return net, Normalisation(f"of {weights.name}", tuple(crop.mean), tuple(crop.std)), lines


def _fetch(url: str, file: Path, name: str, download: bool) -> None:
    if not download:
        raise ComposerError(f"the weights of {name} are not on this machine", where=str(file), fix="fetch them with --download")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(file), hash_prefix=file.stem.rsplit("-", 1)[-1], progress=False)
    except Exception as error:  # noqa: BLE001 (whatever the network raises)
        raise ComposerError(f"the weights of {name} cannot be fetched", where=url, why=str(error)) from None


def _of_timm(name: str, download: bool) -> Found:
    timm = _timm(name)
    _known(name.split(".")[0], timm.list_models(), "timm")
    config: Any = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        raise ComposerError(f"timm has no weights for {name}", fix=f"give a file of them: composer evaluate FILE --model timm:{name}")
    file = _cached(config.hf_hub_id, config.hf_hub_filename)
    if file is None and not download:
        raise ComposerError(f"the weights of timm:{name} are not on this machine", where=f"hub cache, {config.hf_hub_id}", fix="fetch them with --download")
    net = timm.create_model(name, pretrained=file is None)
    if file is not None:
        net.load_state_dict(read_file(file)[0])
    return net, Normalisation(f"of timm's {name}", tuple(config.mean), tuple(config.std)), [
        f"weights {config.tag or 'default'} of timm, made for images of {'x'.join(map(str, config.input_size[1:]))}",
        "normalisation: the one of these weights, put before the network"]


def _cached(hub: str, filename: str | None) -> Path | None:
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    for each in (filename, "model.safetensors", "pytorch_model.bin"):
        found = try_to_load_from_cache(hub, each) if each else None
        if isinstance(found, str):
            return Path(found)
    return None


def _timm(name: str) -> Any:
    try:
        import timm
    except ImportError:
        raise ComposerError(f"timm:{name}", why="timm is not installed", fix="pip install 'robust-composer[timm]'") from None
    return timm


def _known(name: str, names: list[str], library: str) -> None:
    if name not in names:
        raise ComposerError(f"{library} has no classification network '{name}'", fix=suggest(name, names, "networks"))
