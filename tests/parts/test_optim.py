from __future__ import annotations

import pytest
import torch
from torch import nn

import composer
from composer.errors import ComposerError
from composer.optim import parameter_groups, sgd
from composer.registry import REGISTRY
from composer.testing import scratch


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3), nn.LayerNorm(3))


@pytest.mark.parametrize("fused", ["auto", "no"])
@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_the_update_of_its_formula(fused, nesterov):
    w = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    optimiser = sgd([{"params": [w], "weight_decay": 0.1}], momentum=0.9, nesterov=nesterov, fused=fused)
    mine, velocity = w.detach().clone(), torch.zeros(2, dtype=torch.float64)
    for step in range(4):
        w.grad = torch.tensor([0.5, 0.25 * step], dtype=torch.float64)
        optimiser.param_groups[0]["lr"] = 0.05
        optimiser.step()
        slope = w.grad + 0.1 * mine
        velocity = 0.9 * velocity + slope
        mine = mine - 0.05 * (slope + 0.9 * velocity if nesterov else velocity)
    torch.testing.assert_close(w.detach(), mine)


def test_learning_rate_starts_at_zero_and_groups_keep_their_decay():
    optimiser = sgd(parameter_groups(net(), 5e-4, ["bias"]), weight_decay=1.0)
    assert [g["lr"] for g in optimiser.param_groups] == [0.0, 0.0]
    assert [g["weight_decay"] for g in optimiser.param_groups] == [5e-4, 0.0]


def test_plain_parameters_take_the_options_decay():
    assert sgd(list(net().parameters()), weight_decay=2e-4).param_groups[0]["weight_decay"] == 2e-4


def names(model, group):
    of = {id(p): name for name, p in model.named_parameters()}
    return [of[id(p)] for p in group["params"]]


def test_groups_by_words_and_substrings():
    model = net()
    assert [names(model, g) for g in parameter_groups(model, 1e-3)] == [[n for n, _ in model.named_parameters()]]
    decayed, spared = parameter_groups(model, 1e-3, ["norm"])
    assert names(model, spared) == ["1.weight", "1.bias", "4.weight", "4.bias"]
    assert names(model, decayed) == ["0.weight", "0.bias", "3.weight", "3.bias"]
    decayed, spared = parameter_groups(model, 1e-3, ["bias"])
    assert names(model, spared) == ["0.bias", "1.bias", "3.bias", "4.bias"]
    decayed, spared = parameter_groups(model, 1e-3, ["3.w"])
    assert names(model, spared) == ["3.weight"] and (decayed["weight_decay"], spared["weight_decay"]) == (1e-3, 0.0)


def test_frozen_parameters_are_left_out_and_a_typo_is_found():
    model = net()
    model[0].requires_grad_(False)
    assert "0.weight" not in names(model, parameter_groups(model, 1e-3)[0])
    with pytest.raises(ComposerError, match="batchnorm"):
        parameter_groups(model, 1e-3, ["batchnorm"])


def test_the_room_is_still_the_decorator():
    def my_optimiser(groups, *, beta: float = 0.5):
        """Nothing."""

    with scratch():
        assert composer.optim(my_optimiser) is my_optimiser
        assert REGISTRY.get("optim", "my_optimiser").fn is my_optimiser
    assert not REGISTRY.has("optim", "my_optimiser")
