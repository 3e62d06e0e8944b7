"""Own networks: parameter counts of the papers, shapes, and values against independent constructions."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from composer.errors import ComposerError
from composer.models.build import build_model
from composer.options import Ref
from composer.recipe.types import ModelSpec
from composer.registry import REGISTRY


def net(use: str, shape=(3, 32, 32), classes: int = 10, seed: int = 0, head=None, mean=None, std=None, **options) -> nn.Module:
    return build_model(ModelSpec(use, options, head or Ref("head", "linear", {}), mean, std), shape, classes, seed)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def randomise(model: nn.Module) -> nn.Module:
    """Float64, norms with statistics and gains of their own, so that a wrong order of layers shows."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.data = torch.rand(tensor.shape, generator=generator) + 0.2
    return model.double().eval()


@pytest.mark.parametrize(("expected", "case"), [
    (3_962_890, {"use": "mlp", "shape": (1, 28, 28)}),
    (330_058, {"use": "cnn4"}),
    (14_728_266, {"use": "vgg16_bn"}),
    (11_173_962, {"use": "resnet18"}),
    (11_220_132, {"use": "resnet18", "classes": 100}),
    (11_271_432, {"use": "resnet18", "shape": (3, 64, 64), "classes": 200}),
    (11_171_146, {"use": "preact_resnet18"}),
    (11_172_170, {"use": "preact_resnet18", "final_bn": True}),
    (46_160_474, {"use": "wrn"}),
    (46_160_474, {"use": "wrn", "depth": 32, "depth_rule": "6n+2"}),
    (45_901_914, {"use": "wrn", "shortcut": "pool_pad", "activation": "leaky_relu"}),
    (36_479_194, {"use": "wrn", "depth": 28}),
    (66_154, {"use": "small_cnn", "shape": (1, 8, 8)}),
])
def test_parameter_counts(expected, case):
    assert count(net(**case)) == expected


def test_wide_resnet_counts_follow_the_formula():
    for depth, width in ((10, 1), (16, 2), (28, 4)):
        n, sizes = (depth - 4) // 6, [16, 16 * width, 32 * width, 64 * width]
        want = 3 * 16 * 9 + sizes[3] * 2 + sizes[3] * 10 + 10
        for a, b in pairwise(sizes):
            want += 9 * a * b + 9 * b * b + 2 * a + 2 * b + (a * b if a != b else 0)      # the block that changes the width
            want += (n - 1) * (18 * b * b + 4 * b)
        assert count(net("wrn", depth=depth, width=width)) == want


@pytest.mark.parametrize(("use", "options"), [("mlp", {"widths": (20, 10)}), ("cnn4", {}), ("small_cnn", {}), ("vgg16_bn", {"hidden": (32, 16)}),
                                              ("resnet18", {}), ("preact_resnet18", {"final_bn": True}), ("wrn", {"depth": 10, "width": 1}),
                                              ("wrn", {"depth": 10, "width": 2, "shortcut": "pool_pad", "dropout": 0.3})])
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 15, 15)])
def test_embedding_and_head_on_any_image_size(use, options, shape):
    if use == "cnn4" and shape[1] < 18:
        with pytest.raises(ComposerError, match="18x18"):
            net(use, shape, 7, **options)
        return
    model = net(use, shape, 7, **options).eval()
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    features = model.embed(x)
    assert features.ndim == 2 and features.shape[0] == 2 and model(x).shape == (2, 7)
    torch.testing.assert_close(model(x), model.head(features))
    assert model.head.in_features == features.shape[1]
    torch.testing.assert_close(copy.deepcopy(model)(x), model(x))
    (grad,) = torch.autograd.grad(model(x.requires_grad_()).square().sum(), x, create_graph=True)
    assert torch.isfinite(grad).all() and grad.abs().sum() > 0


def test_dropout_only_where_asked():
    assert not any(isinstance(m, nn.Dropout) for m in net("wrn", depth=10, width=1).modules())
    drops = [m for m in net("wrn", depth=16, width=1, dropout=0.3).modules() if isinstance(m, nn.Dropout)]
    assert len(drops) == 6 and all(m.p == 0.3 for m in drops)


def test_resnet18_equals_torchvisions_with_the_small_stem():
    ours = randomise(net("resnet18"))
    theirs = torchvision.models.resnet18(num_classes=10)
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    theirs.load_state_dict({k.replace("shortcut", "downsample").replace("head", "fc"): v for k, v in ours.state_dict().items()})
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs.double().eval()(x))


def test_vgg16_equals_torchvisions_convolutions():
    ours, theirs = randomise(net("vgg16_bn")), torchvision.models.vgg16_bn().features
    theirs.load_state_dict({k.removeprefix("layers."): v for k, v in ours.state_dict().items() if k.startswith("layers.")})
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(ours.embed(x), theirs.double().eval()(x).flatten(1))


def norm(x, state, name):
    mean, var, weight, bias = (state[f"{name}.{k}"][None, :, None, None] for k in ("running_mean", "running_var", "weight", "bias"))
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def test_preact_resnet18_equals_its_formula():
    model = randomise(net("preact_resnet18", final_bn=True))
    s, x = model.state_dict(), torch.rand(1, 3, 16, 16, dtype=torch.float64)
    h = F.conv2d(x, s["conv1.weight"], padding=1)
    for stage in range(1, 5):
        for i in range(2):
            name, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            a = norm(h, s, f"{name}.bn1").clamp(min=0)
            short = F.conv2d(a, s[f"{name}.shortcut.0.weight"], stride=stride) if f"{name}.shortcut.0.weight" in s else h
            b = norm(F.conv2d(a, s[f"{name}.conv1.weight"], stride=stride, padding=1), s, f"{name}.bn2").clamp(min=0)
            h = short + F.conv2d(b, s[f"{name}.conv2.weight"], padding=1)
    h = norm(h, s, "bn").clamp(min=0).mean((2, 3))
    torch.testing.assert_close(model(x), h @ s["head.weight"].T + s["head.bias"])


@pytest.mark.parametrize(("activation", "act"), [("relu", F.relu), ("silu", F.silu), ("leaky_relu", lambda v: F.leaky_relu(v, 0.2))])
@pytest.mark.parametrize("shortcut", ["conv", "pool_pad"])
def test_wide_resnet_equals_its_formula(activation, act, shortcut):
    model = randomise(net("wrn", depth=16, width=2, activation=activation, slope=0.2, shortcut=shortcut))
    s, x = model.state_dict(), torch.rand(1, 3, 16, 16, dtype=torch.float64)
    h = F.conv2d(x, s["conv1.weight"], padding=1)
    for stage in range(1, 4):
        for i in range(2):
            name, stride = f"block{stage}.layer.{i}", 2 if stage > 1 and i == 0 else 1
            a = act(norm(h, s, f"{name}.bn1"))
            short = h
            if i == 0 and shortcut == "conv":
                short = F.conv2d(a, s[f"{name}.convShortcut.weight"], stride=stride)
            elif i == 0:
                base = a if stage == 1 else h
                pooled = base.unfold(2, stride, stride).unfold(3, stride, stride).mean((-1, -2))
                short = torch.zeros(1, 32 * 2 ** (stage - 1), *pooled.shape[2:], dtype=x.dtype)
                low = (short.shape[1] - pooled.shape[1]) // 2
                short[:, low:low + pooled.shape[1]] = pooled
            b = act(norm(F.conv2d(a, s[f"{name}.conv1.weight"], stride=stride, padding=1), s, f"{name}.bn2"))
            h = short + F.conv2d(b, s[f"{name}.conv2.weight"], padding=1)
    h = act(norm(h, s, "bn1")).mean((2, 3))
    torch.testing.assert_close(model(x), h @ s["head.weight"].T + s["head.bias"])


def test_cnn4_and_mlp_equal_their_formulas():
    model, x = net("cnn4").double(), torch.rand(2, 3, 32, 32, dtype=torch.float64)
    s, h = model.state_dict(), x
    for i, side in ((1, 28), (2, 24), (3, 10), (4, 8)):
        h = F.conv2d(h, s[f"conv{i}.weight"], s[f"conv{i}.bias"]).clamp(min=0)
        assert h.shape[2] == side
        h = h.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2)) if i == 2 else h
    torch.testing.assert_close(model(x), h.mean((2, 3)) @ s["head.weight"].T + s["head.bias"])
    model = net("mlp", widths=(7, 5)).double()
    s, h = model.state_dict(), x.flatten(1)
    for i in range(2):
        h = (h @ s[f"layers.{i}.weight"].T + s[f"layers.{i}.bias"]).clamp(min=0)
    torch.testing.assert_close(model(x), h @ s["head.weight"].T + s["head.bias"])


@pytest.mark.parametrize(("use", "options", "says"), [
    ("wrn", {"depth": 32}, "whole"), ("wrn", {"depth": 4}, "whole"), ("wrn", {"depth": 34, "depth_rule": "6n+2"}, "depth = 32"),
    ("mlp", {"widths": ()}, "widths"), ("cnn4", {"channels": (1, 2)}, "4 numbers"), ("small_cnn", {"channels": (0, 1)}, "at least 1")])
def test_options_that_make_no_network(use, options, says):
    with pytest.raises(ComposerError, match=says):
        net(use, **options)


def test_cards():
    for kind in ("model", "head"):
        for primitive in REGISTRY.all(kind):
            assert primitive.card.summary and primitive.card.formula and primitive.card.paper, primitive.name


# --- normalisation ----------------------------------------------------------------------------------------------------------------------

def test_normalisation_is_inside_and_not_among_the_weights():
    mean, std = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
    plain, inside = net("small_cnn").eval(), net("small_cnn", mean=mean, std=std).eval()
    x = torch.rand(4, 3, 32, 32)
    torch.testing.assert_close(inside(x), plain((x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]))
    assert list(plain.state_dict()) == list(inside.state_dict())
    assert "normalise.mean" in dict(inside.named_buffers())
    torch.testing.assert_close(copy.deepcopy(inside)(x), inside(x))
    gray = net("small_cnn", (1, 8, 8), mean=(0.5,)).eval()
    torch.testing.assert_close(gray(torch.full((1, 1, 8, 8), 0.5)), net("small_cnn", (1, 8, 8)).eval()(torch.zeros(1, 1, 8, 8)))


@pytest.mark.parametrize("wrong", [{"mean": (0.1, 0.2)}, {"std": (0.0, 1.0, 1.0)}, {"std": (1.0, 1.0)}])
def test_normalisation_that_fits_no_image(wrong):
    with pytest.raises(ComposerError, match="3 channel"):
        net("small_cnn", **wrong)
