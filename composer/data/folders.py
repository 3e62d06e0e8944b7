"""Data sets that lie as image files in folders: TinyImageNet's official layout, and class folders of one's own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch

from composer.data._files import broken, downloading, missing
from composer.data.mapped import fingerprint, kept, on_disk
from composer.data.sets import DataSet, Split, data_set, first_per_class
from composer.errors import ComposerError
from composer.registry import data
from composer.shapes import Gt

if TYPE_CHECKING:
    import numpy as np  # imported where it is used: reading the catalogue does without

TINY = ("tiny-imagenet-200", "http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de", 248100043)
CHUNK = 65_536
SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}


def _decode(path: Path, size: int, mode: str, fit: str) -> np.ndarray:
    import numpy as np
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            image: Any = opened.convert(mode)
    except (OSError, SyntaxError, ValueError) as error:      # Pillow reports damaged files by all three
        raise broken(path, path.stat().st_size, None, f"not a whole image: {error}", official=False) from None
    if image.size != (size, size):
        how = Image.Resampling.BILINEAR      # Pillow's bilinear is antialiased
        image = ImageOps.fit(image, (size, size), how) if fit == "crop" else image.resize((size, size), how)
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def read_images(paths: Sequence[Path], labels: Sequence[int], size: int, channels: int, fit: str = "crop", root: Path | None = None) -> Split:
    """Decode files into one tensor, several at a time; with a `root` it may be one on disk, which is filled once."""
    import numpy as np

    shape = (len(paths), channels, size, size)

    def fill(x: np.ndarray) -> None:
        def put(i: int) -> None:
            x[i] = _decode(paths[i], size, "L" if channels == 1 else "RGB", fit)

        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            for start in range(0, len(paths), CHUNK):                     # not a future for each of a million files at once
                list(pool.map(put, range(start, min(start + CHUNK, len(paths))), chunksize=64))

    y = torch.tensor(list(labels), dtype=torch.int64)
    source = fingerprint(paths, ["images", size, channels, fit, list(labels)]) if root is not None else ""
    if root is not None and on_disk(len(paths) * channels * size * size):
        return Split(kept(root, source, shape, fill), y, source, True)
    x = np.empty(shape, np.uint8)
    fill(x)
    return Split(torch.from_numpy(x), y, source)


def class_files(folder: Path, classes: Sequence[str], inside: str = "") -> tuple[list[Path], list[int]]:
    """Files of FOLDER/<class>/<inside>, by class and then by name."""
    paths, labels = [], []
    for k, name in enumerate(classes):
        files = sorted(p for p in (folder / name / inside).rglob("*") if p.suffix.lower() in SUFFIXES) if (folder / name / inside).is_dir() else []
        if not files:
            raise ComposerError(f"class '{name}' has no images", why=f"looked in {folder / name / inside}",
                                fix=f"put images there ({' '.join(sorted(SUFFIXES))})")
        paths += files
        labels += [k] * len(files)
    return paths, labels


def _tiny_test(folder: Path, classes: Sequence[str]) -> tuple[list[Path], list[int]]:
    """The validation images, in the order of val_annotations.txt (file, class, box)."""
    listed = folder / "val" / "val_annotations.txt"
    index = {name: k for k, name in enumerate(classes)}
    paths, labels = [], []
    for number, line in enumerate(listed.read_text().splitlines(), 1):
        file, _, rest = line.partition("\t")
        name = rest.partition("\t")[0].strip()
        if name not in index:
            raise ComposerError(f"{listed}:{number}: class '{name}'", why="wnids.txt does not list it", fix="fetch the archive again")
        path = folder / "val" / "images" / file
        if not path.is_file():
            raise ComposerError(f"{listed}:{number}: {file}", why=f"looked for {path}", fix="unpack the archive again; it was cut short")
        paths.append(path)
        labels.append(index[name])
    return paths, labels


@data(test=10_000)
def tinyimagenet(root: Path, download: bool, *, train_size: Annotated[int, Gt(0)] | None = None,
                 test_size: Annotated[int, Gt(0)] | None = None) -> DataSet:
    """TinyImageNet: 64x64 colour images of 200 classes, 100,000 train; the 10,000 official validation images are the test split.

    In ROOT/tiny-imagenet-200 as unpacked. Classes stand in the order of their sorted WordNet ids; sizes give a balanced subset.

    Formula: pixel = byte / 255   [in [0,1]]
    Paper:   Le & Yang, Tiny ImageNet Visual Recognition Challenge, CS 231N 2015; a subset of ImageNet (Deng et al., CVPR 2009)
    """
    name, url, md5, size = TINY
    folder = root / name
    if download and not (folder / "wnids.txt").is_file():
        from torchvision.datasets.utils import download_and_extract_archive

        with downloading("tinyimagenet", root):
            download_and_extract_archive(url, str(root), md5=md5)
    for needed in ("wnids.txt", "val/val_annotations.txt", "train"):
        if not (folder / needed).exists():
            raise missing("tinyimagenet", root, folder / needed, archive=root / f"{name}.zip", size=size)
    classes = sorted((folder / "wnids.txt").read_text().split())
    train = read_images(*class_files(folder / "train", classes, "images"), 64, 3, root=root)
    test = read_images(*_tiny_test(folder, classes), 64, 3, root=root)
    count = len(classes)
    return data_set("tinyimagenet", first_per_class("tinyimagenet", train, train_size, count),
                    first_per_class("tinyimagenet", test, test_size, count), count, root=root)


def _class_names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


@data
def folder(root: Path, download: bool, *, path: str = "", size: Annotated[int, Gt(0)], channels: Literal[1, 3] = 3,
           fit: Literal["crop", "squash"] = "crop") -> DataSet:
    """Image files in class folders: PATH/train/<class>/… and PATH/test/<class>/… (or val), brought to size x size pixels.

    PATH is relative to the data folder. `crop` resizes the shorter side and cuts the middle out, `squash` changes the aspect ratio.

    Formula: pixel = byte / 255   [in [0,1]]; bilinear with antialiasing
    Paper:   layout as torchvision's ImageFolder
    """
    base = root / path
    train = base / "train"
    test = next((base / part for part in ("test", "val") if (base / part).is_dir()), base / "test")
    for needed in (train, test):
        if not needed.is_dir():
            raise missing("folder", root, needed, download=False)
    classes, tested = _class_names(train), _class_names(test)
    if classes != tested or len(classes) < 2:
        odd = sorted(set(classes) ^ set(tested))
        raise ComposerError(f"{train} has {len(classes)} classes, {test} has {len(tested)}",
                            why=f"only on one side: {', '.join(odd[:5])}" if odd else "at least two classes are needed",
                            fix="give both the same class folders")
    return data_set("folder", read_images(*class_files(train, classes), size, channels, fit, root),
                    read_images(*class_files(test, classes), size, channels, fit, root), len(classes), root=root)
