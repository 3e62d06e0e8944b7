"""Real sweeps in this process, on a tiny network: what is looked at, what is kept, what goes on."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from composer.engine.run import run
from composer.engine.session import Session, Settings
from composer.errors import ComposerError, Stopped
from composer.recipe.load import load
from composer.search import loops, trial
from composer.search.options import SweepOptions
from composer.search.report import rich_table, show, text
from composer.search.store import Store
from composer.search.sweep import sweep

GRID = {"train.lr": {"choices": [0.02, 0.1]}, "train.batch_size": {"choices": [128, 256]}}


@pytest.fixture
def no_test_split(monkeypatch):
    """The test split raises whoever asks for it."""
    images = Session.images

    def held_out_only(self, split):
        assert split == "val", "the search looked at test images"
        return images(self, split)

    monkeypatch.setattr(Session, "images", held_out_only)


def test_a_sweep_end_to_end(recipe, options, no_test_split, monkeypatch):
    pytest.importorskip("optuna")
    pytest.importorskip("matplotlib")
    asked = options(trials=5, grace=1, eta=2.0, select=("clean", "pgd"))
    result = sweep(recipe, asked)
    folder = Path(result["out"])
    assert len(result["trials"]) == 5 and result["metric"] == "pgd" and result["rungs"] == [1] and result["stopped"] == ""
    done = [t for t in result["trials"] if t["status"] == "done"]
    assert done and {t["status"] for t in result["trials"]} <= {"done", "pruned"} and all(t["epochs"] == 1 for t in result["trials"] if t["status"] == "pruned")
    for selector in ("clean", "pgd"):
        best = result["winners"][selector]
        assert best["score"] == max(t["metrics"][selector] for t in done)
        assert load(best["file"]).experiment_id == recipe.edit(set=best["values"]).experiment_id
    header = (folder / "best.toml").read_text()
    assert "by pgd" in header and "5 trials" in header and "TPE, seed 0" in header and "fresh seeds" in header
    rows = list(csv.DictReader((folder / "trials.csv").open()))
    assert [r["trial"] for r in rows] == list("01234") and float(rows[0]["train.lr"]) == result["trials"][0]["values"]["train.lr"]
    assert (folder / "plots" / "parallel.png").stat().st_size > 5000 and (folder / "plots" / "parallel.svg").exists()
    assert json.loads((folder / "results.json").read_text())["winners"] == json.loads(json.dumps(result["winners"])) and show(asked.settings.out) == json.loads(
        (folder / "results.json").read_text())
    assert "best by" in text(result) and rich_table(result) is not None
    monkeypatch.setattr(loops, "train", lambda *_: pytest.fail("a finished sweep trained again"))
    again = sweep(recipe, asked)
    assert again["winners"] == result["winners"] and again["trials"] == result["trials"]


def test_the_winner_is_not_trained_again(recipe, options, tmp_path):
    """Its recipe's run finds the trial's nodes, and the trial's accuracies are those of its validation."""
    result = sweep(recipe, options(grid=True, jobs=0), space={"train.lr": {"choices": [0.05]}})
    best, only = load(result["best"]), result["trials"][0]
    nodes = {p.name: (p / "done").stat().st_mtime_ns for p in (tmp_path / "runs" / "nodes").iterdir()}
    found = run(best, seed=0, settings=Settings(out=tmp_path / "runs", quiet=True, track=False))
    assert {p.name: (p / "done").stat().st_mtime_ns for p in (tmp_path / "runs" / "nodes").iterdir()} == nodes, "nothing was trained"
    rows = [json.loads(line) for line in (tmp_path / "runs" / "experiments" / found["run"] / "metrics.jsonl").read_text().splitlines()]
    chosen = next(r for r in rows if r["epoch"] == found["selected_epoch"])
    assert only["metrics"] == {"clean": chosen["val/clean"], "pgd": chosen["val/pgd"]} and only["selected_epoch"] == found["selected_epoch"]


def test_a_killed_grid_goes_on_and_ends_as_an_undisturbed_one(recipe, options, tmp_path, monkeypatch):
    whole = sweep(recipe, options(grid=True, settings=Settings(out=tmp_path / "whole", quiet=True, track=False)), space=GRID)
    asked, tell = options(grid=True), trial.TrialRunner.tell
    seen = []

    def dies(self, epoch, metrics):
        seen.append((self.work.number, epoch))
        if seen.count((2, 1)) == 1 and seen[-1] == (2, 1):
            raise Stopped("stopped by SIGTERM")
        return tell(self, epoch, metrics)

    monkeypatch.setattr(trial.TrialRunner, "tell", dies)
    with pytest.raises(Stopped):
        sweep(recipe, asked, space=GRID)
    result = sweep(recipe, asked, space=GRID)
    alike = ("number", "status", "values", "epochs", "metrics", "selected_epoch")
    assert [{k: t[k] for k in alike} for t in result["trials"]] == [{k: t[k] for k in alike} for t in whole["trials"]]
    assert not {(0, 1), (1, 1)} & set(seen[seen.index((2, 1)) + 1:]), "finished trials were touched again"


def test_further_selectors_are_measured_on_held_out_images(recipe, options, no_test_split):
    result = sweep(recipe, options(grid=True, select=("clean", "fgsm")), space={"train.lr": {"choices": [0.02, 0.1]}})
    assert all(set(t["metrics"]) == {"clean", "pgd", "fgsm"} for t in result["trials"])
    fgsm = [t["metrics"]["fgsm"] for t in result["trials"]]
    assert result["winners"]["fgsm"]["trial"] == fgsm.index(max(fgsm)) and (Path(result["out"]) / "best-fgsm.toml").exists()


def test_trials_that_cannot_be_are_told_and_end_nothing(recipe, options):
    result = sweep(recipe, options(grid=True), space={"train.lr": {"choices": [0.05, 1e9]}})
    good, bad = result["trials"]
    assert good["status"] == "done" and bad["status"] == "diverged" and "not finite" in bad["why"] and result["winners"]["pgd"]["trial"] == 0
    with pytest.raises(ComposerError, match="no trial") as caught:
        sweep(recipe, options(grid=True), space={"train.lr": {"choices": [1e9]}})
    assert caught.value.exit_code == 3 and "diverged" in caught.value.why


def test_a_sweep_keeps_its_threads_and_says_so(recipe, options, monkeypatch):
    space, said = {"train.lr": {"choices": [0.05]}}, []
    sweep(recipe, options(grid=True, name="t"), space=space)
    sweep(recipe, options(grid=True, name="t", threads=2, say=said.append), space=space)
    assert [text for text in said if "threads" in text] == ["trials have 1 threads, as the sweep was begun, not 2: --fresh or another --name begins anew"]
    assert json.loads((options().settings.out / "sweeps" / "t" / "sweep.json").read_text())["threads"] == 1


def test_a_cluster_too_small_for_a_sweep_names_what_helps(recipe, options, tmp_path, monkeypatch):
    """Fewer --threads alone would change nothing: the sweep keeps its own."""
    ray = pytest.importorskip("ray")
    from contextlib import nullcontext

    from composer.ablate import launch_ray
    from composer.search import on_ray

    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 2}}])
    monkeypatch.setattr(launch_ray, "JOIN", 0.0)
    monkeypatch.setattr(on_ray, "cluster", lambda *_: nullcontext())
    monkeypatch.setattr(on_ray, "Pulse", lambda ray: SimpleNamespace(why=lambda now=False: ""))          # the real one would start a Ray
    with pytest.raises(ComposerError, match="each needs 64 cores") as caught:
        sweep(recipe, options(grid=True, address="there", threads=64), space={"train.lr": {"choices": [0.05]}})
    assert "--fresh" in caught.value.fix and "--threads lower than 64" in caught.value.fix


def test_a_budget_leaves_trials_for_the_next_sitting(recipe, options):
    asked = options(grid=True, name="b")
    short = sweep(recipe, SweepOptions(**{**vars(asked), "budget": 1e-6}), space=GRID)
    assert short["stopped"] == "time budget" and short["best"] == "" and short["winners"] == {}
    assert len(sweep(recipe, asked, space=GRID)["winners"]) == 1


@pytest.mark.parametrize(("changes", "what"), [
    ({"metric": "aa"}, "--metric"), ({"metric": "trace-test/pgd"}, "--metric"), ({"select": ("clena",)}, "clena"), ({"trials": 0}, "--trials"),
    ({"name": "../x"}, "--name"), ({"eta": 1.0}, "--eta")])
def test_wrong_requests_are_told_before_anything_runs(recipe, options, changes, what):
    with pytest.raises(ComposerError, match=what):
        sweep(recipe, options(**changes))


def test_without_held_out_images_there_is_no_search(tiny, options):
    recipe = load(tiny, sets=["select.held_out=0", "select.report=last"], drops=["select.attack"])
    with pytest.raises(ComposerError, match="held-out"):
        sweep(recipe, options())


def test_a_value_that_the_recipe_refuses_is_told_first(recipe, options):
    with pytest.raises(ComposerError, match="cannot be"):
        sweep(recipe, options(grid=True), space={"train.batch_size": {"choices": [64, "many"]}})


def test_another_sweep_of_the_same_name_is_refused(recipe, options):
    Store(options().settings.out, "n").begin({"seed": 0, "metric": "clean", "space": {}})
    with pytest.raises(ComposerError, match="another one"):
        sweep(recipe, options(grid=True, name="n"))


@pytest.mark.parametrize("gone", ["ray", "optuna"])
def test_a_missing_library_is_told_with_the_command(recipe, options, gone, monkeypatch):
    monkeypatch.setattr("composer.search.options.installed", lambda name: name != gone)
    with pytest.raises(ComposerError, match=f"needs {gone}") as caught:
        sweep(recipe, options())
    assert "pip install" in caught.value.fix
