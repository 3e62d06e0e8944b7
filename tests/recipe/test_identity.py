"""What counts as the same experiment, and the filled text."""

from __future__ import annotations

import tomllib

import pytest

from composer.recipe.find import recipe_names, shipped
from composer.recipe.load import load


def test_inert_keys_and_spelt_out_defaults_change_nothing(book):
    book.write("same", """
        extends  = "trades.toml"
        about    = "other words"
        paper    = "trades"
        version  = 3
        requires = []
        drop     = ["toggle.kl", 'search."terms.kl.weight"']
        [terms]
        kl = { use = "kl", weight = 6, detach = [] }
        [outer]
        bn = "train"
        [expect]
        clean = 0.84
        [analysis]
        primary = "pgd-20"
    """)
    same, trades = book.load("same"), book.load("trades")
    assert same.canonical() == trades.canonical() and same.experiment_id == trades.experiment_id


@pytest.mark.parametrize("change", ["terms.kl.weight=5", "threat.eps=0.1", "train.epochs=3",
                                    "model.head={ use = 'linear', bias = false }", "terms.kl.at=clean", "evaluate.n=10",
                                    "inner.x_adv.bn=train", "outer.updates=['x']", "terms.ce.use=soft_ce"])
def test_what_means_something_else_has_another_id(book, change):
    assert book.load("trades", sets=[change]).experiment_id != book.load("trades").experiment_id


def test_order_of_declaration_counts_for_parts_alone(book):
    text = 'extends = "trades.toml"\n[terms]\n{0} = {{}}\n{1} = {{}}\n[parts]\n{2} = {{ use = "weight_ema" }}\n{3} = {{ use = "weight_ema" }}\n'
    ids = set()
    for terms in (("mae", "mse"), ("mse", "mae")):
        book.write("r", text.format(*terms, "a", "b"))
        ids.add(book.load("r").experiment_id)
    assert len(ids) == 1
    book.write("r", text.format("mae", "mse", "b", "a"))
    assert book.load("r").experiment_id not in ids


def test_the_filled_text_reads_back_to_the_same_experiment(book):
    book.write("r", """
        extends = "trades.toml"
        drop    = ["evaluate.pgd-20"]
        [inner.x_adv]
        eps = { use = "mwpb", alpha = 0.3 }
        step = "eps/4"
        [terms]
        kl = { weight = { use = "multistep", value = 6.0, at = ["3/4"] }, gain = "clean_miss" }
        [phase.burn_in]
        use = "burn_in"
        until = "1/4"
        [toggle]
        swap = { set = { "terms.kl.use" = "mse" } }
        put  = { put = { "terms.ce.detach" = ["logits"] } }
    """)
    recipe = book.load("r", sets=["threat.eps=0.1"])
    text = recipe.filled()
    assert tomllib.loads(text)["inner"]["x_adv"]["terms"]["kl"] == {"use": "kl", "constants": "exact", "weight": 1.0, "detach": []}
    book.write("again", text)
    again = book.load("again")
    assert again.canonical() == recipe.canonical() and again.experiment_id == recipe.experiment_id
    for toggle in ("swap", "put", "kl"):
        assert again.without(toggle).experiment_id == recipe.without(toggle).experiment_id
    assert again.filled() == text.replace(f'about = "{recipe.about}"', f'about = "{again.about}"')


@pytest.mark.parametrize("name", recipe_names(shipped()))
def test_shipped_recipes_read_back_from_their_filled_text(name, tmp_path):
    recipe = load(name)
    path = tmp_path / f"filled_{name}.toml"
    path.write_text(recipe.filled(), encoding="utf-8")
    again = load(path)
    assert again.experiment_id == recipe.experiment_id
    stretches = [[(s.first, s.last, s.recipe.experiment_id) for s in r.segments()] for r in (recipe, again)]
    assert stretches[0] == stretches[1]
