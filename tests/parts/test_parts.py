from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from composer.errors import ComposerError
from composer.parts.interpolate import interpolate
from composer.parts.logit_ema import logit_ema
from composer.parts.weight_ema import weight_ema
from composer.schedules import piat, seat

K = 3


def begun(part, model=None, batch=4, points=("adv",)):
    part.start(SimpleNamespace(batch_size=batch, classes=K, train_size=20, device=torch.device("cpu"), model=model, points=points))
    return part


def batch(seed, n=4):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, K, generator=g), torch.randperm(20, generator=g)[:n], torch.randint(0, 2, (n,), generator=g)


def feed(part, z, i, y, point="adv"):
    out = part.read(z, i, y, point=point)["logits"]
    part.after_step(z.detach(), i, y, point=point)
    return out


def test_position_ema_is_the_recursion_of_the_paper():
    part, memory = begun(logit_ema(decay=0.2)), torch.zeros(4, K)
    for seed in range(5):
        z, i, y = batch(seed)
        memory = 0.2 * memory + 0.8 * z
        torch.testing.assert_close(feed(part, z, i, y), memory)


def test_a_smaller_last_batch_updates_the_first_rows_only():
    part = begun(logit_ema(decay=0.5))
    feed(part, *batch(0))
    rest = part.state_dict()["adv"][2:].clone()
    z, i, y = batch(1, n=2)
    expected = 0.5 * part.state_dict()["adv"][:2] + 0.5 * z
    torch.testing.assert_close(feed(part, z, i, y), expected)
    torch.testing.assert_close(part.state_dict()["adv"][:2], expected)
    assert torch.equal(part.state_dict()["adv"][2:], rest)


@pytest.mark.parametrize(("compensate", "factor"), [(False, 0.8), (True, 1.0)])
def test_the_gradient_carries_one_minus_decay_unless_compensated(compensate, factor):
    part = begun(logit_ema(decay=0.2, compensate=compensate))
    plain = begun(logit_ema(decay=0.2))
    for seed in range(3):
        z, i, y = batch(seed)
        leaf = z.clone().requires_grad_()
        out = feed(part, leaf, i, y)
        assert torch.equal(out.detach(), feed(plain, z, i, y))
        torch.testing.assert_close(torch.autograd.grad(out.sum(), leaf)[0], torch.full_like(z, factor))


def test_index_ema_follows_the_example_wherever_it_stands():
    part, z, y = begun(logit_ema(decay=0.5, state="index")), torch.ones(2, K), torch.zeros(2, dtype=torch.int64)
    feed(part, z, torch.tensor([7, 11]), y)
    got = feed(part, 3 * z, torch.tensor([11, 2]), y)
    torch.testing.assert_close(got, torch.stack([torch.full((K,), 0.5 * 0.5 + 1.5), torch.full((K,), 1.5)]))
    assert torch.count_nonzero(part.state_dict()["adv"].any(1)) == 3


def test_class_ema_averages_each_class_and_spares_the_absent():
    part = begun(logit_ema(decay=0.5, state="class"))
    z, y = torch.tensor([[1.0, 2, 3], [3, 4, 5], [9, 9, 9]]), torch.tensor([0, 0, 2])
    feed(part, z, torch.arange(3), y)
    torch.testing.assert_close(part.state_dict()["adv"], torch.tensor([[1.0, 1.5, 2], [0, 0, 0], [4.5, 4.5, 4.5]]))


@pytest.mark.parametrize("state", ["position", "index", "class"])
def test_first_begins_with_what_it_meets(state):
    part = begun(logit_ema(decay=0.9, state=state, init="first"))
    z, i = torch.tensor([[1.0, 2, 3], [5, 5, 5]]), torch.tensor([4, 9])
    y = torch.tensor([0, 1])
    torch.testing.assert_close(feed(part, z, i, y), z)
    torch.testing.assert_close(feed(part, z + 1, i, y), z + 0.1)


def test_reset_each_epoch_forgets():
    part = begun(logit_ema(decay=0.5, init="first", reset_each_epoch=True))
    z, i, y = batch(0)
    feed(part, z, i, y)
    part.epoch_end(None, epoch=1)
    assert not any(v.any() for v in part.state_dict().values())
    kept = begun(logit_ema(decay=0.5))
    feed(kept, z, i, y)
    kept.epoch_end(None, epoch=1)
    assert kept.state_dict()["adv"].any()


def test_points_keep_separate_memories_and_a_new_point_begins_anew():
    old = begun(logit_ema(decay=0.5))
    feed(old, *batch(0))
    new = begun(logit_ema(decay=0.5), points=("adv", "clean"))
    new.load_state_dict(old.state_dict())
    assert torch.equal(new.state_dict()["adv"], old.state_dict()["adv"]) and not new.state_dict()["clean"].any()


def test_a_state_of_another_batch_size_is_refused():
    with pytest.raises(ComposerError, match=r"\[4, 3\], here it is \[6, 3\]"):
        begun(logit_ema(), batch=6).load_state_dict(begun(logit_ema()).state_dict())
    with pytest.raises(ComposerError, match="holds no"):
        begun(weight_ema(), nn.Linear(2, 2)).load_state_dict({})


def net():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double()
    model.register_buffer("mean", torch.tensor([0.4914, 0.4822, 0.4465], dtype=torch.float64))
    return model


def move(model, by):
    with torch.no_grad():
        for p in (*model.parameters(), model[1].running_mean):
            p.add_(by)
        model[1].num_batches_tracked.add_(1)


def test_seat_averages_weights_and_buffers_after_every_step():
    model = net()
    part = begun(weight_ema(), model)
    mine = {name: v.clone() for name, v in model.state_dict().items()}
    for t in range(6):
        move(model, 0.3)
        part.decay = seat(t)
        part.after_step()
        for name, v in model.state_dict().items():
            mine[name] = part.decay * mine[name] + (1 - part.decay) * v if v.is_floating_point() else v.clone()
    for name, v in part.weights().items():
        torch.testing.assert_close(v, mine[name])
    assert torch.equal(part.weights()["mean"], model.mean), "a constant must not drift"
    assert part.weights()["1.num_batches_tracked"] == 6


def test_copied_buffers_are_the_live_ones():
    model = net()
    part = begun(weight_ema(decay=0.9, buffers="copy"), model)
    move(model, 0.3)
    part.after_step()
    assert torch.equal(part.weights()["1.running_mean"], model[1].running_mean)
    assert not torch.equal(part.weights()["0.weight"], model[0].weight)


def test_piat_writes_the_mean_into_the_model_and_goes_on_from_it():
    model = net()
    part = begun(interpolate(lam=0.5), model)
    previous = {name: p.detach().clone() for name, p in model.named_parameters()}
    for n in (1, 2, 3):
        move(model, 0.7)
        part.lam = piat(n)
        expected = {name: part.lam * previous[name] + (1 - part.lam) * p.detach() for name, p in model.named_parameters()}
        part.epoch_end(model, epoch=n)
        for name, p in model.named_parameters():
            torch.testing.assert_close(p.detach(), expected[name])
        previous = expected
    assert model[1].num_batches_tracked == 3


@pytest.mark.parametrize(("buffers", "mean"), [("interpolate", 0.5), ("copy", 1.0)])
def test_piats_buffers(buffers, mean):
    model = net()
    part = begun(interpolate(lam=0.5, buffers=buffers), model)
    move(model, 1.0)
    part.epoch_end(model, epoch=1)
    torch.testing.assert_close(model[1].running_mean, torch.full((3,), mean, dtype=torch.float64))


def test_start_epoch_leaves_earlier_epochs_alone_and_then_mixes_with_the_last_of_them():
    model = net()
    part = begun(interpolate(lam=0.5, start_epoch=3), model)
    for epoch in (1, 2):
        move(model, 1.0)
        held = model[0].weight.detach().clone()
        part.epoch_end(model, epoch=epoch)
        assert torch.equal(model[0].weight, held)
    move(model, 1.0)
    part.epoch_end(model, epoch=3)
    torch.testing.assert_close(model[0].weight.detach(), held + 0.5)


def test_the_optimiser_keeps_its_momentum_across_the_jump():
    model = net()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    part = begun(interpolate(lam=0.5), model)
    model(torch.randn(5, 4, dtype=torch.float64)).square().sum().backward()
    optimiser.step()
    address, momentum = model[0].weight.data_ptr(), optimiser.state[model[0].weight]["momentum_buffer"].clone()
    part.epoch_end(model, epoch=1)
    assert model[0].weight.data_ptr() == address
    assert torch.equal(optimiser.state[model[0].weight]["momentum_buffer"], momentum)
