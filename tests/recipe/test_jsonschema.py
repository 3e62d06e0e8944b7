"""The JSON Schema: valid itself, accepts the shipped files, underlines mistakes."""

from __future__ import annotations

import tomllib

import jsonschema
import pytest

from composer import verbs
from composer.recipe.find import recipe_names, shipped


@pytest.fixture(scope="module")
def validator():
    schema = verbs.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("name", recipe_names(shipped()))
def test_shipped_recipes_are_valid(validator, name):
    table = tomllib.loads((shipped() / f"{name}.toml").read_text(encoding="utf-8"))
    assert [f"{list(e.path)}: {e.message[:200]}" for e in validator.iter_errors(table)] == []


GOOD = """
setting = "digits"
[inner.x_adv]
use = "pgd"
bn = "eval"
eps = { use = "mwpb", alpha = 0.4 }
step = "eps/4"
start = { use = "gaussian", sigma = 0.001 }
terms = { kl = { target_logp = "clean_logp" } }
[terms]
kl = { weight = { use = "multistep", value = 6.0, at = ["3/4"] }, gain = "clean_miss", detach = ["gain"], begin = "1/2" }
teach = { use = "kl", target_logp = "ema_adv_logp" }
[phase.burn_in]
use = "burn_in"
until = "10/120"
[phase.own]
from = 3
set = { "terms.kl.weight" = 1.0 }
[evaluate]
use = "quick"
pgd-20 = { use = "pgd", steps = 20, n = 100 }
[on."lma_at/cifar10-resnet18"]
set = { "terms.kl.weight" = 1.0 }
[search]
"terms.kl.weight" = { low = 1.0, high = 2.0, log = true }
"""


def test_the_grammar_is_accepted(validator):
    assert list(validator.iter_errors(tomllib.loads(GOOD))) == []


@pytest.mark.parametrize("text", ['extnds = "at.toml"', "[terms]\nkl = 3", '[terms]\nkl = { use = "kll" }',
                                  '[terms]\nkl = { use = "kl", delta = 1.0 }',
                                  '[terms]\nmargin = { use = "margin", delta = -1.0 }', '[inner.adv]\nuse = "pgd"', '[outer]\nbn = "training"',
                                  "[train]\nepochs = 0", '[inner.x_adv]\nuse = "pgd"\nstart = "unifrom"',
                                  '[terms]\nkl = { weight = { use = "rampp" } }',
                                  '[search]\n"a.b" = { low = 1 }', "[toggle]\na = { sett = {} }", '[phase.p]\nuse = "burn_in"\nuntil = "soon"'])
def test_mistakes_are_underlined(validator, text):
    assert list(validator.iter_errors(tomllib.loads(text)))


def test_editors_see_cards_and_defaults():
    schema = verbs.schema()
    term = schema["$defs"]["term"]
    uses = {each["const"]: each["description"] for each in term["properties"]["use"]["oneOf"]}
    assert "Formula:" in uses["kl"] and "Paper:" in uses["kl"]
    margin = next(b["then"] for b in term["allOf"] if b["if"]["properties"]["use"]["const"] == "margin")
    delta = margin["properties"]["delta"]
    assert delta["default"] == 0.9 and "number >= 0" in delta["description"] and "weight" in margin["properties"]
