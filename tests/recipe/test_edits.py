"""set, drop, put; toggles and cells."""

from __future__ import annotations

import pickle

import pytest

from composer.errors import ComposerError

OURS = """
extends = "trades.toml"
[terms]
margin = { delta = 0.9 }
align  = { use = "modified_huber", a = "ema_adv_logits", b = "ema_clean_logits", weight = 86.0 }
[parts]
ema = { use = "logit_ema", decay = 0.2 }
[toggle]
ema    = { set = { "parts.ema.decay" = 0.0 } }
strong = { set = { "parts.ema.decay" = 0.9 } }
align  = { drop = ["terms.align", "parts.ema"] }
margin = { drop = ["terms.margin"] }
swap   = { set = { "terms.kl.use" = "mse" } }
more   = { put = { "terms.kl.detach" = ["target_logp"], "terms.extra" = { use = "mae" } } }
deflt  = { set = { "terms.margin.weight" = 2.0, "train.last" = "drop", "outer.bn" = "eval" } }
"""


@pytest.fixture
def ours(book):
    book.write("ours", OURS)
    return book.load("ours")


def ids(recipe):
    return [t.id for t in recipe.method.terms]


def test_toggles(ours):
    assert ours.without("ema").method.parts[0].options["decay"] == 0.0
    assert ours.method.parts[0].options["decay"] == 0.2                     # nothing changes in place
    assert ids(ours.without("margin", "align")) == ["ce", "kl"]
    swapped = ours.without("swap").method.terms[1]
    assert (swapped.id, swapped.use, swapped.weight) == ("kl", "mse", 6.0)  # `use` was only implied, the other keys stay
    more = ours.without("more")
    assert ids(more) == ["ce", "kl", "margin", "align", "extra"] and more.method.terms[1].detach == ("target_logp",)
    deflt = ours.without("deflt")
    assert deflt.method.terms[2].weight == 2.0 and deflt.train.last == "drop" and deflt.method.outer.bn == "eval"


def test_an_edit_inside_what_another_dropped_is_void_in_any_order(ours):
    both = ours.without("align", "ema"), ours.without("ema", "align")
    for recipe in (*both, ours.without("align").without("ema"), ours.without("ema").without("align")):
        assert ids(recipe) == ["ce", "kl", "margin"] and not recipe.method.parts
        assert recipe.experiment_id == ours.without("align").experiment_id


def test_toggles_that_disagree(ours):
    with pytest.raises(ComposerError, match="toggle.strong sets it to 0.9, toggle.ema to 0.0"):
        ours.without("ema", "strong")
    with pytest.raises(ComposerError, match="did you mean 'ema'"):
        ours.without("emma")


def test_command_line_and_cell_may_not_set_one_path(book, ours):
    for sets in (["parts.ema.decay=0.5"], ['parts.ema={ use = "logit_ema", decay = 0.1 }']):
        with pytest.raises(ComposerError, match="command line and by toggle.ema"):
            book.load("ours", sets=sets, toggles=["ema"])
    assert ids(book.load("ours", sets=["terms.align.weight=2"], toggles=["align"])) == ["ce", "kl", "margin"]      # dropping is no setting
    assert book.load("ours", drops=["terms.align", "parts.ema"]).method.parts == ()                                # toggles on it are not in use
    with pytest.raises(ComposerError, match="no such path"):
        book.load("ours", drops=["terms.align", "parts.ema"], toggles=["ema"])


def test_cells(ours):
    cell = ours.edit(set={"terms.kl.weight": 3.0, "inner.x_adv.eps": {"use": "mwpb", "alpha": 0.1}}, drop=["terms.align"],
                     put={"terms.extra": {"use": "mae"}})
    assert cell.method.terms[1].weight == 3.0 and cell.method.inner[0].eps.use == "mwpb" and ids(cell) == ["ce", "kl", "margin", "extra"]
    assert cell.without("margin").method.terms[1].weight == 3.0             # a toggle and a cell together
    assert ours.edit(set={"threat.start.clamp": False}).threat.start.options == {"clamp": False}      # start = "uniform" was a bare name


@pytest.mark.parametrize(("edit", "message"), [
    ({"set": {"terms.kl.wieght": 1.0}}, "did you mean 'terms.kl.weight'"),
    ({"set": {"terms.nope.weight": 1.0}}, "no such path"),
    ({"drop": ["terms.nope"]}, "no such path"),
    ({"drop": ["terms.kl.gain"]}, "no such path"),
    ({"put": {"terms.kl": {}}}, "the recipe has it already"),
    ({"put": {"parts.nope.decay": 1.0}}, "no table parts.nope"),
    ({"set": {"terms.margin.use": "ce"}}, "loss 'ce' has no option 'delta'"),
    ({"set": {"terms.margin.delta": -1}}, "number >= 0"),
    ({"set": {"train": 3}}, "a table is needed"),
    ({"set": {"a..b": 3}}, "not a path"),
])
def test_edits_that_are_wrong(ours, edit, message):
    with pytest.raises(ComposerError) as caught:
        ours.edit(**edit)
    assert message in str(caught.value)


def test_toggles_are_checked_alone_at_their_line(book):
    path = book.write("bad", OURS + """
typo  = { set = { "parts.ema.dekay" = 0.0 } }
value = { set = { "parts.ema.decay" = 7.0 } }
stale = { set = { "terms.margin.use" = "ce" } }
dead  = { set = { "terms.kl.weight" = 6.0 } }
empty = {}
odd   = { sett = { "terms.kl.weight" = 1.0 } }
""")
    with pytest.raises(ComposerError) as caught:
        book.load("bad")
    errors = {e.where.split("toggle.")[-1].split("  ")[0]: e for e in caught.value.all}
    rows = path.read_text().splitlines()
    assert set(errors) == {"typo", "value", "stale", "dead", "empty", "odd"}
    for name, error in errors.items():
        line = next(n for n, row in enumerate(rows, 1) if row.startswith(name))
        assert error.where == f"recipes/bad.toml:{line}  toggle.{name}"
    assert "did you mean 'parts.ema.decay'" in errors["typo"].fix and "dead toggle" in errors["dead"].why


def test_other_settings_on_tables_are_checked_too(book):
    book.write("child", """
        extends = "trades.toml"
        [on."mine/digits"]
        set = { "terms.kl.wieght" = 1.0, "evaluate.pgd-100.n" = 10 }
        [on.digit]
        set = { "terms.kl.weight" = 1.0 }
    """)
    with pytest.raises(ComposerError) as caught:
        book.load("child")
    assert ["recipes/child.toml:3", "recipes/child.toml:4"] == [e.where.split("  ")[0] for e in caught.value.all]
    assert "did you mean 'terms.kl.weight'" in str(caught.value) and "did you mean 'digits'" in str(caught.value)


def test_a_recipe_travels_by_pickle(ours):
    again = pickle.loads(pickle.dumps(ours.without("align")))
    assert again.experiment_id == ours.without("align").experiment_id and again.without("margin").off == ("align", "margin")


def test_weights_that_are_judged_need_their_part(book):
    book.write("avg", """
        extends = "at.toml"
        [parts]
        avg = { use = "weight_ema" }
        [evaluate]
        weights = "avg"
        [phase.early]
        until = 5
        drop = ["parts.avg"]
        [toggle]
        avg = { drop = ["parts.avg"], set = { "evaluate.weights" = "live" } }
    """)
    recipe = book.load("avg")                                               # a phase may lack it, the run has it
    assert recipe.evaluate.weights == "avg" and len(recipe.segments()) == 2
    with pytest.raises(ComposerError, match="no such part"):
        recipe.edit(drop=["parts.avg"])
