"""Own networks by name. Each is built for any image shape and number of classes; parameter counts are for the papers' shapes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal

import torch.nn.functional as F

from composer.errors import ComposerError
from composer.registry import model
from composer.shapes import Ge, Gt, Lt, Module

Refuses = Callable[[dict[str, Any]], "tuple[str, str, str] | None"]


def lists(option: str, count: int | None = None, least: int = 1) -> Refuses:
    """What a list of widths must be: so many numbers (None: at least `least`), each at least 1."""
    def refuses(options: dict[str, Any]) -> tuple[str, str, str] | None:
        values = options[option]
        if (count is None or len(values) == count) and len(values) >= least and all(value >= 1 for value in values):
            return None
        return option, f"{count if count is not None else f'a list of {least} or more'} numbers of at least 1 are needed", ""

    return refuses


def _whole_blocks(options: dict[str, Any]) -> tuple[str, str, str] | None:
    depth, rule = options["depth"], options["depth_rule"]
    rest = 4 if rule == "6n+4" else 2
    if depth > rest and (depth - rest) % 6 == 0:
        return None
    near = max(1, round((depth - rest) / 6)) * 6 + rest
    return "depth", f'depth_rule = "{rule}" needs (depth - {rest}) / 6 whole', f"depth = {near}, or the other depth_rule (32 is {32} only by 6n+2)"


def checked(name: str, refuses: Refuses, **options: Any) -> None:
    """The same for a call from Python. Errors: ComposerError with what the recipe's check would say."""
    told = refuses(options)
    if told:
        option, why, fix = told
        raise ComposerError(f"{option} = {list(options[option]) if isinstance(options[option], tuple) else options[option]}", where=f"[model] {name}",
                            why=why, fix=fix)


@model(sources=("composer.models._plain", "composer.models._base", "composer.models.build"), refuses=lists("widths"))
def mlp(shape: tuple[int, int, int], classes: int, head: Any, *, widths: tuple[int, ...] = (1024, 1024, 1024, 1024)) -> Module:
    """Fully connected ReLU network on the flattened image; 3,962,890 parameters on 1x28x28 with 10 classes.

    Formula: h_l = relu(W_l h_{l-1} + b_l), z = head(h_L)   [logits]
    Paper:   EMR (MNIST MLP, four layers of 1024)
    """
    from composer.models._plain import MLP

    checked("mlp", lists("widths"), widths=widths)
    return MLP(shape, widths, head)


@model(sources=("composer.models._plain", "composer.models._base", "composer.models.build"), refuses=lists("channels", 4))
def cnn4(shape: tuple[int, int, int], classes: int, head: Any, *, channels: tuple[int, ...] = (64, 64, 128, 128)) -> Module:
    """Four convolutions without padding or batch norm and a global average pool; 330,058 parameters on CIFAR-10.

    Formula: 5x5, 5x5, average pool 2/2, 3x3, 3x3, global average pool, head; ReLU   [logits]
    Paper:   EMR, table 5
    """
    from composer.models._plain import CNN4

    checked("cnn4", lists("channels", 4), channels=channels)
    if min(shape[1:]) < 18:
        raise ComposerError(f"images of {shape[1]}x{shape[2]} pixels", where="[model] cnn4", why="its unpadded convolutions need 18x18 at least",
                            fix='use = "small_cnn"')
    return CNN4(shape[0], channels, head)


@model(sources=("composer.models._plain", "composer.models._base", "composer.models.build"), refuses=lists("channels"))
def small_cnn(shape: tuple[int, int, int], classes: int, head: Any, *, channels: tuple[int, ...] = (32, 64, 64)) -> Module:
    """Three 3x3 convolutions with batch norm and ReLU; stride 2 from the second on while the map is wider than 4 pixels; flattened.

    Formula: maps of 8x8 images 8, 4, 4; of 28x28 28, 14, 7; of 32x32 32, 16, 8; z = head(flatten)   [logits]
    Paper:   own, for digits and MNIST
    """
    from composer.models._plain import SmallCNN

    checked("small_cnn", lists("channels"), channels=channels)
    return SmallCNN(shape, channels, head)


@model(sources=("composer.models._plain", "composer.models._base", "composer.models.build"), refuses=lists("hidden", least=0))
def vgg16_bn(shape: tuple[int, int, int], classes: int, head: Any, *, hidden: tuple[int, ...] = ()) -> Module:
    """VGG-16 with batch norm, 13 convolutions and one layer 512 -> K: 14,728,266 parameters on CIFAR-10.

    `hidden` puts ReLU layers before the head: [512, 512] is the three-layer head.

    Formula: 3x3 convolutions with batch norm and ReLU, five max pools, global average pool, head   [logits]
    Paper:   Simonyan & Zisserman, ICLR 2015
    """
    from composer.models._plain import VGG

    checked("vgg16_bn", lists("hidden", least=0), hidden=hidden)
    return VGG(shape[0], hidden, head)


@model(sources=("composer.models._resnet", "composer.models._base", "composer.models.build"))
def resnet18(shape: tuple[int, int, int], classes: int, head: Any) -> Module:
    """ResNet-18 in CIFAR form (3x3 stem, no max pool, global average pool): 11,173,962 parameters with 10 classes, 11,271,432 with 200.

    Formula: h' = relu(h + BN(conv(relu(BN(conv(h))))))   [logits]
    Paper:   He et al., CVPR 2016
    """
    from composer.models._resnet import ResNet18

    return ResNet18(shape[0], head)


@model(sources=("composer.models._resnet", "composer.models._base", "composer.models.build"))
def preact_resnet18(shape: tuple[int, int, int], classes: int, head: Any, *, final_bn: bool = False) -> Module:
    """Pre-activation ResNet-18 in CIFAR form: 11,171,146 parameters with 10 classes, with `final_bn` (norm and ReLU before the pool) 11,172,170.

    Formula: h' = h + conv(relu(BN(conv(relu(BN(h))))))   [logits]
    Paper:   He et al., ECCV 2016; `final_bn` as in Rice et al., ICML 2020
    """
    from composer.models._resnet import PreActResNet18

    return PreActResNet18(shape[0], head, final_bn)


@model(sources=("composer.models._wrn", "composer.models._base", "composer.models.build"), refuses=_whole_blocks)
def wrn(shape: tuple[int, int, int], classes: int, head: Any, *, depth: Annotated[int, Gt(0)] = 34, width: Annotated[int, Gt(0)] = 10,
        depth_rule: Literal["6n+4", "6n+2"] = "6n+4", shortcut: Literal["conv", "pool_pad"] = "conv",
        activation: Literal["relu", "silu", "leaky_relu"] = "relu", slope: Annotated[float, Ge(0)] = 0.1,
        dropout: Annotated[float, Ge(0), Lt(1)] = 0.0) -> Module:
    """Wide ResNet of three stages with n blocks each; WRN-34-10 has 46,160,474 parameters with 10 classes.

    `depth_rule` says how depth counts: 34 by 6n+4 and 32 by 6n+2 are the same network (n = 5). With `shortcut = "pool_pad"` and
    `activation = "leaky_relu"` (slope 0.1) it is the network of Madry et al. and of EMR (45,901,914).

    Formula: h' = short(h) + conv(drop(act(BN(conv(act(BN(h)))))))   [logits]
    Paper:   Zagoruyko & Komodakis, BMVC 2016; its convolutions start from N(0, 2 / fan_out)
    """
    from composer.models._wrn import WideResNet

    checked("wrn", _whole_blocks, depth=depth, depth_rule=depth_rule)
    rest = 4 if depth_rule == "6n+4" else 2
    act = {"relu": F.relu, "silu": F.silu, "leaky_relu": partial(F.leaky_relu, negative_slope=slope)}[activation]
    return WideResNet(shape[0], (depth - rest) // 6, width, shortcut, act, dropout, head)
