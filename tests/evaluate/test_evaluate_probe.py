"""Planted defects of a stranger's model, each caught with one sentence; a sound model passes."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from composer.data.sets import load
from composer.errors import ComposerError
from composer.evaluate.probe import beats, look_at
from composer.subject.normalise import readings


@pytest.fixture(scope="module")
def data() -> Any:
    from pathlib import Path

    return load("digits", {}, Path("data"))


class Waves(nn.Module):
    """About 80 % right on digits with pixels in [0,1], and near chance on another scale: minus the distance to prototypes of cos(15 x)."""

    def __init__(self, data: Any, before: Callable[[Tensor], Tensor] = lambda x: x, after: Callable[[Tensor], Tensor] = lambda z: z):
        super().__init__()
        self.before, self.after = before, after
        x = torch.cos(18 * data.train.x.float() / data.scale).flatten(1)
        self.weight = nn.Parameter(torch.stack([x[data.train.y == k].mean(0) for k in range(10)]))

    def forward(self, x: Tensor) -> Tensor:
        return self.after(-torch.cdist(torch.cos(18 * self.before(x)).flatten(1), self.weight))


def look(model: nn.Module, data: Any, classes: int = 10, said: str = "") -> Any:
    return look_at(model, data.test.x.float() / data.scale, data.test.y, classes, "the model", readings(data, said))


def test_a_sound_model_passes(data: Any) -> None:
    found = look(Waves(data), data)
    assert found.wrong is None and not found.doubts and found.accuracy > 0.7


def test_pixels_on_another_scale(data: Any) -> None:
    found = look(Waves(data, before=lambda x: x / 255), data)
    assert "scaled to 0..255 first" in found.wrong.what and found.wrong.why == "it expects 8-bit pixels, and is given [0,1]"
    assert found.wrong.fix == "--normalise 255"


def test_a_normalisation_that_is_missing(data: Any) -> None:
    found = look(Waves(data, before=lambda x: x * 0.5 + 0.5), data)
    assert found.wrong.why == "the normalisation is missing" and found.wrong.fix.startswith("--normalise half")


def test_a_normalisation_that_is_there_twice(data: Any) -> None:
    found = look(Waves(data, before=lambda x: (x - 0.5) / 0.5), data, said="half")
    assert found.wrong.why == "the images are normalised twice" and found.wrong.fix == "--normalise none"
    assert look(Waves(data, before=lambda x: (x - 0.5) / 0.5), data).wrong.fix == "take one out of the model"


def test_colours_in_another_order() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(100, 3, 4, 4, generator=generator)
    y = x.mean((2, 3)).argmax(1)
    fake = SimpleNamespace(name="cifar10", shape=(3, 4, 4), scale=255.0, train=SimpleNamespace(x=(x * 255).byte()))

    class Colours(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 10 * x.flip(1).mean((2, 3))

    found = look_at(Colours(), x, y, 3, "the model", readings(fake, ""))
    assert found.wrong is not None and "blue, green, red" in found.wrong.what and "100" in found.wrong.what


def test_probabilities(data: Any) -> None:
    assert any("probabilities, not logits" in d for d in look(Waves(data, after=lambda z: (9 * z).softmax(1)), data).doubts)
    assert not look(Waves(data, after=lambda z: z.log_softmax(1)), data).doubts


class Normed(nn.Module):
    """Batch norm that its author left in train mode, whatever `eval` says."""

    def __init__(self, data: Any, how: str):
        super().__init__()
        self.waves, self.norm, self.how = Waves(data), nn.BatchNorm1d(10, track_running_stats=how != "no statistics"), how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "forward":
            self.norm.train()
        return self.norm(self.waves(x))

    def eval(self) -> Any:
        return self if self.how == "eval" else super().eval()


@pytest.mark.parametrize("how", ["forward", "eval", "no statistics"])
def test_batch_norm_left_in_train_mode(data: Any, how: str) -> None:
    net = Normed(data, how)
    doubts = look(net.train() if how == "eval" else net, data).doubts
    assert any("changes with the other images of its batch" in d for d in doubts)


def test_a_model_that_came_in_train_mode_is_judged_in_eval_mode(data: Any) -> None:
    net = nn.Sequential(Waves(data), nn.BatchNorm1d(10)).train()
    found = look(net, data)
    assert found.notes == ["the model came in train mode and is judged in eval mode"] and not found.doubts
    assert net.training and int(net[1].num_batches_tracked) == 0


def test_a_random_model_is_not_told_to_depend_on_the_batch(data: Any) -> None:
    assert not look(Waves(data, after=lambda z: z + 0.05 * torch.randn_like(z)), data).doubts


@pytest.mark.parametrize(("model", "sentence"), [
    (nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), "cannot take images of 1x8x8"), (nn.Conv2d(3, 10, 3), "cannot take images of 1x8x8"),
    (nn.Sequential(nn.Flatten(), nn.Linear(64, 100)), "has 100 classes, the data have 10"), (nn.Conv2d(1, 10, 3), r"a tensor of shape \(2, 10, 6, 6\)")])
def test_shapes_and_classes(data: Any, model: nn.Module, sentence: str) -> None:
    with pytest.raises(ComposerError, match=sentence):
        look(model, data)


def test_answers_of_another_kind(data: Any) -> None:
    with pytest.raises(ComposerError, match="with a dict"):
        look(Waves(data, after=lambda z: {"logits": z}), data)                        # type: ignore[arg-type,return-value]
    with pytest.raises(ComposerError, match="numbers that are not finite"):
        look(Waves(data, after=lambda z: z * float("nan")), data)


def test_chance_with_the_likeliest_reason(data: Any) -> None:
    order = torch.tensor([3, 4, 5, 6, 7, 8, 9, 0, 1, 2])
    assert "classes stand in another order" in look(Waves(data, after=lambda z: z[:, order]), data).wrong.why
    constant = look(Waves(data, after=lambda z: z * 0 + torch.arange(10.0)), data).wrong
    assert "answers class 9 nearly always" in constant.why and "--no-probe" in constant.fix
    torch.manual_seed(0)
    noise = torch.randn(64, 10)
    untrained = look(Waves(data, after=lambda z: torch.cos(40 * z) @ noise[:10]), data).wrong
    assert untrained is not None and "chance for 10 classes" in untrained.what


def test_one_reading_must_beat_the_other_clearly() -> None:
    right = torch.zeros(100, dtype=torch.bool)
    right[:60] = True
    worse, other = right.clone(), right.clone()
    worse[:20] = False
    other[:8] = False
    other[60:68] = True
    assert beats(right, worse) and not beats(right, other) and not beats(right, right) and not beats(worse, right)
