"""Grids run on the bench in this process: what is trained, what is shared, what comes back a second time, and what fails alone."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from composer.errors import ComposerError, Stopped

TWO = ("late", "mean")


# -- sharing -------------------------------------------------------------------------------------------------------------------------


def test_a_grid_trains_what_its_tree_says(two, helpers) -> None:
    assert two.drive.tree.trained == 7 and helpers.epochs_of(two.steps) == 2 * 7 and helpers.by_seed(two.steps) == {0: 7 * 3, 1: 7 * 3}
    assert (two.summary.epochs_trained, two.summary.epochs_unshared) == (14, 32)
    found = two.summary.as_dict()
    assert [c["name"] for c in found["cells"]] == ["full", "-late", "-mean", "-late -mean"] and found["failed"] == []
    assert all(len(c["runs"]) == 2 for c in found["cells"])


def test_shared_epochs_change_no_bit(two, grid, drive, tmp_path, helpers, steps) -> None:
    alone = drive(grid(*TWO, seeds=2), tmp_path / "alone", share=False).run()
    assert helpers.epochs_of(steps) == 32 and alone.epochs_trained == alone.epochs_unshared == 32
    assert {run: sha for run, (_, sha) in helpers.digests(tmp_path / "alone").items()} == {run: sha for run, (_, sha) in helpers.digests(two.out).items()}
    assert len(helpers.digests(two.out)) == 8
    for mine, theirs in zip(two.summary.as_dict()["cells"], alone.as_dict()["cells"], strict=True):
        assert mine["metrics"] == theirs["metrics"] and mine["delta"] == theirs["delta"]


def test_a_grid_that_shares_nothing_is_a_result_of_its_own(two, grid, drive, steps, helpers) -> None:
    """In one store: what the shared runs have is neither shown nor written over, and the bits are compared."""
    shared = helpers.results(two.out, two.summary.study)
    before = {p: p.read_bytes() for p in sorted(two.out.glob("experiments/*/result.json"))}
    it = drive(grid(*TWO, seeds=1), two.out, share=False)
    alone = it.run()
    assert helpers.epochs_of(steps) == 16 and alone.study.endswith("-alone") and helpers.results(two.out, two.summary.study) == shared
    assert all(p.read_bytes() == text for p, text in before.items())
    runs = {r["run"]: r["weights_sha256"] for c in alone.as_dict()["cells"] for r in c["runs"]}
    mine = {r["run"] + "-fp32-alone": r["weights_sha256"] for c in two.summary.as_dict()["cells"] for r in c["runs"] if r["seed"] == 0}
    assert len(runs) == 4 and runs == mine
    steps.clear()
    drive(grid(*TWO, seeds=1), two.out, share=False).run()
    assert not steps


def test_a_passive_part_does_not_part_runs(grid, drive, tmp_path, steps, helpers) -> None:
    """Two averages with other decays and none, judged at the end: nothing but the judging differs."""
    sets = ["select.held_out=0", "select.report='last'", "select.from='last_phase'"]
    it = drive(grid("slow", "mean", sets=sets), tmp_path / "runs")
    it.run()
    assert it.tree.trained == 4 and len(steps) == 4 * 4, "without held-out images an epoch has four steps"
    steps.clear()
    drive(grid("slow", "mean", sets=sets), tmp_path / "alone", share=False).run()
    assert len(steps) == 3 * 4 * 4, "-slow -mean is the same run as -mean"
    shared, alone = helpers.digests(tmp_path / "runs"), helpers.digests(tmp_path / "alone")
    assert {k: v[1] for k, v in shared.items()} == {k: v[1] for k, v in alone.items()} and len({sha for _, sha in shared.values()}) == 3


def test_one_seed_gives_every_cell_the_same_draws(grid, as_found, tmp_path, monkeypatch) -> None:
    """Initial weights, batches, augmented images and the attack's start, whatever is toggled; another seed has others."""
    from composer.engine.prefix import train_prefix
    from composer.engine.session import Settings
    from composer.engine.step import Executor
    from composer.engine.streams import Streams

    seen: dict[tuple[str, int], dict] = {}
    forward, draw = Executor.forward, Streams.draw
    at = {}

    def forward_(self, roots, step):
        cell = at["cell"] = seen.setdefault((at["run"], step), {})
        cell["x"], cell["y"], cell["i"] = roots["x"].clone(), roots["y"].clone(), roots["i"].clone()
        if step == 0:
            cell["init"] = {k: v.clone() for k, v in self.net.model.state_dict().items()}
        return forward(self, roots, step)

    def draw_(self, kind, path, step, like):
        got = draw(self, kind, path, step, like)
        if "cell" in at and path.startswith("inner."):
            at["cell"].setdefault(path, []).append(got.clone())
        return got

    monkeypatch.setattr(Executor, "forward", forward_)
    monkeypatch.setattr(Streams, "draw", draw_)
    chosen = grid("late", "mean", "start", design="one-out", seeds=2)
    for cell in chosen.distinct:
        for seed in (0, 1):
            at.clear()
            at["run"] = (cell.name, seed)
            train_prefix(cell.recipe, seed=seed, until=4, settings=Settings(out=tmp_path / cell.name / str(seed), track=False, quiet=True, device="cpu"))
    names, steps = [c.name for c in chosen.distinct], range(12)
    assert len(names) == 4 and len(seen) == 4 * 2 * 12
    for seed in (0, 1):
        for step in steps:
            first = seen[("full", seed), step]
            assert any(key.startswith("inner.") for key in first)
            for name in names[1:]:
                each = seen[(name, seed), step]
                for key in ("x", "y", "i", *([k for k in first if k.startswith("inner.")] if "-start" not in name else [])):
                    same = all(map(_equal, first[key], each[key])) if isinstance(first[key], list) else _equal(first[key], each[key])
                    assert same, (name, seed, step, key)
                if step == 0:
                    assert all(_equal(v, each["init"][k]) for k, v in first["init"].items())
    assert not any(_equal(seen[("full", 0), s]["x"], seen[("full", 1), s]["x"]) for s in steps)
    start = next(k for k in seen[("full", 0), 0] if k.startswith("inner."))
    assert not _equal(seen[("full", 0), 0][start][0], seen[("full", 1), 0][start][0])


def _equal(a, b) -> bool:
    return a.shape == b.shape and bool((a == b).all())


# -- again ---------------------------------------------------------------------------------------------------------------------------


def test_a_second_call_trains_nothing(two, grid, drive, steps, helpers) -> None:
    folder = two.out / "studies" / two.summary.study
    held = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    for _ in range(2):                                          # the first call in the copied store notes its new place
        again = drive(grid(*TWO, seeds=2), two.out).run()
        assert not steps and helpers.timeless(again.as_dict()) == helpers.timeless(two.summary.as_dict()) and again.seconds == two.summary.seconds
    for name in ("table.md", "table.tex", "table.csv", "effects.csv", "diverged.json"):
        assert (folder / name).read_bytes() == held[folder / name], name


def test_a_second_call_writes_nothing_anew(two, grid, drive, monkeypatch) -> None:
    from composer.report.ablation import write

    drive(grid(*TWO, seeds=2), two.out).run()
    monkeypatch.setattr(write, "write_all", lambda *_, **__: pytest.fail("tables were there"))
    drive(grid(*TWO, seeds=2), two.out).run()


def test_lost_tables_are_written_again(two, grid, drive, steps) -> None:
    folder = two.out / "studies" / two.summary.study
    drive(grid(*TWO, seeds=2), two.out).run()
    for name in ("results.json", "report.html"):
        (folder / name).unlink()
        drive(grid(*TWO, seeds=2), two.out).run()
        assert (folder / name).exists() and not steps


def test_a_seed_more_trains_that_seed(two, grid, drive, steps, helpers) -> None:
    more = drive(grid(*TWO, seeds=[0, 1, 5]), two.out).run()
    assert helpers.by_seed(steps) == {5: 7 * 3} and all(len(c["runs"]) == 3 for c in more.as_dict()["cells"])


def test_a_cell_more_trains_that_cell_from_the_fork_on(two, grid, drive, steps, helpers) -> None:
    """Forks keep their checkpoints, so an extension finds them."""
    drive(grid(*TWO, "heavy", seeds=1), two.out).run()
    assert helpers.epochs_of(steps) == 2 and {epoch for *_, epoch in steps} == {4}, "-heavy and -heavy -mean, from the common fork on"


def test_a_smaller_grid_takes_what_is_there(two, grid, drive, steps) -> None:
    drive(grid("late", seeds=1), two.out).run()
    assert not steps


def test_the_threads_of_a_study_stay(grid, drive, tmp_path, steps) -> None:
    drive(grid("late"), tmp_path / "runs", threads=1).run()
    steps.clear()
    again = drive(grid("late"), tmp_path / "runs", threads=0, jobs=0)
    assert again.threads == 1
    again.run()
    assert not steps


def test_this_process_keeps_its_threads(grid, drive, tmp_path) -> None:
    import torch

    torch.set_num_threads(1)
    it = drive(grid("late"), tmp_path / "runs", threads=2)
    assert torch.get_num_threads() == 1
    from composer.engine.session import Session

    assert Session(it.grid.cells[0].recipe, 0, it.options.settings).nodes[-1].key != it.courses["full"].key, "threads are in the key"


# -- what fails ----------------------------------------------------------------------------------------------------------------------


def test_a_run_that_diverges_is_an_outcome(grid, drive, tmp_path, steps, helpers) -> None:
    it = drive(grid("late", "wild", seeds=1), tmp_path / "runs")
    found = it.run().as_dict()
    assert [(f["name"], f["seed"], f["diverged"], f["exit_code"]) for f in found["failed"]] == [("-wild", 0, True, 3), ("-late -wild", 0, True, 3)]
    assert {c["name"]: len(c["runs"]) for c in found["cells"]} == {"full": 1, "-late": 1, "-wild": 0, "-late -wild": 0}
    steps.clear()
    second = drive(grid("late", "wild", seeds=1), tmp_path / "runs").run().as_dict()
    assert not steps and second["failed"] == found["failed"]
    drive(grid("late", "wild", seeds=1), tmp_path / "runs", again=True).run()
    assert steps, "--again tries it once more"


def test_a_prefix_that_diverges_takes_its_cells_with_it_and_no_others(grid, drive, tmp_path, helpers) -> None:
    """-wild and -late -wild share their first epochs, which diverge: the task of the prefix is theirs alone."""
    it = drive(grid("late", "wild"), tmp_path / "runs")
    tasks = it.tasks(set())
    prefix = next(t for t in tasks if t.kind == "prefix" and "-wild" in t.id)
    assert {t.cell for t in tasks if t.after == prefix.id} == {"-wild", "-late -wild"}
    found = it.run().as_dict()
    assert all("failed" in f["why"] and prefix.title in f["why"] for f in found["failed"])


def test_a_cell_that_raises_loses_nothing_else(grid, drive, tmp_path, monkeypatch, steps, helpers) -> None:
    from composer.engine import run as engine

    plain = engine.judge

    def judge(session, *args, **more):
        if not any(term.id == "mae" for term in session.recipe.method.terms):
            raise OSError("the disk is on fire")
        return plain(session, *args, **more)

    monkeypatch.setattr(engine, "judge", judge)
    first = drive(grid(*TWO), tmp_path / "runs").run().as_dict()
    assert [(f["name"], f["diverged"]) for f in first["failed"]] == [("-late", False), ("-late -mean", False)] and "the disk is on fire" in first["failed"][0]["why"]
    assert json.loads((tmp_path / "runs" / "studies" / first["study"] / "failed.json").read_text()) == first["failed"]
    assert helpers.epochs_of(steps) == 7
    monkeypatch.setattr(engine, "judge", plain)
    steps.clear()
    second = drive(grid(*TWO), tmp_path / "runs").run().as_dict()
    assert second["failed"] == [] and not steps, "training was done: what failed is judged alone"


def test_what_diverged_before_a_stop_is_remembered(grid, drive, tmp_path, monkeypatch, steps) -> None:
    from composer.engine.walk import Walk

    plain = Walk.step_done

    def step_done(self, epoch, batch, of):
        plain(self, epoch, batch, of)
        self.wish.stop = "SIGTERM"

    it = drive(grid("wild", seeds=1), tmp_path / "runs")
    tasks = it.tasks(set())
    assert [t.cell for t in tasks] == ["full", "-wild"]
    monkeypatch.setattr(it, "tasks", lambda *args: tasks[::-1])
    steps.clear()
    monkeypatch.setattr(Walk, "step_done", lambda self, *a: step_done(self, *a) if self.recipe.train.lr != 1e30 else plain(self, *a))
    with pytest.raises(Stopped):
        it.run()
    assert [f.cell for f in it.diverged().values()] == ["-wild"]


def test_if_nothing_has_a_result_there_is_a_table_all_the_same(grid, drive, tmp_path) -> None:
    found = drive(grid("late", sets=["train.lr=1e30", "optim.clip=1e30"]), tmp_path / "runs").run()
    assert len(found.failed) == 2 and not any(line.runs for table in found.tables for line in table.lines)


# -- cells that are one --------------------------------------------------------------------------------------------------------------


def test_equal_cells_run_once_and_are_shown(grid, drive, tmp_path, helpers, steps) -> None:
    """Without the term its weight is void."""
    chosen = grid("late", "heavy")
    assert chosen.nested == {"heavy": ("late",)} and chosen.cell("-late -heavy").same_as == "-late"
    it = drive(chosen, tmp_path / "runs")
    found = it.run().as_dict()
    assert helpers.epochs_of(steps) == 3 + 3 and len(list((tmp_path / "runs" / "experiments").iterdir())) == 3
    assert found["nested"] == {"heavy": ["late"]}
    held = json.loads((it.folder / "grid.json").read_text())
    assert [c["same_as"] for c in held["cells"]] == ["", "", "", "-late"] and "-late -heavy" in json.dumps(found)


# -- the store -----------------------------------------------------------------------------------------------------------------------


def test_only_leaves_and_forks_keep_checkpoints(recipe, grid, drive, tmp_path, steps, helpers) -> None:
    """A phase's border that is no fork keeps its curves alone."""
    phased = tmp_path / "late.toml"
    phased.write_text(recipe.read_text() + "[phase.soft]\nuntil = 1\nset = { \"terms.ce.weight\" = 0.5 }\n")

    def wanted(*toggles):
        return grid(*toggles, target=phased)

    it = drive(wanted(*TWO), tmp_path / "runs")
    it.run()
    nodes = {json.loads((f / "key.json").read_text())["epochs"][1]: f for f in (tmp_path / "runs" / "nodes").iterdir()}
    assert sorted(nodes) == [1, 3, 4] and sum(1 for _ in (tmp_path / "runs" / "nodes").iterdir()) == 2 + 4
    assert not list(nodes[1].glob("checkpoint*")) and (nodes[1] / "metrics.jsonl").exists() and (nodes[1] / "done").exists()
    assert (nodes[3] / "checkpoint.safetensors").exists() and (nodes[4] / "checkpoint.safetensors").exists()
    steps.clear()
    drive(wanted(*TWO, "heavy"), tmp_path / "runs").run()
    assert {epoch for *_, epoch in steps} == {4} and helpers.epochs_of(steps) == 2
    steps.clear()
    drive(wanted("start", *TWO), tmp_path / "runs").run()
    assert helpers.epochs_of(steps) == 7, "the half without random start, and nothing of the other half"


def test_a_fork_of_another_grid_keeps_its_checkpoint(two, grid, drive, steps, helpers) -> None:
    """In a grid of two ways of judging one run the border behind the third epoch is no fork: only its mark keeps it."""
    forks = [f for f in (two.out / "nodes").iterdir() if (f / "fork").exists()]
    assert len(forks) == 2 and all((f / "checkpoint.safetensors").exists() for f in forks)
    it = drive(grid("strong", seeds=2), two.out)
    it.run()
    assert it.tree.forks == (4,) and not steps and all((f / "checkpoint.safetensors").exists() for f in forks)


def test_a_cells_file_is_its_experiment(two) -> None:
    from composer.recipe.load import load

    files = sorted((two.out / "studies" / two.summary.study / "cells").iterdir())
    assert len(files) == 4
    for cell in two.drive.grid.distinct:
        path = Path(two.drive._file(cell))
        assert path.name in [f.name for f in files]
        assert replace(load(path), name=cell.recipe.name).experiment_id == cell.recipe.experiment_id


def test_nothing_outside_out_is_written(grid, drive, tmp_path, monkeypatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    drive(grid("late"), Path("../runs")).run()
    assert not list((tmp_path / "here").iterdir()) and (tmp_path / "runs" / "studies").is_dir()


def test_a_wrong_name_in_analysis_is_told_before_training(grid, drive, tmp_path) -> None:
    wrong = replace(grid(*TWO), analysis={"family": ["late", "nonsense"]})
    with pytest.raises(ComposerError, match="nonsense"):
        drive(wrong, tmp_path / "runs")
    drive(replace(wrong, analysis={"family": ["late", "mean:late", "-late", "full"]}), tmp_path / "runs")


# -- what it costs -------------------------------------------------------------------------------------------------------------------


PARTS = ("", "_validation", "_evaluation")


def test_the_preview_says_what_then_happens(grid, drive, tmp_path, steps, helpers) -> None:
    from composer.ablate.preview import preview

    it = drive(grid(*TWO, seeds=2), tmp_path / "runs")
    said = preview(it)
    assert not steps and not (tmp_path / "runs" / "nodes").exists()
    assert (said["cells"], said["runs"], said["missing"], said["epochs_trained"], said["epochs_unshared"], said["epochs_left"]) == (4, 8, 8, 14, 32, 14)
    summary = it.run()
    assert helpers.epochs_of(steps) == said["epochs_trained"]
    passes = {c["name"]: c for c in summary.as_dict()["cells"]}
    assert len(passes) == 4
    results = [json.loads(p.read_text()) for p in (tmp_path / "runs" / "experiments").glob("*/result.json")]
    tree, units = it.tree, {name: course.passes for name, course in it.courses.items()}
    assert sum(sum(r["passes"].values()) for r in results) == 2 * sum(map(sum, units.values())), "unshared passes are those of the results"
    assert said["passes"] == 2 * sum(sum(units[s.cells[0]][s.first - 1:s.last]) for s in tree.walk())
    size = sum(p.stat().st_size for p in (tmp_path / "runs").rglob("*.safetensors") if "evaluations" not in p.parts)
    assert 0.4 < size / said["disk_bytes"] < 1.6, (size, said["disk_bytes"])
    assert min(said[f"seconds{part}"] for part in PARTS) > 0 and said["seconds_total"] == pytest.approx(sum(said[f"seconds{part}"] for part in PARTS))
    assert said["gpu_hours"] == 0 and said["core_hours"] == pytest.approx(said["seconds_total"] / 3600) and said["not_timed"] == []
    after = preview(drive(grid(*TWO, seeds=2), tmp_path / "runs"))
    assert (after["missing"], after["epochs_left"], *(after[f"seconds{part}"] for part in (*PARTS, "_total"))) == (0, 0, 0.0, 0.0, 0.0, 0.0)


def test_hours_are_those_of_the_devices_that_are_held(grid, drive, tmp_path, monkeypatch) -> None:
    """Two jobs halve the time and not the hours; on a GPU of which a run has a quarter, hours are of GPUs."""
    from composer.ablate import preview

    monkeypatch.setattr(preview, "seconds_per_pass", lambda session: 0.01)
    monkeypatch.setattr(preview, "seconds_of", lambda *_: {"seconds_validation": 20.0, "seconds_evaluation": 100.0, "not_timed": ["landscape"]})
    one, two = (drive(grid(*TWO), tmp_path / "runs", jobs=jobs, gpus_per_run=0.25, threads=2) for jobs in (1, 2))
    a, b = preview.preview(one), preview.preview(two)
    assert b["seconds_total"] == pytest.approx(a["seconds_total"] / 2) and a["core_hours"] == b["core_hours"] == pytest.approx(2 * a["seconds_total"] / 3600)
    text = " ".join(map(str, preview.renderables(one, a)))
    assert "core-hours; no GPU is used" in text and "0:01:40 of evaluation" in text and "not in it: landscape" in text
    monkeypatch.setattr(preview, "_on_gpu", lambda drive: True)
    c = preview.preview(one)
    assert c["gpu_hours"] == pytest.approx(c["seconds_total"] / 3600 / 4) and c["core_hours"] == 0
    assert "GPU-hours" in " ".join(map(str, preview.renderables(one, c)))


def test_a_second_call_needs_no_ray(two, away) -> None:
    """Nothing is launched, whatever --jobs says."""
    one = away(two.out, "--toggle", "late,mean", "--seeds", "2", "--jobs", "2", "--json", tell=True)
    assert one.code() == 0, one.stderr
    loaded = next(line for line in one.stderr.splitlines() if line.startswith("imported:")).split()
    assert "torch" in loaded and "ray" not in loaded and json.loads(one.stdout)["study"] == two.summary.study


@pytest.mark.slow
def test_a_second_call_answers_in_ten_seconds(recipe, cli, tmp_path) -> None:
    """By a fresh interpreter, with tables, pictures and MLflow. Seconds of the processor: other work on the machine does not count."""
    words = ("ablate", recipe, "--toggle", "late,mean", "--seeds", "2", "--out", tmp_path / "runs", "--device", "cpu", "--jobs", "0", "--quiet")
    assert cli(*words).returncode == 0
    before = os.times()
    assert cli(*words).returncode == 0
    after = os.times()
    assert after.children_user + after.children_system - before.children_user - before.children_system < 10
