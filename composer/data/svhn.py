"""SVHN: cropped house numbers, the official .mat files, read by torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch

from composer.data._files import broken, downloading, first_broken, missing
from composer.data.sets import DataSet, Split, data_set, first_per_class
from composer.registry import data
from composer.shapes import Gt

SIZES = {"train_32x32.mat": 182040794, "test_32x32.mat": 64275384}      # for error messages; the MD5 decides


def _part(root: Path, part: str) -> Split:
    import numpy as np
    from torchvision import datasets

    _, file, md5 = datasets.SVHN.split_list[part]
    path = root / file
    try:
        loaded = datasets.SVHN(root, split=part)
    except (RuntimeError, ValueError, OSError, TypeError) as error:      # scipy raises several kinds for a damaged .mat
        raise (first_broken(root, [(file, md5)], SIZES) or broken(path, path.stat().st_size, SIZES.get(file), str(error))) from None
    return Split(torch.from_numpy(np.ascontiguousarray(loaded.data)), torch.from_numpy(loaded.labels.astype(np.int64)))


@data(test=26_032)
def svhn(root: Path, download: bool, *, train_size: Annotated[int, Gt(0)] | None = None, test_size: Annotated[int, Gt(0)] | None = None) -> DataSet:
    """SVHN, cropped digits: 32x32 colour images, 73,257 train and 26,032 test (without `extra`), ROOT/train_32x32.mat and test_32x32.mat.

    Sizes give a balanced subset.

    Formula: pixel = byte / 255   [in [0,1]]; the label 10 of the files is the digit 0
    Paper:   Netzer et al., NIPS workshop on deep learning 2011
    """
    from torchvision import datasets

    if download:
        with downloading("svhn", root):
            for part in ("train", "test"):
                datasets.SVHN(root, split=part, download=True)
    for part in ("train", "test"):
        file = datasets.SVHN.split_list[part][1]
        if not (root / file).is_file():
            raise missing("svhn", root, root / file)
    train, test = _part(root, "train"), _part(root, "test")
    return data_set("svhn", first_per_class("svhn", train, train_size, 10), first_per_class("svhn", test, test_size, 10), 10)
