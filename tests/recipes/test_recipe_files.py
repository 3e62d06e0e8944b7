"""What the shipped files say, read as plain TOML."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from composer.plugins import load_catalogue
from composer.registry import REGISTRY

ROOT = Path(__file__).parents[2] / "recipes"
METHODS = sorted(p for p in ROOT.glob("*.toml") if p.stem not in ("papers", "protocols"))
FILES = sorted(ROOT.rglob("*.toml"))
SHIPPED = {"standard", "at", "at_rice", "trades", "mart", "alp", "lma_at", "at_ours", "trades_ours", "mart_ours", "piat_nmse", "mwpb_trades"}


def read(name: str) -> dict[str, Any]:
    return tomllib.loads((ROOT / name).read_text())


def test_the_first_methods_are_all_here() -> None:
    assert SHIPPED <= {p.stem for p in METHODS}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_says_what_it_is(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# ") and text.endswith("\n") and not text.endswith("\n\n")
    assert not re.search(r"https?://|/home/|/root/|/work/|/tmp/", text)
    if path.stem != "papers":                         # data: rows of tables are an array
        assert not re.search(r"^\[\[", text, re.MULTILINE), "names are what edits hang on, so never an array of tables"
        assert max(map(len, text.splitlines())) <= 150


@pytest.mark.parametrize("path", METHODS, ids=lambda p: p.stem)
def test_a_recipe_has_one_line_about_it_and_a_setting_to_run_on(path: Path) -> None:
    recipe = tomllib.loads(path.read_text())
    assert recipe["about"] and "\n" not in recipe["about"]
    while "setting" not in recipe:
        recipe = read(recipe["extends"])
    assert (ROOT / "settings" / f"{recipe['setting']}.toml").is_file()


def test_mart_ours_is_the_composition_the_design_shows() -> None:
    r = read("mart_ours.toml")
    assert (r["paper"], r["extends"], r["setting"]) == ("lma_at", "mart.toml", "digits")
    assert r["inner"] == {"x_adv": {"use": "pgd", "bn": "eval", "eps": "threat", "step": "threat", "terms": {"ce": {}, "margin": {"delta": 0.9}}}}
    assert r["outer"] == {"bn": "train", "updates": ["x", "x_adv"]}
    assert r["terms"] == {"boosted_ce": {}, "margin": {"delta": 0.9}, "kl": {"weight": 5.0, "gain": "clean_miss"},
                          "align": {"use": "modified_huber", "a": "ema_adv_logits", "b": "ema_clean_logits", "alpha": 5.345, "weight": 86.0}}
    assert r["parts"] == {"ema": {"use": "logit_ema", "decay": 0.2}}
    assert list(r["toggle"]) == ["ema", "ema_matched", "align", "margin", "inner_margin", "outer_margin"]
    assert r["toggle"]["ema_matched"]["set"]["terms.align.weight"] == pytest.approx(86.0 * (1 - 0.2))
    assert r["on"]["tinyimagenet-resnet18"]["set"] == {"terms.align.weight": 96.0, "terms.align.alpha": 6.345}


@pytest.mark.parametrize("name", ["at_ours", "trades_ours", "mart_ours"])
def test_the_lma_at_family_shares_its_numbers(name: str) -> None:
    """delta 0.9, tau 0.2, alpha 5.345 (6.345 on TinyImageNet, 2.345 on the wide net), beta 86 (96 on TinyImageNet)."""
    r = read(f"{name}.toml")
    assert r["terms"]["margin"]["delta"] == r["inner"]["x_adv"]["terms"]["margin"]["delta"] == 0.9
    assert r["parts"]["ema"]["decay"] == 0.2
    assert (r["terms"]["align"]["alpha"], r["terms"]["align"]["weight"]) == (5.345, 86.0)
    assert r["on"]["tinyimagenet-resnet18"]["set"] == {"terms.align.weight": 96.0, "terms.align.alpha": 6.345}
    wide = r["on"]["cifar10-wrn-34-10"]["set"]
    assert wide["terms.align.alpha"] == 2.345 and "terms.align.weight" not in wide


def test_numbers_of_the_other_methods() -> None:
    assert read("trades.toml")["terms"] == {"ce": {"at": "clean"}, "kl": {"weight": 6.0}}
    assert read("trades.toml")["outer"]["updates"] == ["x", "x_adv", "x"]
    mart = read("mart.toml")
    assert mart["terms"]["kl"] == {"weight": 5.0, "gain": "clean_miss"}
    assert mart["on"]["cifar10-wrn-34-10"]["set"] == mart["on"]["cifar10-wrn-32-10"]["set"] == {"terms.kl.weight": 6.0}
    mwpb = read("mwpb_trades.toml")
    assert mwpb["inner"]["x_adv"] == {"eps": {"use": "mwpb", "alpha": 0.42}, "step": "eps/4"}
    assert [mwpb["on"][b]["set"]["inner.x_adv.eps.alpha"] for b in ("tinyimagenet-resnet18", "svhn-resnet18")] == [0.40, 0.15]
    assert mwpb["phase"]["half"] == {"until": "80/110", "set": {"inner.x_adv.eps": "threat/2"}}
    piat = read("piat_nmse.toml")
    assert piat["terms"] == {"ce": {}, "nmse": {"weight": 5.0, "gain": "clean_miss"}}
    assert piat["phase"]["burn_in"] == {"use": "burn_in", "until": "10/120"}
    assert piat["on"]["cifar10-wrn-32-10"]["set"] == {"phase.burn_in.until": "10/180"}
    rice = read("at_rice.toml")
    assert (rice["inner"]["x_adv"]["bn"], rice["outer"]) == ("train", {"updates": ["x_adv", "x_adv"], "after": ["x"]})
    for name in ("trades", "mart", "at_ours"):
        assert read(f"{name}.toml")["inner"]["x_adv"]["start"] == {"use": "gaussian", "sigma": 0.001}


def test_protocols_measure_what_the_papers_state() -> None:
    p = read("protocols.toml")
    load_catalogue()
    built = set(REGISTRY.names("measure"))
    for name, protocol in p.items():
        for printed, measure in protocol.items():
            assert measure.get("use", printed) in built, (name, printed)
            if steps := re.match(r"pgd-(\d+)", printed):
                assert measure["steps"] == int(steps[1]), (name, printed)
    assert "aa" not in p["cheap"] and {"clean", "aa"} <= p["quick"].keys()
    assert {m["step"] for n, m in p["lma_at"].items() if "step" in m} == {"1/255"}
    assert {m["eps"] for n, m in p["emr"].items() if n != "clean"} == {0.031}
    assert {m["start"] for n, m in p["emr"].items() if n.startswith("pgd")} == {"zero"}
    assert {m["step"] for n, m in p["piat"].items() if "step" in m} == {"2/255"} and p["piat"]["cw"]["steps"] == 30
    assert {m["step"] for n, m in p["mwpb_100"].items() if "step" in m} == {"1/255"}
