"""Data sets as values: checks, digests, subsets, held-out images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from composer.data.sets import DataSet, Split, data_digest, data_set, first_per_class, hold_out, images, load, shares
from composer.errors import ComposerError
from composer.registry import REGISTRY


def split(n: int = 6, classes: int = 3, top: int = 255) -> Split:
    x = torch.arange(n * 4, dtype=torch.int64).remainder(top + 1).to(torch.uint8).view(n, 1, 2, 2)
    return Split(x, torch.arange(n) % classes)


def test_pixels_lie_in_the_unit_interval_exactly():
    levels = torch.arange(256, dtype=torch.uint8)
    for scale in (255.0, 16.0):
        pixels = images(levels[: int(scale) + 1], scale)
        assert pixels.dtype == torch.float32 and pixels.min() == 0 and pixels.max() == 1
        torch.testing.assert_close(pixels.double(), torch.arange(int(scale) + 1).double() / scale, atol=1e-7, rtol=0)


@pytest.mark.parametrize(("change", "says"), [
    ({"x": torch.zeros(6, 1, 2, 2)}, "float32"),
    ({"x": torch.zeros(6, 1, 2, 3, dtype=torch.uint8)}, r"\[N, 1, 2, 2\]"),
    ({"y": torch.arange(5)}, "one int64 label an image"),
    ({"y": torch.full((6,), 3)}, r"within 0\.\.2"),
    ({"y": torch.full((6,), -1)}, r"within 0\.\.2"),
    ({"x": torch.full((6, 1, 2, 2), 17, dtype=torch.uint8)}, "largest pixel is 17"),
])
def test_a_data_set_refuses_what_would_leave_its_contract(change, says):
    good = split(top=15)
    bad = Split(change.get("x", good.x), change.get("y", good.y))
    with pytest.raises(ComposerError, match=says):
        DataSet("toy", bad, good, 3, (1, 2, 2), "", scale=16.0)


def test_digest_sees_every_byte_and_nothing_else():
    base = (split(), split(), None)
    first = data_digest(base, 255.0, 0.0)
    assert first == data_digest((split(), split(), None), 255.0, 0.0) and len(first) == 32
    pixel, label = split(), split()
    pixel.x[3, 0, 1, 1] += 1
    label.y[0] = 1
    others = [(pixel, split(), None), (label, split(), None), (split(), pixel, None), (split(), split(), split())]
    assert len({first, *(data_digest(o, 255.0, 0.0) for o in others), data_digest(base, 16.0, 0.0), data_digest(base, 255.0, 0.5)}) == 7


def test_digits_are_the_real_ones_in_a_fixed_stratified_split():
    from sklearn.datasets import load_digits

    digits = load("digits", {}, Path("nowhere"))
    assert (len(digits.train), len(digits.test), digits.shape, digits.scale, digits.classes) == (1437, 360, (1, 8, 8), 16.0, 10)
    counts = torch.bincount(torch.cat([digits.train.y, digits.test.y]))
    share = torch.bincount(digits.test.y) - counts * 360 / 1797
    assert share.abs().max() < 1
    rows = {(bytes(x.flatten().tolist()), int(y)) for s in (digits.train, digits.test) for x, y in zip(s.x, s.y, strict=True)}
    assert rows == {(bytes(int(v) for v in x), int(y)) for x, y in zip(*load_digits(return_X_y=True), strict=True)}
    assert digits.digest == load("digits", {}, Path("elsewhere")).digest == "af764247b733bdb1e426e4e9cd7a9e38"


def test_unknown_names_and_options_are_errors():
    with pytest.raises(ComposerError, match="did you mean 'cifar10'"):
        load("cifar1O", {}, Path())
    with pytest.raises(ComposerError, match="train_siz"):
        load("cifar10", {"train_siz": 3}, Path())


def test_every_data_set_and_augmentation_has_a_card():
    for kind in ("data", "augment"):
        for primitive in REGISTRY.all(kind):
            assert primitive.card.summary and primitive.card.formula and primitive.card.paper, primitive.name


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.data())
def test_shares_are_the_exact_ones_rounded_up_or_down(counts, draw):
    size = draw.draw(st.integers(0, sum(counts)))
    given_ = shares(counts, size)
    assert sum(given_) == size
    for share, count in zip(given_, counts, strict=True):
        assert abs(share - size * count / sum(counts)) < 1 and share <= count


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.booleans(), st.integers(0, 5), st.data())
def test_hold_out_parts_the_training_set(labels, stratified, seed, draw):
    y = torch.tensor(labels)
    size = draw.draw(st.integers(0, len(labels) - 1))
    train, held = hold_out(y, size, stratified, seed)
    assert train.dtype == held.dtype == torch.int64 and len(held) == size
    assert torch.equal(torch.cat([train, held]).sort().values, torch.arange(len(labels)))
    assert torch.equal(train, train.sort().values) and torch.equal(held, held.sort().values)
    if stratified:
        got = torch.bincount(y[held], minlength=5)
        assert (got - torch.bincount(y, minlength=5) * size / len(labels)).abs().max() < 1


def test_hold_out_is_a_function_of_its_seed_and_leaves_the_global_stream_alone():
    y = torch.arange(1000) % 10
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, again, other = hold_out(y, 200, True, 0), hold_out(y, 200, True, 0), hold_out(y, 200, True, 1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first[1], again[1]) and not torch.equal(first[1], other[1])
    assert torch.equal(torch.bincount(y[first[1]]), torch.full((10,), 20))
    overlap = len(set(first[1].tolist()) & set(other[1].tolist()))
    assert 15 < overlap < 75      # independent draws share 40 of 200 in the mean, standard deviation 5


def test_a_larger_held_out_part_contains_the_smaller():
    y = torch.arange(500) % 7
    assert set(hold_out(y, 50, False, 4)[1].tolist()) < set(hold_out(y, 120, False, 4)[1].tolist())


@pytest.mark.parametrize("size", [-1, 6, 7])
def test_hold_out_refuses_sizes_that_leave_nothing(size):
    with pytest.raises(ComposerError, match="held_out"):
        hold_out(torch.zeros(6, dtype=torch.int64), size, False, 0)


def test_balanced_subset_takes_the_first_of_each_class_in_file_order():
    y = torch.tensor([2, 0, 0, 1, 2, 1, 0, 2, 1])
    whole = Split(torch.arange(9, dtype=torch.uint8).view(9, 1, 1, 1), y)
    part = first_per_class("toy", whole, 5, 3)
    assert part.x.flatten().tolist() == [0, 1, 2, 3, 5] and part.y.tolist() == [2, 0, 0, 1, 1]
    assert first_per_class("toy", whole, None, 3) is whole
    with pytest.raises(ComposerError, match="at most 9 images"):
        first_per_class("toy", whole, 10, 3)


def test_data_set_takes_shape_and_digest_from_the_images():
    made = data_set("toy", split(), split(3), 3)
    assert made.shape == (1, 2, 2) and made.digest == data_digest((split(), split(3), None), 255.0, 0.0)
