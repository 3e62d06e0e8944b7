"""Loaders on files of each official format, made small by the test; and what is said of missing, truncated and foreign files."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from composer.data import cifar
from composer.data.folders import read_images
from composer.data.sets import images, load
from composer.errors import ComposerError

SLICES = Path(__file__).parents[1] / "slices"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Nothing here may open a connection."""
    import socket

    def refuse(*args, **kwargs):
        raise AssertionError("a loader tried the network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def real(n: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Real images, classes in turn, so that every twenty hold two of each."""
    with np.load(SLICES / "cifar10.npz") as held:
        x, y = held["x"], held["y"].astype(np.int64)
    order = np.argsort(y, kind="stable").reshape(10, -1).T.reshape(-1)[:n]
    return x[order], y[order]


# --- CIFAR ---------------------------------------------------------------------------------------------------------------------------

def write_cifar(root: Path, monkeypatch, which: str) -> tuple[np.ndarray, np.ndarray]:
    """Python batches of 20 images each with the official names and keys; their MD5s are put where torchvision looks."""
    cls = getattr(torchvision.datasets, which)
    folder = root / cls.base_folder
    folder.mkdir(parents=True)
    x, y = real(120)
    labels, at = ("labels" if which == "CIFAR10" else "fine_labels"), 0
    lists = {}
    for part in ("train_list", "test_list"):
        lists[part] = []
        for file, _ in getattr(cls, part):
            batch = {"data": x[at:at + 20].transpose(0, 3, 1, 2).reshape(20, -1), labels: y[at:at + 20].tolist()}
            at += 20
            (folder / file).write_bytes(pickle.dumps(batch, protocol=2))
            lists[part].append([file, hashlib.md5((folder / file).read_bytes()).hexdigest()])
    meta = dict(cls.meta)
    (folder / meta["filename"]).write_bytes(pickle.dumps({meta["key"]: [str(k) for k in range(10)]}, protocol=2))
    meta["md5"] = hashlib.md5((folder / meta["filename"]).read_bytes()).hexdigest()
    for key, value in {**lists, "meta": meta}.items():
        monkeypatch.setattr(cls, key, value)
    return x[:at], y[:at]


@pytest.mark.parametrize(("use", "which", "classes"), [("cifar10", "CIFAR10", 10), ("cifar100", "CIFAR100", 100)])
def test_cifar_batches(tmp_path, monkeypatch, use, which, classes):
    x, y = write_cifar(tmp_path, monkeypatch, which)
    got = load(use, {}, tmp_path)
    assert got.classes == classes and got.shape == (3, 32, 32) and len(got.test) == 20
    np.testing.assert_array_equal(torch.cat([got.train.x, got.test.x]).numpy(), x.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(torch.cat([got.train.y, got.test.y]).numpy(), y)


def test_cifar_subset_is_balanced_and_the_digest_follows(tmp_path, monkeypatch):
    write_cifar(tmp_path, monkeypatch, "CIFAR10")
    whole, part = load("cifar10", {}, tmp_path), load("cifar10", {"train_size": 20, "test_size": 10}, tmp_path)
    assert torch.equal(torch.bincount(part.train.y), torch.full((10,), 2)) and len(part.test) == 10 and part.digest != whole.digest
    first = [i for k in range(10) for i in (whole.train.y == k).nonzero().flatten()[:2].tolist()]
    assert torch.equal(part.train.x, whole.train.x[sorted(first)])


def test_cifar_truncated_batch_is_named_with_both_sizes(tmp_path, monkeypatch):
    write_cifar(tmp_path, monkeypatch, "CIFAR10")
    file = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    size = file.stat().st_size
    monkeypatch.setitem(cifar.SIZES, "data_batch_3", size)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ComposerError, match=f"data_batch_3: expected {size:,} bytes, found 1,000"):
        load("cifar10", {}, tmp_path)


def test_cifar_changed_bytes_are_never_unpickled(tmp_path, monkeypatch):
    write_cifar(tmp_path, monkeypatch, "CIFAR10")
    file, mark = tmp_path / "cifar-10-batches-py" / "test_batch", tmp_path / "mark"

    class Trap:
        def __reduce__(self):
            return (Path.write_text, (mark, "ran"))

    file.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ComposerError, match="test_batch.*\n.*MD5"):
        load("cifar10", {}, tmp_path)
    assert not mark.exists()


def test_cifar_extra_images(tmp_path, monkeypatch):
    x, y = write_cifar(tmp_path, monkeypatch, "CIFAR10")
    np.savez(tmp_path / "generated.npz", image=x[:30], label=y[:30])      # the keys of published generated sets
    got = load("cifar10", {"extra": "generated.npz", "extra_fraction": 0.7}, tmp_path)
    assert got.extra is not None and len(got.extra) == 30 and got.extra_fraction == 0.7
    np.testing.assert_array_equal(got.extra.x.numpy(), x[:30].transpose(0, 3, 1, 2))
    assert got.digest != load("cifar10", {}, tmp_path).digest
    for options in ({"extra": "generated.npz"}, {"extra_fraction": 0.5}):
        with pytest.raises(ComposerError, match="set both or neither"):
            load("cifar10", options, tmp_path)


# --- MNIST ---------------------------------------------------------------------------------------------------------------------------

def write_idx(folder: Path, gz: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with np.load(SLICES / "mnist.npz") as held:
        arrays = {"train-images-idx3-ubyte": held["x"][..., 0], "train-labels-idx1-ubyte": held["y"],
                  "t10k-images-idx3-ubyte": held["x_test"][..., 0], "t10k-labels-idx1-ubyte": held["y_test"]}
    for name, array in arrays.items():
        body = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()
        (folder / (name + ".gz" * gz)).write_bytes(gzip.compress(body) if gz else body)


@pytest.mark.parametrize(("use", "which"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_idx_files_plain_and_gzipped_as_torchvision_reads_them(tmp_path, use, which):
    write_idx(tmp_path / "plain" / which / "raw")
    write_idx(tmp_path / "packed" / which / "raw", gz=True)
    plain, packed = load(use, {}, tmp_path / "plain"), load(use, {}, tmp_path / "packed")
    assert plain.digest == packed.digest and plain.shape == (1, 28, 28) and (len(plain.train), len(plain.test)) == (400, 200)
    for train, part in ((True, plain.train), (False, plain.test)):
        theirs = getattr(torchvision.datasets, which)(tmp_path / "plain", train=train)
        assert torch.equal(part.x[:, 0], theirs.data) and torch.equal(part.y, theirs.targets)


@pytest.mark.parametrize("gz", [False, True])
def test_truncated_idx_is_named_with_its_size(tmp_path, gz):
    folder = tmp_path / "MNIST" / "raw"
    write_idx(folder, gz)
    file = folder / ("train-images-idx3-ubyte" + ".gz" * gz)
    file.write_bytes(file.read_bytes()[:5000])
    says = "expected 9,912,422 bytes, found 5,000" if gz else "expected 313,616 bytes, found 5,000"
    with pytest.raises(ComposerError, match=f"{file.name}: {says}"):
        load("mnist", {}, tmp_path)


def test_a_file_of_another_kind_is_no_idx(tmp_path):
    write_idx(tmp_path / "MNIST" / "raw")
    (tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").write_bytes(b"<html>moved</html>")
    with pytest.raises(ComposerError, match="t10k-labels-idx1-ubyte.*18 bytes"):
        load("mnist", {}, tmp_path)


# --- SVHN ----------------------------------------------------------------------------------------------------------------------------

def write_svhn(root: Path, monkeypatch) -> tuple[np.ndarray, np.ndarray]:
    import scipy.io

    x, y = real(60)
    listed = dict(torchvision.datasets.SVHN.split_list)
    for part, rows in (("train", slice(0, 40)), ("test", slice(40, 60))):
        labels = np.where(y[rows] == 0, 10, y[rows]).astype(np.uint8)[:, None]      # the files call the digit 0 "10"
        file = root / listed[part][1]
        scipy.io.savemat(file, {"X": x[rows].transpose(1, 2, 3, 0), "y": labels}, do_compression=True)
        listed[part] = [listed[part][0], listed[part][1], hashlib.md5(file.read_bytes()).hexdigest()]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", listed)
    return x, y


def test_svhn_files(tmp_path, monkeypatch):
    x, y = write_svhn(tmp_path, monkeypatch)
    got = load("svhn", {}, tmp_path)
    np.testing.assert_array_equal(torch.cat([got.train.x, got.test.x]).numpy(), x.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(torch.cat([got.train.y, got.test.y]).numpy(), y)
    (tmp_path / "test_32x32.mat").write_bytes(b"short")
    with pytest.raises(ComposerError, match="test_32x32.mat: expected 64,275,384 bytes, found 5"):
        load("svhn", {}, tmp_path)


# --- image folders -------------------------------------------------------------------------------------------------------------------

def write_tiny(root: Path) -> tuple[np.ndarray, list[str]]:
    """The official layout: train/<wnid>/images, val/images with val_annotations.txt, wnids.txt in any order."""
    base, wnids = root / "tiny-imagenet-200", ["n02", "n01", "n03"]
    x = np.kron(real(15)[0], np.ones((1, 2, 2, 1), np.uint8))      # 64 x 64
    at = 0
    (base / "val" / "images").mkdir(parents=True)
    (base / "wnids.txt").write_text("\n".join(wnids) + "\n")
    for wnid in sorted(wnids):
        (base / "train" / wnid / "images").mkdir(parents=True)
        for i in range(3):
            Image.fromarray(x[at]).save(base / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", quality=95)
            at += 1
    lines = []
    for i, wnid in enumerate(["n03", "n01", "n02", "n03"]):
        image = Image.fromarray(x[at])
        (image.convert("L") if i == 1 else image).save(base / "val" / "images" / f"val_{i}.JPEG", quality=95)      # some official files are grey
        lines.append(f"val_{i}.JPEG\t{wnid}\t0\t0\t63\t63")
        at += 1
    (base / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    return x, wnids


def test_tinyimagenet_folders(tmp_path):
    x, _ = write_tiny(tmp_path)
    got = load("tinyimagenet", {}, tmp_path)
    assert got.shape == (3, 64, 64) and got.classes == 3
    assert got.train.y.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2] and got.test.y.tolist() == [2, 0, 1, 2]
    assert np.abs(got.train.x.numpy().astype(int) - x[:9].transpose(0, 3, 1, 2)).mean() < 12      # JPEG of noisy pixels
    assert (got.test.x[1, 0] == got.test.x[1, 2]).all() and not (got.test.x[0, 0] == got.test.x[0, 2]).all()


def test_tinyimagenet_cut_short(tmp_path):
    write_tiny(tmp_path)
    base = tmp_path / "tiny-imagenet-200"
    file = base / "train" / "n01" / "images" / "n01_1.JPEG"
    whole = file.read_bytes()
    file.write_bytes(whole[:300])
    with pytest.raises(ComposerError, match="n01_1.JPEG: found 300 bytes"):
        load("tinyimagenet", {}, tmp_path)
    file.write_bytes(whole)
    (base / "val" / "images" / "val_2.JPEG").unlink()
    with pytest.raises(ComposerError, match="val_annotations.txt:3: val_2.JPEG"):
        load("tinyimagenet", {}, tmp_path)


def write_classes(root: Path, test: str = "test", size: tuple[int, int] = (32, 32)) -> np.ndarray:
    x = real(8)[0]
    for at, (part, name) in enumerate((p, c) for p in ("train", test) for c in ("cat", "dog")):
        (root / part / name).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(x[2 * at + i]).resize(size).save(root / part / name / f"{i}.png")
    return x


@pytest.mark.parametrize("test", ["test", "val"])
def test_class_folders_are_lossless_at_their_own_size(tmp_path, test):
    x = write_classes(tmp_path / "pets", test)
    got = load("folder", {"path": "pets", "size": 32}, tmp_path)
    np.testing.assert_array_equal(torch.cat([got.train.x, got.test.x]).numpy(), x.transpose(0, 3, 1, 2))
    assert got.train.y.tolist() == got.test.y.tolist() == [0, 0, 1, 1]
    assert load("folder", {"path": "pets", "size": 16, "channels": 1}, tmp_path).shape == (1, 16, 16)


def test_resizing_crops_the_middle_or_squashes(tmp_path):
    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, 4:12] = 200      # the middle half is bright
    Image.fromarray(wide).save(tmp_path / "wide.png")
    crop = read_images([tmp_path / "wide.png"], [0], 8, 3, "crop").x
    squash = read_images([tmp_path / "wide.png"], [0], 8, 3, "squash").x
    assert (crop == 200).all() and squash[0, 0, 0, 0] < 60 and squash[0, 0, 0, 4] == 200


def test_class_folders_must_agree(tmp_path):
    write_classes(tmp_path)
    (tmp_path / "test" / "dog").rename(tmp_path / "test" / "wolf")
    with pytest.raises(ComposerError, match="dog, wolf"):
        load("folder", {"size": 8}, tmp_path)
    with pytest.raises(ComposerError, match="looked for .*train"):
        load("folder", {"path": "none", "size": 8}, tmp_path)


# --- npz -----------------------------------------------------------------------------------------------------------------------------

def test_npz_bytes_and_floats_in_both_layouts_are_one_data_set(tmp_path):
    with np.load(SLICES / "cifar10.npz") as held:
        x, y, xt, yt = (held[k] for k in ("x", "y", "x_test", "y_test"))
    forms = {"nhwc": (x, xt), "nchw": (x.transpose(0, 3, 1, 2), xt.transpose(0, 3, 1, 2)),
             "float": (x.astype(np.float32) / 255, xt / 255.0)}
    digests = set()
    for name, (a, b) in forms.items():
        np.savez(tmp_path / f"{name}.npz", x=a, y=y, x_test=b, y_test=yt)
        got = load("npz", {"file": f"{name}.npz"}, tmp_path)
        digests.add(got.digest)
        assert got.classes == 10 and 0 <= images(got.train.x).min() and images(got.train.x).max() <= 1
        np.testing.assert_array_equal(got.test.x.numpy(), xt.transpose(0, 3, 1, 2))
    assert len(digests) == 1


@pytest.mark.parametrize(("x", "options", "says"), [
    (np.full((4, 2, 2, 1), 1.01), {}, r"run from 1.01 to 1.01"),
    (np.full((4, 2, 2, 1), -0.1), {}, r"must lie in \[0,1\]"),
    (np.full((4, 2, 2, 1), np.nan), {}, r"must lie in \[0,1\]"),
    (np.full((4, 2, 2, 1), 0.3337), {}, "quantise = true"),
    (np.full((4, 2, 2, 1), 17, np.uint8), {"scale": 16.0}, "largest pixel is 17"),
    (np.full((4, 2, 2, 1), 3, np.int64), {}, "pixels are int64"),
    (np.zeros((4, 3, 5, 3), np.uint8), {}, "cannot be told"),
    (np.zeros((4, 9), np.uint8), {}, "four dimensions"),
])
def test_npz_refuses_pixels_outside_its_contract(tmp_path, x, options, says):
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(4) % 2, x_test=x, y_test=np.arange(4) % 2)
    with pytest.raises(ComposerError, match=says):
        load("npz", {"file": "a.npz", **options}, tmp_path)


def test_npz_quantises_only_when_told(tmp_path):
    x = np.linspace(0, 1, 16).reshape(4, 2, 2, 1)
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(4) % 2, x_test=x, y_test=np.arange(4) % 2)
    got = load("npz", {"file": "a.npz", "quantise": True, "scale": 7.0}, tmp_path)
    np.testing.assert_array_equal(got.train.x.numpy().ravel(), np.rint(x.ravel() * 7))


def test_npz_broken_or_with_objects(tmp_path):
    whole = (SLICES / "mnist.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:2000])
    np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object), y=[0], x_test=[0], y_test=[0])
    np.savez(tmp_path / "part.npz", x=[0], y=[0])
    for file, says in (("cut.npz", "found 2,000 bytes"), ("objects.npz", "plain arrays"), ("part.npz", "no array 'x_test'"), ("no.npz", "looked for")):
        with pytest.raises(ComposerError, match=says):
            load("npz", {"file": file}, tmp_path)


# --- missing -------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("use", "looked"), [("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python"), ("mnist", "MNIST"),
                                             ("fashion_mnist", "FashionMNIST"), ("svhn", "train_32x32.mat"), ("tinyimagenet", "tiny-imagenet-200")])
def test_a_missing_set_names_the_path_and_the_command_and_tries_no_network(tmp_path, use, looked):
    with pytest.raises(ComposerError) as caught:
        load(use, {}, tmp_path)
    assert str(tmp_path / looked) in caught.value.text() and "--download" in caught.value.fix and caught.value.exit_code == 2


def test_an_archive_cut_short_is_named_with_both_sizes(tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"x" * 77)
    with pytest.raises(ComposerError, match="cifar-10-python.tar.gz: expected 170,498,071 bytes, found 77"):
        load("cifar10", {}, tmp_path)


def test_a_download_that_fails_is_one_error(tmp_path, monkeypatch):
    import socket

    waits = []

    def fail(*args, **kwargs):
        waits.append(socket.getdefaulttimeout())
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", fail)
    with pytest.raises(ComposerError, match="could not be downloaded") as caught:
        load("cifar10", {}, tmp_path, download=True)
    assert "no route to host" in caught.value.text()
    assert waits == [30.0] and socket.getdefaulttimeout() is None      # a silent server ends it; other code's sockets are as they were
