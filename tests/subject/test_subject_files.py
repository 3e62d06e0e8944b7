"""The same weights in all the wrappings that trainers put them in are the same subject; what does not fit is told in one sentence."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from composer.errors import ComposerError
from composer.subject import door, find
from composer.subject.files import behind, held, unwrap
from composer.subject.normalise import find as search


class Behind(nn.Module):
    """A network behind a normalisation whose numbers are buffers, as many published files have it."""

    def __init__(self, net: nn.Module, mean: float, std: float):
        super().__init__()
        self.register_buffer("mu", torch.full((1, 1, 1, 1), mean))
        self.register_buffer("sigma", torch.full((1, 1, 1, 1), std))
        self.model = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model((x - self.mu) / self.sigma)


def wrapped(weights: dict[str, Any], how: str) -> Any:
    dotted = OrderedDict((f"module.{k}", v) for k, v in weights.items())
    return {"plain": weights, "state_dict, module.": {"state_dict": dotted, "epoch": 3}, "net and numbers": {"net": weights, "acc": 0.9, "epoch": 7},
            "model": {"model": weights, "optimizer": {"state": {}, "param_groups": []}}, "model_state_dict": {"model_state_dict": dotted},
            "wrapper": {f"model.{k}": v for k, v in weights.items()}, "sequential": {f"module.1.{k}": v for k, v in weights.items()},
            "fc": {k.replace("head.", "fc."): v for k, v in weights.items()}}[how]


@pytest.mark.parametrize("how", ["plain", "state_dict, module.", "net and numbers", "model", "model_state_dict", "wrapper", "sequential", "fc"])
def test_every_wrapping_is_the_run_itself(store: Any, tmp_path: Path, how: str) -> None:
    file = tmp_path / "weights.pth"
    torch.save(wrapped(store.weights, how), file)
    asked = store.asked(str(file), model="small_cnn", normalise="none", data="digits")
    subject, bench = find.subject(asked)
    own, _ = find.subject(store.asked(store.run))
    assert subject.digest == own.digest and all(torch.equal(subject.weights[k], v) for k, v in own.weights.items())
    with torch.no_grad():
        assert torch.equal(subject.model(bench.x[:20]), own.model(bench.x[:20]))


def test_safetensors_under_a_run_of_another_name(store: Any, tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_file(store.weights, file)
    subject, _ = find.subject(store.asked(str(file), model="small_cnn", normalise="none", data="digits"))
    assert subject.kind == "weights" and subject.digest == find.subject(store.asked(store.run))[0].digest


def test_a_normalisation_inside_the_file_is_found_and_said(store: Any, tmp_path: Path) -> None:
    own, bench = find.subject(store.asked(store.run))
    whole = Behind(own.model, 0.25, 0.5).eval()
    file = tmp_path / "inside.pt"
    torch.save(whole.state_dict(), file)
    subject, _ = find.subject(store.asked(str(file), model="small_cnn", data="digits"))
    assert (subject.mean, subject.std) == ((0.25,), (0.5,)) and "inside the file (mu, sigma), mean 0.25, deviation 0.5" in subject.notes[-1]
    with torch.no_grad():
        assert torch.allclose(subject.model(bench.x[:50]), whole(bench.x[:50]), atol=1e-6)
    assert find.subject(store.asked(str(file), model="small_cnn", data="digits", normalise="inside"))[0].digest == subject.digest != own.digest
    with pytest.raises(ComposerError, match="holds a normalisation of its own"):
        find.subject(store.asked(str(file), model="small_cnn", data="digits", normalise="none"))


def test_inside_is_refused_where_nothing_is_inside(store: Any, tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    torch.save(store.weights, file)
    with pytest.raises(ComposerError, match="holds no mean and deviation"):
        find.subject(store.asked(str(file), model="small_cnn", data="digits", normalise="inside"))


class Waves(nn.Module):
    """Distance to ten prototypes of cos(f u), u the pixel in [0,1] that the normalised one stands for: on another scale it is wrong."""

    def __init__(self, digits: Any, mean: float, std: float, f: float):
        super().__init__()
        self.mean, self.std, self.f = mean, std, f
        x = self.features((digits.train.x.float() / digits.scale - mean) / std)
        self.weight = nn.Parameter(torch.stack([x[digits.train.y == k].mean(0) for k in range(10)]))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cos(self.f * (x * self.std + self.mean)).flatten(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -torch.cdist(self.features(x), self.weight).square()


@pytest.mark.parametrize(("word", "numbers", "f"), [("none", (0.0, 1.0), 18), ("data", None, 9), ("half", (0.5, 0.5), 9)])
def test_trying_finds_the_normalisation_that_is_clearly_ahead(digits: Any, word: str, numbers: tuple[float, float] | None, f: float) -> None:
    pixels = digits.train.x.double() / digits.scale
    mean, std = numbers or (float(pixels.mean()), float(pixels.std(correction=0)))
    net = Waves(digits, mean, std, f)
    x, y = digits.test.x.float() / digits.scale, digits.test.y
    chosen, line = search(lambda each: behind(net, each), x, y, digits, "net")
    assert line.startswith(f"normalisation found by trying: {word} (right on 100 images: none ")
    found = (chosen.mean or (0.0,), chosen.std or (1.0,))
    assert found[0][0] == pytest.approx(mean, abs=1e-5) and found[1][0] == pytest.approx(std, abs=1e-5)


def test_where_trying_does_not_tell_the_user_is_asked(store: Any, tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    torch.save(store.weights, file)
    with pytest.raises(ComposerError, match="how its images were normalised, and trying does not tell") as caught:
        find.subject(store.asked(str(file), model="small_cnn", data="digits"))
    assert "--normalise" in caught.value.fix


def test_the_second_block_that_trades_never_uses_is_left_out(tmp_path: Path, digits: Any) -> None:
    from composer.models.build import build_model
    from composer.options import Ref
    from composer.recipe.types import ModelSpec

    net = build_model(ModelSpec("wrn", {"depth": 10, "width": 1}, Ref("head", "linear", {})), (3, 32, 32), 10, 0)
    state = {f"module.{k.replace('head.', 'fc.')}": v for k, v in net.state_dict().items()}
    state |= {k.replace("block1.", "sub_block1."): v for k, v in state.items() if ".block1." in k}
    file = tmp_path / "trades.pt"
    torch.save(state, file)
    found = held(file, net.state_dict())
    assert all(torch.equal(found.state[k], v) for k, v in net.state_dict().items())
    assert any("that its network never uses" in line for line in found.lines)


def test_other_data_are_told_in_one_sentence(store: Any, tmp_path: Path, digits: Any) -> None:
    from composer.models.build import build_model
    from composer.options import Ref
    from composer.recipe.types import ModelSpec

    for shape, classes, sentence in (((1, 8, 8), 7, "are of 7 classes, the data have 10"), ((3, 8, 8), 10, "are of images with 3 channels, the data have 1")):
        file = tmp_path / f"{classes}.pt"
        torch.save(build_model(ModelSpec("small_cnn", {}, Ref("head", "linear", {})), shape, classes, 0).state_dict(), file)
        with pytest.raises(ComposerError, match=sentence):
            find.subject(store.asked(str(file), model="small_cnn", data="digits", normalise="none"))


def test_a_file_with_code_is_refused(store: Any, tmp_path: Path) -> None:
    file = tmp_path / "whole.pt"
    torch.save(nn.Linear(2, 2), file)
    with pytest.raises(ComposerError, match="not a file of plain tensors"):
        find.subject(store.asked(str(file), model="small_cnn", data="digits"))


def test_unwrap_takes_off_nothing_that_is_known() -> None:
    wanted = {"body.a": torch.zeros(1)}
    assert unwrap({"body.a": torch.ones(1)}, wanted)[1] == [] and unwrap({"x.y.body.a": torch.ones(1)}, wanted)[1] == ["x.", "y."]
    assert unwrap({"a": torch.ones(1), "b.c": torch.ones(1)}, wanted)[1] == []


def test_a_file_says_neither_network_nor_data(store: Any, tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    torch.save(store.weights, file)
    with pytest.raises(ComposerError, match="which network"):
        find.subject(store.asked(str(file), data="digits"))
    with pytest.raises(ComposerError, match="on which images"):
        find.subject(store.asked(str(file), model="small_cnn"))
    subject, _ = find.subject(store.asked(str(file), setting="digits", normalise="none"))
    assert subject.notes[0] == "the network is small_cnn, as the setting digits says"


def test_nothing_is_attacked_twice(store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state-dict file of a run's weights finds the run's results; a second evaluation runs no measure."""
    from composer.evaluate import protocol

    file = tmp_path / "w.pt"
    torch.save(store.weights, file)
    sets = ("evaluate.pgd-20.steps=3", "evaluate.pgd-20.n=64", "evaluate.n=64")
    asked = store.asked(str(file), model="small_cnn", normalise="none", data="digits", protocol="cheap", sets=sets)

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("a measure was run again")

    monkeypatch.setattr(protocol, "run_measure", never)
    result = door.evaluate(asked)
    assert {k: v for k, v in result["metrics"].items() if k != "worst"} == store.result["metrics"]
