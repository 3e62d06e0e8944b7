"""MNIST and Fashion-MNIST: the IDX files, plain or gzipped."""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch

from composer.data._files import broken, downloading, missing
from composer.data.sets import DataSet, Split, data_set, first_per_class
from composer.registry import data
from composer.shapes import Gt

if TYPE_CHECKING:
    import numpy as np  # imported where it is used: reading the catalogue does without

PREFIXES = {"train": "train", "test": "t10k"}
GZIP = {"MNIST": {"train-images": 9912422, "train-labels": 28881, "t10k-images": 1648877, "t10k-labels": 4542}}     # sizes, where known


def read_idx(path: Path, expected_gz: int | None = None) -> np.ndarray:
    """The array of an IDX file of unsigned bytes (or of PATH.gz where PATH is absent). Size and dimensions are checked against its header."""
    import numpy as np

    packed = not path.is_file()
    source = path.with_name(path.name + ".gz") if packed else path
    raw = source.read_bytes()
    found, body = len(raw), raw
    if packed:
        unpacker = zlib.decompressobj(wbits=31)
        try:
            body = unpacker.decompress(raw)
        except zlib.error as error:
            raise broken(source, found, expected_gz, f"not a whole gzip file: {error}") from None
        if not unpacker.eof:
            raise broken(source, found, expected_gz, f"the gzip file is cut short: it unpacks to {len(body):,} bytes and then stops")
    if len(body) < 4 or body[:3] != b"\0\0\x08" or len(body) < 4 + 4 * body[3]:
        raise broken(source, found, None, "it does not begin with the header of an IDX file of bytes")
    dims = struct.unpack(f">{body[3]}I", body[4:4 + 4 * body[3]])
    start = 4 + 4 * len(dims)
    if len(body) != start + math.prod(dims):
        raise broken(source, len(body), start + math.prod(dims), f"its header announces {' x '.join(map(str, dims))} bytes")
    return np.frombuffer(body, np.uint8, offset=start).reshape(dims)


def _split(folder: Path, which: str, split: str) -> Split:
    import numpy as np

    stem = PREFIXES[split]
    sizes = GZIP.get(which, {})
    x = read_idx(folder / f"{stem}-images-idx3-ubyte", sizes.get(f"{stem}-images"))
    y = read_idx(folder / f"{stem}-labels-idx1-ubyte", sizes.get(f"{stem}-labels"))
    return Split(torch.from_numpy(x.copy())[:, None], torch.from_numpy(y.astype(np.int64)))


def _load(name: str, which: str, root: Path, download: bool, train_size: int | None, test_size: int | None) -> DataSet:
    folder = root / which / "raw"
    if download:
        from torchvision import datasets

        with downloading(name, root):
            getattr(datasets, which)(root, download=True)
    for stem in PREFIXES.values():
        for file in (f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte"):
            if not (folder / file).is_file() and not (folder / f"{file}.gz").is_file():
                raise missing(name, root, folder / file)
    train, test = _split(folder, which, "train"), _split(folder, which, "test")
    return data_set(name, first_per_class(name, train, train_size, 10), first_per_class(name, test, test_size, 10), 10)


@data(test=10_000)
def mnist(root: Path, download: bool, *, train_size: Annotated[int, Gt(0)] | None = None, test_size: Annotated[int, Gt(0)] | None = None) -> DataSet:
    """MNIST: 28x28 grey digits, 60,000 train and 10,000 test images, in ROOT/MNIST/raw; sizes give a balanced subset.

    Formula: pixel = byte / 255   [in [0,1]]
    Paper:   LeCun, Bottou, Bengio, Haffner, Proc. IEEE 1998
    """
    return _load("mnist", "MNIST", root, download, train_size, test_size)


@data(test=10_000)
def fashion_mnist(root: Path, download: bool, *, train_size: Annotated[int, Gt(0)] | None = None,
                  test_size: Annotated[int, Gt(0)] | None = None) -> DataSet:
    """Fashion-MNIST: 28x28 grey articles, 60,000 train and 10,000 test images, in ROOT/FashionMNIST/raw; sizes give a balanced subset.

    Formula: pixel = byte / 255   [in [0,1]]
    Paper:   Xiao, Rasul, Vollgraf, arXiv 1708.07747
    """
    return _load("fashion_mnist", "FashionMNIST", root, download, train_size, test_size)
