"""The JSON Schema of studies: valid itself, accepts the shipped files, underlines mistakes, knows the reader's keys."""

from __future__ import annotations

import json
import tomllib

import jsonschema
import pytest

from composer import verbs
from composer.recipe import study_rows as studies
from composer.recipe.find import shipped
from composer.recipe.source import read
from composer.recipe.studies import Bases, study_names
from composer.recipe.study_rows import CELL, HEAD, KINDS


@pytest.fixture(scope="module")
def validator():
    schema = verbs.schema(study=True)
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


def wrong(validator, text):
    return [f"{list(e.absolute_path)}: {e.message[:200]}" for e in validator.iter_errors(tomllib.loads(text))]


@pytest.mark.parametrize("name", study_names(shipped()))
def test_shipped_studies_are_valid(validator, name):
    assert wrong(validator, (shipped() / "studies" / f"{name}.toml").read_text(encoding="utf-8")) == []


def test_every_key_of_the_reader_is_described(validator):
    properties = validator.schema["properties"]
    assert list(properties) == list(HEAD)
    rows = properties["cells"]["additionalProperties"]["properties"]
    assert set(rows) == {*CELL, *(key for keys in KINDS.values() for key in keys)}
    assert all(each.get("description") for each in (*properties.values(), *rows.values()))


GOOD = """
about    = "All kinds of rows"
kind     = "train"
recipe   = "at"
settings = ["emr/cifar10-wrn-34-10", "emr/cifar10-resnet18"]
seeds    = [0, 1, 7]
table    = "emr/4"
set      = { "train.epochs" = 3 }
[groups]
"emr/cifar10-resnet18" = "resnet18"
[analysis]
primary = "aa"
equivalence = 0.003
[cells]
plain  = {}
clean  = { printed = false, drop = ["terms.kl"], recipe = "trades", setting = "digits" }
twin   = { printed = { row = "ST", weight_decay = 0.01, column = "clean" }, put = { "terms.margin" = { delta = 0.9 } } }
search = { kind = "sweep", grid = { "train.lr.value" = [0.1, 0.01] }, select = ["clean"], rungs = [2, 4], keep = 1 }
other  = { kind = "external", checkpoint = "x.pt", model = { use = "wrn", depth = 34 }, normalisation = { mean = [0.5], std = 0.2 } }
named  = { kind = "external", checkpoint = "x.pt", model = "resnet18", normalisation = "none", printed = false }
page   = { kind = "printed" }
"""


def test_the_grammar_is_accepted(validator):
    assert wrong(validator, GOOD) == []
    assert wrong(validator, 'kind = "bench"\n[cells]\na = { recipe = "at" }\nb = { kind = "printed" }') == []


HEADS = ["sedes = 3", "seeds = 0", "seeds = [0, 0]", "seeds = -1", 'seeds = "5"', 'kind = "training"', 'table = "lma_at/99"', "setting = 3",
         'setting = "digits"\nsettings = ["digits"]', "settings = []", 'settings = "digits"', 'groups = { "digits" = 3 }', "set = ['terms.kl']",
         'drop = "terms.kl"', "about = 3", "analysis = { equivalence = -1 }", 'rows = { a = {} }']
ROWS = ["a = 3", "a = { sett = {} }", 'a = { kind = "cel" }', "a = { printed = true }", "a = { printed = { row = 3 } }", 'a = { printed = { lr = "x" } }',
        'a = { rungs = [1], keep = 1 }', 'a = { kind = "sweep", select = ["clean"] }', 'a = { kind = "sweep", grid = { "train.lr" = [0.1] } }',
        'a = { kind = "sweep", grid = { "train.lr" = 0.1 }, select = ["clean"] }', 'a = { kind = "sweep", grid = {}, select = ["clean"] }',
        'a = { kind = "sweep", grid = { "train.lr" = [] }, select = ["clean"] }', 'a = { kind = "sweep", grid = { "train.lr" = [1] }, select = "clean" }',
        'a = { kind = "sweep", grid = { "train.lr" = [1] }, select = ["clean"], rungs = [1, 2] }',
        'a = { kind = "sweep", grid = { "train.lr" = [1] }, select = ["clean"], keep = 1 }',
        'a = { kind = "external", checkpoint = "x", model = "wrn" }', 'a = { kind = "external", checkpoint = "x", normalisation = "none" }',
        'a = { kind = "external", checkpoint = "x", model = { depth = 34 }, normalisation = "none" }',
        'a = { kind = "external", checkpoint = "x", model = { use = "wrm" }, normalisation = "none" }',
        'a = { kind = "external", checkpoint = "x", model = "wrn", normalisation = "imagenet" }',
        'a = { kind = "external", checkpoint = "x", model = "wrn", normalisation = { mean = [0.5] } }', 'a = { checkpoint = "x" }',
        'a = { grid = { "train.lr" = [0.1] } }', 'a = { kind = "printed", grid = {} }', 'a = { setting = "digits", settings = ["digits"] }',
        'a = { drop = "terms.ce" }', '"a b" = {}', "a = { recipe = 3 }"]


BROKEN = [*(f'recipe = "at"\n{head}\n[cells]\na = {{}}' for head in HEADS), *(f'recipe = "at"\n[cells]\n{row}' for row in ROWS),
                                  'recipe = "at"', 'recipe = "at"\n[cells]', "[cells]\na = {}", '[cells]\na = { recipe = "at" }\nb = {}']


@pytest.mark.parametrize("text", BROKEN)
def test_mistakes_are_underlined(validator, text):
    assert wrong(validator, text)


def test_what_is_underlined_is_refused_by_the_reader_too(tmp_path):
    """The schema is never the stricter of the two."""
    bases, file = Bases(), tmp_path / "mine.toml"
    for text in BROKEN:
        file.write_text(text, encoding="utf-8")
        assert Reading(read(file), bases).refuses(), text


class Reading(studies.Reading):
    def refuses(self) -> bool:
        self.read()
        return bool(self.errors)


def test_a_mistake_is_underlined_where_it_stands(validator):
    errors = list(validator.iter_errors(tomllib.loads('recipe = "at"\nseeds = 0\n[cells]\na = { printed = true }\nb = {}')))
    assert sorted(list(e.absolute_path) for e in errors) == [["cells", "a", "printed"], ["seeds"]]


def test_references_stand_alone(validator):
    """Draft 7 ignores what stands beside a $ref, and every definition that is named is there."""
    named = set()

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

    walk(validator.schema)
    assert named <= set(validator.schema["definitions"]) and "model" in named


def test_the_command_prints_it(capsys):
    from composer.cli import app, run_app

    assert run_app(app, ["schema", "--study"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["title"] == "composer study" and printed == json.loads(json.dumps(verbs.schema(study=True)))
