"""CIFAR-10 and CIFAR-100: the official python batches, read by torchvision (which checks each file's MD5 before it opens it)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch

from composer.data._files import downloading, first_broken, missing
from composer.data.arrays import read_extra
from composer.data.sets import DataSet, Split, data_set, first_per_class
from composer.errors import ComposerError
from composer.registry import data
from composer.shapes import Ge, Gt, Lt

# bytes of the official files, for error messages; the MD5 decides
SIZES = {"cifar-10-python.tar.gz": 170498071, "data_batch_1": 31035704, "data_batch_2": 31035320, "data_batch_3": 31035999,
         "data_batch_4": 31035696, "data_batch_5": 31035623, "test_batch": 31035526, "batches.meta": 158,
         "cifar-100-python.tar.gz": 169001437, "train": 155249918}


def _part(cls: Any, root: Path, train: bool) -> Split:
    import numpy as np

    loaded = cls(root, train=train)
    x = np.ascontiguousarray(loaded.data.transpose(0, 3, 1, 2))      # torchvision turned CHW into HWC; the bytes are CHW already
    return Split(torch.from_numpy(x), torch.tensor(loaded.targets, dtype=torch.int64))


def _load(name: str, which: str, classes: int, root: Path, download: bool) -> tuple[Split, Split]:
    from torchvision import datasets

    cls = getattr(datasets, which)
    files = [(file, md5) for file, md5 in cls.train_list + cls.test_list] + [(cls.meta["filename"], cls.meta["md5"])]
    folder = root / cls.base_folder
    if download:
        with downloading(name, root):
            cls(root, download=True)
    for file, _ in files:
        if not (folder / file).is_file():
            raise missing(name, root, folder / file, archive=root / cls.filename, size=SIZES.get(cls.filename))
    try:
        return _part(cls, root, True), _part(cls, root, False)
    except RuntimeError as error:
        raise (first_broken(folder, files, SIZES) or ComposerError(f"{folder} cannot be read", why=str(error))) from None


@data(test=10_000)
def cifar10(root: Path, download: bool, *, train_size: Annotated[int, Gt(0)] | None = None, test_size: Annotated[int, Gt(0)] | None = None,
            extra: str = "", extra_fraction: Annotated[float, Ge(0), Lt(1)] = 0.0) -> DataSet:
    """CIFAR-10: 32x32 colour images, 50,000 train and 10,000 test, in ROOT/cifar-10-batches-py; sizes give a balanced subset.

    `extra` names an npz file of further training images (keys x, y or image, label); each batch takes `extra_fraction` of its rows from it.

    Formula: pixel = byte / 255   [in [0,1]]
    Paper:   Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009
    """
    train, test = _load("cifar10", "CIFAR10", 10, root, download)
    more = read_extra(root, extra, extra_fraction, (3, 32, 32), 10)
    return data_set("cifar10", first_per_class("cifar10", train, train_size, 10), first_per_class("cifar10", test, test_size, 10), 10,
                    extra=more, extra_fraction=extra_fraction if more else 0.0)


@data(test=10_000)
def cifar100(root: Path, download: bool, *, train_size: Annotated[int, Gt(0)] | None = None, test_size: Annotated[int, Gt(0)] | None = None,
             extra: str = "", extra_fraction: Annotated[float, Ge(0), Lt(1)] = 0.0) -> DataSet:
    """CIFAR-100 with its 100 fine labels: 32x32 colour images, 50,000 train and 10,000 test, in ROOT/cifar-100-python.

    Sizes and `extra` as in cifar10.

    Formula: pixel = byte / 255   [in [0,1]]
    Paper:   Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009
    """
    train, test = _load("cifar100", "CIFAR100", 100, root, download)
    more = read_extra(root, extra, extra_fraction, (3, 32, 32), 100)
    return data_set("cifar100", first_per_class("cifar100", train, train_size, 100), first_per_class("cifar100", test, test_size, 100), 100,
                    extra=more, extra_fraction=extra_fraction if more else 0.0)
