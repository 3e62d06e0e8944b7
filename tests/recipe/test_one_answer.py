"""A recipe with many mistakes is answered once: each independent mistake at its line, nothing that only follows from another."""

from __future__ import annotations

import random
import re
import tomllib
from pathlib import Path

import pytest

from composer.cli import app, run_app
from composer.errors import ComposerError
from composer.recipe.find import recipe_names, shipped
from composer.recipe.load import examine
from composer.recipe.write import toml_text
from composer.verbs.checking import look

MISTAKES = """\
about = "mistakes"
papr = "x"
setting = "digitz"
extends = "mart.toml"
[inner.x_adv]
use = "pgdd"
bn = "evall"
steps = "ten"
terms = { ce = {}, margn = { delta = 0.9 } }
[outer]
updates = ["x", "x_bdd"]
[terms]
boosted_ce = { constants = "mrt" }
kl = { weight = "heavy", gain = "clean_mis" }
align = { use = "modified_huber", a = "emma_adv_logits", alpha = -1.0 }
[parts]
ema = { use = "logit_ema", decai = 0.2 }
[toggle]
x = { drop = ["terms.nothing"] }
[phase.half]
until = "80/110"
set = { "inner.x_adv.epss" = 1 }
"""
TOLD = [(2, "papr", "'papr'", "'paper'"), (3, "setting", "'digitz'", "'digits'"), (6, "inner.x_adv.use", "'pgdd'", "'pgd'"),
        (7, "inner.x_adv.bn", '"evall"', '"eval"'), (8, "inner.x_adv.steps", '"ten"', "whole number"),
        (9, "inner.x_adv.terms.margn.use", "'margn'", "'margin'"), (11, "outer.updates[1]", "'x_bdd'", "x_adv"),
        (13, "terms.boosted_ce.constants", '"mrt"', '"mart"'), (14, "terms.kl.gain", '"clean_mis"', "'clean_miss'"),
        (14, "terms.kl.weight", '"heavy"', "number"), (15, "terms.align.a", '"emma_adv_logits"', "'ema_adv_logits'"),
        (15, "terms.align.alpha", "-1.0", "number > 0"), (17, "parts.ema.decai", "'decai'", "'decay'"),
        (19, "toggle.x", "terms.nothing", "boosted_ce"), (22, "phase.half", "inner.x_adv.epss", "'inner.x_adv.eps'")]


def answer(text: str, path: Path) -> list[ComposerError]:
    path.write_text(text, encoding="utf-8")
    return examine(path, look=look)[1]


@pytest.fixture
def file(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "mistakes.toml"


def test_each_mistake_once_located_quoted_and_with_its_fix(file):
    told = answer(MISTAKES, file)
    assert sorted(e.where for e in told) == sorted(f"mistakes.toml:{line}  {path}" for line, path, _, _ in TOLD)
    for line, path, written, fix in TOLD:
        error = next(e for e in told if e.where == f"mistakes.toml:{line}  {path}")
        assert written in error.what and fix in error.fix, error.text()
    lines = [int(e.where.split(":")[1].split()[0]) for e in told]
    assert lines == sorted(lines)


@pytest.mark.parametrize("verb", ["check", "run", "show"])
def test_every_verb_gives_the_same_answer(file, verb, capsys):
    file.write_text(MISTAKES, encoding="utf-8")
    code = run_app(app, [verb, str(file)])
    out, err = capsys.readouterr()
    said = out if verb == "check" else err
    places = re.findall(r"^ *(mistakes\.toml:\d+)  ", said, re.MULTILINE)
    assert code == 2 and places == [f"mistakes.toml:{line}" for line, *_ in TOLD]
    assert "Traceback" not in out + err and said.rstrip().endswith(f"{len(TOLD)} errors.") and (verb == "check" or not out)


AT = '[inner.x_adv]\nuse = "pgd"\nbn = "eval"\nterms = { ce = {} }\n'


@pytest.mark.parametrize(("text", "places"), [
    ('extends = "mart_ours.toml"\n[inner.x_adv]\nuse = "nobody_knows"\n', ["inner.x_adv.use"]),
    ('extends = "mart_ours.toml"\n[inner.x_adv]\nuse = "pgdd"\nmade_up = 3\n', ["inner.x_adv.use"]),
    ('extends = "mart_ours.toml"\n[inner.x_adv]\nuse = "nobody_knows"\nbn = "evall"\neps = "8//255"\n',
     ["inner.x_adv.bn", "inner.x_adv.eps", "inner.x_adv.use"]),
    (AT.replace("x_adv", "adv") + '[outer]\nupdates = ["x", "x_adv"]\n[terms]\nce = {}\nkl = { gain = "clean_miss" }\n', ["inner.adv"]),
    (AT.replace("inner", "innr") + '[outer]\nupdates = ["x_adv"]\n[terms]\nce = {}\n[toggle]\nt = { set = { "inner.x_adv.bn" = "train" } }\n', ["innr"]),
    (AT.replace("inner", "maxima") + '[terms]\nce = { at = "adv" }\n', ["maxima"]),
    ('extends = "mart_ours.toml"\n[parts]\nema = { use = "nobody_knows" }\n', ["parts.ema.use"]),
    ('extends = "mart_ours.toml"\n[parts]\nema = 3\n', ["parts.ema"]),
    ('extends = "at.toml"\n[views]\nphi = { use = "nobody_knows" }\n[terms]\na = { use = "mae", a = "phi" }\nb = { use = "mse", a = "phi" }\n',
     ["views.phi.use"]),
    ('extends = "at.toml"\n[views]\nphi = { use = "margin_soft", logits = "foo_logits" }\n[terms]\nce = { gain = "phi" }\nb = { use = "ce", gain = "phi" }\n',
     ["views.phi.logits"]),
    ('extends = "nobody_knows.toml"\n[terms]\nkl = { weight = "x" }\nq = { use = "ce", gain = "made_by_the_parent" }\n'
     '[toggle]\na = { drop = ["terms.ce"] }\n[phase.p]\nuntil = 3\nset = { "terms.ce.weight" = 1 }\n', ["extends", "terms.kl.weight"]),
    ('extends = "tradse.toml"\n[terms]\nkl = { weight = "x" }\nq = { use = "ce", gain = "foo" }\n', ["extends", "terms.kl.weight", "terms.q.gain"]),
    ('extnds = "mart.toml"\n[terms]\nkl = { weight = "x" }\n', ["extnds", "terms.kl.weight"]),
    (AT.replace("ce =", "cee_ =") + "[terms]\nnobody_knows = {}\nfoo = 3\n", ["inner.x_adv.terms.cee_.use", "terms.foo", "terms.nobody_knows.use"]),
    ('terms = 3\nextends = "mart.toml"\n', ["terms"]),
    ('optim = 3\nextends = "mart.toml"\n', ["optim"]),
    ('extends = "mart.toml"\n[optim]\nuse = "nobody_knows"\nclip = -1\n', ["optim.clip", "optim.use"]),
    ('extends = "mart.toml"\n[optim]\nuse = "sdg"\nmomentum = "x"\nmomentm = 1\n', ["optim.momentm", "optim.momentum", "optim.use"]),
    ('extends = "mart.toml"\n[phase.a]\nuntil = "soon"\nset = { "terms.kl.weight" = 1.0 }\n[phase.b]\nset = { "terms.kl.weight" = 2.0, "terms.kl.wait" = 1 }\n',
     ["phase.a.until", "phase.b"]),
    ('extends = "mart.toml"\n[phase.a]\nuse = "burnin"\nuntil = 3\nset = { "terms.kl.wait" = 1.0 }\n', ["phase.a", "phase.a.use"]),
    ('extends = "mart.toml"\n[terms]\nkl = { weight = { use = "multistep", vlaue = 3.0, at = [3] } }\n', ["terms.kl.weight.vlaue"]),
    ('extends = "mart.toml"\n[select]\nattack = { use = "pgdd", stps = 3 }\nheld_out = "x"\n', ["select.attack.stps", "select.attack.use", "select.held_out"]),
    ('extends = "mart_ours.toml"\n[outer]\nafter = ["x_foo"]\njoint = ["x", "x_avd"]\nrows = { x_q = "foo", x_adv = "nokeep" }\n',
     ["outer.after[0]", "outer.joint[1]", "outer.rows.x_adv", "outer.rows.x_q"]),
    ('extends = "mart_ours.toml"\n[terms]\nkl = { at = "bd" }\n', ["terms.kl.at"]),
    ('extends = "mart_ours.toml"\n[terms]\nalign = { a = "foo_logits", b = "fob_logits", gain = "foo" }\n', ["terms.align.a", "terms.align.b", "terms.align.gain"]),
    ('extends = "mart_ours.toml"\n[toggle]\na = { drop = ["parts.ema"] }\n[phase.p]\nuntil = 3\ndrop = ["parts.ema"]\n', ["phase.p", "phase.p", "toggle.a", "toggle.a"]),
    ('extends = "mart.toml"\n[phase.a]\nuntil = 3\nset = { "outer.bn" = "trian" }\n[phase.b]\nfrom = 3\nput = { "terms.q" = { use = "ce", gain = "foo" } }\n',
     ["phase.a", "phase.b"]),
])
def test_consequences_stay_untold(file, text, places):
    told = answer(text, file)
    assert sorted(e.where.rpartition("  ")[2] for e in told) == places, "\n".join(e.text() for e in told)
    assert all(re.match(r"mistakes\.toml:\d+|.*/recipes/mart.*\.toml:\d+", e.where) for e in told)


def test_a_setting_that_is_no_toml_leaves_the_recipe_to_be_checked(file, tmp_path):
    (tmp_path / "bench.toml").write_text('[data]\nuse = "digits\n')
    told = answer('setting = "bench.toml"\nextends = "mart.toml"\n[terms]\nkl = { weight = "x" }\n', file)
    assert [e.where.split("  ")[0] for e in told] == ["bench.toml:2", "mistakes.toml:4"]


def test_two_toggles_and_a_phase_with_the_same_mistake_are_told_at_each(file):
    edit = 'set = { "terms.kl.weight" = "heavy" }'
    told = answer(f'extends = "mart.toml"\n[toggle]\na = {{ {edit} }}\nb = {{ {edit} }}\n[phase.p]\nuntil = 3\n{edit}\n', file)
    assert [e.where.split("  ")[0] for e in told] == ["mistakes.toml:3", "mistakes.toml:4", "mistakes.toml:7"]


def mutants(seed: int):
    """A shipped recipe with one to four things broken at random."""
    rng = random.Random(seed)
    name = rng.choice(recipe_names(shipped()))
    table = tomllib.loads((shipped() / f"{name}.toml").read_text(encoding="utf-8"))
    for _ in range(rng.randint(1, 4)):
        holder = table
        while True:
            key = rng.choice(list(holder))
            if isinstance(holder[key], dict) and holder[key] and rng.random() < 0.8:
                holder = holder[key]
                continue
            break
        kind = rng.choice(["junk", "rename", "delete", "swap letters"])
        value = holder.pop(key)
        if kind == "junk":
            holder[key] = rng.choice([3, -1.5, True, "junk", [], ["junk", 2], {}, {"use": "junk"}, {"use": 3}, {"junk": {"junk": 1}}, float("inf")])
        elif kind == "rename":
            holder[rng.choice(["junk", "x_junk", "use", "at", "begin"])] = value
        elif kind == "swap letters" and len(key) > 2:
            holder[key[1] + key[0] + key[2:]] = value
        if not table:
            break
    return table


@pytest.mark.parametrize("block", range(4))
def test_whatever_is_broken_the_answer_is_errors_with_places(file, block):
    wrong = 0
    for seed in range(block * 20, block * 20 + 20):
        told = answer(toml_text(mutants(seed)), file)
        wrong += bool(told)
        for error in told:
            assert re.match(r".+\.toml:\d+", error.where), (seed, error.text())
    assert wrong > 10
