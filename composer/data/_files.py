"""Files of data sets: what is missing or broken is said once, with the place, what was expected and what is there."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

from composer.errors import ComposerError

FETCH = "--download (of run, evaluate, ablate, sweep) fetches it"
TIMEOUT = 30.0      # seconds without an answer before a download gives up


def missing(name: str, root: Path, path: Path, *, archive: Path | None = None, size: int | None = None, download: bool = True) -> ComposerError:
    """The error for a set that is not there; an archive lying beside it is looked at too, whole or cut short."""
    why = f"looked for {path}"
    if archive is not None and archive.is_file():
        found = archive.stat().st_size
        if size is not None and found != size:
            return broken(archive, found, size, "the archive is cut short or not the official one")
        why += f"; the archive {archive} is there but not unpacked"
    fix = f"{FETCH}; or name another folder with --data-root" if download else "put the files there, or name their folder with --data-root"
    return ComposerError(f"data set '{name}' is not in {root}", why=why, fix=fix)


def broken(path: Path, found: int, expected: int | None, why: str, *, official: bool = True) -> ComposerError:
    """The error for a file that is cut short, too long, or has other contents than it should."""
    size = f"expected {expected:,} bytes, found {found:,}" if expected is not None and expected != found else f"found {found:,} bytes"
    fix = f"remove {path}; {FETCH}" if official else f"replace {path}"
    return ComposerError(f"{path}: {size}", why=why, fix=fix)


def first_broken(folder: Path, files: list[tuple[str, str | None]], sizes: dict[str, int]) -> ComposerError | None:
    """The first of (file, MD5) that is not the official one."""
    from torchvision.datasets.utils import calculate_md5

    for name, md5 in files:
        path = folder / name
        if md5 is not None and (found := calculate_md5(path)) != md5:
            return broken(path, path.stat().st_size, sizes.get(name), f"its MD5 is {found}, the official file's is {md5}")
    return None


@contextlib.contextmanager
def downloading(name: str, root: Path) -> Iterator[None]:
    """A download that cannot hang, and whose failure is one plain error."""
    import tarfile
    import zipfile
    from http.client import HTTPException

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        root.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, RuntimeError, EOFError, HTTPException, tarfile.TarError, zipfile.BadZipFile) as error:
        raise ComposerError(f"data set '{name}' could not be downloaded into {root}", why=f"{type(error).__name__}: {error}",
                            fix="run the same command again, or put the official files there by hand") from error
    finally:
        socket.setdefaulttimeout(before)
