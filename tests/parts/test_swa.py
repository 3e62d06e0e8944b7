"""Stochastic weight averaging against plain means."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from composer.parts.swa import swa
from composer.testing import contracts


def model():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()


def life(part, epochs):
    """Weights that are drawn anew every epoch; what they were, epoch by epoch."""
    net, seen = model(), []
    part.start(SimpleNamespace(model=net, device=torch.device("cpu")))
    for epoch in range(1, epochs + 1):
        generator = torch.Generator().manual_seed(epoch)
        with torch.no_grad():
            for tensor in (*net.parameters(), net[1].running_mean, net[1].running_var):
                tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype))
            net[1].num_batches_tracked.fill_(10 * epoch)
        seen.append({k: v.detach().clone() for k, v in net.state_dict().items()})
        part.epoch_end(net, epoch=epoch)
        yield seen, part.weights()


@pytest.mark.parametrize("buffers", ["average", "copy"])
@pytest.mark.parametrize(("start", "every"), [(1, 1), (3, 1), (2, 3)])
def test_it_is_the_mean_of_the_epochs_that_count(start, every, buffers):
    for epoch, (seen, weights) in enumerate(life(swa(start_epoch=start, every=every, buffers=buffers), 9), 1):
        counted = [e for e in range(start, epoch + 1) if (e - start) % every == 0]
        last = max(counted, default=epoch)
        for name, value in weights.items():
            averaged = value.is_floating_point() and not (buffers == "copy" and "running" in name)
            expected = sum(seen[e - 1][name] for e in counted) / len(counted) if averaged and counted else seen[last - 1][name]
            torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12, msg=lambda m, at=(epoch, name): f"{at}: {m}")


def test_contracts():
    contracts("part", "swa")
