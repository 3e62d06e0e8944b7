"""A sweep's points in MLflow: dropped ones too have a run below the grid's, once. Read from the journals, and once from MLflow itself."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from composer.ablate.rungs import record_file
from composer.engine.record import Record
from composer.errors import ComposerError
from composer.track_journal import Journal
from composer.track_mlflow import Sender

LR = (0.1, 0.06, 0.001)
ROW = """
recipe = "at"
seeds  = 2
[cells.plain]
[cells.row]
kind   = "sweep"
select = ["clean", "pgd-3"]
rungs  = [1, 2, 3]
keep   = {keep}
grid   = {{ "train.lr.value" = {lr} }}
"""


@pytest.fixture
def study(tmp_path: Path, tiny: str, drive):
    """study() -> a tracked drive over the row."""
    from composer.ablate.door import grid_for

    def make(keep: int = 2, lr=LR, track: bool = True, row: str = ROW, sets=("train.epochs=3",), **more):
        path = tmp_path / "points.toml"
        path.write_text(row.format(keep=keep, lr=list(lr)))
        return drive(grid_for(path, setting=tiny, sets=sets, **more), tmp_path / "runs", settings={"track": track})

    return make


@pytest.fixture
def journals_only(monkeypatch) -> None:
    """A server that takes everything, and whose ids are the journals' keys."""
    def flush(self, stop=lambda: False) -> None:
        if self.journal.path.exists():
            self.run_id = self.journal.key()
            self.journal.sent("somewhere", self.run_id, self.journal.path.stat().st_size)

    monkeypatch.setattr(Sender, "flush", flush)


def told(out: Path) -> dict[tuple[str, str], SimpleNamespace]:
    """(cell, seed) -> its run as its journal tells it: parameters, the tags that hold, metrics as (step, value), the last status."""
    found = {}
    for path in sorted(out.glob("experiments/*/track.jsonl")):
        records = [record for _, record in Journal(path.parent).pending(0)]
        tags: dict[str, str] = {}
        metrics: dict[str, list[tuple[int, float]]] = {}
        for r in records:
            tags |= r["tags"] if r["op"] == "start" else {r["name"]: r["value"]} if r["op"] == "tag" else {}
            for name, value in r["values"].items() if r["op"] == "metrics" else ():
                metrics.setdefault(name, []).append((r["step"], value))
        params = next(r["params"] for r in records if r["op"] == "start")
        found[tags["cell"], tags["seed"]] = SimpleNamespace(params=params, tags=tags, metrics=metrics, status=[r["status"] for r in records if r["op"] == "finish"][-1])
    return found


def check(it, runs, parent_of) -> None:
    """Every point and seed has a run with its values, its epochs, its accuracies at the rungs, and where it was dropped."""
    assert set(runs) == {(cell.name, str(seed)) for cell in it.grid.cells for seed in it.grid.seeds}
    assert {parent_of(run) for run in runs.values()} == {parent_of(runs["plain", "0"])}
    dropped = it.ladders.dropped
    assert {d.epoch for d in dropped.values()} == {1, 2}
    for (name, seed), run in runs.items():
        if name == "plain":
            continue
        cell, epochs = it.grid.cell(name), dropped[name].epoch if name in dropped else 3
        assert float(run.params["train.lr.value"]) == cell.point["train.lr.value"] and run.tags["experiment_id"] == cell.recipe.experiment_id
        for epoch in range(1, min(epochs, 2) + 1):
            measured = json.loads(record_file(it.folder, name, int(seed), epoch).read_text())["metrics"]
            assert {"clean", "pgd-3"} <= set(measured)
            assert all((epoch, pytest.approx(value)) in run.metrics[f"held-out/{metric}"] for metric, value in measured.items())
        assert [step for step, _ in run.metrics["val/pgd"]] == list(range(1, epochs + 1)), "its curve is there, each epoch once"
        if name in dropped:
            assert run.tags["dropped"].startswith(f"at the rung after epoch {epochs}: place ") and run.tags["epochs_trained"] == str(epochs)
            assert run.status == "KILLED" and run.tags["nodes"].split()[-1] == run.tags["prefix_key"] and len(run.tags["prefix_key"]) == 32
        else:
            assert "dropped" not in run.tags and run.status == "FINISHED"


def test_every_point_has_a_run_with_its_values_epochs_accuracies_and_rung(study, journals_only, tmp_path) -> None:
    it = study()
    it.run()
    check(it, told(tmp_path / "runs"), lambda run: run.tags["composer.parent"])


def test_the_same_command_again_says_nothing_twice(study, journals_only, tmp_path) -> None:
    out = tmp_path / "runs"
    it = study()
    it.run()
    journals = {p: p.read_text() for p in out.glob("experiments/*/track.jsonl")}
    assert len(journals) == 8
    (it.folder / "results.json").unlink()                        # the tables are made again, as after a kill before they were written
    study().run()
    assert {p: p.read_text() for p in out.glob("experiments/*/track.jsonl")} == journals


def test_a_store_from_before_gets_the_missing_runs(study, journals_only, tmp_path) -> None:
    """Records without the names of nodes, no journals: the runs are there after the same command, without their curves."""
    it, out = study(seeds=1), tmp_path / "runs"
    it.run()
    for path in it.folder.glob("rungs/*.json"):
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "nodes"}))
    for name in it.ladders.dropped:
        for path in Record(out, it.grid.cell(name).recipe, 0).folder.iterdir():
            path.unlink()
    assert len(told(out)) == 2
    study(seeds=1).run()
    runs = told(out)
    assert len(runs) == 4 and all("dropped" in runs[name, "0"].tags and "held-out/pgd-3" in runs[name, "0"].metrics for name in it.ladders.dropped)


def test_a_point_that_is_taken_up_again_goes_on_in_its_run(study, journals_only, tmp_path) -> None:
    out, first = tmp_path / "runs", study(seeds=1)
    first.run()
    gone, keys = first.ladders.dropped, {p: Journal(p).key() for p in out.glob("experiments/*")}
    more = study(keep=3, seeds=1)
    more.run()
    assert gone and not more.ladders.dropped and {p: Journal(p).key() for p in out.glob("experiments/*")} == keys
    runs = told(out)
    for name in gone:
        run = runs[name, "0"]
        assert run.status == "FINISHED" and run.tags["dropped"].startswith("no") and run.tags["epochs_trained"] == "3"
        assert [step for step, _ in run.metrics["val/pgd"]] == [1, 2, 3], "no epoch is told twice"


def test_a_point_that_goes_one_rung_further_tells_its_epochs_and_nodes(study, journals_only, tmp_path) -> None:
    """Of three, one goes on at each rung; then two of three, one of two: the second is dropped an epoch later."""
    study(seeds=1, keep=1).run()
    more = study(seeds=1, keep=2)
    more.run()
    assert {d.epoch for d in more.ladders.dropped.values()} == {1, 2}
    check(more, told(tmp_path / "runs"), lambda run: run.tags["composer.parent"])


def test_a_point_that_ends_before_its_row_has_its_rungs_in_its_run(study, journals_only, tmp_path) -> None:
    """Its end is a rung of the row. `fgsm` is measured at rungs and ends alone."""
    row = ROW.replace("train.lr.value", "train.epochs").replace('"pgd-3"', '"fgsm", "pgd-3"')
    it = study(lr=(3, 2, 1), keep=2, seeds=1, row=row, sets=())
    it.run()
    runs, whole = told(tmp_path / "runs"), {cell.name: cell.point["train.epochs"] for cell in it.grid.distinct if cell.point}
    assert set(it.ladders.dropped) & {name for name, epochs in whole.items() if epochs < 3}
    for name, epochs in whole.items():
        last = it.ladders.dropped[name].epoch if name in it.ladders.dropped else epochs
        run, held = runs[name, "0"], it.ladders.records(name, 0)
        assert max(held) == last or name not in it.ladders.dropped
        for epoch in range(1, min(last, 2) + 1):
            at_rung = json.loads(record_file(it.folder, name, 0, epoch).read_text())
            assert held[epoch]["nodes"] == at_rung["nodes"] != []
            for metric in at_rung["metrics"]:
                assert epoch in [step for step, _ in run.metrics[f"held-out/{metric}"]], (name, epoch, metric)
        assert name not in it.ladders.dropped or run.tags["epochs_trained"] == str(last) and run.tags["nodes"]


def test_a_row_that_loses_its_rungs_takes_its_drops_back(study, journals_only, tmp_path) -> None:
    first = study(seeds=1)
    first.run()
    whole = study(seeds=1, row=ROW.replace("rungs  = [1, 2, 3]\nkeep   = {keep}\n", ""))
    whole.run()
    runs = told(tmp_path / "runs")
    assert all(runs[name, "0"].tags["dropped"].startswith("no") and runs[name, "0"].status == "FINISHED" for name in first.ladders.dropped)


def test_a_run_that_failed_and_then_succeeds_says_so(tiny, drive, journals_only, tmp_path, monkeypatch) -> None:
    from composer.ablate.door import grid_for
    from composer.engine.run import Runner

    def study():
        return drive(grid_for("at", ["attack"], setting=tiny, sets=["train.epochs=1"], seeds=1), tmp_path / "runs", settings={"track": True})

    with monkeypatch.context() as patch:
        patch.setattr(Runner, "_evaluate", lambda *_: 1 / 0)
        study().run()
    assert {run.status for run in told(tmp_path / "runs").values()} == {"FAILED"}
    assert all("division" in run.tags["failed"] for run in told(tmp_path / "runs").values())
    study().run()
    for run in told(tmp_path / "runs").values():
        assert run.status == "FINISHED" and run.tags["failed"].startswith("no")


def test_what_another_study_does_with_a_point_stays_its_own(study, journals_only, tmp_path) -> None:
    """A run below one grid bears another one's drop under that one's name."""
    out = tmp_path / "runs"
    study(keep=3, seeds=1).run()
    other = study(keep=1, seeds=1, name="other")
    other.run()
    runs = told(out)
    assert other.ladders.dropped and all(runs[name, "0"].tags[f"composer.dropped.{other.grid.name}"] for name in other.ladders.dropped)
    assert not any("dropped" in run.tags for run in runs.values())


def test_a_point_that_diverges_is_a_run_that_failed(study, journals_only, tmp_path) -> None:
    study(lr=(0.1, 1e30), seeds=1, keep=1).run()
    run = told(tmp_path / "runs")["row#2", "0"]
    assert run.status == "FAILED" and "diverged" in run.tags and float(run.params["train.lr.value"]) == 1e30


def test_a_disk_that_takes_no_journal_ends_no_study(study, journals_only, tmp_path, monkeypatch, capsys) -> None:
    """The results are there, and so is the parent's end; what is missing is said."""
    add = Journal.add

    def full(self, op, **fields):
        if self.folder.parent.name == "experiments":
            raise ComposerError("the disk is full")
        add(self, op, **fields)

    monkeypatch.setattr(Journal, "add", full)
    it = study(seeds=1, keep=1)
    assert it.run().tables and it.ladders.dropped
    assert [r["status"] for _, r in Journal(it.folder).pending(0) if r["op"] == "finish"] == ["FINISHED"]
    assert "Records for MLflow are being lost: the disk is full." in capsys.readouterr().err


def test_an_untracked_study_leaves_no_journal(study, tmp_path) -> None:
    study(track=False, seeds=1).run()
    assert not list((tmp_path / "runs").glob("experiments/*/track.jsonl")) and len(list((tmp_path / "runs").glob("experiments/*"))) == 2


@pytest.mark.slow
def test_mlflow_itself_has_them(study, tmp_path) -> None:
    from composer.track import own_store
    from composer.track_mlflow import client_of

    it, out = study(), tmp_path / "runs"
    parent = it.run().mlflow_parent_run_id
    client = client_of(own_store(out), out)
    for _ in range(2):
        found = client.search_runs([client.get_run(parent).info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'", max_results=1000)
        assert len(found) == 8
        runs = {(r.data.tags["cell"], r.data.tags["seed"]): SimpleNamespace(
            params=r.data.params, tags=r.data.tags, status=r.info.status,
            metrics={name: [(m.step, m.value) for m in client.get_metric_history(r.info.run_id, name)] for name in r.data.metrics}) for r in found}
        check(it, runs, lambda run: run.tags["mlflow.parentRunId"])
        (it.folder / "results.json").unlink()
        assert study().run().mlflow_parent_run_id == parent
