from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from composer import schedules as s
from composer.errors import ComposerError


def run(fn, epochs, **options):
    return [fn(epoch, epochs, **options) for epoch in range(1, epochs + 1)]


def test_multistep_holds_from_the_epoch_behind_the_border():
    """110 epochs, x0.1 after 80 and 90: epochs 1-80, 81-90, 91-110."""
    values = run(s.multistep, 110, value=0.1, at=[80.0, "90/110"])
    assert values[:80] == [0.1] * 80
    assert values[80:90] == pytest.approx([0.01] * 10) and values[90:] == pytest.approx([0.001] * 20)


def test_multistep_equals_torchs_scheduler():
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    other = torch.optim.lr_scheduler.MultiStepLR(optimiser, [3, 7], gamma=0.5)
    for value in run(s.multistep, 10, value=0.1, at=[3.0, 7.0], factor=0.5):
        assert value == pytest.approx(optimiser.param_groups[0]["lr"])
        optimiser.step()
        other.step()


def test_multistep_with_a_table():
    assert run(s.multistep, 6, value=0.0, at=[2.0, 4.0], values=(1.0, 2.0)) == [0.0, 0.0, 1.0, 1.0, 2.0, 2.0]
    with pytest.raises(ComposerError, match="2 borders and 1 values"):
        s.multistep(1, 6, value=0.0, at=[2.0, 4.0], values=(1.0,))


def test_cosine_equals_torchs_scheduler():
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    other = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 20, eta_min=0.001)
    for value in run(s.cosine, 20, value=0.1, floor=0.001):
        assert value == pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-9)
        optimiser.step()
        other.step()


def test_cosine_stays_at_the_floor():
    assert run(s.cosine, 8, value=1.0, floor=0.1, until=4.0)[4:] == [0.1] * 4


def test_linear_is_piats_learning_rate():
    """0.01 to epoch 60, a line to 0.001 at 90, a line to 0.0001 at 120; values after so many epochs completed."""
    points = [["60/120", 0.01], [90.0, 0.001], [120.0, 0.0001]]
    values = run(s.linear, 120, points=points) + [s.linear(121, 120, points=points)]
    assert values[:61] == [0.01] * 61
    assert values[75] == pytest.approx((0.01 + 0.001) / 2) and values[90] == 0.001
    assert values[105] == pytest.approx((0.001 + 0.0001) / 2) and values[120] == 0.0001
    assert all(a >= b for a, b in pairwise(values))


def test_linear_with_one_point_is_constant_and_order_is_checked():
    assert s.linear(5, 9, points=[[3.0, 0.7]]) == 0.7
    with pytest.raises(ComposerError, match="in order"):
        s.linear(1, 9, points=[[5.0, 1.0], [2.0, 0.0]])
    with pytest.raises(ComposerError, match="in order"):
        s.linear(1, 9, points=[])


def test_ramp_between_two_epochs():
    assert run(s.ramp, 6, first=0.0, last=1.0, after=1.0, until=5.0) == pytest.approx([0, 0, 0.25, 0.5, 0.75, 1.0])
    assert run(s.ramp, 3, first=2.0, last=5.0, after=1.0, until=1.0) == [2.0, 5.0, 5.0]        # a jump after one epoch


def test_cyclic_goes_up_and_down():
    assert [s.cyclic(t, value=0.2, peak=0.4) for t in (0.0, 0.2, 0.4, 0.7, 1.0)] == pytest.approx([0.0, 0.1, 0.2, 0.1, 0.0])
    assert s.cyclic(1.0, value=0.2, peak=1.0) == 0.2


def test_follow_scales_with_the_ratio():
    assert s.follow(0.1, path="train.lr", value=3.0) == pytest.approx(0.3)


def test_piat_and_seat_by_hand():
    assert s.piat(1) == 2 / 11 and s.piat(120) == 121 / 130
    assert s.seat(0) == 0.1 and s.seat(8) == 0.5 and s.seat(10**6) == 0.999


@given(st.integers(1, 300), st.floats(0.01, 1), st.floats(0, 1), st.floats(0, 1))
def test_lines_and_cosines_stay_between_their_ends(epochs, value, floor, t):
    low, high = min(value, floor), max(value, floor)
    epoch = 1 + int(t * (epochs - 1))
    for got in (s.cosine(epoch, epochs, value=value, floor=floor), s.ramp(epoch, epochs, first=value, last=floor),
                s.cyclic(t, value=high, start=low, end=low)):
        assert low - 1e-12 <= got <= high + 1e-12 and math.isfinite(got)
