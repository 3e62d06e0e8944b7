"""Accuracy at equal cost, from curves whose passes and accuracies are known."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from composer.ablate.summary import budget
from composer.ablate.summary.types import Table
from composer.ablate.types import Cell
from composer.recipe.load import load
from composer.report.ablation.sheets import equal_cost

STEPS = 7


@pytest.fixture(scope="module")
def recipes():
    at = load("at", setting="digits", sets=["train.epochs=6"])
    cheap = at.edit(set={"threat.steps": 2}, name="cheap")
    return {"cheap": cheap, "dear": at.edit(set={"threat.steps": 5}, name="dear"), "same": cheap.edit(set={"optim.weight_decay": 0.0}, name="same")}


@pytest.fixture
def made(recipes, tmp_path):
    """made("cheap", "dear"): cells with two seeds; accuracy is epoch / 100 for the cheap ones, 2·epoch/100 for the dear one, and 0.001 a seed."""
    def make(*names, attack="val/pgd", **more):
        from composer.plan.cost import plan_cost
        from composer.plan.whole import plans_of

        cells, found = {}, {}
        for name in names:
            recipe = recipes[name]
            cells[name], found[name] = Cell(name, recipe), {}
            units = plan_cost(plans_of(recipe)[0][1]).at(10).units
            for seed in (0, 1):
                run = f"{name}-s{seed}"
                folder = tmp_path / "experiments" / run
                folder.mkdir(parents=True, exist_ok=True)
                rows = [{"epoch": e, "step": e * STEPS, attack: (2 if name == "dear" else 1) * e / 100 + seed / 1000} for e in range(1, 7)]
                (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
                found[name][seed] = {"run": run, "classes": 10, "epochs": 6, "passes": {"forward": units * STEPS * 6}} | more
        return budget.budget_of(cells, found, tmp_path), {n: plan_cost(plans_of(recipes[n])[0][1]).at(10).units for n in names}
    return make


def test_the_dear_cell_is_read_where_the_cheap_one_ends(made) -> None:
    found, units = made("dear", "cheap")
    epoch = 6 * units["cheap"] // units["dear"]
    assert 1 <= epoch < 6 and found["of"] == "cheap" and found["passes"] == 6 * STEPS * units["cheap"] and found["metric"] == "pgd"
    rows = {row["name"]: row for row in found["rows"]}
    assert rows["cheap"]["epoch"] == 6 and rows["cheap"]["at"] == rows["cheap"]["end"] and rows["cheap"]["delta"] is None
    assert rows["dear"]["epoch"] == epoch and rows["dear"]["at"]["mean"] == pytest.approx(2 * epoch / 100 + 0.0005)
    assert rows["dear"]["end"]["mean"] == pytest.approx(0.1205)
    assert rows["dear"]["delta"]["mean"] == pytest.approx(2 * epoch / 100 - 0.06) and rows["dear"]["delta"]["n"] == 2
    assert rows["dear"]["passes"] > found["passes"] >= epoch * STEPS * units["dear"]


def test_cells_of_one_cost_say_nothing(made) -> None:
    assert made("cheap", "same")[0] == {}


def test_what_cannot_be_known_says_why(made) -> None:
    assert {row["why"] for row in made("dear", "cheap", attack="val/other")[0]["rows"]} == {"no validation kept"}
    assert made("dear", "cheap", passes={"forward": 12345})[0] == {}, "a record that adds up to another sum is not believed"
    assert made("dear", "cheap", attack="trace-test/pgd")[0]["rows"][0]["at"] is None, "what was measured on test images is not read"


def test_the_sheet_names_split_and_epoch(made) -> None:
    found, _ = made("dear", "cheap")
    sheet = equal_cost(Table("", "best", (), "pgd-20", "cheap", (), budget=found))
    text = " ".join(cell.text for row in sheet.rows for cell in row)
    assert "of 6" in text and "6 of 6" in text and any("held-out" in note for note in sheet.notes) and any("train.epochs" in note for note in sheet.notes)
    assert equal_cost(SimpleNamespace(budget={})) is None
