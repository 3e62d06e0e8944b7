"""What a data set is, how one is loaded by name, and how images are held out of its training set."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from composer.data.mapped import Place, fingerprint, kept, placing, remembered
from composer.errors import ComposerError
from composer.registry import REGISTRY
from composer.seeds import stream_seed
from composer.shapes import Images, Tensor


@dataclass(frozen=True, eq=False)
class Split:
    """Images as integers, uint8 [N,C,H,W], and labels, int64 [N].

    source   a digest of where they come from, "" where nobody made one;  mapped  x lies in a file (composer.data.mapped)
    """

    x: Tensor
    y: Tensor
    source: str = ""
    mapped: bool = False

    def __len__(self) -> int:
        return int(self.y.shape[0])


@dataclass(frozen=True, eq=False)
class DataSet:
    """A data set in memory. Pixels are `images(x, scale)` = x / scale, in [0,1].

    shape           (C, H, W)
    digest          hash of all bytes a run can see: x and y of train, test and extra, the scale, the share of extra
    extra           further training images (generated ones, say); every batch takes `extra_fraction` of its rows from them
    """

    name: str
    train: Split
    test: Split
    classes: int
    shape: tuple[int, int, int]
    digest: str
    scale: float = 255.0
    extra: Split | None = None
    extra_fraction: float = 0.0
    looked: bool = False            # its pixels were looked at before: a pass over a set on disk takes its time

    def __post_init__(self) -> None:
        for part, split in (("train", self.train), ("test", self.test), ("extra", self.extra)):
            if split is not None:
                check_split(f"data set '{self.name}', {part}", split, self.shape, self.classes, self.scale, pixels=not self.looked)


def images(x: Tensor, scale: float = 255.0) -> Images:
    """Float pixels in [0,1]: x / scale, float32. Exact ends: 0 -> 0, scale -> 1."""
    return x.float() / scale


def check_split(where: str, split: Split, shape: tuple[int, int, int], classes: int, scale: float, *, pixels: bool = True) -> None:
    """Raise ComposerError unless the split is uint8 [N,C,H,W] within 0..scale (`pixels`) with as many labels within 0..classes-1."""
    x, y = split.x, split.y
    if x.dtype != torch.uint8 or tuple(x.shape[1:]) != tuple(shape):
        raise ComposerError(f"images are {x.dtype} {list(x.shape)}", where=where, why=f"uint8 [N, {shape[0]}, {shape[1]}, {shape[2]}] is needed")
    if y.dtype != torch.int64 or y.ndim != 1 or y.shape[0] != x.shape[0] or y.shape[0] == 0:
        raise ComposerError(f"labels are {y.dtype} {list(y.shape)} for {x.shape[0]} images", where=where, why="one int64 label an image is needed")
    low, high, top = int(y.min()), int(y.max()), int(x.max()) if pixels else 0
    if low < 0 or high >= classes:
        raise ComposerError(f"labels run from {low} to {high}", where=where, why=f"with {classes} classes they must lie within 0..{classes - 1}")
    if top > scale:
        raise ComposerError(f"the largest pixel is {top}", where=where, why=f"pixels are divided by {scale:g}, so they would leave [0,1]")


def data_digest(splits: tuple[Split | None, ...], scale: float, fraction: float) -> str:
    """32 hex digits of blake2b over shapes and bytes of x and y."""
    hasher = hashlib.blake2b(f"{scale!r} {fraction!r}".encode(), digest_size=16)
    for split in splits:
        hasher.update(b"none" if split is None else repr(tuple(split.x.shape)).encode())
        for tensor in () if split is None else (split.x, split.y):
            hasher.update(tensor.contiguous().numpy().data)
    return hasher.hexdigest()


def data_set(name: str, train: Split, test: Split, classes: int, *, scale: float = 255.0, extra: Split | None = None,
             extra_fraction: float = 0.0, root: Path | None = None) -> DataSet:
    """A checked DataSet; shape and digest are taken from the images. With a `root`, the digest of a set on disk is kept there."""
    _, channels, height, width = train.x.shape
    splits = (train, test, extra)

    def made(digest: str, looked: bool) -> DataSet:
        return DataSet(name, train, test, classes, (channels, height, width), digest, scale, extra, extra_fraction, looked)

    held = [split for split in splits if split is not None]
    if root is None or not any(split.mapped for split in held) or not all(split.source for split in held):
        return made(data_digest(splits, scale, extra_fraction), False)
    known = "digest-" + fingerprint((), [[split and split.source for split in splits], scale, extra_fraction])
    digest = remembered(root, known, lambda: made(data_digest(splits, scale, extra_fraction), False).digest)      # kept once it was looked at
    return made(digest, True)


def put_on_disk(dataset: DataSet, root: Path) -> DataSet:
    """The same set with its images in files, whatever loader made it."""
    def put(split: Split | None, part: str) -> Split | None:
        if split is None or split.mapped:
            return split
        return replace(split, x=kept(root, f"{dataset.digest}-{part}", tuple(split.x.shape), lambda array: np_copy(array, split.x)), mapped=True)

    return replace(dataset, train=put(dataset.train, "train"), test=put(dataset.test, "test"), extra=put(dataset.extra, "extra"), looked=True)


def np_copy(array: Any, x: Tensor) -> None:
    array[...] = x.numpy()


def load(use: str, options: dict[str, Any], root: Path | str, download: bool = False, place: Place = "auto") -> DataSet:
    """The data set of that name. `options` as a recipe gives them (they are checked here again); `root` is the folder data lie in.

    place   where the images go: `memory`, `disk` (composer.data.mapped), or `auto`: on disk where memory would be too small
    """
    primitive = REGISTRY.get("data", use)
    try:
        checked = primitive.Options(**options)
    except ValidationError as error:
        raise ComposerError(f"[data] use = \"{use}\" does not take these options", why=str(error), fix=f"composer show data/{use}") from None
    with placing(place):
        found: DataSet = primitive.fn(Path(root).expanduser(), download, **{o.name: getattr(checked, o.name) for o in primitive.options})
    return put_on_disk(found, Path(root).expanduser()) if place == "disk" else found


def shares(counts: list[int], size: int) -> list[int]:
    """`size` divided in proportion to `counts` by largest remainders: each share is its exact value rounded up or down."""
    total = sum(counts)
    given = [size * count // total for count in counts]
    order = sorted(range(len(counts)), key=lambda k: (-(size * counts[k] % total), k))
    for k in order[:size - sum(given)]:
        given[k] += 1
    return given


def take_per_class(y: Tensor, order: Tensor, quota: list[int]) -> Tensor:
    """Mask [N]: of each class k the first `quota[k]` examples in the given order of all examples."""
    ordered = y[order]
    chosen = torch.zeros(y.shape[0], dtype=torch.bool)
    for k, count in enumerate(quota):
        chosen[order[(ordered == k).nonzero().flatten()[:count]]] = True
    return chosen


def hold_out(y: Tensor, size: int, stratified: bool, seed: int) -> tuple[Tensor, Tensor]:
    """(train indices, held-out indices) of a training set with labels y [N], both int64 and ascending.

    A function of y, size, stratified and seed alone. Stratified: every class gives its share of `size`, rounded up or down.
    """
    n = int(y.shape[0])
    if not 0 <= size < n:
        raise ComposerError(f"held_out = {size}", where="[select]", why=f"the training set has {n} images; at least one must be left to train on",
                            fix=f"a whole number from 0 to {n - 1}")
    generator = torch.Generator().manual_seed(stream_seed(seed, "select/held_out"))
    order = torch.randperm(n, generator=generator)
    labels = y.cpu()
    if stratified:
        held = take_per_class(labels, order, shares(torch.bincount(labels).tolist(), size))
    else:
        held = torch.zeros(n, dtype=torch.bool)
        held[order[:size]] = True
    return (~held).nonzero().flatten(), held.nonzero().flatten()


def first_per_class(name: str, split: Split, size: int | None, classes: int) -> Split:
    """A balanced subset: the first size/classes images of each class in file order (the lowest classes take the remainder). None: all."""
    if size is None:
        return split
    quota = [size // classes + (k < size % classes) for k in range(classes)]
    have = torch.bincount(split.y, minlength=classes).tolist()
    short = [k for k in range(classes) if have[k] < quota[k]]
    if short:
        raise ComposerError(f"a balanced subset of {size} images", where=f"data set '{name}'",
                            why=f"class {short[0]} has {have[short[0]]} images and would have to give {quota[short[0]]}",
                            fix=f"at most {min(have) * classes} images" if min(have) else "leave the size out")
    keep = take_per_class(split.y, torch.arange(len(split)), quota)
    return Split(split.x[keep], split.y[keep])
