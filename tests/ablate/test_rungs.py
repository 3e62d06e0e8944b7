"""Sweep rows whose points are dropped at rungs: who goes on, what is trained, and that it is neither trained nor decided twice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from composer.ablate.rungs import Ladders, record_file
from composer.errors import Stopped

LR = (0.1, 0.06, 0.02, 0.01, 0.001)
ROW = """
recipe = "at"
seeds  = 2
[cells.plain]
[cells.row]
kind   = "sweep"
select = ["clean", "pgd-3"]
rungs  = [1, 2, 4]
keep   = 3
grid   = {{ "train.lr.value" = [{lr}] }}
"""


@pytest.fixture
def study(tmp_path: Path, tiny: str):
    """study(text) -> the grid of a study on the bench, four epochs long."""
    from composer.ablate.door import grid_for

    def make(text: str = "", *sets: str, **more):
        path = tmp_path / "rungs.toml"
        path.write_text(text or ROW.format(lr=", ".join(map(str, LR))))
        return grid_for(path, setting=tiny, sets=["train.epochs=4", *sets], **more)

    return make


def scores(it, epoch: int) -> dict[str, float]:
    """Means over the seeds, read from the files."""
    found = {}
    for k in range(1, len(LR) + 1):
        files = [record_file(it.folder, f"row#{k}", seed, epoch) for seed in it.grid.seeds]
        rows = [json.loads(f.read_text())["metrics"]["pgd-3"] for f in files if f.exists()]
        found |= {f"row#{k}": sum(rows) / len(rows)} if rows else {}
    return found


def best(found: dict[str, float], count: int) -> set[str]:
    return set(sorted(found, key=lambda name: (-found[name], int(name.partition("#")[2])))[:count])


def test_epochs_trained_are_those_of_the_points_that_go_on(study, drive, tmp_path, steps, helpers) -> None:
    """Five points to epoch 1, the best three to epoch 2, two of them (three fifths of three) to the end; a plain cell beside them; two seeds."""
    it = drive(study(), tmp_path / "runs")
    assert len(it.grid.distinct) == 6 and it.tree.trained == 24, "before anything is known, nothing is dropped"
    found = it.run()
    first, second = scores(it, 1), scores(it, 2)
    assert set(first) == {f"row#{k}" for k in range(1, 6)} and set(second) == best(first, 3)
    ends = best(second, 2)
    per_seed = 4 + 5 * 1 + 3 * 1 + 2 * 2
    assert helpers.epochs_of(steps) == 2 * per_seed == found.epochs_trained
    assert set(it.ladders.dropped) == set(first) - ends
    results = {path.parent.name for path in (tmp_path / "runs" / "experiments").glob("*/result.json")}
    assert len(results) == 2 * 3, "a point that was dropped is not judged on test images"
    lines = {line.name: line for line in found.tables[0].lines}
    assert set(lines) == {"plain", "row [by clean]", "row [by pgd-3]"}
    names = {c.recipe.experiment_id: c.name for c in it.grid.cells}
    assert all(names[lines[f"row [by {s}]"].experiment_id] in ends for s in ("clean", "pgd-3")), "winners are among those trained to the end"


def test_the_dry_run_plans_the_drops_and_the_table_names_them(study, drive, tmp_path) -> None:
    from composer.ablate.preview import preview, renderables
    from composer.report.ablation.markdown import markdown

    it = drive(study(), tmp_path / "runs")
    numbers = preview(it)
    assert (numbers["epochs_trained"], numbers["epochs_planned"], numbers["epochs_left"], numbers["missing"]) == (48, 32, 32, 12)
    text = " ".join(map(str, renderables(it, numbers)))
    assert "at most 32 epochs are planned" in text and "48 epochs if nothing more were dropped" in text
    found = it.run()
    again = preview(drive(study(), tmp_path / "runs"))
    assert (again["epochs_planned"], again["epochs_left"], again["missing"]) == (32, 0, 0) and set(again["dropped"]) == set(it.ladders.dropped)
    said = [text for head, text in found.footer if head == "dropped"]
    assert len(said) == 2 and "after epoch 1 the best 3 of 5 by pgd-3" in said[0] and "after epoch 2 the best 2 of 3" in said[1] and "mean of 2 seeds" in said[0]
    for name, drop in it.ladders.dropped.items():
        assert name.removeprefix("row") in said[0 if drop.epoch == 1 else 1] or "–" in said[0]
    sweep = found.as_dict()["sweeps"][0]
    assert [p["dropped"] for p in sweep["points"]] == [d.epoch if (d := it.ladders.dropped.get(p["cell"])) else None for p in sweep["points"]]
    assert all(p["scores"]["1"] == pytest.approx(scores(it, 1)[p["cell"]]) and p["values"] for p in sweep["points"])
    assert "dropped" in markdown(found)


def test_dropping_changes_no_bit_of_those_that_go_on(study, drive, tmp_path, helpers) -> None:
    it = drive(study(seeds=1), tmp_path / "runs")
    it.run()
    whole = study(seeds=1)
    rows = {c.name: replace(c, row=replace(c.row, rungs=(), keep=None)) for c in whole.cells if c.row.kind == "sweep"}
    other = drive(replace(whole, cells=tuple(rows.get(c.name, c) for c in whole.cells)), tmp_path / "whole")
    other.run()
    some, every = helpers.digests(tmp_path / "runs"), helpers.digests(tmp_path / "whole")
    assert len(some) == 3 and len(every) == 6 and all(every[run] == digest for run, digest in some.items())


def test_the_same_command_again_trains_nothing(study, drive, tmp_path, steps, helpers) -> None:
    first = drive(study(), tmp_path / "runs").run()
    steps.clear()
    again = drive(study(), tmp_path / "runs")
    assert again.tree.trained == first.epochs_trained // 2
    assert helpers.timeless(again.run().as_dict()) == helpers.timeless(first.as_dict()) and not steps


@pytest.mark.parametrize("kills", [1, 7, 12, 20])
def test_a_stop_anywhere_loses_nothing(study, drive, tmp_path, steps, helpers, monkeypatch, kills) -> None:
    """Stopped in the middle of a rung or behind it, the same command goes on; no epoch is trained twice, no choice differs."""
    from composer.engine.walk import Walk

    whole = drive(study(), tmp_path / "whole")
    whole.run()
    steps.clear()
    plain, left = Walk.stop_asked, [kills * helpers.STEPS]

    def stop_asked(self):
        left[0] -= 1
        return "SIGTERM" if left[0] == 0 else plain(self)

    monkeypatch.setattr(Walk, "stop_asked", stop_asked)
    it = drive(study(), tmp_path / "runs")
    with pytest.raises(Stopped):
        it.run()
    second = drive(study(), tmp_path / "runs")
    second.run()
    assert helpers.epochs_of(steps) == second.tree.trained * 2 and set(second.ladders.dropped) == set(whole.ladders.dropped)
    assert helpers.digests(tmp_path / "runs") == helpers.digests(tmp_path / "whole")


def test_more_places_take_dropped_points_up_again(study, drive, tmp_path, steps, helpers) -> None:
    drive(study(seeds=1), tmp_path / "runs").run()
    steps.clear()
    more = drive(study(ROW.format(lr=", ".join(map(str, LR))).replace("keep   = 3", "keep   = 4"), seeds=1), tmp_path / "runs")
    before = helpers.epochs_of(steps)
    more.run()
    # four to epoch 2 and three (four fifths of four) to the end: one point from 1 to 2, one from 2 to 4
    assert before == 0 and helpers.epochs_of(steps) == 3 and len(more.ladders.dropped) == 2


def test_without_sharing_too(study, drive, tmp_path, steps, helpers) -> None:
    it = drive(study(seeds=1), tmp_path / "runs", share=False)
    it.run()
    assert helpers.epochs_of(steps) == it.tree.trained == 16


def test_points_share_their_first_epochs_on_the_way_to_a_rung(study, drive, tmp_path, steps, helpers) -> None:
    """Weights of a term that begins with the third epoch: two epochs are common, and are trained once."""
    text = ROW.replace('recipe = "at"', 'recipe = "at"\nput = {{ "terms.mae" = {{ weight = 0.5, begin = 2 }} }}').replace("rungs  = [1, 2, 4]", "rungs  = [3, 4]")
    text = text.replace("train.lr.value", "terms.mae.weight").replace("seeds  = 2", "seeds  = 1").format(lr="0.5, 1.0, 2.0")
    it = drive(study(text.replace("keep   = 3", "keep   = 1")), tmp_path / "runs")
    it.run()
    # the first point is the plain cell: 2 common epochs, then 1 each of three points, then the plain cell's and the winner's last
    winner = next(name for name in it.ladders.all[0].sources if name not in it.ladders.all[0].dropped)
    assert helpers.epochs_of(steps) == it.tree.trained == 2 + 3 + (1 if winner == "plain" else 2)


# -- who goes on, without training ---------------------------------------------------------------------------------------------------


@pytest.fixture
def ladders(study, drive, tmp_path):
    """The grid's ladders, and a way to say what a point had at a rung."""
    it = drive(study(), tmp_path / "runs")

    def say(epoch: int, **values: float) -> None:
        for name, value in values.items():
            for seed in it.grid.seeds:
                file = record_file(it.folder, name.replace("_", "#"), seed, epoch)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps({"key": it.ladders.key(name.replace("_", "#"), epoch), "metrics": {"pgd-3": value, "clean": 1 - value}}))

    return Ladders(it.grid, it.courses, it.folder), say


def test_equal_points_go_on_in_their_order(ladders) -> None:
    of, say = ladders
    say(1, row_1=0.2, row_2=0.3, row_3=0.2, row_4=0.2, row_5=0.1)
    of.settle({}, {})
    assert set(of.dropped) == {"row#4", "row#5"} and of.settled == 1 and of.wanted(1) == {"row#1": 2, "row#2": 2, "row#3": 2}
    assert of.dropped["row#4"].place == 4 and of.dropped["row#4"].keep == 3


def test_nothing_is_decided_before_every_point_is_judged(ladders) -> None:
    of, say = ladders
    say(1, row_1=0.2, row_2=0.3, row_3=0.2, row_4=0.2)
    of.settle({}, {})
    assert not of.dropped and of.settled == 0


def test_a_run_that_diverged_counts_as_nothing_and_one_that_crashed_does_not_count(ladders) -> None:
    of, say = ladders
    say(1, row_1=0.2, row_2=0.3, row_3=0.2, row_4=0.25)
    lost = {("row#5", seed): SimpleNamespace(diverged=True) for seed in (0, 1)}
    of.settle({}, lost)
    assert set(of.dropped) == {"row#3", "row#5"}
    crashed = {("row#5", seed): SimpleNamespace(diverged=False) for seed in (0, 1)}
    of.settle({}, crashed)
    assert set(of.dropped) == {"row#3"}, "four were judged, three go on"


def test_records_of_other_weights_say_nothing(ladders) -> None:
    of, say = ladders
    say(1, row_1=0.2, row_2=0.3, row_3=0.2, row_4=0.25, row_5=0.9)
    path = of.record("row#5", 0, 1)
    path.write_text(json.dumps({**json.loads(path.read_text()), "key": "another"}))
    of.settle({}, {})
    assert not of.dropped


def test_epochs_that_are_planned(ladders) -> None:
    """An upper bound first: 4 + 5·1 + 3·1 + 2·2; less, never more, as rungs are decided."""
    of, say = ladders
    assert sum(of.sure().values()) + of.beyond() == 4 + 5 + 3 + 4
    say(1, row_1=0.2, row_2=0.3, row_3=0.2, row_4=0.2, row_5=0.1)
    of.settle({}, {})
    assert sum(of.sure().values()) + of.beyond() == 4 + 5 + 3 + 4
    say(2, row_1=0.2, row_2=0.3, row_3=0.1)
    of.settle({}, {})
    assert of.settled == 2 and sum(of.sure().values()) == 16 and of.beyond() == 0
