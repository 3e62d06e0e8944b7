"""The networks and batches that are timed: a small CNN on 8x8 or 28x28 grey images, and ResNet-18 with the stem for 32x32."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SHAPES = {"small_cnn": (1, 8, 8), "cnn8": (1, 8, 8), "cnn28": (1, 28, 28), "resnet18": (3, 32, 32)}
CLASSES = 10


def cnn(shape: tuple[int, int, int], classes: int = CLASSES) -> nn.Sequential:
    """Four 3x3 convolutions (32, 32/2, 64, 64/2) with batch norm, then 200 hidden units."""
    channels, height, width = shape

    def block(before: int, after: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]

    flat = 64 * ((height + 3) // 4) * ((width + 3) // 4)
    return nn.Sequential(*block(channels, 32, 1), *block(32, 32, 2), *block(32, 64, 1), *block(64, 64, 2), nn.Flatten(),
                         nn.Linear(flat, 200), nn.ReLU(), nn.Linear(200, classes))


def resnet18(classes: int = CLASSES) -> nn.Module:
    """torchvision's ResNet-18 with a 3x3 stem and no max-pool."""
    from torchvision.models import resnet18 as build

    model = build(num_classes=classes)
    model.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    model.maxpool = nn.Identity()
    return model


def small_cnn(classes: int = CLASSES) -> nn.Module:
    """The shipped network of the digits setting."""
    from composer.models.build import build_model
    from composer.options import Ref
    from composer.recipe.load import catalogue
    from composer.recipe.types import ModelSpec

    catalogue()
    return build_model(ModelSpec("small_cnn", {}, Ref("head", "linear")), SHAPES["small_cnn"], classes, 0)


def net(name: str, seed: int = 0) -> nn.Module:
    """A network of `SHAPES` by name, initialised from `seed`, without touching the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {"resnet18": resnet18, "small_cnn": small_cnn}.get(name, lambda: cnn(SHAPES[name]))()


def batch(name: str, n: int, seed: int = 0, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Images uniform in [0,1) and labels: time and passes do not depend on what they show."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand((n, *SHAPES[name]), generator=generator)
    y = torch.randint(CLASSES, (n,), generator=generator)
    return x.to(device), y.to(device)
