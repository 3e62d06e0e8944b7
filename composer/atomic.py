"""Files that are never half written: write beside, fsync, rename, fsync the folder. Everything composer stores goes through here.

A write that fails (disk full, folder not writable, file-size limit) is a ComposerError of one sentence; the old file stays as it was and no
temporary file stays behind. Journals (one JSON object a line) are appended to instead: a line torn by a crash is dropped by the reader and cut
off by the next append.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from composer.errors import ComposerError

FIXES = {
    errno.ENOSPC: "free space on that disk, or choose another with --out",
    errno.EDQUOT: "free space within the quota, or choose another disk with --out",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f unlimited)",
    errno.EACCES: "make that folder writable, or choose another with --out",
    errno.EPERM: "make that folder writable, or choose another with --out",
    errno.EROFS: "choose a folder on a disk mounted for writing with --out",
    errno.ENOTDIR: "a part of that path is a file; choose another folder with --out",
    errno.EISDIR: "a folder of that name stands in the way; move it",
    errno.ENAMETOOLONG: "choose a shorter folder with --out",
}


def replace_with(path: Path | str, writer: Callable[[Path], Any]) -> Path:
    """Let `writer` fill a temporary file beside `path`, then put it in place of `path`; folders are made as needed.

    The temporary file has the suffix of `path`, for writers that look at it. Returns the path. Errors: ComposerError where the file system
    refuses; whatever else `writer` raises, unchanged.
    """
    path = Path(os.path.realpath(path))                       # a link goes on pointing where it points
    beside = path.parent / f".tmp-{os.getpid()}-{secrets.token_hex(4)}{path.suffix[:16]}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer(beside)
        sync_file(beside)
        os.replace(beside, path)
        sync_folder(path.parent)
    except Exception as error:
        raise_write_error(error, path)
        raise
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()
    return path


def write_bytes(path: Path | str, data: bytes) -> Path:
    """Put `data` at `path`, whole or not at all."""
    return replace_with(path, lambda beside: beside.write_bytes(data))


def write_text(path: Path | str, text: str) -> Path:
    """Put `text` at `path` as UTF-8 with the line ends it has."""
    return write_bytes(path, text.encode())


def write_json(path: Path | str, value: Any) -> Path:
    """Put `value` at `path` as JSON. Numbers that are not finite become null; paths become strings; tuples and sets, lists."""
    return write_text(path, json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """The value as JSON can hold it. Errors: TypeError for what has no plain form."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, (set, frozenset)):
        return [plain(each) for each in sorted(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):                              # arrays, tensors, their scalars
        return plain(value.tolist())
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def append_line(path: Path | str, record: Any, *, sync: bool = True) -> None:
    """Add one record to the journal at `path`. A torn last line is cut off first; a write that fails leaves the journal as it was.

    `sync` waits until the line is on the disk; without it the line survives the death of the process, not of the machine.
    """
    path = Path(path)
    line = json.dumps(plain(record), separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode() + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab+", buffering=0) as file:
            size = whole_size(file)
            file.truncate(size)
            try:
                while line:                                   # a short write tells its reason on the next one
                    line = line[file.write(line):]
                if sync:
                    os.fsync(file.fileno())
            except OSError:
                file.truncate(size)
                raise
    except OSError as error:
        raise_write_error(error, path)
        raise


def read_lines(path: Path | str) -> list[Any]:
    """All records of a journal in order, without a torn last line; a missing file is an empty journal."""
    return [record for _, record in lines_from(path, 0)]


def lines_from(path: Path | str, offset: int) -> Iterator[tuple[int, Any]]:
    """The records from a byte offset on, each with the offset behind it. Errors: ComposerError for a broken line that is not the last."""
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return
    lines = data.split(b"\n")[:-1]                            # what follows the last line end is torn
    for number, line in enumerate(lines):
        try:
            record = json.loads(line)
        except ValueError:
            if number == len(lines) - 1:
                return
            raise ComposerError("a line of this journal is not JSON", where=f"{path}, byte {offset}", fix="delete that line") from None
        offset += len(line) + 1
        yield offset, record


def whole_size(file: BinaryIO) -> int:
    """Bytes up to and with the last line end."""
    end = size = file.seek(0, os.SEEK_END)
    while size:
        start = max(0, size - 4096)
        file.seek(start)
        found = file.read(size - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        size = start
    file.seek(end)
    return 0


def sync_file(path: Path) -> None:
    """Wait until the file is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(path: Path) -> None:
    """Wait until the folder's list of names is on the disk, where the system can."""
    with contextlib.suppress(OSError):
        sync_file(path)


def raise_write_error(error: Exception, path: Path) -> None:
    """Raise the ComposerError of a file system's refusal; return where `error` is none. Libraries in Rust and C++ carry the cause as text."""
    code = error.errno if isinstance(error, OSError) else None
    if code is None:
        text = str(error)
        found = re.search(r"os error (\d+)", text)
        code = int(found[1]) if found else next((c for c in FIXES if os.strerror(c) in text), None)
    if code is not None:
        raise ComposerError(f"cannot write {path}: {os.strerror(code)}", fix=FIXES.get(code, "choose another folder with --out")) from None
