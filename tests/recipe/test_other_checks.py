"""Dead toggles, [on] tables of other settings, [expect] and [analysis], and the lines of lists' items."""

from __future__ import annotations

import subprocess
import sys

import pytest

from composer.recipe.load import examine
from composer.verbs.checking import look

# -- toggles that change nothing -----------------------------------------------------------------------------------------------------

QUIET = """
extends = "trades.toml"
[parts]
ema = { use = "logit_ema", decay = 0.2 }
[toggle]
"""


@pytest.mark.parametrize(("toggle", "dead"), [
    ('{ set = { "parts.ema.decay" = 0.0 } }', True),                          # nothing reads the part
    ('{ drop = ["parts.ema"] }', True),
    ('{ set = { "terms.kl.weight" = 6 } }', True),                            # the same number
    ('{ set = { "outer.updates" = ["x", "x_adv", "x"] } }', True),
    ('{ put = { "views.phi" = { use = "margin_soft" } } }', True),            # a view that nobody asks for
    ('{ set = { "terms.kl.weight" = 5.0 } }', False),
    ('{ set = { "train.lr" = 0.05 } }', False),                               # beside the plan
    ('{ set = { "train.lr.value" = 0.06 } }', False),                         # a dial
    ('{ set = { "train.batch_size" = 32 } }', False),
    ('{ set = { "optim.weight_decay" = 0.0 } }', False),
    ('{ set = { "threat.eps" = 0.1 } }', False),
    ('{ set = { "select.report" = "last" } }', False),
    ('{ set = { "evaluate.n" = 10 } }', False),
    ('{ put = { "augment.flip" = { use = "flip" } } }', False),
    ('{ set = { "model.head" = { use = "linear", bias = false } } }', False),
    ('{ set = { "data.use" = "fashion_mnist" } }', False),
    ('{ set = { "phase.late.from" = 12 } }', False),
    ('{ set = { "phase.late.from" = "10/20" } }', True),
])
def test_a_toggle_is_dead_if_no_run_would_differ(book, toggle, dead):
    book.write("r", QUIET + f'one = {toggle}\n[phase.late]\nfrom = 10\nset = {{ "terms.kl.weight" = 2.0 }}\n')
    told = [e.text() for e in examine("r", root=book.root, look=look)[1]]
    assert bool(told) == dead, told
    assert not dead or "dead toggle" in told[0]


def test_a_recipe_with_mistakes_accuses_no_toggle_that_acts_on_them(book):
    """The term that reads the part is broken, so nothing reads it now; that is no fault of the toggle."""
    book.write("r", QUIET.replace("[parts]", '[terms]\nalign = { use = "modified_hubr", a = "ema_adv_logits", alpha = -1.0 }\n[parts]')
               + 'ema = { set = { "parts.ema.decay" = 0.0 } }\nalpha = { set = { "terms.align.alpha" = 5.345 } }\nsame = { set = { "terms.kl.weight" = 6.0 } }\n')
    told = [e.where.rpartition("  ")[2] for e in examine("r", root=book.root, look=look)[1]]
    assert told == ["terms.align.use", "terms.align.alpha", "toggle.same"]


# -- [on.<another setting>] ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("edit", "message"), [
    ('set = { "terms.kl.weight" = "heavy" }', "a number is needed"),
    ('set = { "optim.weight_decay" = -1.0 }', "number >= 0"),
    ('set = { "optim.wieght_decay" = 1.0 }', "'optim.weight_decay'"),
    ('set = { "train.epochs" = "many" }', "whole number"),
    ('set = { "train.lr" = { use = "multistpe", value = 1.0 } }', "'multistep'"),
    ('set = { "threat.eps" = "threat/2" }', "what such words refer to"),
    ('set = { "select.report" = "bst" }', '"best"'),
    ('set = { "evaluate.pgd-100.stps" = 3 }', "'evaluate.pgd-100.steps'"),
    ('set = { "evaluate.pgd-100.steps" = "x" }', "whole number"),
    ('set = { "model.use" = "small_cn" }', "'small_cnn'"),
    ('set = { "data.use" = "digit" }', "'digits'"),
    ('drop = ["terms.ce", "terms.kl"]', "nothing to minimise"),
    ('put = { "terms.kl" = {} }', "has it already"),
    ('put = { "terms.q" = { use = "ce", gain = "foo" } }', "nothing in this recipe makes 'foo'"),
    ('set = { "evaluate.pgd-100.steps" = 3, "train.epochs" = 3, "optim.momentum" = 0.5 }', None),
])
def test_edits_for_another_setting_are_read_on_that_setting(book, edit, message):
    book.write("r", f'extends = "trades.toml"\n[on."mine/digits"]\n{edit}\n')
    told = examine("r", root=book.root, look=look)[1]
    assert len(told) == (message is not None), [e.text() for e in told]
    if message:
        assert message in told[0].text() and told[0].where.startswith(("recipes/r.toml:3", "recipes/r.toml:2"))
        assert 'on."mine/digits"' in told[0].where


# -- [expect] and [analysis] ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("table", "where", "message"), [
    ("[expect]\nclean = 0.9\npgd-20 = { value = 0.5, within = 0.02 }\nhardware = \"two cores\"", None, None),
    ("[expect]\npgd-2 = 0.5", "expect.pgd-2", "'pgd-20'"),
    ("[expect]\naa = 0.5", "expect.aa", "known measures: clean, pgd-20"),
    ("[expect]\nclean = true", "expect.clean", "a number is needed"),
    ("[expect]\nclean = { valeu = 0.9 }", "expect.clean", "'valeu' is not known"),
    ("[expect]\nclean = { value = 0.9, within = -0.1 }", "expect.clean", "within is a number >= 0"),
    ("[analysis]\nprimary = \"pgd-20\"\nfamily = [\"ema\"]\nequivalence = 0.01\nthresholds = { chance = 0.13 }\nnote = \"ours\"", None, None),
    ("[analysis]\nprimary = \"pgd-2\"", "analysis.primary", "'pgd-20'"),
    ("[analysis]\nprimery = \"pgd-20\"", "analysis.primery", "'primary'"),
    ("[analysis]\nfamily = \"ema\"", "analysis.family", "list of string"),
    ("[analysis]\nequivalence = -0.01", "analysis.equivalence", ">= 0"),
    ("[analysis]\nthresholds = { chance = \"low\" }", "analysis.thresholds.chance", "a threshold is a number"),
])
def test_expect_and_analysis(book, table, where, message):
    book.write("r", f'extends = "at.toml"\n{table}\n')
    told = examine("r", root=book.root)[1]
    assert [e.where.rpartition("  ")[2] for e in told] == ([where] if where else []), [e.text() for e in told]
    assert not message or message in told[0].text()


def test_what_is_expected_is_asked_of_the_files_own_setting_alone(book):
    book.write("r", 'extends = "at.toml"\n[expect]\npgd-20 = 0.5\n')
    assert not examine("r", root=book.root, setting="mine/digits")[1]              # measures pgd-100
    assert not examine("r", root=book.root, sets=["evaluate.use=paper"])[1]
    book.write("r", 'extends = "at.toml"\nsetting = "mine/digits"\n[expect]\npgd-20 = 0.5\n')
    assert len(examine("r", root=book.root)[1]) == 1


# -- lines ---------------------------------------------------------------------------------------------------------------------------

LISTS = """\
extends = "trades.toml"
drop = [
  "toggle.kl",
  "terms.nope",
]
[outer]
updates = [
  "x",
  # a remark
  "x_bdd",
]
[terms]
ce = { detach = [
  "logits",
  "foo"] }
[train]
lr = { use = "multistep", value = 0.1, at = [
  "1/2",
  "soon",
], factor = 0.1 }
[toggle.t]
drop = [
  "terms.ce",
  "terms.gone",
]
[phase.p]
until = 3
drop = ["outer.updates",
        "terms.mine"]
"""


def test_an_item_of_a_list_is_told_at_its_own_line(book):
    book.write("r", LISTS)
    told = [e.where for e in examine("r", root=book.root, look=look)[1] if "r.toml" in e.where]
    assert told == [f"recipes/r.toml:{line}  {path}" for line, path in
                    [(4, "drop"), (10, "outer.updates[1]"), (15, "terms.ce.detach[1]"), (19, "train.lr.at[1]"), (24, "toggle.t"), (29, "phase.p")]]


# -- speed ---------------------------------------------------------------------------------------------------------------------------

def test_only_primitives_in_use_are_given_a_model():
    """Making a Pydantic model costs a millisecond or two: none for `list`, few for one recipe."""
    code = ("from composer import options, verbs; made = []; real = options.create_model\n"
            "options.create_model = lambda name, **k: (made.append(name), real(name, **k))[1]\n"
            "verbs.list_primitives(); none = len(made); verbs.check(['at']); print(none, len(made), len(set(made)))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    none, made, different = map(int, done.stdout.split())
    assert none == 0 and made == different < 45
