"""Which layer wins, and what `use` changes take away."""

from __future__ import annotations

import pytest

from composer.errors import ComposerError
from composer.options import Ref


def weight(recipe, id="kl"):
    return next(t.weight for t in recipe.method.terms if t.id == id)


def test_each_layer_wins_over_the_one_below(book):
    book.write("child", """
        extends = "trades.toml"
        [terms]
        kl = { weight = 7.0 }
        [on.digits]
        set = { "terms.kl.weight" = 8.0 }
        [on."mine/digits"]
        set = { "terms.kl.weight" = 9.0 }
        [toggle]
        low = { set = { "terms.kl.weight" = 0.5 } }
        [phase.early]
        until = 5
        set = { "terms.kl.weight" = 0.25 }
    """)
    assert weight(book.load("trades")) == 6.0
    assert weight(book.load("trades", setting="mine/digits")) == 12.0                    # [for.trades] over the recipe
    assert weight(book.load("child")) == 8.0                                             # [on.<bench>] over the recipe
    book.write("settings/mine/digits", (book.root / "settings/mine/digits.toml").read_text().split("[for")[0])
    assert weight(book.load("child", setting="mine/digits")) == 9.0                      # the more specific [on]
    book.write("settings/mine/digits", (book.root / "settings/mine/digits.toml").read_text() + '\n[for.trades]\nset = { "terms.kl.weight" = 12.0 }\n')
    assert weight(book.load("child", setting="mine/digits")) == 12.0                     # [for] over [on], also for a child
    assert weight(book.load("child", setting="mine/digits", sets=["terms.kl.weight=13"])) == 13.0
    off = book.load("child", toggles=["low"])
    assert weight(off) == 0.5
    assert [weight(s.recipe) for s in off.segments()] == [0.25, 0.5]                     # a phase over a toggle
    assert [(s.first, s.last) for s in off.segments()] == [(1, 5), (6, 20)]


def test_on_tables_of_parent_and_child_act_after_both(book):
    book.write("parent", """
        extends = "trades.toml"
        [on.digits]
        set = { "terms.kl.weight" = 1.0, "terms.ce.weight" = 2.0 }
    """)
    book.write("child", """
        extends = "parent.toml"
        [terms]
        kl = { weight = 100.0 }
        [on.digits]
        set = { "terms.ce.weight" = 3.0 }
    """)
    child = book.load("child")
    assert (weight(child), weight(child, "ce")) == (1.0, 3.0)


def test_for_tables_nearest_name_last(book):
    book.write("child", 'extends = "trades.toml"')
    text = (book.root / "settings/mine/digits.toml").read_text()
    book.write("settings/mine/digits", text + '\n[for.child]\nset = { "terms.kl.weight" = 4.0 }\n')
    assert weight(book.load("child", setting="mine/digits")) == 4.0
    assert weight(book.load("trades", setting="mine/digits")) == 12.0


def test_what_a_parent_edits_and_the_child_dropped_is_void(book):
    book.write("child", """
        extends = "trades.toml"
        drop = ["terms.kl", "toggle.kl", 'search."terms.kl.weight"']
        [inner.x_adv]
        terms = { kl = { weight = 2.0 } }
    """)
    child = book.load("child", setting="mine/digits")            # its [for.trades] sets terms.kl.weight
    assert [t.id for t in child.method.terms] == ["ce"]
    assert child.method.inner[0].terms[0].weight == 2.0


def test_a_table_that_uses_another_primitive_replaces_the_one_below(book):
    book.write("child", """
        extends = "trades.toml"
        [terms]
        kl = { use = "mse" }
        [inner.x_adv]
        eps = { use = "mwpb", alpha = 0.3 }
    """)
    book.write("grandchild", """
        extends = "child.toml"
        [terms]
        kl = { use = "mse", weight = 2.0 }
        [inner.x_adv]
        eps = { alpha = 0.4 }
    """)
    child, grandchild = book.load("child"), book.load("grandchild")
    assert weight(child) == 1.0                                   # the parent's 6.0 went with its table
    assert weight(grandchild) == 2.0
    assert grandchild.method.inner[0].eps.options["alpha"] == 0.4 and grandchild.method.inner[0].eps.use == "mwpb"


def test_a_new_protocol_starts_evaluate_afresh(book):
    assert [m.name for m in book.load("at").evaluate.measures] == ["clean", "pgd-20"]
    mine = book.load("at", setting="mine/digits")
    assert {m.name: m.n for m in mine.evaluate.measures} == {"clean": None, "pgd-100": 1000}
    assert [m.name for m in book.load("at", sets=["evaluate.use=paper"]).evaluate.measures] == ["clean", "pgd-100"]
    book.write("own", 'extends = "at.toml"\n[evaluate]\nn = 50\nfgsm = {}\n')
    assert {m.name: m.n for m in book.load("own").evaluate.measures} == {"clean": 50, "pgd-20": 50, "fgsm": 50}
    assert book.load("own").where("evaluate.pgd-20") == f"recipes/protocols.toml:{book.line('protocols', 'pgd-20')}"


def test_drop_removes_pieces_of_the_parent_and_must_find_them(book):
    book.write("child", 'extends = "trades.toml"\ndrop = ["terms.margin"]\n')
    with pytest.raises(ComposerError) as caught:
        book.load("child")
    assert caught.value.all[0].where.startswith("recipes/child.toml:2")


def test_cycles_and_missing_parents(book):
    book.write("a", 'extends = "b.toml"')
    book.write("b", 'extends = "a.toml"')
    with pytest.raises(ComposerError, match="circle"):
        book.load("a")
    book.write("c", 'extends = "trade.toml"')
    with pytest.raises(ComposerError, match="did you mean 'trades'"):
        book.load("c")


def test_a_parent_is_found_among_the_shipped_ones(book, tmp_path):
    own = tmp_path / "elsewhere" / "mine.toml"
    own.parent.mkdir()
    own.write_text('extends = "trades.toml"\n[terms]\nkl = { weight = 3.0 }\n')
    assert weight(book.load(own)) == 3.0
    own.with_name("trades.toml").write_text('extends = "trades.toml"\n[terms]\nkl = { weight = 5.0 }\n')      # its parent is the shipped one
    assert weight(book.load(own.with_name("trades.toml"))) == 5.0


def test_names_are_found_with_and_without_toml(book):
    for name in ("at", "at.toml", "recipes/at.toml", book.root / "at.toml"):
        assert book.load(name).name == "at"
    with pytest.raises(ComposerError, match="did you mean 'trades'"):
        book.load("tradess")
    with pytest.raises(ComposerError, match="did you mean"):
        book.load("at", setting="mine/digit")


def test_about_version_expect_are_a_files_own(book):
    book.write("parent", 'extends = "at.toml"\nabout = "p"\nversion = "1"\n[expect]\nclean = 80.0\n')
    book.write("child", 'extends = "parent.toml"\n')
    child = book.load("child")
    assert (child.about, child.version, child.expect) == ("", None, {})
    assert book.load("parent").expect == {"clean": 80.0}


def test_who_set_a_value(book):
    book.write("child", 'extends = "trades.toml"\n[terms]\nkl = { weight = 7.0 }\n')
    rows = book.load("child", sets=["terms.kl.weight=9"]).why("terms.kl.weight")
    assert [(r["where"], r["value"], r["wins"]) for r in rows] == [
        (f"recipes/trades.toml:{book.line('trades', 'kl = { weight')}", 6.0, False), ("recipes/child.toml:3", 7.0, False), ("--set #1", 9, True)]
    default = book.load("at").why("terms.ce.weight")
    assert default[0]["value"] == 1.0 and default[0]["where"].startswith("default of")
    assert book.load("at").why("inner.x_adv.steps")[0]["path"] == "threat.steps"
    with pytest.raises(ComposerError, match="no such path"):
        book.load("at").why("terms.nope.weight")


def test_threat_supplies_what_an_inner_leaves_out(book):
    recipe = book.load("at")
    inner = recipe.method.inner[0]
    assert inner.eps == 8 / 255 and inner.options["step"] == 8 / 255 / 4 and inner.options["steps"] == 10
    assert inner.options["start"] == recipe.threat.start and inner.options["norm"] == Ref("ball", "linf", {})
    book.write("own", """
        extends = "at.toml"
        [inner.x_adv]
        eps = "threat/2"
        step = "1.25*eps"
        steps = 3
    """)
    own = book.load("own").method.inner[0]
    assert own.eps == 4 / 255 and own.options["step"] == "1.25*eps" and own.options["steps"] == 3
    changed = book.load("own", sets=["threat.eps=0.5", "inner.x_adv.step=threat/2"]).method.inner[0]
    assert changed.eps == 0.25 and changed.options["step"] == 0.5 / 4 / 2
