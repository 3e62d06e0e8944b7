"""Images that stay on disk: written once as a .npy file beside the data, mapped into memory, read as they are needed.

A mapped array reads like any other, so everything behind a data set's loader sees the same bytes; only their place differs. `ROOT/.mapped/<digest>.npy`
is named after what it was made from (files with their sizes and times, and how they were read), so a changed source is converted anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from composer import atomic
from composer.errors import ComposerError

if TYPE_CHECKING:
    import numpy as np  # imported where it is used: reading the catalogue does without

Place = Literal["auto", "memory", "disk"]
FOLDER, STALE = ".mapped", 24 * 3600.0      # seconds after which what a killed conversion left is removed
_place: ContextVar[Place] = ContextVar("place", default="memory")


@contextlib.contextmanager
def placing(place: Place) -> Iterator[None]:
    """Within, loaders put images there: `auto` is on disk where they would take more than half of the memory that is free."""
    token = _place.set(place)
    try:
        yield
    finally:
        _place.reset(token)


def on_disk(size: int) -> bool:
    """Whether images of so many bytes are to be mapped."""
    place = _place.get()
    return place == "disk" or (place == "auto" and size > free_memory() // 2)


def free_memory(system: Path = Path("/")) -> int:
    """Bytes of memory that a process can still have: what the system says, or what its container allows. Unknown: 2^62."""
    found = [1 << 62]
    with contextlib.suppress(OSError, StopIteration, ValueError, IndexError):
        lines = (system / "proc/meminfo").read_text().splitlines()
        found.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]))
    for limit in ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            found.append(int((system / limit).read_text()))
    return min(found)


def fingerprint(files: Iterable[Path], how: Any) -> str:
    """Of files, by name, size and time of change, and of how they are read."""
    hasher = hashlib.blake2b(json.dumps(how, sort_keys=True, default=str).encode(), digest_size=16)
    for file in files:
        stat = file.stat()
        hasher.update(f"\n{file.absolute()} {stat.st_size} {stat.st_mtime_ns}".encode())
    return hasher.hexdigest()


def kept(root: Path, name: str, shape: tuple[int, ...], fill: Callable[[np.ndarray], None]) -> torch.Tensor:
    """uint8 of that shape, mapped from ROOT/.mapped/NAME.npy; where there is no such file, `fill` writes it first.

    The tensor may be written to in memory; the file never changes. Errors: ComposerError where the folder cannot be written or the disk is too full.
    """
    import numpy as np

    path = root / FOLDER / f"{name}.npy"
    if not path.exists():
        _make(path, shape, fill)
    array = np.load(path, mmap_mode="c", allow_pickle=False)
    if array.shape != tuple(shape) or array.dtype != np.uint8:
        raise ComposerError(f"{path} holds {array.dtype} {list(array.shape)}", why=f"uint8 {list(shape)} was expected", fix=f"remove {path}; it is written again")
    return torch.from_numpy(array)


def _make(path: Path, shape: tuple[int, ...], fill: Callable[[np.ndarray], None]) -> None:
    import numpy as np

    size = int(np.prod(shape, dtype=np.int64))
    fix = "a --data-root on a disk that can be written and has room, or --data-on host on a machine with more memory"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
    except OSError as error:
        raise ComposerError(f"cannot write {path}: {error.strerror}", fix=fix) from None
    if free < size:
        raise ComposerError(f"{path} needs {size / 2**30:.1f} GiB, and the disk has {free / 2**30:.1f}", fix=fix)
    _tidy(path.parent)

    def write(beside: Path) -> None:
        array = np.lib.format.open_memmap(beside, mode="w+", dtype=np.uint8, shape=tuple(shape))
        fill(array)
        array.flush()

    try:
        atomic.replace_with(path, write)
    except ComposerError as error:
        raise ComposerError(error.what, why=error.why, fix=fix if "cannot write" in error.what else error.fix) from None


def _tidy(folder: Path) -> None:
    """A conversion that was killed leaves its half."""
    for left in folder.glob(".tmp-*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > STALE:
                left.unlink()


def remembered(root: Path, name: str, make: Callable[[], str]) -> str:
    """A word that takes a pass over all images to find, kept beside them."""
    path = root / FOLDER / f"{name}.txt"
    with contextlib.suppress(OSError):
        if len(text := path.read_text().strip()) == 32:
            return text
    made = make()
    with contextlib.suppress(ComposerError):
        atomic.write_text(path, made + "\n")
    return made
