"""Networks of torchvision and timm by their own names, without pretrained weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from composer.errors import ComposerError, suggest
from composer.registry import model
from composer.shapes import Module

WITHOUT_SIDE_OUTPUTS = {"googlenet": {"aux_logits": False, "init_weights": True}, "inception_v3": {"aux_logits": False, "init_weights": True}}


@model(sources=("composer.models._base", "composer.models.build"))
def torchvision(shape: tuple[int, int, int], classes: int, head: Any, *, name: str) -> Module:
    """Any classification network of torchvision by name, its last linear layer replaced by the head; fresh weights by torchvision's rules.

    Formula: z = head(everything before the last linear layer)   [logits]
    Paper:   torchvision.models
    """
    from torchvision import models

    from composer.models._base import Foreign

    known = models.list_models(module=models)
    if name not in known:
        raise ComposerError(f"name = \"{name}\"", where="[model] torchvision", why="torchvision has no classification network of that name",
                            fix=suggest(name, known, "networks"))
    if shape[0] != 3:
        raise ComposerError(f"images with {shape[0]} channel(s)", where=f"[model] torchvision {name}", why="torchvision's networks take 3 channels",
                            fix='one of composer\'s own: small_cnn, resnet18, preact_resnet18, wrn, vgg16_bn')
    extra = {"image_size": shape[1]} if name.startswith("vit_") else {}
    if name == "maxvit_t":
        extra = {"input_size": tuple(shape[1:])}
    try:
        net = models.get_model(name, weights=None, **WITHOUT_SIDE_OUTPUTS.get(name, {}), **extra)
    except (ValueError, RuntimeError) as error:
        raise too_small(f"torchvision {name}", shape, error) from None
    last = [path for path, module in net.named_modules() if isinstance(module, nn.Linear)]
    if not last:
        raise ComposerError(f"name = \"{name}\"", where="[model] torchvision", why="it does not end in a linear layer, so no head can be put on")
    net.set_submodule(last[-1], nn.Identity())
    return Foreign(net, width_of(net, shape, f"torchvision {name}"), head)


@model(sources=("composer.models._base", "composer.models.build"))
def timm(shape: tuple[int, int, int], classes: int, head: Any, *, name: str) -> Module:
    """Any network of timm by name (the extra `timm`), its classifier replaced by the head; fresh weights by timm's rules.

    Formula: z = head(pooled features)   [logits]
    Paper:   Wightman, PyTorch Image Models
    """
    try:
        import timm as library
    except ImportError:
        raise ComposerError(f"name = \"{name}\"", where="[model] timm", why="timm is not installed",
                            fix="pip install 'robust-composer[timm]'") from None
    from composer.models._base import Foreign

    if not library.is_model(name):
        raise ComposerError(f"name = \"{name}\"", where="[model] timm", why="timm has no network of that name",
                            fix=suggest(name, library.list_models(), "networks") if len(name) > 2 else "see timm.list_models()")
    options: dict[str, Any] = {"pretrained": False, "num_classes": 0, "in_chans": shape[0]}
    try:
        net = library.create_model(name, img_size=shape[1], **options)
    except TypeError:      # networks that take any size have no such argument
        net = library.create_model(name, **options)
    return Foreign(net, width_of(net, shape, f"timm {name}"), head)


def too_small(name: str, shape: tuple[int, int, int], error: Exception) -> ComposerError:
    return ComposerError(f"images of {shape[1]}x{shape[2]} pixels", where=f"[model] {name}", why=f"the network cannot take them: {error}",
                         fix="a network made for small images, or a data set with larger ones")


def width_of(net: nn.Module, shape: tuple[int, int, int], name: str) -> int:
    """Features before the head, found by one pass over a blank image."""
    training = net.training
    try:
        with torch.no_grad():
            out = net.eval()(torch.zeros(1, *shape))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise too_small(name, shape, error) from None
    net.train(training)
    if not isinstance(out, torch.Tensor) or out.ndim != 2:
        raise ComposerError(f"the network gives {tuple(getattr(out, 'shape', ()))} before its head", where=f"[model] {name}",
                            why="features of shape [N,D] are needed")
    return int(out.shape[1])
