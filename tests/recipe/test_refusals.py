"""What primitives would refuse only when a run meets it is told by the check, at its line: combinations of options, schedules, weights to judge."""

from __future__ import annotations

import pytest

from composer.recipe.load import examine
from composer.recipe.refusals import EVALUATED
from composer.verbs.checking import look

CIRCLE = """extends = "trades.toml"
drop = ["toggle"]
[terms]
kl = { weight = { use = "follow", path = "train.lr", value = 6.0 } }
[train]
lr = { use = "follow", path = "terms.kl.weight", value = 0.1 }"""
BLIND = """extends = "gairat.toml"
drop = ["inner.x_adv.terms.ce"]
[parts]
teach = { use = "teacher" }
[inner.x_adv.terms]
ce_of = { use = "ce", logits = "teach_adv_logits" }"""
CASES = [
    ("l1 in the threat reaches fab", 'extends = "elsayed_fab.toml"\ndrop = ["inner.x_bd.norm"]\n[threat]\nnorm = "l1"', "inner.x_bd.norm", "cannot project"),
    ("l1 for fab itself", 'extends = "dyart.toml"\n[inner.x_bd]\nnorm = "l1"', "inner.x_bd.norm", "one of linf, l2"),
    ("depth of a wide network", 'extends = "at.toml"\n[model]\nuse = "wrn"\ndepth = 30', "model.depth", "needs (depth - 4) / 6 whole"),
    ("channels of cnn4", 'extends = "at.toml"\n[model]\nuse = "cnn4"\nchannels = [3]', "model.channels", "4 numbers of at least 1"),
    ("no channels", 'extends = "at.toml"\n[model]\nuse = "small_cnn"\nchannels = []', "model.channels", "a list of 1 or more"),
    ("widths", 'extends = "at.toml"\n[model]\nuse = "mlp"\nwidths = [8, 0]', "model.widths", "at least 1"),
    ("hidden layers of vgg", 'extends = "at.toml"\n[model]\nuse = "vgg16_bn"\nhidden = [0]', "model.hidden", "at least 1"),
    ("a part's network", 'extends = "at.toml"\n[parts.teacher]\nmodel = { use = "wrn", depth = 11 }', "parts.teacher.model.depth", "whole"),
    ("a fixed teacher without weights", 'extends = "lbgat.toml"\n[parts.teacher]\ntrain = false', "parts.teacher.checkpoint", "needs weights"),
    ("a teacher with dropout", 'extends = "at.toml"\n[parts.teacher]\nmodel = { use = "wrn", depth = 10, dropout = 0.3 }', "parts.teacher.model", "random"),
    ("borders and values", 'extends = "at.toml"\n[train]\nlr = { use = "multistep", value = 0.1, at = [3, 5], values = [0.1] }', "train.lr", "2 borders and 1 values"),
    ("points out of order", 'extends = "at.toml"\n[train]\nlr = { use = "linear", points = [[9, 0.1], ["1/20", 0.01]] }', "train.lr", "in order of their epochs"),
    ("a schedule of a term", 'extends = "trades.toml"\n[terms]\nkl = { weight = { use = "linear", points = [] } }', "terms.kl.weight", "in order of their epochs"),
    ("a circle of schedules", CIRCLE, "terms.kl.weight", "follows itself"),
    ("its own path", 'extends = "at.toml"\n[train]\nlr = { use = "follow", path = "train.lr", value = 0.1 }', "train.lr", "follows itself"),
    ("fat that sees no logits", 'extends = "fat.toml"\n[inner.x_adv]\nterms = { mse = { a = "adv_features", b = "clean_features" } }\n', "", ""),
    ("a counting attack on another network", BLIND, "inner.x_adv", "looks at logits while it climbs"),
    ("two points with one's logits", 'extends = "st_at.toml"\ndrop = ["inner.x_adv.terms.symmetric_kl"]\n[inner.x_adv]\nterms = { ce = {} }', "inner.x_adv", "col_logits, clean_logits while it climbs"),
    ("weights of no average", 'extends = "piat.toml"\ndrop = ["toggle"]\n[evaluate]\nweights = "interpolate"', "evaluate.weights", "offers weights"),
    ("weights of a phase", 'extends = "at.toml"\n[parts]\nmean = { use = "swa" }\n[select]\nweights = "mean"\n[phase.late]\nuntil = 5\ndrop = ["parts.mean"]',
     "select.weights", "epochs 1-5"),
    ("cosines of a linear head", 'extends = "at.toml"\n[evaluate]\nlogits = "cosine"', "evaluate.logits", "no cosines"),
    ("an attack's loss", 'extends = "at.toml"\n[evaluate]\nmine = { use = "pgd", loss = "input_gradient" }', "evaluate.mine.loss", "an evaluation cannot make"),
    ("the selecting attack's loss", 'extends = "at.toml"\n[select]\nattack = { use = "pgd", loss = "soft_ce" }', "select.attack.loss", "'y_soft'"),
]


@pytest.mark.parametrize(("text", "path", "said"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_the_check_tells_it(text, path, said, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(text + "\n", encoding="utf-8")
    errors = examine(file, look=look)[1]
    if not said:                                     # features come with the logits of the same pass: sound
        assert [e.text() for e in errors] == []
        return
    assert errors and errors[0].where.split("  ")[1] == path, [e.text() for e in errors]
    assert all(said in e.text() for e in errors) and len(errors) <= 1 + (said == "follows itself")      # a circle is told at both


@pytest.mark.parametrize("text", ['extends = "dyart.toml"\n[inner.x_bd]\nnorm = "l2"', 'extends = "lbgat.toml"\n[parts.teacher]\ntrain = false\ncheckpoint = "x.safetensors"',
                                  'extends = "he_at.toml"\n[evaluate]\nlogits = "cosine"', 'extends = "at.toml"\n[evaluate]\nmine = { use = "pgd", loss = "kl" }',
                                  'extends = "at.toml"\n[model]\nuse = "wrn"\ndepth = 32\ndepth_rule = "6n+2"', 'extends = "seat.toml"'])
def test_what_works_is_let_through(text, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(text + "\n", encoding="utf-8")
    assert [e.text() for e in examine(file, look=look)[1]] == []


def test_what_an_evaluation_makes_is_said_twice_alike():
    """The reader of recipes may not import the evaluation, so it holds a copy."""
    from composer.evaluate.attack import MADE

    assert set(EVALUATED) == set(MADE)
