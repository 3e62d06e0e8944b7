"""Initialisation streams, networks of libraries, networks of plugins, and reading the catalogue without torch."""

from __future__ import annotations

import math
import random
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from composer import registry
from composer.errors import ComposerError
from composer.models.build import build_model, initialise
from composer.options import Ref
from composer.recipe.types import ModelSpec
from composer.seeds import stream_seed

LINEAR = Ref("head", "linear", {})


def net(use: str, shape=(3, 32, 32), classes: int = 10, seed: int = 0, head: Ref = LINEAR, mean=None, **options) -> nn.Module:
    return build_model(ModelSpec(use, options, head, mean), shape, classes, seed)


@pytest.fixture
def registered():
    """Primitives of a test, taken out again."""
    added = []

    def put(kind: str, name: str, fn) -> None:
        registry.REGISTRY._of[kind][name] = registry.Primitive(kind, name, fn)
        added.append((kind, name))

    net("mlp", (1, 2, 2), widths=(2,))
    yield put
    for kind, name in added:
        del registry.REGISTRY._of[kind][name]


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def test_a_seed_says_the_weights_whatever_was_drawn_before():
    first = net("wrn", depth=10, width=1)
    torch.rand(17), torch.manual_seed(99)
    again, other = net("wrn", depth=10, width=1), net("wrn", depth=10, width=1, seed=1)
    for (name, a), b, c in zip(first.named_parameters(), again.parameters(), other.parameters(), strict=True):
        assert same(a, b), name
        assert "bn" in name or not same(a, c), name


def test_the_callers_random_state_is_untouched():
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    net("resnet18"), net("torchvision", name="resnet18")
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1] and np.random.get_state()[1].tolist() == before[2]


def test_a_parameter_is_a_function_of_seed_name_and_shape():
    """From its definition: its layer's rule, run from the stream of its name."""
    model = net("small_cnn", (1, 8, 8), seed=3)
    generator = torch.Generator().manual_seed(stream_seed(3, "init/head.weight"))
    expected = torch.empty(10, 1024).uniform_(-1 / 32, 1 / 32, generator=generator)
    torch.testing.assert_close(model.head.weight.detach(), expected)
    names = [name for name, p in model.named_parameters() if p.ndim > 1]
    assert len(names) == 4 and len({model.get_parameter(name).flatten()[0].item() for name in names}) == 4


def test_more_layers_shift_nobody_elses_numbers():
    small, large = dict(net("wrn", depth=10, width=1).named_parameters()), dict(net("wrn", depth=16, width=1).named_parameters())
    assert len(large) > len(small) and all(same(p, large[name]) for name, p in small.items())


def test_another_head_shifts_nobody_elses_numbers():
    small, large = dict(net("resnet18").named_parameters()), dict(net("resnet18", classes=100).named_parameters())
    bare = dict(net("resnet18", head=Ref("head", "linear", {"bias": False})).named_parameters())
    assert all(same(p, large[name]) for name, p in small.items() if not name.startswith("head"))
    assert set(small) - set(bare) == {"head.bias"} and all(same(p, small[name]) for name, p in bare.items())
    a, b = net("torchvision", name="resnet18"), net("torchvision", name="resnet18", classes=3)
    assert all(same(p, q) for p, q in zip(a.body.parameters(), b.body.parameters(), strict=True))


def test_layers_start_as_pytorchs_and_wide_resnets_as_the_original():
    for name, p in net("resnet18").named_parameters():
        if p.ndim == 4:
            assert p.std().item() == pytest.approx(math.sqrt(1 / (3 * p[0].numel())), rel=0.1), name      # U(-1/sqrt(fan_in), 1/sqrt(fan_in))
            assert p.abs().max().item() <= 1 / math.sqrt(p[0].numel())
        elif "bn" in name or "shortcut.1" in name:
            assert (p == (1 if name.endswith("weight") else 0)).all()
    for name, p in net("wrn", depth=10, width=4).named_parameters():
        if p.ndim == 4:
            assert p.std().item() == pytest.approx(math.sqrt(2 / (p.shape[0] * p[0, 0].numel())), rel=0.1), name
            assert p.abs().max() > 2.5 * p.std()      # normal, not uniform


def test_running_statistics_start_fresh():
    for module in net("preact_resnet18").modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.running_mean == 0).all() and (module.running_var == 1).all() and module.num_batches_tracked == 0


def test_initialise_can_be_run_again_in_place():
    model = net("small_cnn", (1, 8, 8))
    held = {k: v.clone() for k, v in model.state_dict().items()}
    for p in model.parameters():
        p.data.fill_(3)
    initialise(model, 0)
    assert all(torch.equal(v, held[k]) for k, v in model.state_dict().items())


# --- plugins ------------------------------------------------------------------------------------------------------------------------------

class Scaled(nn.Module):
    """A head with a parameter that has no reset rule."""

    def __init__(self, features: int, classes: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, features))

    def forward(self, h):
        return h @ self.weight.T


class Stranger(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.deep = nn.Linear(12, 6)
        self.head = head(6)

    def embed(self, x):
        return self.deep(x.flatten(1)).tanh()

    def forward(self, x):
        return self.head(self.embed(x))


def test_heads_and_networks_of_plugins(registered):
    registered("head", "scaled", lambda features, classes: Scaled(features, classes))
    registered("model", "stranger", lambda shape, classes, head: Stranger(head))
    spec = ModelSpec("stranger", {}, Ref("head", "scaled", {}), (0.3,), (0.5,))
    model, again = build_model(spec, (3, 2, 2), 4, 0).eval(), build_model(spec, (3, 2, 2), 4, 0).eval()
    x = torch.rand(5, 3, 2, 2)
    assert torch.equal(model(x), again(x))
    assert isinstance(model.head, Scaled) and len(list(model.parameters())) == 3 and len(model.state_dict()) == 3
    torch.testing.assert_close(model.embed(x), model.body.deep(((x - 0.3) / 0.5).flatten(1)).tanh())
    torch.testing.assert_close(model(x), model.head(model.embed(x)))
    other = build_model(ModelSpec("mlp", {"widths": (6,)}, Ref("head", "scaled", {})), (3, 2, 2), 4, 0)
    assert torch.equal(other.head.weight, model.head.weight)      # its numbers do not hang on what was built before it


def test_a_network_without_embed_is_refused(registered):
    registered("model", "bare", lambda shape, classes, head: nn.Linear(3, 4))
    with pytest.raises(ComposerError, match="embed"):
        net("bare")


# --- libraries ------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("name", "shape", "features"), [("resnet18", (3, 32, 32), 512), ("mobilenet_v3_small", (3, 64, 64), 1024),
                                                         ("shufflenet_v2_x0_5", (3, 32, 32), 1024), ("densenet121", (3, 32, 32), 1024)])
def test_torchvision_networks_with_our_head(name, shape, features):
    model = net("torchvision", shape, 7, name=name).eval()
    x = torch.rand(2, *shape)
    assert model.embed(x).shape == (2, features) and model.head.weight.shape == (7, features) and model(x).shape == (2, 7)
    torch.testing.assert_close(model(x), model.head(model.embed(x)))


def test_torchvision_network_computes_what_torchvisions_does():
    import torchvision

    model, theirs = net("torchvision", (3, 64, 64), 10, name="resnet18").eval(), torchvision.models.resnet18(num_classes=10).eval()
    theirs.load_state_dict({k.removeprefix("body.").replace("head.", "fc."): v for k, v in model.state_dict().items()})
    x = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(model(x), theirs(x))
    assert model.body.conv1.weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 49)), rel=0.1)      # torchvision's own start is kept


@pytest.mark.parametrize(("name", "shape", "says"), [("resnet5O", (3, 32, 32), "did you mean"), ("squeezenet1_1", (3, 64, 64), "linear layer"),
                                                     ("resnet18", (1, 28, 28), "3 channels"), ("alexnet", (3, 16, 16), "16x16")])
def test_torchvision_networks_that_do_not_fit(name, shape, says):
    with pytest.raises(ComposerError, match=says):
        net("torchvision", shape, name=name)


def test_timm_absent_is_one_clear_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ComposerError, match=r"robust-composer\[timm\]"):
        net("timm", name="resnet50")


def test_timm_is_asked_for_features_without_a_classifier(monkeypatch):
    asked = {}

    def create_model(name, **options):
        if "img_size" in options:
            raise TypeError("unexpected keyword argument 'img_size'")
        asked.update(options, name=name)
        return nn.Sequential(nn.Conv2d(options["in_chans"], 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    fake = types.SimpleNamespace(is_model=lambda name: name == "tiny", list_models=lambda: ["tiny"], create_model=create_model)
    monkeypatch.setitem(sys.modules, "timm", fake)
    model = net("timm", (1, 28, 28), 5, name="tiny")
    assert asked == {"name": "tiny", "pretrained": False, "num_classes": 0, "in_chans": 1} and model(torch.rand(2, 1, 28, 28)).shape == (2, 5)
    with pytest.raises(ComposerError, match="did you mean 'tiny'"):
        net("timm", name="tinyy")


# --- no torch ---------------------------------------------------------------------------------------------------------------------------------

def test_the_catalogue_is_read_without_torch():
    code = """
import sys
from composer.lazytorch import lazy_torch
from composer.registry import REGISTRY
with lazy_torch():
    import composer.data, composer.models
for kind in ("data", "augment", "model", "head"):
    for p in REGISTRY.all(kind):
        p.needs, p.options, p.card, p.origin, [o.type_text for o in p.options], p.Options
    print(kind, *REGISTRY.names(kind))
assert not [m for m in sys.modules if m.split(".")[0] in ("torch", "torchvision", "scipy", "sklearn")]
from composer.data.sets import load
assert load("digits", {}, ".").shape == (1, 8, 8)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "data cifar10 cifar100 digits fashion_mnist folder mnist npz svhn tinyimagenet", "augment crop cutmix cutout flip mixup smooth",
        "model cnn4 mlp preact_resnet18 resnet18 small_cnn timm torchvision vgg16_bn wrn", "head linear"]
