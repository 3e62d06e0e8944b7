"""The sweep of a study's row: every point, halving at the rungs, a winner for each selector."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from composer.engine import checkpoint
from composer.errors import ComposerError, Stopped
from composer.recipe.studies import load_study
from composer.search import loops
from composer.search.grid import places, run_grid

STUDY = """
recipe = "tiny.toml"
[cells.plain]
[cells.row]
kind   = "sweep"
select = ["clean", "pgd"]
rungs  = [1, 2]
keep   = 2
[cells.row.grid]
"train.lr" = [0.1, 0.02, 0.0001]
"""


@pytest.fixture
def row(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.toml").write_text(STUDY)
    return load_study(tmp_path / "study.toml").row("row")


def test_points_are_dropped_at_the_rung_and_winners_chosen_among_the_rest(row, options):
    result = run_grid(row, options())
    folder, trials = Path(result["out"]), result["trials"]
    at_rung = [json.loads((folder / f"trial-{n:03d}" / "rung-1.json").read_text())["pgd"] for n in range(3)]
    stay = sorted(sorted(range(3), key=lambda n: (-at_rung[n], n))[:2])
    assert [t["number"] for t in trials if t["status"] == "done"] == stay and [t["epochs"] for t in trials] == [2 if n in stay else 1 for n in range(3)]
    for selector in ("clean", "pgd"):
        won = result["winners"][selector]
        assert won["score"] == max(trials[n]["metrics"][selector] for n in stay) and won["values"] == list(row.points())[won["point"]][0]
    assert result["metric"] == "pgd", "the last of select ranks at the rung"


def weights(result, number):
    """The last state of a trial's network."""
    folder = Path(result["out"]) / f"trial-{number:03d}"
    node = json.loads((folder / "record.json").read_text())["nodes"][-1]["folder"]
    saved = checkpoint.load(folder.parents[2] / "nodes" / node / checkpoint.CURRENT)
    return {k: v for k, v in saved.tensors.items() if k.startswith("model/")}


def test_the_rung_does_not_change_what_the_survivors_become(row, options, tmp_path):
    """A trial that stopped at a rung and went on is bit for bit the one that never stopped."""
    from dataclasses import replace

    from composer.engine.session import Settings

    halved = run_grid(row, options())
    whole = run_grid(replace(row, rungs=(), keep=None), options(settings=Settings(out=tmp_path / "whole", quiet=True, track=False)))
    done = [t["number"] for t in halved["trials"] if t["status"] == "done"]
    for n in done:
        assert halved["trials"][n]["metrics"] == whole["trials"][n]["metrics"]
        mine, theirs = weights(halved, n), weights(whole, n)
        assert mine and all(torch.equal(mine[k], theirs[k]) for k in theirs)
    again = run_grid(row, options())
    assert again["winners"] == halved["winners"] and again["trials"] == halved["trials"]


def test_the_share_that_goes_on_stays_the_same():
    assert [places(15, 10, r) for r in (0, 1, 2)] == [10, 7, 4] and places(3, 5, 0) == 3 and places(8, 1, 2) == 1


def test_a_cell_is_no_sweep(row, tmp_path, options):
    with pytest.raises(ComposerError, match="no sweep"):
        run_grid(load_study(tmp_path / "study.toml").row("plain"), options())


def test_a_stop_stays_a_stop_where_the_disk_takes_no_journal(row, options, monkeypatch):
    """Its exit code tells a batch system to put it in again. The parent's run ends as killed."""
    from composer.track_journal import Journal
    from composer.track_mlflow import Sender

    add, train = Journal.add, loops.train

    def full(self, op, **fields):
        if fields.get("name") == "dropped":
            raise ComposerError("the disk is full")
        add(self, op, **fields)

    def stopped(recipe, values, work, told):
        if not work.until:                                     # behind the rung
            raise Stopped("stopped by SIGTERM")
        return train(recipe, values, work, told)

    monkeypatch.setattr(Sender, "flush", lambda self, stop=lambda: False: None)
    monkeypatch.setattr("composer.track.FLUSH", {"server": 0.1, "file": 0.1})
    monkeypatch.setattr("composer.track_grid.FLUSH", {"server": 0.1, "file": 0.1})
    monkeypatch.setattr(Journal, "add", full)
    monkeypatch.setattr(loops, "train", stopped)
    with pytest.raises(Stopped) as caught:
        run_grid(row, options(track=True, name="s"))
    assert caught.value.exit_code == 75
    parent = Journal(options().settings.out / "sweeps" / "s")
    assert [r["status"] for _, r in parent.pending(0) if r["op"] == "finish"] == ["KILLED"]


def test_a_dropped_trial_that_another_process_works_on_is_left_to_it(tmp_path):
    from types import SimpleNamespace

    from composer.engine.lock import Lock
    from composer.search.sweep import note_dropped
    from composer.track_journal import Journal

    journal = Journal(tmp_path / "trial-000")
    journal.add("start", key="k", name="t", experiment="e", params={}, tags={}, run_id=None, uri="")
    store = SimpleNamespace(trials=lambda: [SimpleNamespace(number=0, status="pruned", why="last")], trial=lambda number: journal.folder)
    parent = SimpleNamespace(tracked=True, tracker=SimpleNamespace(note=""))
    with Lock(journal.folder):
        note_dropped(parent, store)
    assert [r["op"] for _, r in journal.pending(0)] == ["start"] and not parent.tracker.note
    note_dropped(parent, store)
    assert [r["op"] for _, r in journal.pending(0)] == ["start", "tag"] and not (journal.folder / "lock").exists()


def test_a_dropped_point_says_so_in_its_run(row, options, monkeypatch):
    """Once, however often the command is given; with its accuracies at the rung."""
    from composer.track_journal import Journal
    from composer.track_mlflow import Sender

    def flush(self, stop=lambda: False):
        self.run_id = self.journal.key()
        self.journal.sent("somewhere", self.run_id, self.journal.path.stat().st_size)

    monkeypatch.setattr(Sender, "flush", flush)
    for _ in range(2):
        result = run_grid(row, options(track=True))
    folder = Path(result["out"])
    for t in result["trials"]:
        records = [r for _, r in Journal(folder / f"trial-{t['number']:03d}").pending(0)]
        assert [r["value"] for r in records if r["op"] == "tag" and r["name"] == "dropped"] == ([t["why"]] if t["status"] == "pruned" else [])
        at_rung = json.loads((folder / f"trial-{t['number']:03d}" / "rung-1.json").read_text())
        assert {"op": "metrics", "step": 1, "values": {f"held-out/{k}": v for k, v in at_rung.items()}} in [{k: v for k, v in r.items() if k != "time"} for r in records]
