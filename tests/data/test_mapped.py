"""Images on disk: the same bytes and digest as in memory, converted once, a few at a time, and never half."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from composer.data import _npz, mapped, sets
from composer.data.mapped import FOLDER, free_memory, kept, on_disk, placing
from composer.data.sets import load
from composer.errors import ComposerError


def archive(path: Path, kind: str = "bytes", layout: str = "nhwc", n: int = 50, **more) -> Path:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (n + 7, 6, 5, 3), dtype=np.uint8)
    x = x if layout == "nhwc" else x.transpose(0, 3, 1, 2)
    x = {"bytes": x, "floats": (x / 255).astype(np.float32), "fortran": np.asfortranarray(x)}[kind]
    y = np.arange(n + 7) % 4
    np.savez_compressed(path, x=x[:n], y=y[:n], x_test=x[n:], y_test=y[n:], **more)
    return path


def equal(a, b) -> bool:
    pairs = [(a.train, b.train), (a.test, b.test)] + ([(a.extra, b.extra)] if a.extra is not None else [])
    return a.digest == b.digest and a.shape == b.shape and all(torch.equal(p.x, q.x) and torch.equal(p.y, q.y) for p, q in pairs)


@pytest.mark.parametrize("kind", ["bytes", "floats", "fortran"])
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_an_archive_on_disk_is_the_one_in_memory(kind, layout, tmp_path, monkeypatch):
    monkeypatch.setattr(_npz, "BYTES", 999)                    # some rows at a time, and not a divisor of anything
    monkeypatch.setattr(_npz.Member.pieces, "__defaults__", (999,))
    file = archive(tmp_path / "set.npz", kind, layout)
    held = load("npz", {"file": "set.npz"}, tmp_path, place="memory")
    assert not (tmp_path / FOLDER).exists() and not held.train.mapped
    on = load("npz", {"file": "set.npz"}, tmp_path, place="disk")
    assert equal(on, held) and on.train.mapped and on.test.mapped
    made = {p: p.stat().st_mtime_ns for p in (tmp_path / FOLDER).glob("*.npy")}
    assert len(made) == 2
    again = load("npz", {"file": "set.npz"}, tmp_path, place="disk")
    assert equal(again, held) and made == {p: p.stat().st_mtime_ns for p in (tmp_path / FOLDER).glob("*.npy")}, "it was converted twice"
    assert kind == "fortran" or file.exists()


def test_an_extra_archive_too(tmp_path):
    archive(tmp_path / "set.npz")
    rng = np.random.default_rng(1)
    np.savez(tmp_path / "more.npz", image=rng.integers(0, 256, (20, 6, 5, 3), dtype=np.uint8), label=np.arange(20) % 4)
    options = {"file": "set.npz", "extra": "more.npz", "extra_fraction": 0.25}
    on, held = load("npz", options, tmp_path, place="disk"), load("npz", options, tmp_path, place="memory")
    assert equal(on, held) and on.extra.mapped and len(on.extra) == 20


def test_the_whole_is_never_in_memory(tmp_path, monkeypatch):
    """Pieces are as large as said; the array as a whole is read by nobody."""
    archive(tmp_path / "set.npz")
    sizes, plain = [], _npz.Member.pieces

    def pieces(self, size=1000):
        for piece in plain(self, min(size, 1000)):
            sizes.append(piece.nbytes)
            yield piece

    monkeypatch.setattr(_npz.Member, "pieces", pieces)
    monkeypatch.setattr("composer.data.arrays.read_npz", lambda path, keys, plain=_read_labels: plain(path, keys))
    assert len(load("npz", {"file": "set.npz"}, tmp_path, place="disk").train) == 50
    assert max(sizes) <= 1000 and sum(sizes) >= 57 * 90


def _read_labels(path, keys):
    assert not any(key.startswith("x") for key in keys), f"{keys} were read as a whole"
    with np.load(path, allow_pickle=False) as held:
        return [held[key] for key in keys]


def test_the_digest_is_kept_and_a_changed_file_is_converted_anew(tmp_path, monkeypatch):
    archive(tmp_path / "set.npz")
    first = load("npz", {"file": "set.npz"}, tmp_path, place="disk")
    monkeypatch.setattr(sets, "data_digest", lambda *args: pytest.fail("all images were read again"))
    assert load("npz", {"file": "set.npz"}, tmp_path, place="disk").digest == first.digest
    monkeypatch.undo()
    archive(tmp_path / "set.npz", n=40)
    changed = load("npz", {"file": "set.npz"}, tmp_path, place="disk")
    assert len(changed.train) == 40 and changed.digest != first.digest
    assert changed.digest == load("npz", {"file": "set.npz"}, tmp_path, place="memory").digest


def test_class_folders_on_disk_are_those_in_memory(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    for part, n in (("train", 5), ("test", 2)):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            for k in range(n):
                Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)).save(tmp_path / part / name / f"{k}.png")
    on, held = (load("folder", {"size": 8}, tmp_path, place=place) for place in ("disk", "memory"))
    assert equal(on, held) and on.train.mapped
    assert equal(load("folder", {"size": 8}, tmp_path, place="disk"), held)
    assert not equal(load("folder", {"size": 6}, tmp_path, place="disk"), held)


def test_any_loader_s_set_can_be_put_on_disk(tmp_path):
    on, held = (load("digits", {}, tmp_path / "data", place=place) for place in ("disk", "memory"))
    assert equal(on, held) and on.train.mapped and not held.train.mapped and (tmp_path / "data" / FOLDER).is_dir()


def test_memory_decides_where_auto_puts_a_set(monkeypatch, tmp_path):
    monkeypatch.setattr(mapped, "free_memory", lambda: 1000)
    for place, size, expected in (("auto", 500, False), ("auto", 501, True), ("memory", 10**12, False), ("disk", 1, True)):
        with placing(place):
            assert on_disk(size) is expected
    assert not on_disk(10**15), "outside of a load nothing is mapped"
    archive(tmp_path / "set.npz")                            # 4,500 bytes of train, 630 of test
    found = load("npz", {"file": "set.npz"}, tmp_path)
    assert found.train.mapped and found.test.mapped
    monkeypatch.setattr(mapped, "free_memory", lambda: 2000)
    found = load("npz", {"file": "set.npz"}, tmp_path)
    assert found.train.mapped and not found.test.mapped


def test_free_memory_is_the_system_s_or_the_container_s(tmp_path):
    assert free_memory(tmp_path) == 1 << 62
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9999 kB\nMemAvailable:    2048 kB\n")
    assert free_memory(tmp_path) == 2048 * 1024
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("max\n")
    assert free_memory(tmp_path) == 2048 * 1024
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("1000000\n")
    assert free_memory(tmp_path) == 1_000_000 and 2**20 < free_memory() < 2**62


# -- trouble ---------------------------------------------------------------------------------------------------------------------------


def test_a_conversion_that_breaks_leaves_nothing(tmp_path):
    def fill(array):
        array[:2] = 1
        raise EOFError("no more")

    with pytest.raises(EOFError):
        kept(tmp_path, "a", (4, 1, 2, 2), fill)
    assert list((tmp_path / FOLDER).iterdir()) == []
    kept(tmp_path, "a", (4, 1, 2, 2), lambda array: array.fill(7))
    mine = kept(tmp_path, "a", (4, 1, 2, 2), lambda array: pytest.fail("it was filled twice"))
    mine[0] = 9                                                # in memory alone
    assert int(kept(tmp_path, "a", (4, 1, 2, 2), pytest.fail).max()) == 7
    with pytest.raises(ComposerError, match="was expected"):
        kept(tmp_path, "a", (5, 1, 2, 2), pytest.fail)


def test_what_a_killed_conversion_left_is_removed_in_time(tmp_path):
    (tmp_path / FOLDER).mkdir()
    old, new = tmp_path / FOLDER / ".tmp-1-a.npy", tmp_path / FOLDER / ".tmp-2-b.npy"
    for file in (old, new):
        file.write_bytes(b"half")
    os.utime(old, (1, 1))
    kept(tmp_path, "a", (1, 1, 1, 1), lambda array: None)
    assert not old.exists() and new.exists()


def test_a_full_disk_and_a_broken_archive_are_plain_errors(tmp_path, monkeypatch):
    from types import SimpleNamespace

    file = archive(tmp_path / "set.npz")
    monkeypatch.setattr(mapped.shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(ComposerError, match="GiB, and the disk has") as error:
        load("npz", {"file": "set.npz"}, tmp_path, place="disk")
    assert "--data-on host" in error.value.fix
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    with pytest.raises(ComposerError, match="cannot write"):
        kept(tmp_path / "file", "a", (1, 1, 1, 1), lambda array: None)
    cut = tmp_path / "cut.npz"
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(cut, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name)[:-100] if name == "x.npy" else old.read(name))
    with pytest.raises(ComposerError, match="not a whole npz archive"):
        load("npz", {"file": "cut.npz"}, tmp_path, place="disk")
    assert not list((tmp_path / FOLDER).glob("*.npy")), "half an array was kept"


def test_pixels_beyond_the_scale_are_refused_on_disk_too(tmp_path):
    archive(tmp_path / "set.npz")
    with pytest.raises(ComposerError, match="largest pixel"):
        load("npz", {"file": "set.npz", "scale": 16}, tmp_path, place="disk")
    with pytest.raises(ComposerError, match="largest pixel"):
        load("npz", {"file": "set.npz", "scale": 16}, tmp_path, place="disk")
