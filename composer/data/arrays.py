"""Data sets in npz files, and npz files of further training images."""

from __future__ import annotations

import zipfile
import zlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import torch

from composer.data._files import broken
from composer.data._npz import name_in, on_disk_levels, source_of
from composer.data.sets import DataSet, Split, check_split, data_set
from composer.errors import ComposerError
from composer.registry import data
from composer.shapes import Ge, Gt, Le, Lt

if TYPE_CHECKING:
    import numpy as np  # imported where it is used: reading the catalogue does without

NAMES = {"x": ("x", "image", "images"), "y": ("y", "label", "labels")}     # as composer writes them, as files of generated images do
OFF_GRID = 1e-3      # of one level: float32 rounding of k/255 stays far below


def find_file(root: Path, file: str, where: str) -> Path:
    """An absolute path, or one inside the data folder."""
    path = Path(file).expanduser() if Path(file).expanduser().is_absolute() else root / file
    if not path.is_file():
        raise ComposerError(f"file = \"{file}\"", where=where, why=f"looked for {path}",
                            fix="name the file relative to --data-root, or by its absolute path")
    return path


def read_npz(path: Path, keys: tuple[str, ...]) -> list[np.ndarray]:
    """The named arrays; never unpickles."""
    import numpy as np

    found = path.stat().st_size
    try:
        with np.load(path, allow_pickle=False) as held:
            if not hasattr(held, "files"):
                raise broken(path, found, None, "it holds one bare array; an npz archive with named arrays is needed", official=False)
            arrays = []
            for key in keys:
                name = next((n for n in NAMES.get(key, (key,)) if n in held.files), None)
                if name is None:
                    raise ComposerError(f"{path} has no array '{key}'", why=f"it has {', '.join(held.files)}", fix=f"save {', '.join(keys)} in it")
                arrays.append(held[name])
            return arrays
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, TypeError) as error:
        raise broken(path, found, None, f"not a whole npz archive of plain arrays: {error}", official=False) from None


def to_levels(x: np.ndarray, path: Path, *, scale: float, layout: str, quantise: bool) -> torch.Tensor:
    """uint8 [N,C,H,W] from uint8 levels or floats in [0,1], NHWC or NCHW."""
    import numpy as np

    if x.ndim != 4:
        raise ComposerError(f"{path}: images of shape {list(x.shape)}", why="four dimensions are needed", fix="[N,H,W,C] or [N,C,H,W]")
    first, last = x.shape[1] in (1, 3), x.shape[3] in (1, 3)
    if layout == "auto" and first == last:
        raise ComposerError(f"{path}: images of shape {list(x.shape)}", why="whether channels stand second or last cannot be told",
                            fix='layout = "nhwc" or layout = "nchw"')
    if layout == "nhwc" or (layout == "auto" and last):
        x = x.transpose(0, 3, 1, 2)
    if x.dtype.kind == "f":
        low, high = float(x.min()), float(x.max())
        if not (0.0 <= low and high <= 1.0):      # also refuses NaN
            raise ComposerError(f"{path}: float pixels run from {low:g} to {high:g}", why="floats must lie in [0,1]",
                                fix="divide them by their scale, or save the original bytes")
        levels = x.astype(np.float64) * scale
        if not quantise and float(np.abs(levels - np.rint(levels)).max()) > OFF_GRID:
            raise ComposerError(f"{path}: float pixels are not multiples of 1/{scale:g}", why="images are kept as bytes",
                                fix="quantise = true rounds them, or name their scale")
        x = np.rint(levels)
    elif x.dtype != np.uint8:
        raise ComposerError(f"{path}: pixels are {x.dtype}", why="uint8, or floats in [0,1], are needed")
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.uint8))


def check_arrays(path: Path, keys: tuple[str, ...]) -> None:
    """What is missing is said before anything is read or converted."""
    for key in keys:
        names = NAMES.get(key, (key,))
        if zipfile.is_zipfile(path) and not name_in(path, names):
            with zipfile.ZipFile(path) as archive:
                has = ", ".join(name.removesuffix(".npy") for name in archive.namelist())
            raise ComposerError(f"{path} has no array '{key}'", why=f"it has {has}", fix=f"save {', '.join(keys)} in it")


def read_split(root: Path, path: Path, keys: tuple[str, str], *, scale: float, layout: str, quantise: bool) -> Split:
    """Images and labels of one archive, the images in memory or on disk (composer.data.mapped)."""
    how = [scale, layout, quantise]
    name = name_in(path, NAMES.get(keys[0], (keys[0],)))
    levels = partial(to_levels, path=path, scale=scale, layout=layout, quantise=quantise)
    x = on_disk_levels(root, path, name, how, levels) if name else None
    if x is not None:
        (y,) = read_npz(path, keys[1:])
        return Split(x, to_labels(y, path), source_of(path, name, how), True)
    stored, y = read_npz(path, keys)
    return Split(levels(stored), to_labels(y, path), source_of(path, name, how))


def to_labels(y: np.ndarray, path: Path) -> torch.Tensor:
    import numpy as np

    if y.dtype.kind not in "iu":
        raise ComposerError(f"{path}: labels are {y.dtype}", why="whole numbers from 0 are needed")
    return torch.from_numpy(y.astype(np.int64).reshape(-1))


def read_extra(root: Path, file: str, fraction: float, shape: tuple[int, int, int], classes: int, *, scale: float = 255.0, layout: str = "auto",
               quantise: bool = False) -> Split | None:
    """Further training images of an npz file (x, y or image, label), or None where no file is named."""
    where = "[data] extra"
    if bool(file) != (fraction > 0):
        raise ComposerError(f"extra = \"{file}\", extra_fraction = {fraction:g}", where=where,
                            why="a file needs a share of each batch above 0, and a share needs a file", fix="set both or neither")
    if not file:
        return None
    path = find_file(root, file, where)
    split = read_split(root, path, ("x", "y"), scale=scale, layout=layout, quantise=quantise)
    check_split(str(path), split, shape, classes, scale)
    return split


@data
def npz(root: Path, download: bool, *, file: str, classes: Annotated[int, Gt(1)] | None = None, scale: Annotated[float, Gt(0), Le(255)] = 255.0,
        layout: Literal["auto", "nhwc", "nchw"] = "auto", quantise: bool = False, extra: str = "",
        extra_fraction: Annotated[float, Ge(0), Lt(1)] = 0.0) -> DataSet:
    """Images of an npz file with arrays x, y (train), x_test, y_test: bytes 0..scale or floats in [0,1], [N,H,W,C] or [N,C,H,W].

    `classes` is one more than the largest label unless said. `extra` names a second file (x, y or image, label) of further training
    images; each batch takes `extra_fraction` of its rows from it. Floats off the grid k/scale are refused unless `quantise` rounds them.

    Formula: pixel = level / scale   [in [0,1]]
    Paper:   own format; generated images as an extra set: Wang et al., ICML 2023
    """
    path = find_file(root, file, "[data] file")
    check_arrays(path, ("x", "y", "x_test", "y_test"))
    train = read_split(root, path, ("x", "y"), scale=scale, layout=layout, quantise=quantise)
    test = read_split(root, path, ("x_test", "y_test"), scale=scale, layout=layout, quantise=quantise)
    count = classes if classes is not None else int(max(int(train.y.max()), int(test.y.max()))) + 1
    more = read_extra(root, extra, extra_fraction, tuple(train.x.shape[1:]), count, scale=scale, layout=layout, quantise=quantise)
    return data_set("npz", train, test, count, scale=scale, extra=more, extra_fraction=extra_fraction, root=root)
