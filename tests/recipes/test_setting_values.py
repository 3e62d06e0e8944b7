"""The settings' numbers against tables typed from the papers' protocols by hand, with nothing taken from the files under test."""

from __future__ import annotations

import tomllib
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2] / "recipes"
SETTINGS = ROOT / "settings"

# epochs, batch, weight decay, learning rate at epochs, eps, step, steps, start, held out, reported
PAPERS: dict[str, tuple[Any, ...]] = {
    "lma_at/cifar10-resnet18": (130, 100, 3.5e-3, {1: 0.01, 74: 0.01, 75: 1e-3, 89: 1e-3, 90: 1e-4}, "8/255", "2/255", 10, "gaussian", 2000, "both"),
    "lma_at/cifar100-resnet18": (130, 100, 3.5e-3, {74: 0.01, 75: 1e-3, 89: 1e-3, 90: 1e-4}, "8/255", "2/255", 10, "gaussian", 2000, "both"),
    "lma_at/tinyimagenet-resnet18": (130, 100, 3.5e-3, {74: 0.01, 75: 1e-3, 130: 1e-4}, "8/255", "2/255", 10, "gaussian", 2000, "both"),
    "lma_at/cifar10-wrn-34-10": (130, 100, 3.5e-3, {1: 0.01, 74: 0.01, 75: 1e-3, 90: 1e-4}, "8/255", "2/255", 10, "gaussian", 2000, "both"),
    "emr/mnist-mlp": (50, 100, 1e-3, {1: 0.01, 30: 0.01, 31: 1e-3, 50: 1e-3}, "0.1", "0.01", 20, "uniform", 0, "last"),
    "emr/cifar10-cnn4": (100, 100, 5e-4, {75: 0.01, 76: 1e-3, 90: 1e-3, 91: 1e-4}, "0.031", "0.0078", 10, "uniform", 0, "last"),
    "emr/cifar10-resnet18": (100, 128, 1e-3, {60: 0.1, 61: 0.01, 90: 0.01, 91: 1e-3}, "0.0314", "0.00784", 10, "uniform", 2000, "best"),
    "emr/cifar10-wrn-34-10": (100, 128, 1e-3, {60: 0.1, 61: 0.01, 90: 0.01, 91: 1e-3}, "0.0314", "0.00784", 10, "uniform", 2000, "best"),
    "components/cifar10-vgg16": (200, 128, 5e-4, {}, "8/255", "2/255", 10, "uniform", 5000, "best"),
    "mwpb/cifar10-resnet18": (110, 128, 5e-4, {80: 0.1, 81: 0.01, 90: 0.01, 91: 1e-3}, "8/255", "2/255", 10, "gaussian", 2000, "best"),
    "mwpb/cifar10-wrn-34-10": (110, 128, 5e-4, {80: 0.1, 81: 0.01, 91: 1e-3}, "8/255", "2/255", 10, "gaussian", 2000, "best"),
    "mwpb/svhn-resnet18": (110, 128, 3.5e-3, {80: 0.01, 81: 1e-3, 91: 1e-4}, "8/255", "2/255", 10, "gaussian", 2000, "best"),
    "mwpb/tinyimagenet-resnet18": (110, 128, 3.5e-3, {80: 0.01, 81: 1e-3, 91: 1e-4}, "8/255", "2/255", 10, "gaussian", 2000, "best"),
    "piat/cifar10-resnet18": (120, 128, 3.5e-3, {1: 0.01, 60: 0.01}, "8/255", "2/255", 10, "uniform", 0, "last"),
    "piat/cifar100-resnet18": (120, 128, 3.5e-3, {1: 0.01, 60: 0.01}, "8/255", "2/255", 10, "uniform", 0, "last"),
    "piat/svhn-resnet18": (120, 128, 3.5e-3, {1: 0.01, 60: 0.01}, "8/255", "2/255", 10, "uniform", 0, "last"),
    "piat/cifar10-wrn-32-10": (180, 128, 7e-4, {1: 0.1, 90: 0.1}, "8/255", "2/255", 10, "uniform", 0, "last"),
    "piat/cifar100-wrn-32-10": (180, 128, 7e-4, {1: 0.1, 90: 0.1}, "8/255", "2/255", 10, "uniform", 0, "last"),
}
# data, model, augmented, norm, eps, step, steps
BENCHES: dict[str, tuple[Any, ...]] = {
    "mnist-mlp": ("mnist", "mlp", False, "linf", "0.1", "0.01", 20),
    "cifar10-cnn4": ("cifar10", "cnn4", True, "linf", "8/255", "2/255", 10),
    "cifar10-resnet18": ("cifar10", "resnet18", True, "linf", "8/255", "2/255", 10),
    "cifar100-resnet18": ("cifar100", "resnet18", True, "linf", "8/255", "2/255", 10),
    "svhn-resnet18": ("svhn", "resnet18", False, "linf", "8/255", "2/255", 10),
    "tinyimagenet-resnet18": ("tinyimagenet", "resnet18", True, "linf", "8/255", "2/255", 10),
    "cifar10-wrn-34-10": ("cifar10", "wrn", True, "linf", "8/255", "2/255", 10),
    "cifar10-wrn-32-10": ("cifar10", "wrn", True, "linf", "8/255", "2/255", 10),
    "cifar100-wrn-32-10": ("cifar100", "wrn", True, "linf", "8/255", "2/255", 10),
    "cifar10-vgg16": ("cifar10", "vgg16_bn", False, "linf", "8/255", "2/255", 10),
    "cifar10-wrn-28-10": ("cifar10", "wrn", True, "linf", "8/255", "2/255", 10),
    "cifar10-l2-resnet18": ("cifar10", "resnet18", True, "l2", "128/255", "15/255", 10),
}


def laid(over: dict[str, Any], under: dict[str, Any]) -> dict[str, Any]:
    """Tables merge, the upper one's keys win."""
    def merges(a: Any, b: Any) -> bool:
        return isinstance(a, dict) and isinstance(b, dict) and a.get("use", b.get("use")) == b.get("use")

    return {**under, **over, **{k: laid(v, under[k]) for k, v in over.items() if merges(v, under.get(k))}}


def setting(name: str) -> dict[str, Any]:
    path = SETTINGS / f"{name}.toml"
    tables = tomllib.loads(path.read_text())
    parent = tables.pop("extends", None)
    return laid(tables, tomllib.loads((path.parent / parent).read_text())) if parent else tables


def number(value: Any) -> float:
    return float(Fraction(value)) if isinstance(value, str) else float(value)


def lr_in(tables: dict[str, Any], epoch: int) -> float:
    """The multistep rule: one factor for every milestone that has been completed before this epoch."""
    lr, epochs = tables["train"]["lr"], tables["train"]["epochs"]
    if lr["use"] == "linear":
        flat, value = lr["points"][0]
        assert epoch <= whole(flat, epochs), "only the flat stretch is worked out here"
        return value
    assert lr["use"] == "multistep"
    return lr["value"] * lr["factor"] ** sum(whole(at, epochs) < epoch for at in lr["at"])


def whole(at: Any, epochs: int) -> int:
    return round(Fraction(at) * epochs) if isinstance(at, str) else at


def start_name(start: Any) -> str:
    return start["use"] if isinstance(start, dict) else start


def files() -> set[str]:
    return {str(p.relative_to(SETTINGS).with_suffix("")) for p in SETTINGS.rglob("*.toml")}


def test_every_setting_is_in_a_table_here() -> None:
    assert files() == {*PAPERS, *BENCHES, "digits", "cifar10-tiny"}


@pytest.mark.parametrize("name", PAPERS)
def test_a_papers_protocol(name: str) -> None:
    epochs, batch, decay, lrs, eps, step, steps, start, held_out, report = PAPERS[name]
    s = setting(name)
    assert (s["train"]["epochs"], s["train"]["batch_size"], s["optim"]["weight_decay"]) == (epochs, batch, decay)
    assert (s["optim"]["use"], s["optim"]["momentum"], s["optim"].get("nesterov", False)) == ("sgd", 0.9, False)
    threat = s["threat"]
    assert (number(threat["eps"]), number(threat["step"]), threat["steps"]) == (number(eps), number(step), steps)
    assert threat["norm"] == "linf" and start_name(threat["start"]) == start
    assert start != "gaussian" or threat["start"]["sigma"] == 0.001
    assert (s["select"]["held_out"], s["select"]["report"]) == (held_out, report)
    for epoch, lr in lrs.items():
        assert lr_in(s, epoch) == pytest.approx(lr), epoch


@pytest.mark.parametrize("name", PAPERS)
def test_a_papers_setting_keeps_the_benchs_data_and_augmentation(name: str) -> None:
    s, bench = setting(name), setting(name.split("/")[1])
    assert (s["data"], s.get("augment")) == (bench["data"], bench.get("augment"))
    assert s["model"]["use"] == bench["model"]["use"]
    assert name.startswith("emr/cifar10-wrn") or s["model"] == bench["model"]


@pytest.mark.parametrize("name", BENCHES)
def test_a_bench_and_its_neutral_protocol(name: str) -> None:
    data, model, augmented, norm, eps, step, steps = BENCHES[name]
    s = setting(name)
    assert (s["data"]["use"], s["model"]["use"]) == (data, model)
    assert set(s.get("augment", {})) == ({"crop", "flip"} if augmented else set())
    threat = s["threat"]
    assert (threat["norm"], number(threat["eps"]), number(threat["step"]), threat["steps"]) == (norm, number(eps), number(step), steps)
    assert (s["train"]["epochs"], s["train"]["batch_size"]) == (110, 128)
    assert (s["optim"]["use"], s["optim"]["momentum"], s["optim"]["weight_decay"]) == ("sgd", 0.9, 5e-4)
    assert [lr_in(s, e) for e in (1, 80, 81, 90, 91, 110)] == pytest.approx([0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3])
    assert (s["select"]["held_out"], s["select"]["report"]) == (2000, "both")


def test_selection_as_the_papers_say_it() -> None:
    emr, components, mwpb = (setting(n)["select"] for n in ("emr/cifar10-resnet18", "components/cifar10-vgg16", "mwpb/cifar10-resnet18"))
    assert emr["stratified"] is True
    assert (emr["attack"]["use"], emr["attack"]["steps"], emr["attack"]["start"]) == ("pgd", 10, "zero")
    assert (components["n"], components["attack"]["steps"]) == (1024, 20)
    assert mwpb["from"] == "last_phase"
    assert setting("components/cifar10-vgg16")["train"]["lr"] == {"use": "cosine", "value": 0.1, "floor": 0.001}


@pytest.mark.parametrize("bench", ["cifar10-resnet18", "cifar10-wrn-34-10"])
def test_emr_trains_trades_longer_and_harder(bench: str) -> None:
    edit = setting(f"emr/{bench}")["for"]["trades"]["set"]
    assert (edit["train.epochs"], edit["optim.weight_decay"], edit["terms.kl.weight"]) == (130, 5e-4, 12.0)
    assert [whole(at, 130) for at in edit["train.lr.at"]] == [60, 120]


def test_emr_trains_mart_as_its_release_does() -> None:
    edit = setting("emr/cifar10-wrn-34-10")["for"]["mart"]["set"]
    assert (edit["train.epochs"], edit["optim.weight_decay"], edit["terms.kl.weight"]) == (90, 7e-4, 6.0)
    assert (edit["threat.eps"], edit["threat.step"]) == (0.031, 0.007)
    assert [whole(at, 90) for at in edit["train.lr.at"]] == [74, 89]


@pytest.mark.parametrize(("name", "lr", "knots"), [("piat/cifar10-resnet18", 0.01, (60, 90, 120)), ("piat/svhn-resnet18", 0.01, (60, 90, 120)),
                                                   ("piat/cifar10-wrn-32-10", 0.1, (90, 135, 180)), ("piat/cifar100-wrn-32-10", 0.1, (90, 135, 180))])
def test_piat_lets_the_learning_rate_fall_in_straight_lines(name: str, lr: float, knots: tuple[int, ...]) -> None:
    s = setting(name)
    table = s["train"]["lr"]
    assert table["use"] == "linear"
    assert [whole(at, s["train"]["epochs"]) for at, _ in table["points"]] == [*knots]
    assert [value for _, value in table["points"]] == pytest.approx([lr, lr / 10, lr / 100])


@pytest.mark.parametrize("name", [n for n in PAPERS if n.startswith("piat/")])
def test_piat_starts_every_baseline_with_ten_clean_epochs(name: str) -> None:
    s = setting(name)
    for recipe in ("at", "trades", "mart", "alp"):
        phase = s["for"][recipe]["put"]["phase.burn_in"]
        assert phase["use"] == "burn_in" and whole(phase["until"], s["train"]["epochs"]) == 10
    assert s["for"]["trades"]["set"]["terms.kl.weight"] == 6.0
    assert s["for"]["mart"]["set"]["terms.kl.weight"] == (6.0 if "wrn" in name else 5.0)


def test_the_embedded_default_leaves_whole_batches() -> None:
    s = setting("digits")
    assert (1437 - s["select"]["held_out"]) % s["train"]["batch_size"] == 0
    assert (s["threat"]["step"], s["threat"]["eps"]) == ("eps/4", 0.2)
    tiny = setting("cifar10-tiny")
    assert (tiny["data"]["train_size"] - tiny["select"]["held_out"]) % tiny["train"]["batch_size"] == 0
