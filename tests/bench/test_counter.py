"""The counter against passes counted by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from composer.bench.counter import PassCounter, Passes, count, flops, witness
from composer.bench.nets import SHAPES, batch, net
from composer.errors import ComposerError


def mlp(inputs: int, hidden: int, classes: int, bias: bool = True) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, hidden, bias=bias), nn.ReLU(), nn.Linear(hidden, classes, bias=bias))


def work(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    """5 forwards, 3 dgrads, 2 wgrads: a pass without a tape, one for the images, two for the weights, one that is never differentiated."""
    with torch.no_grad():
        model(x)
    point = x.clone().requires_grad_()
    torch.autograd.grad(F.cross_entropy(model(point), y), point)
    F.cross_entropy(model(x), y).backward()
    (-F.cross_entropy(model(x), y)).backward()
    model(x)


@pytest.mark.parametrize("name", SHAPES)
def test_convolutional_networks(name):
    model = net(name)
    x, y = batch(name, 2)
    assert count(model, lambda: work(model, x, y)) == Passes(5, 3, 2, 5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("n", "hidden", "classes"), [(4, 16, 10), (10, 16, 10), (16, 16, 10), (10, 10, 3), (7, 12, 1)])
def test_linear_networks_even_where_sizes_coincide(n, hidden, classes, bias):
    torch.manual_seed(0)
    model, x, y = mlp(9, hidden, classes, bias), torch.rand(n, 1, 3, 3), torch.randint(classes, (n,))
    assert count(model, lambda: work(model, x, y)) == Passes(5, 3, 2, 0)


def test_the_first_layer_is_no_witness_as_data_need_no_gradient():
    model = net("cnn8")
    x, y = batch("cnn8", 4)
    with PassCounter(model) as counter:
        F.cross_entropy(model(x), y).backward()
    assert counter.witness.shape != tuple(model[0].weight.shape)
    assert counter.counts == Passes(1, 1, 1, 1)


def test_frozen_weights_have_no_wgrad():
    model = net("cnn8").eval().requires_grad_(False)
    x, y = batch("cnn8", 4)
    x.requires_grad_()
    assert count(model, lambda: F.cross_entropy(model(x), y).backward()) == Passes(1, 1, 0, 0)


def test_passes_at_other_weights_count():
    """functional_call with perturbed weights, as weight perturbation runs it; its statistics are copies, so nothing of the model's is written."""
    model = net("cnn8")
    x, y = batch("cnn8", 4)
    moved = {name: p.detach() + 0.01 for name, p in model.named_parameters()}
    copies = {name: b.clone() for name, b in model.named_buffers()}
    names = [name for name in moved if moved[name].ndim > 1]

    def step():
        leaves = {name: p.requires_grad_() for name, p in moved.items()}
        loss = F.cross_entropy(torch.func.functional_call(model, {**leaves, **copies}, (x,)), y)
        torch.autograd.grad(loss, [leaves[name] for name in names])

    assert count(model, step) == Passes(1, 1, 1, 0)


def test_layers_of_one_shape_are_shared_out():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1),
                          nn.Flatten(), nn.Linear(48, 10))
    assert witness(model).shape == (10, 48)
    deep = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    assert witness(deep).layers == 2
    x, y = torch.rand(5, 6), torch.randint(8, (5,))
    assert count(deep, lambda: work(deep, x, y)) == Passes(5, 3, 2, 0)


def test_a_pass_that_runs_half_the_witnesses_is_an_error():
    deep = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    with PassCounter(deep) as counter:
        deep[1](torch.rand(5, 8))
    with pytest.raises(ComposerError, match="1 forward products over the 2 layers"):
        counter.counts  # noqa: B018


def test_a_network_without_layers_is_an_error():
    with pytest.raises(ComposerError, match="no convolution and no linear layer"):
        witness(nn.ReLU())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_memory_layout_does_not_matter(layout):
    model = net("resnet18").to(memory_format=layout)
    x, y = batch("resnet18", 2)
    x = x.to(memory_format=layout)
    assert count(model, lambda: work(model, x, y)) == Passes(5, 3, 2, 5)


def test_writes_of_running_statistics():
    model = net("cnn8")
    x, _ = batch("cnn8", 4)
    layer = model[1]
    scratch = torch.zeros(32), torch.ones(32)

    def step():
        model(x)                                                                            # 1: training mode writes
        model.eval()(x)                                                                     # evaluation mode reads
        hidden = model[0](x)
        F.batch_norm(hidden, *scratch, training=True, momentum=1.0)                         # somebody else's buffers
        F.batch_norm(hidden, layer.running_mean, layer.running_var, training=True)          # 2
        layer.running_mean.lerp_(scratch[0], 0.1)                                           # 3: written by hand
        torch._foreach_mul_([layer.running_mean, layer.running_var], 0.9)                   # 4: both at once
        layer.running_mean.clone().mul_(2.0)                                                # a copy

    assert count(model, step).bn_writes == 4


def test_flops_of_the_timed_networks():
    """Two a multiply-add: cnn8 by hand, ResNet-18 the published 1.11 GFLOP."""
    by_hand = 2 * (64 * 9 * 32 + 16 * 9 * 32 * 32 + 16 * 9 * 32 * 64 + 4 * 9 * 64 * 64 + 256 * 200 + 200 * 10)
    assert flops(net("cnn8"), SHAPES["cnn8"]) == by_hand
    assert flops(net("resnet18"), SHAPES["resnet18"]) == pytest.approx(1.1108e9, rel=1e-4)


@pytest.mark.parametrize("kind", ["convolutional", "linear"])
def test_joined_batches_count_as_many(kind):
    """Two batches in one forward are one pass, or two batches' worth of passes."""
    model = net("cnn8") if kind == "convolutional" else mlp(64, 12, 10)
    x, y = batch("cnn8", 4)

    def step():
        model(x)
        F.cross_entropy(model(torch.cat([x, x])), torch.cat([y, y])).backward()

    writes = 2 if kind == "convolutional" else 0
    assert count(model, step) == Passes(2, 1, 1, writes)
    assert count(model, step, batch=4) == Passes(3, 2, 2, writes)
    with pytest.raises(ComposerError, match="in batches of 5"):
        count(model, step, batch=5)
