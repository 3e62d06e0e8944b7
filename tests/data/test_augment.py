"""Augmentations against a slow reference, one image and one pixel at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from composer.data.augment import crop, cutout, flip, smooth
from composer.engine.streams import Streams
from composer.registry import REGISTRY


def batch(n: int = 32, shape: tuple[int, int, int] = (3, 8, 7)) -> tuple[torch.Tensor, torch.Tensor]:
    streams = Streams(0)
    return streams.uniform("x", 0, (n, *shape)) + 0.01, streams.uniform("u", 0, (n, 4))


def shift(u: float, pad: int) -> int:
    return min(math.floor(u * (2 * pad + 1)), 2 * pad)


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
@pytest.mark.parametrize("pad", [0, 2, 4])
def test_crop_is_a_window_of_the_padded_image(mode, pad):
    x, u = batch()
    out = crop(x, u, pad=pad, mode=mode)
    for i in range(len(x)):
        padded = np.pad(x[i].numpy(), ((0, 0), (pad, pad), (pad, pad)), mode={"zeros": "constant", "reflect": "reflect"}[mode])
        top, left = shift(float(u[i, 0]), pad), shift(float(u[i, 1]), pad)
        np.testing.assert_array_equal(out[i].numpy(), padded[:, top:top + 8, left:left + 7])


def test_crop_reaches_every_offset_alike_and_never_one_too_far():
    marks = torch.zeros(4000, 1, 9, 9)
    marks[:, :, 4, 4] = 1
    out = crop(marks, Streams(1).uniform("u", 0, (4000, 4)), pad=4)
    assert torch.equal(out.sum((1, 2, 3)), torch.ones(4000))      # the centre stays inside for every offset
    counts = out.sum((0, 1)).flatten()
    assert (counts > 0).all() and ((counts - 4000 / 81) ** 2 / (4000 / 81)).sum() < 130      # chi-square, 80 degrees of freedom, p = 0.0003
    edge = torch.full((1, 4), 1 - 2.0**-24)
    for pad in range(1, 200):
        assert torch.isfinite(crop(marks[:1], edge, pad=pad)).all()


def test_flip_mirrors_exactly_those_below_p():
    x, u = batch()
    out = flip(x, u, p=0.3)
    for i in range(len(x)):
        expected = x[i].numpy()[:, :, ::-1] if float(u[i, 0]) < np.float32(0.3) else x[i].numpy()
        np.testing.assert_array_equal(out[i].numpy(), expected)
    assert torch.equal(flip(x, u, p=0.0), x) and torch.equal(flip(x, u, p=1.0), x.flip(3))


@pytest.mark.parametrize("size", [1, 3, 4, 20])
def test_cutout_zeroes_a_square_around_a_pixel(size):
    x, u = batch()
    out = cutout(x, u, size=size)
    for n in range(len(x)):
        expected = x[n].numpy().copy()
        row, col = int(float(u[n, 0]) * 8), int(float(u[n, 1]) * 7)
        top, left = row - size // 2, col - size // 2
        expected[:, max(top, 0):max(top + size, 0), max(left, 0):max(left + size, 0)] = 0
        np.testing.assert_array_equal(out[n].numpy(), expected)


def test_smoothing_keeps_mass_and_order():
    x, _ = batch(6)
    hard = torch.nn.functional.one_hot(torch.arange(6) % 4, 4).float()
    same, soft = smooth(x, hard, amount=0.2)
    assert same is x
    torch.testing.assert_close(soft, hard * 0.8 + 0.05)
    torch.testing.assert_close(soft.sum(1), torch.ones(6))
    torch.testing.assert_close(smooth(x, hard, amount=torch.tensor(0.2))[1], soft)
    assert REGISTRY.get("augment", "smooth").flags["soft"] is True


@pytest.mark.parametrize("name", ["crop", "flip", "cutout"])
def test_pure_by_row_in_the_unit_interval_and_whole_in_a_graph(name):
    x, u = batch(16, (3, 8, 8))
    x = x.clamp(0, 1)
    fn = REGISTRY.get("augment", name).fn
    before, order = (x.clone(), u.clone()), torch.randperm(16, generator=torch.Generator().manual_seed(0))
    out = fn(x, u)
    assert torch.equal(x, before[0]) and torch.equal(u, before[1])
    assert torch.equal(fn(x[order], u[order]), out[order])
    assert out.shape == x.shape and out.dtype == x.dtype and out.min() >= 0 and out.max() <= 1
    assert torch.equal(torch.compile(fn, backend="eager", fullgraph=True)(x, u), out)
    assert [need.draw for need in REGISTRY.get("augment", name).needs] == ["", "rows"]
