"""Augmentations against a slow reference, one image and one pixel at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from composer.data.augment import _beta, crop, cutmix, cutout, flip, mixup, smooth
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


# -- mixup and cutmix: two rows of random numbers decide the partner, the share and the box ----------------------------------------------


def soft_batch(n: int = 12, classes: int = 4) -> tuple[torch.Tensor, ...]:
    """Float64, so that the reference below agrees to the last digits."""
    g = torch.Generator().manual_seed(3)
    x, u, v = (torch.rand(s, generator=g, dtype=torch.float64) for s in ((n, 3, 8, 7), (n, 4), (n, 4)))
    return x, u, v, torch.eye(classes, dtype=torch.float64)[torch.arange(n) % classes]


def partner_of(u: torch.Tensor) -> list[int]:
    """The row of the next larger first number; after the largest comes the smallest."""
    order = sorted(range(len(u)), key=lambda i: u[i, 0].item())
    return [order[(order.index(i) + 1) % len(u)] for i in range(len(u))]


def share_of(u: torch.Tensor, i: int, alpha: float) -> float:
    """Student's t by Bailey's polar form, and from it the symmetric beta."""
    t = math.sqrt(2 * alpha * (u[i, 1].item() ** (-1 / alpha) - 1)) * math.cos(2 * math.pi * u[i, 2].item())
    return 0.5 + t / (2 * math.sqrt(2 * alpha + t * t))


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0, 4.0])
def test_the_share_has_the_beta_law(alpha):
    from scipy import stats

    g = torch.Generator().manual_seed(0)
    u, v = torch.rand(2, 20000, generator=g, dtype=torch.float64)
    drawn = _beta(u, v, alpha)
    law = stats.beta(alpha, alpha)
    grid = np.linspace(0.001, 0.999, 41)
    found = (drawn[:, None] <= torch.from_numpy(grid)).double().mean(0).numpy()
    assert np.abs(found - law.cdf(grid)).max() < 1.95 / math.sqrt(20000)                # Kolmogorov, p = 0.001
    edges = _beta(torch.tensor([0.0, 0.0, 1 - 2.0**-24, 1 - 2.0**-24]), torch.tensor([0.25, 0.0, 0.25, 0.0]), torch.tensor(alpha))
    assert torch.isfinite(edges).all() and (edges >= 0).all() and (edges <= 1).all()


@pytest.mark.parametrize("alpha", [0.3, 1.0])
@pytest.mark.parametrize("share", ["batch", "row"])
def test_mixup_averages_partners_and_their_labels(alpha, share):
    x, u, _, y = soft_batch()
    mixed, soft = mixup(x, u, y, alpha=alpha, share=share)
    partner, speaker = partner_of(u), int(u[:, 0].argmin())
    assert all(partner[i] != i for i in range(len(x))) and sorted(partner) == list(range(len(x)))
    for i, j in enumerate(partner):
        lam = share_of(u, i if share == "row" else speaker, alpha)
        torch.testing.assert_close(mixed[i], lam * x[i] + (1 - lam) * x[j], rtol=0, atol=1e-9)
        torch.testing.assert_close(soft[i], lam * y[i] + (1 - lam) * y[j], rtol=0, atol=1e-9)


@pytest.mark.parametrize("p", [0.4, 1.0])
@pytest.mark.parametrize("share", ["batch", "row"])
def test_cutmix_pastes_a_box_and_mixes_labels_by_its_area(share, p):
    x, u, v, y = soft_batch()
    mixed, soft = cutmix(x, u, v, y, p=p, share=share)
    partner, speaker, boxes = partner_of(u), int(u[:, 0].argmin()), 0
    for i, j in enumerate(partner):
        own = i if share == "row" else speaker
        expected, area = x[i].clone(), 0.0
        if v[own, 2] < p:
            side = math.sqrt(1 - share_of(u, own, 1.0))
            (top, down), (left, right) = (
                (max(int(v[own, c].item() * size) - int(size * side) // 2, 0), min(int(v[own, c].item() * size) + int(size * side) // 2, size))
                for c, size in ((0, 8), (1, 7)))
            expected[:, top:down, left:right] = x[j][:, top:down, left:right]
            area = (down - top) * (right - left) / 56
            boxes += area > 0
        assert torch.equal(mixed[i], expected)
        torch.testing.assert_close(soft[i], (1 - area) * y[i] + area * y[j], rtol=0, atol=1e-9)
    assert boxes or (share == "batch" and p < 1)


@pytest.mark.parametrize("share", ["batch", "row"])
def test_soft_mixtures_are_pure_follow_the_batch_and_trace(share):
    x, u, v, y = soft_batch()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    for fn, args in ((mixup, (x, u, y)), (cutmix, (x, u, v, y))):
        before = [a.clone() for a in args]
        out = fn(*args, share=share)
        assert all(torch.equal(a, b) for a, b in zip(args, before))
        for a, b in zip(fn(*(a[order] for a in args), share=share), out):
            torch.testing.assert_close(a, b[order])
        torch.testing.assert_close(out[1].sum(1), torch.ones(len(x), dtype=torch.float64))
        assert out[0].min() >= 0 and out[0].max() <= 1 and (out[1] >= 0).all()
        traced = torch.compile(lambda *a: fn(*a, share=share), backend="eager", fullgraph=True)(*args)     # noqa: B023
        assert all(torch.equal(a, b) for a, b in zip(traced, out))
        alone = fn(*(a[:1] for a in args), share=share)
        torch.testing.assert_close(alone[0], x[:1])                                     # a batch of one has nobody to mix with
        torch.testing.assert_close(alone[1], y[:1])


def test_a_feed_draws_them_and_repeats_itself():
    from types import SimpleNamespace

    from composer.engine.feed import Feed
    from composer.recipe.types import Use

    x = (torch.arange(24 * 48) % 255).view(24, 3, 4, 4).to(torch.uint8)
    data = SimpleNamespace(train=SimpleNamespace(x=x, y=torch.arange(24) % 3), extra=None, classes=3, scale=255.0, extra_fraction=0.0)
    uses = tuple(Use("augment", name, name, {o.name: o.default for o in REGISTRY.get("augment", name).options}) for name in ("mixup", "cutmix", "smooth"))
    first, again = (list(Feed(data, torch.arange(24), batch_size=10, streams=Streams(0), augment=uses).batches(1, 0)) for _ in range(2))
    assert [len(b.y) for b in first] == [10, 10, 4]
    for a, b in zip(first, again):
        assert torch.equal(a.x, b.x) and torch.equal(a.y_soft, b.y_soft)
        torch.testing.assert_close(a.y_soft.sum(1), torch.ones(len(a.y)))
    assert not torch.equal(first[0].y_soft, first[1].y_soft)
