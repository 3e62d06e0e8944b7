"""--set and --drop: what they void, what they keep, and how their mistakes are told."""

from __future__ import annotations

import pytest

from composer.cli import app, run_app
from composer.errors import ComposerError
from composer.recipe.load import examine
from composer.verbs.checking import look

OURS = """
extends = "trades.toml"
[terms]
align = { use = "modified_huber", a = "ema_adv_logits", b = "ema_clean_logits", alpha = 5.0, weight = 86.0 }
[parts]
ema = { use = "logit_ema", decay = 0.2 }
[toggle]
ema   = { set = { "parts.ema.decay" = 0.0 } }
alpha = { set = { "terms.align.alpha" = 1.0 } }
align = { drop = ["terms.align", "parts.ema"] }
[on."mine/digits"]
set = { "terms.align.weight" = 96.0, "terms.align.alpha" = 6.0 }
[phase.late]
from = "1/2"
set  = { "terms.align.weight" = 43.0 }
[search]
"terms.align.alpha" = { low = 1.0, high = 9.0 }
"parts.ema.decay"   = { low = 0.0, high = 0.9 }
"""


@pytest.fixture
def ours(book):
    book.write("ours", OURS)
    book.write("settings/mine/digits", (book.root / "settings/mine/digits.toml").read_text() + '\n[for.ours]\nset = { "terms.align.weight" = 50.0 }\n')

    def errors(**options):
        return [e.text() for e in examine("ours", root=book.root, look=look, **options)[1]]

    return errors


@pytest.mark.parametrize("setting", [None, "mine/digits"])
@pytest.mark.parametrize("options", [{"drops": ["terms.align", "parts.ema"]}, {"sets": ["terms.align.use=mse"], "drops": ["terms.align.alpha"]},
                                     {"sets": ['terms.align={ use = "mse", a = "adv_logits", b = "clean_logits" }'], "drops": ["parts.ema"]},
                                     {"drops": ["terms.align.alpha"]}])
def test_edits_of_what_the_command_line_dropped_or_swapped_are_void(ours, book, setting, options):
    assert ours(setting=setting, **options) == []
    recipe = book.load("ours", setting=setting, **options)
    assert [len(s.recipe.method.terms) for s in recipe.segments()]


def test_a_dropped_term_leaves_one_stretch(book, ours):
    recipe = book.load("ours", drops=["terms.align", "parts.ema"], setting="mine/digits")
    assert [t.id for t in recipe.method.terms] == ["ce", "kl"] and len(recipe.segments()) == 1
    swapped = book.load("ours", sets=["terms.align.use=mse"], drops=["terms.align.alpha"])
    assert [(t.use, t.weight) for s in swapped.segments() for t in s.recipe.method.terms[2:]] == [("mse", 86.0), ("mse", 43.0)]


def test_typing_errors_are_told_all_the_same(book, ours):
    book.write("ours", OURS.replace('"terms.align.alpha" = 1.0', '"terms.kl.wieght" = 1.0').replace('"parts.ema.decay"   =', '"terms.ce.wait" ='))
    found = ours(drops=["terms.align", "parts.ema"])
    assert len(found) == 2 and "'terms.kl.weight'" in found[0] and "terms.ce.wait" in found[1]


def test_a_shipped_recipe_without_its_component(capsys):
    """The example of the manual: its [on] tables, toggles and [search] speak of the term that is dropped."""
    code = run_app(app, ["run", "mart_ours", "--drop", "terms.align", "--drop", "parts.ema", "--dry-run"])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "") and "modified_huber" not in out and "boosted_ce" in out


def test_a_number_replaces_a_schedule(book):
    assert book.load("at").train.lr.use == "multistep"
    assert book.load("at", sets=["train.lr=0.05"]).train.lr == 0.05
    assert book.load("at", sets=["train.lr.value=0.05"]).train.lr.options["value"] == 0.05


@pytest.mark.parametrize("epochs", [1, 3, 7])
def test_fractions_follow_the_number_of_epochs(book, ours, epochs):
    recipe = book.load("ours", sets=[f"train.epochs={epochs}"])
    assert recipe.train.lr.options["at"] == ("14/20",)
    segments = recipe.segments()
    assert (segments[0].first, segments[-1].last) == (1, epochs)
    if epochs > 1:
        assert segments[1].first == round(epochs / 2 + 1e-9) + 1


def test_evaluate_n_is_the_default_of_all_and_a_measures_own_wins(book):
    recipe = book.load("at", setting="mine/digits", sets=["evaluate.n=64"])
    assert {m.name: m.n for m in recipe.evaluate.measures} == {"clean": 64, "pgd-100": 1000}
    both = book.load("at", setting="mine/digits", sets=["evaluate.n=64", "evaluate.pgd-100.n=32"])
    assert {m.name: m.n for m in both.evaluate.measures} == {"clean": 64, "pgd-100": 32}


@pytest.mark.parametrize("turned", [False, True])
def test_a_protocol_and_measures_beside_it_whatever_their_order(book, turned):
    """A measure that the old protocol had as well is added to the new one, not lost with the old one."""
    sets = ["evaluate.use=paper", 'evaluate.pgd-20={ use = "pgd", steps = 7 }', "evaluate.n=5"]
    found = {m.name: (m.options.get("steps"), m.n) for m in book.load("at", sets=sets[::-1] if turned else sets).evaluate.measures}
    assert found == {"clean": (None, 5), "pgd-100": (100, 1000), "pgd-20": (7, 5)}


def test_a_measure_that_the_new_protocol_lacks_is_an_error(book):
    with pytest.raises(ComposerError, match=r"set evaluate\.pgd-20\.steps = 7"):
        book.load("at", sets=["evaluate.use=paper", "evaluate.pgd-20.steps=7"])


def test_help_says_so(capsys):
    run_app(app, ["check", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "evaluate.n=64 holds for every measure that has no n of its own" in said and "train.epochs=3 keeps fractions" in said


def test_a_wrong_value_names_its_flag_and_path_and_the_fix(book):
    with pytest.raises(ComposerError) as caught:
        book.load("at", sets=["train.epochs=2", "terms.ce.weight=heavy", "outer.bn=trian", "inner.x_adv.epss=1"])
    told = {e.where: e.text() for e in caught.value.all}
    assert set(told) == {"--set #2  terms.ce.weight", "--set #3  outer.bn", "--set #4"}
    assert 'did you mean "train"?' in told["--set #3  outer.bn"] and "did you mean 'inner.x_adv.eps'?" in told["--set #4"]
