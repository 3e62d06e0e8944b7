"""The prepared network of an attack against the plain one: values, gradients, what is folded and what is left, what is counted."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from composer.bench.counter import Passes, count
from composer.bench.nets import SHAPES, batch, net
from composer.models import packed_layer
from composer.models.build import build_model
from composer.models.packed import PackedNet
from composer.options import Ref
from composer.recipe.load import catalogue
from composer.recipe.types import ModelSpec


def moved(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Running statistics and scales off their first values; eval mode, as the engine keeps it."""
    generator = torch.Generator().manual_seed(1)
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in ((m.running_mean, -0.3, 0.3), (m.running_var, 0.5, 2.0), (m.weight, 0.5, 1.5), (m.bias, -0.3, 0.3)):
                if tensor is not None:
                    tensor.data.uniform_(low, high, generator=generator)
    return model.to(dtype).eval().requires_grad_(False)


def look(f, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and the gradient of the summed cross entropy by the images."""
    point = x.detach().clone(memory_format=torch.preserve_format).requires_grad_(True)
    logits = f(point)
    logits = logits[0] if isinstance(logits, tuple) else logits
    return logits.detach(), torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), point)[0]


def prepared(model: nn.Module) -> PackedNet:
    made = PackedNet(model)
    made.refresh()
    return made


def built(use: str, shape: tuple[int, int, int] = (3, 32, 32), **options) -> nn.Module:
    catalogue()
    return build_model(ModelSpec(use, options, Ref("head", "linear")), shape, 10, 0)


@pytest.mark.parametrize("name", ["cnn8", "small_cnn", "cnn28", "resnet18"])
def test_values_and_gradients_are_the_plain_networks_in_float64(name):
    model = moved(net(name), torch.float64)
    x, y = batch(name, 2)
    for got, want in zip(look(prepared(model), x.double(), y), look(model, x.double(), y), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("use", ["resnet18", "preact_resnet18", "vgg16_bn", "cnn4", "wrn"])
def test_own_networks_too(use):
    model = moved(built(use, **({"depth": 10, "width": 1} if use == "wrn" else {})), torch.float64)
    x, y = torch.rand(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 2])
    made = prepared(model)
    assert len(made.layers) == sum(isinstance(m, nn.Conv2d) for m in model.modules()) and made.embeds
    for got, want in zip(look(made, x, y), look(model, x, y), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(made(x)[1], model.embed(x))


@pytest.mark.skipif(not packed_layer.available(), reason="this build of PyTorch has not the calls")
@pytest.mark.parametrize("name", ["cnn8", "small_cnn", "cnn28"])
def test_the_fast_calls_agree_to_rounding(name):
    """Image by image: where a rectifier stands at its kink, an image's gradient may move whole."""
    model = moved(net(name)).to(memory_format=torch.channels_last)
    x, y = batch(name, 16)
    made = prepared(model)
    got, want = look(made, x.contiguous(memory_format=torch.channels_last), y), look(model, x.contiguous(memory_format=torch.channels_last), y)
    assert all(layer.fast for layer in made.layers)
    torch.testing.assert_close(got[0], want[0], rtol=1e-5, atol=1e-5)
    apart = ((got[1] - want[1]).flatten(1).norm(dim=1) / want[1].flatten(1).norm(dim=1)).sort().values
    assert apart[13] < 1e-5
    assert made.layers[0].thin and any(layer.flips for layer in made.layers)


class Odd(nn.Module):
    """Every way a convolution may be followed, and convolutions that may not be packed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.na = nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.b, self.nb = nn.Conv2d(6, 6, 3, padding=1, groups=2), nn.BatchNorm2d(6, affine=False)
        self.c, self.nc = nn.Conv2d(6, 6, 3, padding=2, dilation=2), nn.BatchNorm2d(6)
        self.d = nn.Conv2d(6, 6, 3, padding=1, padding_mode="circular")
        self.e = nn.Conv2d(6, 6, 3, padding="same")
        self.twice = nn.Conv2d(6, 6, 1)
        self.f, self.nf = nn.Conv2d(6, 8, 2, stride=2), nn.BatchNorm2d(8)
        self.g = nn.Conv2d(8, 8, 3, padding=1)
        self.relu, self.last = nn.ReLU(), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.na(self.a(x)))
        x = self.nb(self.b(x)) + x
        branch = self.nc(self.c(x))
        x = torch.relu(branch + x) + branch                       # the branch is read twice: its sum may not be absorbed
        x = self.twice(self.twice(self.e(self.d(x))))
        x = self.relu(self.nf(self.f(x)))
        x = self.g(x) + x.mean((2, 3), keepdim=True)              # a sum that broadcasts
        return self.last(F.relu(x).mean((2, 3)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_odd_networks_are_packed_where_they_can_be(dtype):
    torch.manual_seed(0)
    model = moved(Odd(), dtype)
    x, y = torch.rand(3, 2, 8, 8, dtype=dtype), torch.tensor([0, 1, 2])
    made = prepared(model)
    assert {id(layer.conv) for layer in made.layers} == {id(m) for m in (model.a, model.b, model.c, model.f, model.g)}
    assert "d (padding by circular)" in made.note and "e (padding by name)" in made.note and "twice (called more than once)" in made.note
    for got, want in zip(look(made, x, y), look(model, x, y), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9 if dtype == torch.float64 else 1e-4, atol=1e-11 if dtype == torch.float64 else 1e-6)


def test_convolutions_are_those_of_the_last_refresh():
    model = moved(net("cnn8"), torch.float64)
    x, y = batch("cnn8", 2)
    made = prepared(model)
    before = look(made, x.double(), y)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1 if p.dim() == 4 else 1.0)
        model[1].running_mean.add_(0.1)
    assert torch.equal(look(made, x.double(), y)[1], before[1])
    made.refresh()
    for got, want in zip(look(made, x.double(), y), look(model, x.double(), y), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.sum() > 0 else x


def test_a_forward_that_cannot_be_traced_is_left_alone():
    made = PackedNet(Branching())
    assert made.layers == [] and "not packed: TraceError under tracing" in made.note


def test_a_network_without_convolutions_has_no_layers():
    made = PackedNet(built("mlp", (1, 8, 8), widths=(8,)))
    assert made.layers == [] and made.note == "it has no convolutions"


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_its_passes_are_counted(name, dtype):
    """A flipped convolution is an input gradient, whatever it looks like."""
    model = moved(net(name), dtype)
    x, y = batch(name, 2)
    made = prepared(model)
    assert count(model, lambda: look(made, x.to(dtype), y)) == Passes(1, 1, 0, 0)
    with torch.no_grad():
        assert count(model, lambda: made(x.to(dtype))) == Passes(1, 0, 0, 0)


def test_it_is_differentiated_once():
    model = moved(net("cnn8"))
    x = batch("cnn8", 2)[0].requires_grad_(True)
    (slope,) = torch.autograd.grad(prepared(model)(x)[0].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.square().sum().backward()


def test_without_the_calls_plain_convolutions_stand_in(monkeypatch):
    monkeypatch.setattr(packed_layer, "available", lambda: False)
    model = moved(net("cnn8"))
    x, y = batch("cnn8", 4)
    made = prepared(model)
    assert not any(layer.fast for layer in made.layers)
    for got, want in zip(look(made, x, y), look(model, x, y), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
