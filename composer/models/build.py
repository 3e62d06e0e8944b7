"""From a recipe's [model] to a network: normalisation inside, head put on, every parameter drawn from a stream of its own name."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from composer.errors import ComposerError
from composer.models.weights import LoadReport, load_weights, project
from composer.recipe.types import ModelSpec
from composer.registry import REGISTRY
from composer.seeds import stream_seed

__all__ = ["LoadReport", "build_model", "initialise", "load_weights", "project"]


@contextlib.contextmanager
def seeded(seed: int, path: str) -> Iterator[None]:
    """PyTorch's global CPU generator at the start of a named stream within the block; afterwards as it was before."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(stream_seed(seed, path))
        yield


def build_model(spec: ModelSpec, shape: tuple[int, int, int], classes: int, seed: int) -> nn.Module:
    """The network of a recipe on the CPU, in train mode. The caller's random state is left alone.

    Each parameter starts from the stream `init/<its name>`: adding a layer or changing the head changes no other parameter. Networks of a
    library (torchvision, timm) keep the weights their own construction draws, from one stream.
    """
    builder, top = REGISTRY.get("model", spec.use), REGISTRY.get("head", spec.head.use)

    def head(features: int) -> nn.Module:
        with seeded(seed, "init/head"):
            return top.fn(features, classes, **checked(top, spec.head.options))

    with seeded(seed, "init"):
        model = builder.fn(shape, classes, head, **checked(builder, spec.options))
    check_network(spec.use, model)
    initialise(model, seed)
    project(model)
    return normalised(model, spec, shape[0]).train()


def checked(primitive: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Options with defaults filled in."""
    values = primitive.Options(**options)
    return {o.name: getattr(values, o.name) for o in primitive.options}


def check_network(use: str, model: Any) -> None:
    if not isinstance(model, nn.Module) or not callable(getattr(model, "embed", None)) or not isinstance(getattr(model, "head", None), nn.Module):
        raise ComposerError(f"model '{use}' returns {type(model).__name__}", where="[model]",
                            why="a network needs embed(x) -> [N,D] and a module `head`; its forward is head(embed(x))")


def initialise(model: nn.Module, seed: int) -> None:
    """Draw every parameter from its own stream by its layer's own rule (`reset_parameters`).

    The rule is run once for each parameter of the layer, from that parameter's stream, and only that parameter is kept. Layers without
    such a rule, and the children a module lists in `own_weights`, keep what their construction drew.
    """
    spared = {id(m) for parent in model.modules() for child in getattr(parent, "own_weights", ()) for m in getattr(parent, child).modules()}
    for prefix, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        reset: Callable[[], None] | None = getattr(module, "reset_parameters", None)
        if not own or reset is None or id(module) in spared:
            continue
        kept = {}
        for name, parameter in own.items():
            with seeded(seed, f"init/{prefix}.{name}" if prefix else f"init/{name}"), torch.no_grad():
                reset()
                kept[name] = parameter.detach().clone()
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(kept[name])


def normalised(model: nn.Module, spec: ModelSpec, channels: int) -> nn.Module:
    """The network with (x - mean) / std per channel inside, where the recipe asks for it."""
    from composer.models._base import Classifier, Normalise, Normalised

    if spec.mean is None and spec.std is None:
        return model
    mean = spec.mean if spec.mean is not None else (0.0,)
    std = spec.std if spec.std is not None else (1.0,)
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels) or (name == "std" and min(values) <= 0):
            raise ComposerError(f"{name} = {list(values)}", where="[model]", why=f"the images have {channels} channel(s)",
                                fix="one number for all channels or one for each" + ("; above 0" if name == "std" else ""))
    normalise = Normalise(mean, std)
    if isinstance(model, Classifier):
        model.normalise = normalise
        return model
    return Normalised(model, normalise)
