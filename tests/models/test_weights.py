"""Weights from files: every form they come in, and what is refused."""

from __future__ import annotations

import os

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from composer.errors import ComposerError
from composer.models.build import build_model, load_weights
from composer.options import Ref
from composer.recipe.types import ModelSpec


def net(seed: int = 0, classes: int = 4, use: str = "wrn", **options) -> nn.Module:
    options = options or ({"depth": 10, "width": 1} if use == "wrn" else {})
    return build_model(ModelSpec(use, options, Ref("head", "linear", {})), (3, 16, 16), classes, seed)


def equal(model: nn.Module, state: dict) -> bool:
    return all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


@pytest.fixture
def source() -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in net(1).state_dict().items()}


def test_safetensors(tmp_path, source):
    save_file(source, tmp_path / "a.safetensors")
    model = net()
    report = load_weights(model, tmp_path / "a.safetensors")
    assert equal(model, source) and (report.format, report.under, report.tensors) == ("safetensors", "", len(source))


@pytest.mark.parametrize("under", ["", "state_dict", "model_state_dict", "net", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module."])
def test_torch_files_of_other_trainers(tmp_path, source, under, prefix):
    state = {prefix + k: v for k, v in source.items()}
    torch.save({under: state, "epoch": 76, "acc": 0.5} if under else state, tmp_path / "a.pt")
    model = net()
    report = load_weights(model, str(tmp_path / "a.pt"))
    assert equal(model, source) and report.under == under and "".join(report.stripped) == prefix
    assert under in report.text() and "torch" in report.text()


def test_trades_unused_block_is_left_out_by_name_and_said(tmp_path, source):
    released = {"module." + k.replace("head.", "fc."): v for k, v in source.items()}
    released |= {k.replace("block1", "sub_block1"): v + 1 for k, v in released.items() if ".block1." in k}
    torch.save(released, tmp_path / "a.pt")
    model = net()
    report = load_weights(model, tmp_path / "a.pt")
    assert equal(model, source)
    assert len(report.dropped) == sum(".block1." in k for k in released) > 0 and all("sub_block1" in k for k in report.dropped)
    assert report.renamed == {"fc.weight": "head.weight", "fc.bias": "head.bias"}
    assert "left out" in report.text() and "'fc.weight' is 'head.weight' here" in report.text()


@pytest.mark.parametrize("last", ["fc", "linear", "classifier"])
def test_the_last_layer_under_its_usual_names(tmp_path, last):
    state = {k: v.clone() for k, v in net(1, use="resnet18").state_dict().items()}
    torch.save({k.replace("head", last): v for k, v in state.items()}, tmp_path / "a.pt")
    model = net(0, use="resnet18")
    load_weights(model, tmp_path / "a.pt")
    assert equal(model, state)


def test_files_older_than_num_batches_tracked_and_half_precision(tmp_path, source):
    torch.save({k: v.half() for k, v in source.items() if "num_batches" not in k}, tmp_path / "a.pt")
    model = net()
    load_weights(model, tmp_path / "a.pt")
    assert model.conv1.weight.dtype == torch.float32
    torch.testing.assert_close(model.conv1.weight.detach(), source["conv1.weight"], atol=1e-3, rtol=1e-3)


def test_a_mismatch_lists_names_and_shapes_and_touches_nothing(tmp_path, source):
    state = dict(source)
    del state["conv1.weight"]
    state |= {f"stray{i}.weight": torch.zeros(1) for i in range(9)} | {"head.weight": torch.zeros(10, 64)}
    torch.save(state, tmp_path / "a.pt")
    model = net()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ComposerError) as caught:
        load_weights(model, tmp_path / "a.pt")
    text = caught.value.text()
    assert "missing in the file (1): conv1.weight" in text and "unknown to the model (9): stray0.weight" in text and "stray8" not in text
    assert "head.weight: file [10, 64], model [4, 64]" in text and equal(model, before)


def test_an_extra_block_of_another_name_is_refused(tmp_path, source):
    torch.save(source | {"block9.layer.0.conv1.weight": torch.zeros(3)}, tmp_path / "a.pt")
    with pytest.raises(ComposerError, match="block9"):
        load_weights(net(), tmp_path / "a.pt")


def test_numbers_that_are_not_finite(tmp_path, source):
    source["bn1.weight"][2] = float("nan")
    torch.save(source, tmp_path / "a.pt")
    with pytest.raises(ComposerError, match="NaN or infinity in bn1.weight"):
        load_weights(net(), tmp_path / "a.pt")


class Trap:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


def test_code_in_a_file_never_runs(tmp_path, source):
    torch.save({"state_dict": source, "args": Trap(tmp_path / "ran")}, tmp_path / "a.pt")
    with pytest.raises(ComposerError, match="plain tensors"):
        load_weights(net(), tmp_path / "a.pt")
    assert not (tmp_path / "ran").exists()


def test_files_that_are_none(tmp_path, source):
    save_file(source, tmp_path / "cut.safetensors")
    torch.save(source, tmp_path / "cut.pt")
    for name in ("cut.safetensors", "cut.pt"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:500])
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    for name, says in (("cut.safetensors", "500 bytes"), ("cut.pt", "500 bytes"), ("none.pt", "it holds epoch"), ("list.pt", "list"),
                       ("absent.pt", "no such file")):
        with pytest.raises(ComposerError, match=says):
            load_weights(net(), tmp_path / name)
