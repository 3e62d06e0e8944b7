"""Toggles to cells: equal, nested, void, dead and impossible ones."""

from __future__ import annotations

import io
import textwrap
from itertools import combinations
from pathlib import Path

import pytest

from composer.ablate.cells import grid_of
from composer.ablate.describe import alias_lines, describe, heading, rows
from composer.ablate.equal import content
from composer.errors import ComposerError, Errors
from composer.recipe.keys import known
from composer.recipe.layers import assemble
from composer.recipe.load import load
from composer.recipe.recipe import Recipe, realise
from composer.verbs.checking import look


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load("mart_ours")


def test_two_toggles_make_four_cells(recipe: Recipe) -> None:
    grid = grid_of(recipe, ["ema", "margin"], seeds=3)
    assert (grid.design, grid.base, grid.seeds, grid.toggles) == ("full", "full", (0, 1, 2), ("ema", "margin"))
    assert [c.name for c in grid.cells] == ["full", "-ema", "-margin", "-ema -margin"]
    assert [c.off for c in grid.cells] == [(), ("ema",), ("margin",), ("ema", "margin")]
    assert len(grid.distinct) == 4 and not grid.nested and not any(c.void for c in grid.cells)
    for cell in grid.cells:
        assert cell.recipe.experiment_id == recipe.without(*cell.off).experiment_id


def test_a_toggle_inside_another_is_named(recipe: Recipe) -> None:
    """Without the term and its part there is no decay to set: two of eight cells are other cells."""
    grid = grid_of(recipe, ["ema", "align", "margin"], seeds=1)
    assert grid.nested == {"ema": ("align",)}
    assert {c.name: c.same_as for c in grid.cells if c.same_as} == {"-ema -align": "-align", "-ema -align -margin": "-align -margin"}
    assert {c.name for c in grid.cells if c.void} == {"-ema -align", "-ema -align -margin"} and grid.cell("-ema -align").void == {"ema": "align"}
    assert any("'ema given align'" in note for note in grid.notes)


def test_cells_that_meet_without_nesting_are_one_run(recipe: Recipe) -> None:
    """The margin in the attack and the margin in the loss, both off, are the margin off."""
    grid = grid_of(recipe, ["inner_margin", "outer_margin", "margin"], seeds=1)
    assert [(c.name, c.same_as) for c in grid.cells if c.same_as and not c.void] == [("-inner_margin -outer_margin", "-margin")]
    assert "-inner_margin -outer_margin is the same run as -margin" in grid.notes
    assert len(grid.distinct) == 4


@pytest.mark.parametrize("name,toggles", [("mart_ours", ("ema", "ema_matched", "align", "margin", "inner_margin", "kl", "miss")),
                                          ("mwpb_at", ("weighting", "half"))])
def test_cells_are_equal_where_the_plans_say_so(name: str, toggles: tuple[str, ...]) -> None:
    """The reference compares the plans of every pair, value by value."""
    recipe = load(name)
    cells = [recipe.without(*some) for size in (0, 1, 2) for some in combinations(toggles, size)]
    means = [look(cell)[0] for cell in cells]
    ids = [content(cell) for cell in cells]
    for one, two in combinations(range(len(cells)), 2):
        assert (ids[one] == ids[two]) == (means[one] == means[two]), (cells[one].off, cells[two].off)


@pytest.mark.parametrize("edit", [{"train.batch_size": 32}, {"train.lr.value": 0.04}, {"optim.momentum": 0.8}, {"threat.eps": 0.19}, {"model.use": "mlp"},
                                  {"select.n": 100}, {"evaluate.pgd-20.steps": 19}, {"terms.kl.weight": 4.0}, {"inner.x_adv.start": "zero"},
                                  {"outer.updates": ["x"]}, {"terms.align.weight": {"use": "linear", "points": [[0, 0.0], [20, 86.0]]}}])
def test_everything_that_reaches_a_run_is_a_difference(recipe: Recipe, edit: dict[str, object]) -> None:
    assert content(recipe.edit(set=edit)) != content(recipe)
    assert content(recipe.edit(set={"train.epochs": 20})) == content(recipe)      # what it is already


def test_a_part_that_nothing_reads_is_no_difference(recipe: Recipe) -> None:
    alone = recipe.edit(drop=["terms.align"])
    assert content(alone) == content(alone.edit(set={"parts.ema.decay": 0.9})) == content(recipe.without("align"))


def test_one_out_and_one_in(recipe: Recipe) -> None:
    out = grid_of(recipe, ["ema", "margin", "kl"], design="one-out", seeds=[4, 7])
    assert [c.name for c in out.cells] == ["full", "-ema", "-margin", "-kl"] and out.seeds == (4, 7)
    back = grid_of(recipe, ["ema", "margin", "kl"], design="one-in", seeds=1)
    assert [(c.name, c.off) for c in back.cells] == [("full", ()), ("none", ("ema", "margin", "kl")), ("+ema", ("margin", "kl")),
                                                     ("+margin", ("ema", "kl")), ("+kl", ("ema", "margin"))]
    assert back.base == "none"
    two = grid_of(recipe, ["ema", "margin"], design="one-in", seeds=1)
    assert {c.name: c.off for c in two.cells} == {"full": (), "none": ("ema", "margin"), "+ema": ("margin",), "+margin": ("ema",)}
    one = grid_of(recipe, ["ema"], design="one-in", seeds=1)
    assert {c.name for c in one.cells} == {"full", "none"}


def test_more_than_four_toggles_are_a_fraction(recipe: Recipe) -> None:
    toggles = ["ema", "boost", "kl", "inner_margin", "outer_margin", "attached"]
    grid = grid_of(recipe, toggles, seeds=2)
    assert (grid.design, grid.resolution, len(grid.cells)) == ("fractional", 4, 16) and grid.cells[0].name == "full"
    assert len(grid.aliases) == 15 and all(":" in name for name in grid.aliases)              # main effects are clear; all pairs are mixed
    assert any("16 of 64 cells, resolution IV" in note for note in grid.notes)
    assert any("not balanced" in note for note in grid.notes)                                  # attached is void inside kl
    assert len(grid_of(recipe, toggles, design="full", seeds=1).cells) == 64
    assert len(grid_of(recipe, toggles, design="fractional", resolution=5, seeds=1).cells) == 32


def test_toggles_with_a_matched_variant_are_noted(recipe: Recipe) -> None:
    assert any("ema also changes the weight" in n and "not in this grid" in n for n in grid_of(recipe, ["ema", "kl"], seeds=1).notes)
    assert not any("also changes the weight" in n for n in grid_of(recipe, ["kl", "margin"], seeds=1).notes)


def told(call: object) -> list[ComposerError]:
    with pytest.raises(ComposerError) as caught:
        call()              # type: ignore[operator]
    return caught.value.all


def test_unknown_toggles_and_designs_are_told_with_the_closest(recipe: Recipe) -> None:
    found = told(lambda: grid_of(recipe, ["emma", "margn"], seeds=1))
    assert ["'ema'" in found[0].fix, "'margin'" in found[1].fix] == [True, True]
    assert "one-out" in told(lambda: grid_of(recipe, ["ema"], design="one_out", seeds=1))[0].fix
    assert "no toggle is named" in told(lambda: grid_of(recipe, [], seeds=1))[0].what
    assert "off already" in told(lambda: grid_of(recipe.without("ema"), ["ema"], seeds=1))[0].what
    assert "--seeds" in told(lambda: grid_of(recipe, ["ema"], seeds=[1, 1]))[0].where


WRONG = """
    extends = "mart_ours.toml"

    [toggle]
    slow    = { set = { "parts.ema.decay" = 0.9 } }
    fast    = { set = { "parts.ema.decay" = 0.1 } }
    memory  = { drop = ["parts.ema"] }
    nothing = { set = { "parts.ema.decay" = 0.2 } }
"""


def test_everything_wrong_is_told_at_once_by_its_cell(tmp_path: Path) -> None:
    """A pair that contradicts itself, a part that is still needed, a dead toggle: each once, at the smallest cell that has it."""
    (tmp_path / "mine.toml").write_text(textwrap.dedent(WRONG))
    recipe = realise(assemble(tmp_path / "mine.toml", setting=None, sets=(), drops=(), root=None, known=known, errors=[]))[0]
    with pytest.raises(Errors) as caught:
        grid_of(recipe, ["slow", "fast", "memory", "nothing"], design="full", seeds=1)
    found = caught.value.all
    text = caught.value.text()
    clash = [e for e in found if "sets it to" in e.why]
    assert any("toggle.fast" in e.why and "in cell -slow -fast" in e.why for e in clash) and all("mine.toml:" in e.where for e in clash)
    assert any("in cell -memory" in e.why for e in found)
    assert "toggle 'nothing' changes nothing here" in text
    assert len({(e.where, e.what) for e in found}) == len(found)


def test_the_description_says_it_all(recipe: Recipe) -> None:
    grid = grid_of(recipe, ["ema", "align"], seeds=3)
    assert heading(grid) == "full design of ema, align: 4 cells, 3 different, 3 seeds (0, 1, 2), 9 runs"
    assert rows(grid)[3] == ("-ema -align", "without ema, align", "same run as -align; ema is void inside align")
    mixed = grid_of(recipe, ["kl", "ema", "margin", "boost"], design="fractional", seeds=1)
    assert alias_lines(mixed) == ["ema:boost = kl:margin", "ema:margin = kl:boost", "kl:ema = margin:boost"]
    from rich.console import Console

    for each, words in ((grid, ("ema is void inside align", "9 runs")), (mixed, ("cannot be told apart", "resolution IV", "kl:ema = margin:boost"))):
        console = Console(width=150, file=io.StringIO())
        console.print(*describe(each), sep="\n")
        assert all(word in console.file.getvalue() for word in words)      # type: ignore[attr-defined]
