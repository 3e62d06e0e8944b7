"""Images of an npz archive a few at a time, for arrays that memory would not hold."""

from __future__ import annotations

import contextlib
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch

from composer.data._files import broken
from composer.data.mapped import fingerprint, kept, on_disk

if TYPE_CHECKING:
    import numpy as np  # imported where it is used: reading the catalogue does without

BYTES = 1 << 26            # read at once
Levels = Callable[["np.ndarray"], "torch.Tensor"]


class Member:
    """One array of an archive, in the order of its file, opened by name; None where it cannot be read in pieces."""

    def __init__(self, path: Path, name: str):
        self.path, self.name = path, name
        with self._open() as (_, self.shape, self.dtype, self.whole):
            pass

    @contextlib.contextmanager
    def _open(self) -> Iterator[tuple[IO[bytes], tuple[int, ...], Any, bool]]:
        from numpy.lib import format as npy

        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{self.name}.npy") as file:
                version = npy.read_magic(file)
                read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
                shape, fortran, dtype = read(file) if read else ((), True, None)
                yield file, shape, dtype, bool(fortran) or dtype is None or dtype.hasobject or len(shape) != 4
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, KeyError) as error:
            raise broken(self.path, self.path.stat().st_size, None, f"not a whole npz archive of plain arrays: {error}", official=False) from None

    def pieces(self, size: int = BYTES) -> Iterator[np.ndarray]:
        """The array's rows, in order, some at a time."""
        import numpy as np

        with self._open() as (file, shape, dtype, _):
            row = max(1, int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize)
            step, done = max(1, size // row), 0
            while done < shape[0]:
                rows = min(step, shape[0] - done)
                data = _read(file, rows * row)
                if len(data) < rows * row:
                    raise EOFError(f"the array {self.name} ends after {done + len(data) // row} of {shape[0]} images")
                yield np.frombuffer(data, dtype).reshape(rows, *shape[1:])
                done += rows


def _read(file: IO[bytes], size: int) -> bytearray:
    """So many bytes, or fewer at the end: a zip member gives less than asked for at the borders of its blocks."""
    data, done = bytearray(size), 0
    while done < size and (part := file.read(size - done)):
        data[done:done + len(part)] = part
        done += len(part)
    return data if done == size else data[:done]


def on_disk_levels(root: Path, path: Path, name: str, how: Any, levels: Levels) -> torch.Tensor | None:
    """The array `name` as uint8 [N,C,H,W] on disk, by way of `levels` (some rows as stored -> uint8 [n,C,H,W]); None where it goes into memory."""
    import numpy as np

    member = Member(path, name)
    if member.whole:
        return None
    first = next(member.pieces(1), None)
    if first is None:
        return None
    shape = (member.shape[0], *_levels_shape(levels, first))
    if not on_disk(int(np.prod(shape, dtype=np.int64))):
        return None

    def fill(array: np.ndarray) -> None:
        done = 0
        for piece in member.pieces():
            array[done:done + len(piece)] = levels(piece).numpy()
            done += len(piece)

    return kept(root, source_of(path, name, how), shape, fill)


def _levels_shape(levels: Levels, row: np.ndarray) -> tuple[int, ...]:
    return tuple(levels(row).shape[1:])


def source_of(path: Path, name: str, how: Any) -> str:
    return fingerprint([path], ["npz", name, how])


def name_in(path: Path, names: tuple[str, ...]) -> str:
    """The first of these arrays that the archive has, or ''. Errors: ComposerError where it is no archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            held = set(archive.namelist())
    except (zipfile.BadZipFile, OSError) as error:
        raise broken(path, path.stat().st_size, None, f"not a whole npz archive of plain arrays: {error}", official=False) from None
    return next((name for name in names if f"{name}.npy" in held), "")


__all__ = ["Member", "name_in", "on_disk_levels", "source_of"]
