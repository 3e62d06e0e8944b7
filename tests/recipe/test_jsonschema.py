"""The JSON Schema: valid itself, accepts the shipped files, underlines mistakes."""

from __future__ import annotations

import tomllib

import jsonschema
import pytest

from composer import verbs
from composer.recipe.find import recipe_names, setting_names, shipped


@pytest.fixture(scope="module")
def validator():
    schema = verbs.schema()
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


FILES = [*recipe_names(shipped()), *(f"settings/{name}" for name in setting_names(shipped()))]


@pytest.mark.parametrize("name", FILES)
def test_shipped_recipes_and_settings_are_valid(validator, name):
    table = tomllib.loads((shipped() / f"{name}.toml").read_text(encoding="utf-8"))
    assert [f"{list(e.path)}: {e.message[:200]}" for e in validator.iter_errors(table)] == []


def test_phases_are_among_what_was_validated():
    tables = [tomllib.loads((shipped() / f"{name}.toml").read_text(encoding="utf-8")) for name in FILES]
    phases = [phase for table in tables for phase in table.get("phase", {}).values()]
    assert any("use" in p for p in phases) and any("set" in p or "drop" in p or "put" in p for p in phases)


def test_references_stand_alone():
    """Draft 7 ignores what stands beside a $ref, and every definition that is named is there."""
    schema, named = verbs.schema(), set()

    def walk(node):
        if isinstance(node, dict):
            if "$ref" in node:
                assert set(node) == {"$ref"}
                named.add(node["$ref"].removeprefix("#/definitions/"))
            for item in node.values():
                walk(item)
        elif isinstance(node, list):
            for item in node:
                walk(item)

    walk(schema)
    assert named == set(schema["definitions"])


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
[expect]
clean = 0.9
aa = { value = 0.5, within = 0.02 }
hardware = "two cores"
[analysis]
primary = "aa"
thresholds = { chance = 0.12 }
"""


def test_the_grammar_is_accepted(validator):
    assert list(validator.iter_errors(tomllib.loads(GOOD))) == []


@pytest.mark.parametrize("text", ['extnds = "at.toml"', "[terms]\nkl = 3", '[terms]\nkl = { use = "kll" }',
                                  '[terms]\nkl = { use = "kl", delta = 1.0 }',
                                  '[terms]\nmargin = { use = "margin", delta = -1.0 }', '[inner.adv]\nuse = "pgd"', '[outer]\nbn = "training"',
                                  "[train]\nepochs = 0", '[inner.x_adv]\nuse = "pgd"\nstart = "unifrom"',
                                  '[terms]\nkl = { weight = { use = "rampp" } }',
                                  '[search]\n"a.b" = { low = 1 }', "[toggle]\na = { sett = {} }", '[phase.p]\nuse = "burn_in"\nuntil = "soon"',
                                  "[outer]\nupdate = ['x']", '[data]\nuse = "digitz"', "[optim]\nclip = -1", "[expect]\naa = { within = 0.1 }",
                                  "[analysis]\nequivalence = -1", '[inner.x_adv]\nuse = "pgd"\nsteps = "ten"', '[for.at]\nsett = {}',
                                  '[terms]\nkl = { detach = "gain" }', "terms = 3", 'requires = "mail"', "[evaluate]\nn = 0",
                                  '[evaluate]\npgd-20 = { use = "pgdd" }', '[parts]\nema = { use = "logit_ema", decay = 2.0 }'])
def test_mistakes_are_underlined(validator, text):
    assert list(validator.iter_errors(tomllib.loads(text)))


def test_editors_see_cards_and_defaults():
    schema = verbs.schema()
    term = schema["definitions"]["term"]
    uses = {each["const"]: each["description"] for each in term["properties"]["use"]["oneOf"]}
    assert "Formula:" in uses["kl"] and "Paper:" in uses["kl"]
    margin = next(b["then"] for b in term["allOf"] if b["if"]["properties"]["use"]["const"] == "margin")
    delta = margin["properties"]["delta"]
    assert delta["default"] == 0.9 and "number >= 0" in delta["description"] and "weight" in margin["properties"]
