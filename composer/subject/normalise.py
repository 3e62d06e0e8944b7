"""Is the normalisation inside the model or outside? Said by the user, held by the file, or found by comparing accuracies; never assumed."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from composer.errors import ComposerError
from composer.evaluate.guard import undisturbed
from composer.evaluate.probe import IMAGES, Reading, beats, rights

Numbers = tuple[float, ...]
KNOWN: dict[str, tuple[Numbers, Numbers]] = {         # per channel mean and standard deviation of the training images, as published code has them
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "mnist": ((0.1307,), (0.3081,)),
    "fashion_mnist": ((0.2860,), (0.3530,)),
    "tinyimagenet": ((0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5,), (0.5,)),
    "255": ((0.0,), (1 / 255,)),
}
USAGE = "--normalise none, inside, data, " + ", ".join(KNOWN) + ", or mean=0.49,0.48,0.45,std=0.25,0.24,0.26"


@dataclass(frozen=True)
class Normalisation:
    """(x - mean) / std before the network; None: pixels in [0,1] as they are. `text` is how it is told."""

    text: str
    mean: Numbers | None = None
    std: Numbers | None = None


NONE = Normalisation("none")


def parse(text: str, dataset: Any) -> Normalisation:
    """What --normalise says. `inside` and `none` both hand over [0,1]. Errors: ComposerError for anything else."""
    if text in ("none", "inside"):
        return Normalisation("inside the model" if text == "inside" else "none")
    if text == "data":
        return Normalisation("mean and deviation of the training images", *of_data(dataset))
    if text in KNOWN:
        return Normalisation(text, *fitting(KNOWN[text], dataset.shape[0], text))
    found = re.fullmatch(r"mean=([-\d.,eE/]+?),std=([-\d.,eE/]+)", text.replace(" ", ""))
    try:
        mean, std = (tuple(map(_number, found[i].split(","))) for i in (1, 2)) if found else ((), ())
    except (ValueError, ZeroDivisionError):
        mean, std = (), ()
    if not mean or min(std) <= 0:
        raise ComposerError(f"--normalise {text}", where="command line", why="this is not a normalisation", fix=USAGE)
    return Normalisation(text, *fitting((mean, std), dataset.shape[0], text))


def _number(text: str) -> float:
    top, _, bottom = text.partition("/")
    return float(top) / float(bottom) if bottom else float(text)


def fitting(numbers: tuple[Numbers, Numbers], channels: int, name: str) -> tuple[Numbers, Numbers]:
    for each in numbers:
        if len(each) not in (1, channels):
            raise ComposerError(f"the normalisation '{name}' is of {len(each)} channels", where="--normalise", why=f"the images have {channels}", fix=USAGE)
    return numbers


def of_data(dataset: Any) -> tuple[Numbers, Numbers]:
    """Mean and standard deviation per channel over all training pixels, from their histogram."""
    mean, std = [], []
    for channel in dataset.train.x.unbind(1):
        counts = torch.bincount(channel.flatten().long(), minlength=2).double()
        values = torch.arange(len(counts), dtype=torch.float64) / dataset.scale
        middle = (counts * values).sum() / counts.sum()
        mean.append(round(float(middle), 6))
        std.append(max(1e-6, round(float(((counts * (values - middle) ** 2).sum() / counts.sum()).sqrt()), 6)))
    return tuple(mean), tuple(std)


def candidates(dataset: Any) -> dict[str, Normalisation]:
    """What a file of weights may have been trained behind, by the words of --normalise. Near relatives cannot be told apart and are left out."""
    found = {"none": NONE}
    name = dataset.name if dataset.name in KNOWN else "imagenet" if dataset.shape[0] == 3 and dataset.shape[1] > 64 else "data"
    found[name] = parse(name, dataset)
    return found | {"half": parse("half", dataset)}


def find(models: Callable[[Normalisation], Any], x: Tensor, y: Tensor, dataset: Any, name: str) -> tuple[Normalisation, str]:
    """The normalisation under which the weights are right most often, and a line that says so with the counts.

    `models(normalisation)` gives the network behind it. Errors: ComposerError where no one is clearly ahead of the others.
    """
    x, y = x[:IMAGES], y[:IMAGES]
    tried: dict[str, Tensor] = {}
    known = candidates(dataset)
    for word, each in known.items():
        with undisturbed(models(each)) as judge, torch.no_grad():
            tried[word] = rights(judge, x.to(judge.device or x.device), y.to(judge.device or y.device)).cpu()
    best = max(tried, key=lambda word: int(tried[word].sum()))
    counts = ", ".join(f"{word} {int(right.sum())}" for word, right in tried.items())
    if all(beats(tried[best], right) for word, right in tried.items() if word != best):
        return known[best], f"normalisation found by trying: {best} (right on {len(y)} images: {counts})"
    raise ComposerError(f"{name} does not say how its images were normalised, and trying does not tell", where="--normalise",
                        why=f"right on {len(y)} images: {counts}", fix="say it: --normalise " + ", ".join(known) + ", inside, another data set's name, or mean=..,std=..")


def readings(dataset: Any, said: str) -> list[Reading]:
    """Other ways to hand over the pixels, for the probe: forgotten, doubled, on another scale, in another order of colours."""
    def column(values: Numbers, x: Tensor) -> Tensor:
        return torch.tensor(values, dtype=x.dtype, device=x.device).view(1, -1, 1, 1)

    found = []
    for word, each in candidates(dataset).items():
        if each.mean is None or each.std is None:
            continue
        mean, std = each.mean, each.std
        found.append(Reading(f"normalised by '{word}' first", lambda x, m=mean, s=std: (x - column(m, x)) / column(s, x),
                             "the normalisation is missing", f"--normalise {word}, or put it inside the model"))
        found.append(Reading(f"with the normalisation '{word}' undone first", lambda x, m=mean, s=std: x * column(s, x) + column(m, x),
                             "the images are normalised twice", "--normalise none" if said not in ("", "none", "inside") else "take one out of the model"))
    found.append(Reading("scaled to 0..255 first", lambda x: x * 255, "it expects 8-bit pixels, and is given [0,1]", "--normalise 255"))
    if dataset.shape[0] == 3:
        found.append(Reading("with the colours in the order blue, green, red", lambda x: x.flip(1), "its colour channels stand in another order",
                             "flip the channels inside the model"))
    return found
