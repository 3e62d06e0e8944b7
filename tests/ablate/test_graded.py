"""The graded measure beside the flags: where few images are judged, only there, and without a training step or an attack more than itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from composer.ablate.door import grid_for
from composer.ablate.graded import FEW, graded, graded_study
from composer.recipe.load import load
from composer.recipe.studies import load_study


def names(recipe) -> list[str]:
    return [m.name for m in recipe.evaluate.measures]


# -- where it is added ---------------------------------------------------------------------------------------------------------------


def test_an_ablation_on_the_digits_has_it_and_a_run_has_not() -> None:
    recipe = load("mart_ours")
    made, said = graded(recipe)
    assert names(recipe) == ["clean", "pgd-20", "aa"] and names(made) == ["clean", "pgd-20", "aa", "breaking_eps"]
    assert "aa is of 200 images" in said and "--set evaluate.use=quick leaves it out" in said and said in grid_for(recipe, ("ema",)).notes
    assert all(names(cell.recipe) == names(made) for cell in grid_for(recipe, ("ema", "margin")).cells)
    cells = grid_for(load("mart_ours", sets=["evaluate.use=quick"]), ("ema",)).cells
    assert all(names(cell.recipe) == names(recipe) for cell in cells)


@pytest.mark.parametrize("sets", [["evaluate.use=cheap"], ["evaluate.use=graded"], ["evaluate.use=standard"]])
def test_a_protocol_that_was_asked_for_stays_as_it_is(sets) -> None:
    recipe = load("mart_ours", sets=sets)
    assert graded(recipe) == (recipe, "")


def test_so_does_one_that_the_recipe_names(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text('extends = "mart_ours.toml"\n[evaluate]\nuse = "quick"\n')
    recipe = load(file)
    assert graded(recipe) == (recipe, "")


@pytest.mark.parametrize("setting", ["cifar10-resnet18", "mnist-mlp", "lma_at/cifar10-resnet18", "mwpb/svhn-resnet18"])
def test_large_test_sets_need_none(setting) -> None:
    recipe = load("mart_ours", setting=setting)
    assert graded(recipe) == (recipe, ""), "and no data is looked for: there is none here"


@pytest.mark.parametrize(("n", "setting", "sets", "added"), [
    (199, "digits", [], True), (5000, "digits", [], True),                                       # 360 images are there
    (999, "cifar10-tiny", [], True), (1000, "cifar10-tiny", [], False), (5000, "cifar10-tiny", ["data.test_size=999"], True)])
def test_few_is_below_a_thousand_images_that_the_primary_sees(n, setting, sets, added) -> None:
    made, said = graded(load("mart_ours", setting=setting, sets=[f"evaluate.aa.n={n}", *sets]))
    assert ("breaking_eps" in names(made)) == added == bool(said)
    assert FEW == 1000


def test_the_declared_primary_decides() -> None:
    recipe = load("mart_ours", setting="cifar10-tiny")                 # pgd-20 is of all 1,000
    assert graded(recipe, "pgd-20") == (recipe, "") and graded(recipe)[1]


def test_a_limit_for_all_measures_is_the_measures_own() -> None:
    assert graded(load("mart_ours"))[0].evaluate.measures[-1].n == FEW
    assert graded(load("mart_ours", sets=["evaluate.n=50"]))[0].evaluate.measures[-1].n == 50


def test_a_toggle_of_the_protocol_is_left_alone(recipe, tiny) -> None:
    of = load(recipe, setting=tiny, sets=["data.file=nowhere.npz"])
    few = of.edit(set={"evaluate.pgd-3.n": 10})
    assert graded(few, None, ("late",))[1] and graded(few, None, ("late", "strong")) == (few, "")


def test_studies_have_it_on_every_row_and_keep_their_own_choice(tmp_path: Path) -> None:
    (tmp_path / "studies").mkdir()
    file = tmp_path / "studies" / "two.toml"
    file.write_text('seeds = 2\n[cells]\nat = { recipe = "at" }\ntrades = { recipe = "trades", set = { "evaluate.use" = "cheap" } }\n')
    made = graded_study(load_study(file))
    assert [names(row.recipe)[-1] for row in made.rows] == ["breaking_eps", "pgd-20"] and len([n for n in made.notes if "breaking_eps" in n]) == 1
    assert [cell.recipe.evaluate.measures[-1].name for cell in grid_for(file).cells] == ["breaking_eps", "pgd-20"]
    tiny = load_study("tiny")
    assert graded_study(tiny) == tiny and all(names(row.recipe).count("breaking_eps") == 1 for row in tiny.rows)
    bench = replace(made, kind="bench", rows=load_study(file).rows)
    assert graded_study(bench) is bench


def test_the_size_that_a_data_set_declares_is_its_own() -> None:
    from composer.data.digits import TEST
    from composer.data.sets import load as loaded
    from composer.registry import REGISTRY

    assert len(loaded("digits", {}, "nowhere").test) == REGISTRY.get("data", "digits").flags["test"] == TEST
    for name in ("cifar10", "cifar100", "mnist", "fashion_mnist", "svhn", "tinyimagenet"):
        primitive = REGISTRY.get("data", name)
        assert f"{primitive.flags['test']:,}" in (primitive.fn.__doc__ or "") or name in ("cifar100",)


# -- what it costs -------------------------------------------------------------------------------------------------------------------


def test_neither_training_nor_finished_evaluations_know_of_it(recipe, tiny, drive, steps, tmp_path, monkeypatch) -> None:
    """The same store without the measure first, then with it: no step, no attack anew, the same numbers, and one column more."""
    from composer.ablate.door import grid_for
    from composer.engine.session import Settings
    from composer.evaluate import protocol

    without = drive(grid_for(recipe, ("late",), seeds=2, setting=tiny), tmp_path / "runs")
    first = without.run().as_dict()
    taken, ran, plain = len(steps), [], protocol.run_measure
    monkeypatch.setattr(protocol, "run_measure", lambda spec, *rest, **more: (ran.append(spec.use), plain(spec, *rest, **more))[1])
    it = drive(grid_for(recipe, ("late",), seeds=2, setting=tiny, settings=Settings()), tmp_path / "runs")
    assert {name: course.tokens for name, course in it.courses.items()} == {name: course.tokens for name, course in without.courses.items()}
    summary = it.run()
    assert len(steps) == taken and set(ran) == {"breaking_eps"}
    for old, new in zip(first["cells"], summary.as_dict()["cells"], strict=True):
        assert {m: new["metrics"][m]["values"] for m in old["metrics"]} == {m: r["values"] for m, r in old["metrics"].items()}
        assert 0 < new["metrics"]["breaking_eps"]["mean"] < 0.4 and new["metrics"]["breaking_eps"]["n"] == 2
    table = summary.tables[0]
    assert table.primary == "pgd-3" and table.metric("breaking_eps").unit == "pixels" and table.metric("breaking_eps").n == 24
    assert table.lines[1].delta["breaking_eps"]["ci_image"] and not any(row["metric"] == "breaking_eps" and row["in_family"] for row in table.effects)
    assert any("breaking_eps" in text for head, text in summary.footer if head == "note")
