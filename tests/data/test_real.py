"""The whole real sets, where their files are at hand beside the project."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from composer.data.sets import hold_out, load

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "data"
SLICES = ROOT / "tests" / "slices"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not REAL.is_dir(), reason=f"the real data sets are not in {REAL}")]


def same_as_slice(got, file: str) -> None:
    with np.load(SLICES / file) as held:
        for part, suffix in ((got.train, ""), (got.test, "_test")):
            np.testing.assert_array_equal(part.x.numpy(), held[f"x{suffix}"].transpose(0, 3, 1, 2))
            np.testing.assert_array_equal(part.y.numpy(), held[f"y{suffix}"])


def test_mnist_from_the_gzipped_files():
    got = load("mnist", {}, REAL)
    assert (len(got.train), len(got.test), got.shape) == (60000, 10000, (1, 28, 28))
    assert torch.bincount(got.test.y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    same_as_slice(load("mnist", {"train_size": 400, "test_size": 200}, REAL), "mnist.npz")


def test_cifar10_loads_in_seconds(tmp_path):
    subprocess.run([sys.executable, str(REAL / "cifar_pack.py"), "unpack", str(REAL / "packed"), str(tmp_path)], check=True, capture_output=True)
    begin = time.monotonic()
    got = load("cifar10", {}, tmp_path)
    assert time.monotonic() - begin < 5
    assert (len(got.train), len(got.test), got.shape) == (50000, 10000, (3, 32, 32))
    assert torch.bincount(got.train.y).tolist() == [5000] * 10 and torch.bincount(got.test.y).tolist() == [1000] * 10
    mean = got.train.x.double().mean((0, 2, 3)) / 255
    torch.testing.assert_close(mean, torch.tensor([0.4914, 0.4822, 0.4465], dtype=torch.float64), atol=5e-5, rtol=0)      # as published
    train, held = hold_out(got.train.y, 2000, True, 0)
    assert torch.bincount(got.train.y[held]).tolist() == [200] * 10 and len(train) == 48000
    assert len(load("cifar10", {"train_size": 2000}, tmp_path).train) == 2000
    same_as_slice(load("cifar10", {"train_size": 200, "test_size": 100}, tmp_path), "cifar10.npz")
