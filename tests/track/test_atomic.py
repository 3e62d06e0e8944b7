"""Atomic writes: whole or not at all, one sentence when refused, nothing left behind."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from composer import atomic
from composer.errors import ComposerError


def names(folder):
    return sorted(each.name for each in folder.iterdir())


def test_round_trip_makes_folders(tmp_path):
    path = atomic.write_text(tmp_path / "a" / "b" / "ü.txt", "käse\r\n")
    assert path.read_bytes() == "käse\r\n".encode() and names(path.parent) == ["ü.txt"]


def test_json_holds_no_nan_and_plain_forms(tmp_path):
    import numpy as np

    path = atomic.write_json(tmp_path / "r.json", {"a": float("nan"), "b": (1, np.float32(0.5)), "p": tmp_path, "s": {2, 1}, 3: float("-inf")})
    import json

    assert json.loads(path.read_text()) == {"a": None, "b": [1, 0.5], "p": str(tmp_path), "s": [1, 2], "3": None}
    with pytest.raises(TypeError):
        atomic.write_json(tmp_path / "r.json", {"a": object()})
    assert json.loads(path.read_text())["s"] == [1, 2]


def test_writer_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "w.bin"
    atomic.write_bytes(path, b"old")

    def writer(beside):
        beside.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic.replace_with(path, writer)
    assert path.read_bytes() == b"old" and names(tmp_path) == ["w.bin"]


def test_suffix_is_kept_for_writers_that_add_one(tmp_path):
    import numpy as np

    atomic.replace_with(tmp_path / "a.npz", lambda beside: np.savez(beside, a=np.arange(3)))
    assert names(tmp_path) == ["a.npz"]


@pytest.mark.parametrize("raised, word", [(OSError(errno.ENOSPC, "x"), "No space left"), (OSError(errno.EROFS, "x"), "Read-only"),
                                          (RuntimeError("I/O error: something (os error 28)"), "No space left"),
                                          (RuntimeError("write failed: File too large"), "File too large")])
def test_refusals_are_one_sentence_with_a_fix(tmp_path, raised, word):
    path = tmp_path / "w.bin"
    atomic.write_bytes(path, b"old")

    def writer(beside):
        beside.write_bytes(b"half")
        raise raised

    with pytest.raises(ComposerError) as caught:
        atomic.replace_with(path, writer)
    assert word in str(caught.value) and str(path) in str(caught.value) and caught.value.fix
    assert path.read_bytes() == b"old" and names(tmp_path) == ["w.bin"]


def test_other_errors_pass_unchanged(tmp_path):
    with pytest.raises(ZeroDivisionError):
        atomic.replace_with(tmp_path / "w", lambda beside: 1 / 0)


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "f").write_text("x")
    with pytest.raises(ComposerError, match="cannot write"):
        atomic.write_text(tmp_path / "f" / "g", "y")


def test_a_folder_in_place_of_the_file(tmp_path):
    (tmp_path / "d" / "x").mkdir(parents=True)
    with pytest.raises(ComposerError, match="cannot write"):
        atomic.write_text(tmp_path / "d", "y")
    assert names(tmp_path) == ["d"]


def test_size_limit_of_the_system(tmp_path):
    """A true limit of the kernel, in a process of its own: 8 KiB a file."""
    code = """
import resource, sys
from pathlib import Path
from composer import atomic
from composer.errors import ComposerError
root = Path(sys.argv[1])
atomic.write_bytes(root / "w", b"old"); atomic.append_line(root / "j", {"n": 0})
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
for write in (lambda: atomic.write_bytes(root / "w", b"x" * 100_000), lambda: atomic.append_line(root / "j", {"n": "y" * 100_000})):
    try:
        write()
    except ComposerError as error:
        assert "too large" in str(error) and "ulimit" in error.fix, error
    else:
        raise SystemExit("no error")
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert (tmp_path / "w").read_bytes() == b"old" and atomic.read_lines(tmp_path / "j") == [{"n": 0}]
    assert (tmp_path / "j").read_bytes() == b'{"n":0}\n' and names(tmp_path) == ["j", "w"]


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="root may write anywhere")
def test_folder_not_writable(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ComposerError, match="Permission denied"):
        atomic.write_text(tmp_path / "a", "x")


def test_links_stay_links(tmp_path):
    (tmp_path / "real").write_text("1")
    (tmp_path / "link").symlink_to("real")
    atomic.write_text(tmp_path / "link", "2")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "2"


@pytest.mark.parametrize("torn", [b'{"n":2', b'{"n":2}', b"\0" * 5000, b"not json\n"])
def test_torn_last_line(tmp_path, torn):
    path = tmp_path / "j.jsonl"
    atomic.append_line(path, {"n": 1})
    with open(path, "ab") as file:
        file.write(torn)
    assert atomic.read_lines(path) == [{"n": 1}]
    if not torn.endswith(b"\n"):
        atomic.append_line(path, {"n": 3}, sync=False)
        assert atomic.read_lines(path) == [{"n": 1}, {"n": 3}]


def test_broken_line_in_the_middle_is_an_error(tmp_path):
    (tmp_path / "j").write_text('{"n":1}\nbroken\n{"n":2}\n')
    with pytest.raises(ComposerError, match="byte 8"):
        atomic.read_lines(tmp_path / "j")


def test_lines_from_an_offset(tmp_path):
    path = tmp_path / "j"
    for n in range(3):
        atomic.append_line(path, {"n": n, "t": "ß"})
    ends = [end for end, _ in atomic.lines_from(path, 0)]
    assert ends[-1] == path.stat().st_size
    assert [record["n"] for _, record in atomic.lines_from(path, ends[0])] == [1, 2]
    assert atomic.read_lines(tmp_path / "missing") == []
