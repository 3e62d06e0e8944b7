"""Phases and `begin`s as stretches of epochs."""

from __future__ import annotations

import pytest

from composer.errors import ComposerError


def stretches(recipe):
    return [(s.first, s.last, s.phases, s.clock, s.epochs, s.fresh) for s in recipe.segments()]


def test_overlapping_phases_are_cut_at_all_borders(book):
    book.write("r", """
        extends = "trades.toml"
        [phase.burn_in]
        use   = "burn_in"
        until = "5/20"
        [phase.half]
        use   = "half_radius"
        until = 10
        [phase.late]
        from = "15/20"
        set  = { "terms.kl.weight" = 1.0 }
    """)
    recipe = book.load("r")
    assert stretches(recipe) == [(1, 5, ("burn_in", "half"), 0, 20, False), (6, 10, ("half",), 0, 20, False), (11, 15, (), 0, 20, False),
                                 (16, 20, ("late",), 0, 20, False)]
    methods = [s.recipe.method for s in recipe.segments()]
    assert [[t.id for t in m.terms] for m in methods] == [["clean_ce"], ["ce", "kl"], ["ce", "kl"], ["ce", "kl"]]
    assert [[i.eps for i in m.inner] for m in methods] == [[], [4 / 255], [8 / 255], [8 / 255]]      # void where burn_in dropped the inner
    assert [m.terms[-1].weight for m in methods] == [1.0, 6.0, 6.0, 1.0]
    assert stretches(book.load("r", sets=["train.epochs=1"])) == [(1, 1, ("burn_in", "half"), 0, 1, False)]      # each at least one epoch


def test_neighbours_that_mean_the_same_are_one(book):
    book.write("r", """
        extends = "trades.toml"
        [phase.early]
        until = 5
        set   = { "terms.kl.weight" = 1.0 }
        [toggle]
        gone = { drop = ["terms.kl"] }
    """)
    recipe = book.load("r")
    assert len(recipe.segments()) == 2
    assert stretches(recipe.without("gone")) == [(1, 20, (), 0, 20, False)]


def test_phases_that_disagree(book):
    book.write("r", """
        extends = "trades.toml"
        [phase.a]
        until = 10
        set   = { "terms.kl.weight" = 1.0 }
        [phase.b]
        from = 5
        set  = { "terms.kl.weight" = 2.0 }
    """)
    with pytest.raises(ComposerError) as caught:
        book.load("r")
    assert "phase.b sets it to 2.0, phase.a to 1.0" in str(caught.value) and caught.value.all[0].where.startswith("recipes/r.toml:7")
    assert book.load("r", sets=["phase.b.from=10"]).segments()[1].phases == ("b",)


def test_begin_on_terms_gains_inners_and_parts(book):
    book.write("r", """
        extends = "trades.toml"
        [inner.x_two]
        use   = "pgd"
        bn    = "eval"
        terms = { ce = {} }
        begin = "9/20"
        [terms]
        kl = { weight = 6.0, gain = { use = "correct", begin = 3 } }
        late = { use = "mae", begin = 15 }
        [parts]
        avg = { use = "weight_ema", begin = 12 }
    """)
    segments = book.load("r").segments()
    assert [(s.first, s.last) for s in segments] == [(1, 3), (4, 9), (10, 12), (13, 15), (16, 20)]
    assert [s.recipe.method.terms[1].gain is not None for s in segments] == [False, True, True, True, True]
    assert [[i.id for i in s.recipe.method.inner] for s in segments] == [["x_adv"]] * 2 + [["x_adv", "x_two"]] * 3
    assert [len(s.recipe.method.parts) for s in segments] == [0, 0, 0, 1, 1]
    assert [[t.id for t in s.recipe.method.terms] for s in segments] == [["ce", "kl"]] * 4 + [["ce", "kl", "late"]]
    assert all("begin" not in str(s.recipe.tables) for s in segments)


ADDED = """
extends = "trades.toml"
[phase.burn_in]
use    = "burn_in"
add    = true
epochs = "5/20"
{then}
[phase.half]
use   = "half_radius"
until = 10
"""


def test_added_phases_come_before_the_run(book):
    book.write("r", ADDED.format(then='then = "fresh"'))
    assert stretches(book.load("r")) == [(1, 5, ("burn_in",), 0, 20, False), (6, 15, ("half",), 5, 20, True), (16, 25, (), 5, 20, False)]
    book.write("r", ADDED.format(then=""))
    assert stretches(book.load("r")) == [(1, 5, ("burn_in",), 0, 25, False), (6, 15, ("half",), 0, 25, False), (16, 25, (), 0, 25, False)]


@pytest.mark.parametrize(("phase", "message"), [
    ('until = 10', "changes nothing"),
    ('until = 10\nset = { "terms.kl.weight" = -1.0, "terms.kl.wait" = 1 }', "no such path"),
    ('until = 10\nset = { "terms.kl.at" = 3 }', "string"),
    ('from = 10\nuntil = 5\ndrop = ["terms.kl"]', "ends before it starts"),
    ('add = true\ndrop = ["terms.kl"]', "how long"),
    ('add = true\nepochs = 3\nuntil = 3\ndrop = ["terms.kl"]', "before the run's epochs"),
    ('then = "fresh"\ndrop = ["terms.kl"]', "only an added phase"),
    ('use = "burnin"\nuntil = 3', "did you mean 'burn_in'"),
    ('until = 3\nset = { "model.use" = "mlp" }', "holds for the whole run"),
    ('until = 3\nset = { "train.epochs" = 3 }', "holds for the whole run"),
    ('untill = 3\ndrop = ["terms.kl"]', "did you mean 'until'"),
    ('until = "3"\ndrop = ["terms.kl"]', "epochs"),
    ('until = 3\nput = { "terms.kl" = {} }', "has it already"),
    ('until = 3\ndrop = ["terms.ce", "terms.kl"]', "nothing to minimise"),
])
def test_phases_that_are_wrong(book, phase, message):
    book.write("r", 'extends = "trades.toml"\n[phase.p]\n' + phase + "\n")
    with pytest.raises(ComposerError) as caught:
        book.load("r")
    assert message in str(caught.value)
    assert all(e.where.startswith(("recipes/r.toml", "recipes/trades.toml")) for e in caught.value.all)


def test_a_phase_may_name_what_a_toggle_dropped(book):
    book.write("r", """
        extends = "trades.toml"
        [phase.early]
        until = 5
        set   = { "terms.kl.weight" = 1.0, "terms.ce.weight" = 2.0 }
    """)
    off = book.load("r", toggles=["kl"])
    assert [[t.weight for t in s.recipe.method.terms] for s in off.segments()] == [[2.0], [1.0]]
