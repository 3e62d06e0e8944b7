"""`composer cite`: who is named where, and the BibTeX."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from composer.cli import app, run_app
from composer.errors import ComposerError
from composer.plugins import load_all
from composer.recipe.find import recipe_names, shipped
from composer.recipe.load import load
from composer.registry import REGISTRY
from composer.report.catalogue import home
from composer.report.cite import YEAR, Library, bibtex, citations, library, sources


def keys(recipe: str) -> dict[str, tuple[str, ...]]:
    load_all()
    return {each.key: each.by for each in citations(load(recipe))[0]}


def test_the_recipe_its_header_its_parent_and_its_cards() -> None:
    found = keys("he_trades")
    assert next(iter(found)) == "he" and found["he"][:2] == ("recipe", "he_trades.toml") and {"head/hypersphere", "view/angular"} <= set(found["he"])
    assert {"he_trades.toml", "trades.toml", "loss/kl"} <= set(found["trades"])
    assert "measure/aa" in found["autoattack"] and "data/digits" in found["digits"]
    assert {"lma_at", "mart"} <= keys("mart_ours").keys() and "phase/burn_in" in keys("piat_nmse")["piat"]
    assert "schedule/l_softmax" in keys("lsoftmax_at")["l_softmax"], "schedules inside terms too"
    assert "loss/boosted_ce" not in {place for by in keys("standard").values() for place in by}


def test_names_in_prose() -> None:
    held = library()
    assert held.named("Croce and Hein, ICML 2020 (FAB); on margins") == ["fab"]
    assert held.named("Croce and Hein, ICML 2020") == ["autoattack"]
    assert held.named("smarter than THE FATHER") == []
    assert held.named("Zhang et al.,\nICML 2020, as TRADES' code") == ["fat", "trades"], "in order of mention, over line ends"
    assert held.named("Zhang et al., ICLR 2018 (mixup); MAIL-AT") == ["mixup", "mail"]
    short = Library({}, [("A B", "x"), ("A", "y")])
    assert short.named("A B and A") == ["x", "y"] and short.named("A B") == ["x"]


def test_an_entry() -> None:
    assert bibtex("k", {"title": "On P & Q", "authors": "A B and C D", "where": "Proc. X", "year": 2020, "type": "article", "arxiv": "1.2"}) == (
        "@article{k,\n  title         = {{On P \\& Q}},\n  author        = {A B and C D},\n  journal       = {Proc. X},\n"
        "  year          = {2020},\n  eprint        = {1.2},\n  archiveprefix = {arXiv},\n}")
    for key, paper in library().papers.items():
        text = bibtex(key, paper)
        assert text.count("{") == text.count("}") and re.fullmatch(r"@(inproceedings|article|misc)\{\w+,", text.splitlines()[0])


def test_every_paper_has_a_name_and_every_name_one_paper(tmp_path: Path) -> None:
    held = library()
    assert {key for _, key in held.names} == set(held.papers)
    for text, said in (('[alias]\na = ["A"]\nb = ["A"]\n[paper.a]\n[paper.b]\n', "also an alias"), ('[alias]\nz = ["A"]\n[paper.a]\n', "no such paper")):
        (tmp_path / "papers.toml").write_text(text)
        with pytest.raises(ComposerError, match=said):
            library(tmp_path / "papers.toml")


def test_every_card_that_cites_can_be_cited() -> None:
    load_all()
    held = library()
    lost = [f"{p.kind}/{p.name}: {p.card.paper}" for p in REGISTRY.all() if home(p) and YEAR.search(p.card.paper) and not held.named(p.card.paper)]
    assert not lost, "add the paper and its name to [alias] in recipes/papers.toml:\n" + "\n".join(lost)


@pytest.mark.slow
def test_every_recipe_can_be_cited() -> None:
    load_all()
    for name in recipe_names(shipped()):
        recipe = load(name)
        found, unknown = citations(recipe)
        assert found and not unknown, name
        assert not recipe.paper or found[0].key == recipe.paper, name
        assert dict(sources(recipe)).keys() >= {"optim/sgd"}


def test_the_command(capsys) -> None:
    assert run_app(app, ["cite", "he_at"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("% recipe, he_at.toml") and "@inproceedings{he," in text and "@inproceedings{madry," in text
    assert run_app(app, ["cite", "he_at", "--json", "--drop", "views.angular", "--drop", "terms.ce.logits"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["recipe"] == "he_at" and found["papers"][0]["key"] == "he" and "view/angular" not in found["papers"][0]["by"]
    assert run_app(app, ["cite", "he_att"]) == 2
    assert "he_at" in capsys.readouterr().err
