"""Every mistake at once, each with its place, what was written, and the fix."""

from __future__ import annotations

import pytest

from composer.errors import ComposerError, Errors

TEN = """
about = "ten mistakes"
extnds = "at.toml"

[inner.x_adv]
use   = "pdg"
bn    = "eval"
terms = { ce = {} }

[inner.adv]
use = "pgd"

[outer]
bn = "training"

[terms]
ce     = { wieght = 2.0 }
margin = { delta = -0.9 }
kl     = { weight = { use = "multistep", vlaue = 3.0, at = [3] } }
mse    = 3
align  = { use = "modified_huber", a = 5 }

[train]
epochs = 0

[toggle]
kl = { drop = ["terms.lk"] }
"""
PLACES = [("extnds", "did you mean 'extends'"), ("use   =", "did you mean 'pgd'"), ("[inner.adv]", "write [inner.x_adv]"), ("[inner.adv]", "add bn"),
          ("[inner.adv]", "add terms = { ce = {} }"),
          ("bn = \"training\"", '"train" | "eval" | "train_frozen"'), ("ce     =", "did you mean 'weight'"), ("margin =", "number >= 0"),
          ("kl     =", "did you mean 'value'"), ("mse ", "a table is needed"), ("align  =", "adv_logits"), ("epochs =", "whole number >= 1"),
          ("kl = { drop", "did you mean 'terms.kl'")]


def test_ten_mistakes_are_told_at_once_each_at_its_line(book):
    book.write("ten", TEN)
    with pytest.raises(Errors) as caught:
        book.load("ten")
    told = [(e.where.split("  ")[0], e.text()) for e in caught.value.all]
    for start, fix in PLACES:
        place = f"recipes/ten.toml:{book.line('ten', start)}"
        assert any(where == place and fix in text for where, text in told), (start, fix, told)
    assert len(told) == len(PLACES)                                                       # the misspelt option is not missing as well
    lines = [int(where.split(":")[1]) for where, _ in told]
    assert lines == sorted(lines) and str(caught.value).endswith(f"{len(told)} errors.")


@pytest.mark.parametrize(("addition", "where", "message"), [
    ('[select]\nheld_out = 0\nreport = "best"', "select.report", "without held-out images"),
    ('[select]\nheld_out = 0\nreport = "last"', None, None),
    ("[select]\nfrom = 99", "select.from", "the run has 20 epochs"),
    ('[select]\nfrom = "last_phase"', None, None),
    ('[evaluate]\nweights = "avg"', "evaluate.weights", "no such part"),
    ('[evaluate]\nuse = "quik"', "evaluate.use", "did you mean 'quick'"),
    ("[evaluate]\npgd-20 = 3", "evaluate.pgd-20", "a measure is a table"),
    ('[evaluate]\n"pgd 20" = { use = "pgd" }', 'evaluate."pgd 20"', "cannot be a name"),
    ('[evaluate]\n"pgd-20@6/255" = { use = "pgd", eps = "6/255", step = "eps/4", n = 10 }', None, None),
    ('[search]\n"terms.ce.wait" = { low = 1, high = 2 }', 'search."terms.ce.wait"', "'terms.ce.weight'"),
    ('[search]\n"terms.ce.weight" = { low = 2, high = 1 }', 'search."terms.ce.weight"', "low must be below high"),
    ('[search]\n"terms.ce.weight" = { low = 0, high = 1, log = true }', 'search."terms.ce.weight"', "above 0"),
    ('[search]\n"terms.ce.weight" = { choices = [1, 2] }', None, None),
    ("[search]\nterms.ce.weight = { low = 1, high = 2 }", "search.terms", "in quotes"),
    ('requires = ["mial"]', "requires[0]", "not loaded"),
    ("terms = 3", "terms", "a table is needed"),
    ('[augment]\nsmooth = {}', "inner.x_adv.terms.ce", "needs the labels y"),
    ('[terms]\nce = { at = "x_adv" }', "terms.ce.at", 'at = "adv"'),
    ('[terms]\nce = { detach = ["a"] }', "terms.ce.detach[0]", "no such need"),
    ('[terms]\nce = { gain = 3 }', "terms.ce.gain", "name of an [N] tensor"),
    ('[terms]\nce = { weight = true }', "terms.ce.weight", "not true or false"),
    ('[terms]\nce = { weight = "1/0" }', "terms.ce.weight", "divides by zero"),
    ('[terms]\n"ce 2" = { use = "ce" }', 'terms."ce 2"', "cannot be a name"),
    ('[views]\nclean-phi = { use = "margin_soft" }', "views.clean-phi", "no digit first"),
    ('[terms]\npgd = {}', "terms.pgd.use", "'pgd' is of kind inner"),
    ('[inner.x_adv]\neps = { use = "mwbp" }', "inner.x_adv.eps.use", "did you mean 'mwpb'"),
    ('[inner.x_adv]\neps = "8//255"', "inner.x_adv.eps", "a radius is a number"),
    ('[inner.x_adv]\neps = "memory_eps"', None, None),
    ('[inner.x_adv]\nstart = "unifrom"', "inner.x_adv.start.use", "did you mean 'uniform'"),
    ('[inner.x_adv]\nstart = { sigma = 1.0 }', "inner.x_adv.start", "does not say what it uses"),
    ('[inner.x_adv]\nterms = 3', "inner.x_adv.terms", "a table is needed"),
    ('[inner.x_adv]\nsurface = "margin_soft"', "inner.x_adv.surface", "takes no surface"),
    ('[inner.x_two]\nuse = "pgd"\nbn = "eval"', "inner.x_two.terms", "nothing to climb"),
    ('[inner.x_two]\nuse = "pgd"\nterms = { ce = {} }', "inner.x_two.bn", "needs the option 'bn'"),
    ('[threat]\neps = "threat/2"', "threat.eps", "what such words refer to"),
    ('[threat]\nstep = "threat/2"', "threat.step", "what such words refer to"),
    ("[threat]\neps = 0.0", "threat.eps", "> 0"),
    ("[model]\nmean = [0.5]", "model", "mean and std"),
    ("[model]\nhead = { bais = false }", "model.head.bais", "did you mean 'bias'"),
    ("[model]\nhead = { bias = false }", None, None),
    ("[optim]\nclip = -1", "optim.clip", "number > 0"),
    ("[train]\nlr = -1.0", "train.lr", "number >= 0"),
    ('[terms]\nce = { weight = { use = "follow", path = "train.lr", value = 1.0 } }', None, None),
    ('[terms]\nce = { weight = { use = "follow", path = "train.rl", value = 1.0 } }', "terms.ce.weight.path", "did you mean 'train.lr'"),
    ("version = 2", None, None),
])
def test_each_check(book, addition, where, message):
    head, _, tables = addition.partition("\n[") if not addition.startswith("[") else ("", "", addition)
    book.write("one", f'extends = "at.toml"\n{head}\n{tables}\n')
    if message is None:
        book.load("one")
        return
    with pytest.raises(ComposerError) as caught:
        book.load("one")
    error = next(e for e in caught.value.all if message in e.text())
    assert error.where.endswith("  " + where) and error.where.startswith("recipes/"), error.where
    assert len(caught.value.all) <= 2


def test_command_line_mistakes_name_their_flag(book):
    with pytest.raises(ComposerError) as caught:
        book.load("at", sets=["train.epochs=2", "terms.ce.weihgt=2", "train.lr=fast", "oops"], drops=["terms.kl", "a..b"])
    told = [(e.where, e.what) for e in caught.value.all]
    assert ("--set #2", "set terms.ce.weihgt = 2") in told and ("--set #3  train.lr", 'lr = "fast"') in told
    assert ("--set #4", "--set oops") in told and ("--drop #1", "drop terms.kl") in told and ("--drop #2", "--drop a..b") in told


def test_set_values_are_toml_or_else_strings(book):
    recipe = book.load("at", sets=["train.lr={ use = 'multistep', value = 0.2, at = [3], factor = 0.5 }", "threat.start=zero", "terms.ce.at=clean",
                                   'evaluate.pgd-50={ use = "pgd", steps = 50 }', "threat.eps=8/255"])
    assert recipe.train.lr.options["value"] == 0.2 and recipe.threat.start.use == "zero" and recipe.method.terms[0].at == "clean"
    assert recipe.evaluate.measures[-1].name == "pgd-50" and recipe.threat.eps == 8 / 255


def test_settings_have_no_on_and_recipes_no_for(book):
    book.write("odd", 'extends = "at.toml"\n[for.at]\nset = {}\n')
    with pytest.raises(ComposerError, match="belongs into settings"):
        book.load("odd")
    book.write("settings/odd", 'extends = "digits.toml"\n[on.digits]\nset = {}\n')
    with pytest.raises(ComposerError, match="belongs into recipes"):
        book.load("at", setting="odd")


def test_two_toggles_with_a_bad_base_tell_the_base_once(book):
    book.write("base", 'extends = "trades.toml"\n[terms]\nce = { wieght = 1.0 }\n[toggle]\na = { drop = ["terms.kl"] }\n')
    with pytest.raises(ComposerError) as caught:
        book.load("base")
    assert len(caught.value.all) == 1
