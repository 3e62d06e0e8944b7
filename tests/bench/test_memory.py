"""Peak memory against bytes counted by hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from composer.bench.memory import LiveBytes, peak_memory
from composer.bench.nets import batch, net

KIB = 1024


def block(kib: int = 1) -> torch.Tensor:
    return torch.empty(kib * KIB, dtype=torch.uint8)


def test_bytes_are_followed_until_freed():
    with LiveBytes() as live:
        a = block(4)
        assert (live.alive, live.peak) == (4 * KIB, 4 * KIB)
        b = a + 1
        assert live.alive == 8 * KIB
        del a
        assert (live.alive, live.peak) == (4 * KIB, 8 * KIB)
        c = block(2)
        assert (live.alive, live.peak) == (6 * KIB, 8 * KIB)
    del b, c
    assert live.alive == 0


def test_views_and_writes_in_place_take_nothing():
    a = block(4)
    with LiveBytes() as live:
        view = a.view(2, -1)[0]
        view.add_(1)
        a.mul_(2)
    assert live.peak == 0


def test_the_tape_holds_activations_until_the_backward():
    """Sixteen results of exp stay for the backward, beside them clamp's for a moment; without a tape an operation holds its loop's input,
    its own input and its result."""
    x = torch.zeros(256, dtype=torch.float32, requires_grad=True)       # 1 KiB

    def chain() -> torch.Tensor:
        y = x
        for _ in range(8):
            y = y.exp().clamp(max=1.0).exp()
        return y

    with torch.no_grad():
        assert peak_memory(chain) == 3 * KIB
    assert peak_memory(chain) == 17 * KIB


def test_the_same_step_has_the_same_peak_and_a_larger_batch_a_larger_one():
    model = net("cnn8")

    def peak(n: int) -> int:
        x, y = batch("cnn8", n)
        model.zero_grad()
        return peak_memory(lambda: F.cross_entropy(model(x), y).backward())

    assert peak(8) == peak(8)
    gradients = sum(4 * p.numel() for p in model.parameters())
    assert gradients < peak(8) < peak(16) < 2 * peak(8)
