"""What is handed on gives the model's own logits back, and claims no more than was measured."""

from __future__ import annotations

import importlib.util
import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from composer.engine.session import Settings
from composer.errors import ComposerError
from composer.export import export
from composer.export.card import load_card
from composer.export.onnx_file import need_onnx
from composer.export.robustbench import claim_of, full_autoattack
from composer.subject import door, find
from composer.subject.types import Asked


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import composer

    out = tmp_path_factory.mktemp("store")
    recipe = composer.load("standard", sets=["train.epochs=1", 'evaluate.use="cheap"', "evaluate.pgd-20.steps=1", "model.mean=[0.5]", "model.std=[0.25]"])
    return out, composer.run(recipe, out=out, quiet=True, track=False)


def asked(store: Any, **more: Any) -> Asked:
    return Asked(store[1]["run"], settings=Settings(out=store[0], quiet=True), **more)


def test_the_card_gives_the_model_back(store: Any, tmp_path: Path) -> None:
    made = export(asked(store), ["safetensors"], tmp_path)
    subject, bench = find.subject(asked(store))
    model = load_card(next(tmp_path.glob("*.json")))
    with torch.no_grad():
        assert torch.equal(model(bench.x[:50]), subject.model(bench.x[:50])) and not model.training
    card = made["card"]
    assert card["weights_sha256"] == store[1]["weights_sha256"] and card["input"]["mean"] == [0.5] and card["input"]["range"] == [0.0, 1.0]
    assert card["evaluations"][0]["metrics"] == store[1]["metrics"] and 'use = "small_cnn"' in card["trained"]["recipe_toml"]


def test_other_weights_under_the_card_are_refused(store: Any, tmp_path: Path) -> None:
    export(asked(store), ["safetensors"], tmp_path)
    from safetensors.torch import load_file, save_file

    file = next(tmp_path.glob("*.safetensors"))
    save_file({k: v + 1 for k, v in load_file(file).items()}, file)
    with pytest.raises(ComposerError, match="other weights than its card names"):
        load_card(next(tmp_path.glob("*.json")))


def test_evaluations_go_along(store: Any, tmp_path: Path) -> None:
    result = door.evaluate(asked(store, n=20, sets=("evaluate.fgsm={}",)))
    card = export(asked(store), ["safetensors"], tmp_path)["card"]
    assert any(each["metrics"] == result["metrics"] and each["n"]["fgsm"] == 20 for each in card["evaluations"])


def test_the_claim_says_what_was_measured_and_what_is_open(store: Any, tmp_path: Path) -> None:
    made = export(asked(store), ["robustbench"], tmp_path)
    claim = json.loads(next(tmp_path.glob("*_robustbench.json")).read_text())
    assert claim["autoattack_acc"] is None and "AutoAttack (standard) was not measured" in claim["open"] and claim["dataset"] == "digits"
    loader = runpy.run_path(str(next(tmp_path.glob("*_loader.py"))))
    subject, bench = find.subject(asked(store))
    with torch.no_grad():
        assert torch.equal(loader["load_model"]()(bench.x[:9]), subject.model(bench.x[:9]))
    assert len(made["files"]) == 4

    card = made["card"] | {"evaluations": [{"metrics": {"clean": 0.9, "aa": 0.5}, "n": {"clean": 360, "aa": 360}, "threat": {"norm": {"use": "linf"}, "eps": 8 / 255},
                                            "measures": {"aa": {"use": "aa", "version": "standard"}}, "trust": {"ok": True, "flags": []}}]}
    full = claim_of(subject, bench, card)
    assert (full["autoattack_acc"], full["clean_acc"], full["eps"], full["threat_model"]) == ("50.00", "90.00", "8/255", "Linf")
    card["evaluations"][0]["n"]["aa"] = 200
    assert full_autoattack(card, 360) == (None, ["AutoAttack saw 200 of 360 test images; the leaderboard wants all of them"])


def test_a_strangers_model_brings_its_own_loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net_for_export.py").write_text("import torch\nfrom torch import nn\ndef net():\n    torch.manual_seed(3)\n"
                                                "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    target = Asked("net_for_export:net", data="digits", normalise="mean=0.5,std=0.25", probe=False, settings=Settings(out=tmp_path / "runs"))
    export(target, ["robustbench"], tmp_path / "out")
    loader = runpy.run_path(str(next((tmp_path / "out").glob("*_loader.py"))))
    subject, bench = find.subject(target)
    with torch.no_grad():
        assert torch.allclose(loader["load_model"]()(bench.x[:9]), subject.model(bench.x[:9]), atol=1e-6)
    with pytest.raises(ComposerError, match="is not composer's"):
        load_card(next(p for p in (tmp_path / "out").glob("*.json") if "robustbench" not in p.name))


def test_onnx_without_its_packages_is_one_sentence(store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name in ("onnx", "onnxscript") else find_spec(name, *more))
    with pytest.raises(ComposerError, match="ONNX needs the packages onnx and onnxscript"):
        export(asked(store), ["safetensors", "onnx"], tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with pytest.raises(ComposerError, match="--to onx"):
        export(asked(store), ["onx"], tmp_path)


def test_onnx_gives_the_same_logits(store: Any, tmp_path: Path) -> None:
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name)
    from onnx.reference import ReferenceEvaluator

    need_onnx()
    export(asked(store), ["onnx"], tmp_path)
    subject, bench = find.subject(asked(store))
    (found,) = ReferenceEvaluator(str(next(tmp_path.glob("*.onnx")))).run(None, {"images": bench.x[:7].numpy()})
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(found), subject.model(bench.x[:7]), atol=1e-4)
