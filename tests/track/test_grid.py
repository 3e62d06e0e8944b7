"""A grid's parent run and the runs below it: on a store of ours, with the server away, with nobody tracking."""

from __future__ import annotations

import subprocess
import sys

import pytest

from composer import track
from composer.track_grid import child_tags, close_grid, end_child, link_kept, open_grid
from composer.track_journal import Journal, journals
from composer.track_mlflow import client_of

DEAD = "http://127.0.0.1:9"                                    # nobody listens there


def child(out, grid, cell, seed, **toggles):
    """A run of the grid as engine.run makes one."""
    tracker = track.make_tracker(out, experiment="some recipe", folder=out / "experiments" / f"{cell}-s{seed}")
    tracker.start(f"{cell}-s{seed}", {"a": 1}, {"experiment_id": "e", "prefix_key": "p", **child_tags(grid, cell, seed, toggles, ["n1", "n2"])})
    return tracker


def below(client, run_id):
    return client.search_runs([client.get_run(run_id).info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'")


def test_a_grid_and_its_runs(out, client):
    grid = open_grid(out, "study", {"design": "full", "toggles": ["ema"]}, {"experiment_id": "e0", "prefix_key": "p0"})
    assert grid.run_id, "the store is there, and the run, before any worker starts"
    for seed in (0, 1):
        for cell, on in (("full", True), ("-ema", False)):
            tracker = child(out, grid, cell, seed, ema=on)
            tracker.finish()
    folder = out / "studies" / "study"
    (folder / "plots").mkdir(parents=True)
    (folder / "table.md").write_text("| |")
    (folder / "plots" / "scatter.png").write_bytes(b"png")
    close_grid(grid, folder, {"full/pgd": 0.5}, children=[])
    parent = client.get_run(grid.run_id)
    assert parent.info.status == "FINISHED" and parent.data.metrics == {"full/pgd": 0.5} and parent.data.params["design"] == "full"
    assert parent.data.tags["experiment_id"] == "e0" and parent.data.tags["composer.grid"] == "study"
    assert {a.path for a in client.list_artifacts(grid.run_id)} == {"table.md", "plots"}
    runs = below(client, grid.run_id)
    assert sorted((r.data.tags["cell"], r.data.tags["seed"], r.data.tags["toggle.ema"]) for r in runs) == sorted(
        (c, s, t) for c, t in (("full", "on"), ("-ema", "off")) for s in "01")
    assert all(r.data.tags["nodes"] == "n1 n2" and r.data.tags["prefix_key"] == "p" for r in runs)


def test_the_same_command_goes_on_in_the_same_run(out, client):
    first = open_grid(out, "study", {"a": 1}, {})
    close_grid(first, out, {}, "KILLED")
    again = open_grid(out, "study", {"a": 1}, {})
    assert again.run_id == first.run_id and again.key == first.key
    close_grid(again, out, {})
    assert client.get_run(first.run_id).info.status == "FINISHED" and len(client.search_runs([client.get_run(first.run_id).info.experiment_id])) == 1


def test_a_run_from_before_the_grid_is_linked_and_not_rewritten(out, client):
    """It is found from the parent and from itself; its status, numbers and times stay. One that is below another grid stays there."""
    folder = out / "experiments" / "full-s0"
    tracker = track.make_tracker(out, experiment="some recipe", folder=folder)
    tracker.start("full-s0", {"a": 1}, {"experiment_id": "e"})
    tracker.metrics({"loss": 1.0}, 1)
    tracker.finish()
    first = open_grid(out, "first", {}, {}, experiment="some recipe")
    child(out, first, "full", 1).finish()
    close_grid(first, out / "studies" / "first", {})
    before = client.get_run(tracker.run_id)
    for _ in range(2):                                          # the same command again links nothing twice
        grid = open_grid(out, "second", {}, {}, experiment="some recipe")
        kept = {folder: ("full", 0), out / "experiments" / "full-s1": ("full", 1)}
        link_kept(grid, kept)
        close_grid(grid, out / "studies" / "second", {}, children=list(kept))
    after, parent = client.get_run(tracker.run_id), client.get_run(grid.run_id).data.tags
    assert after.info.status == before.info.status == "FINISHED" and after.info.end_time == before.info.end_time and after.data.metrics == {"loss": 1.0}
    assert after.data.tags["mlflow.parentRunId"] == grid.run_id and after.data.tags["composer.grid.second"] == "full, seed 0"
    assert {r.info.run_id for r in below(client, grid.run_id)} == {tracker.run_id} and len(below(client, first.run_id)) == 1
    assert parent["composer.kept.full.s0"] == tracker.run_id and "composer.kept.full.s1" in parent
    assert sum(r["op"] == "tag" for _, r in Journal(folder).pending(0)) == 2


def test_a_server_that_is_away_gets_the_whole_tree_later(out, client, monkeypatch):
    """Runs below a parent without an id name it by its journal's key; it is sent first, whatever the order of names."""
    monkeypatch.setattr(track, "FLUSH", {"server": 0.5, "file": 0.5})
    monkeypatch.setattr("composer.track_grid.FLUSH", {"server": 0.5, "file": 0.5})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", DEAD)
    grid = open_grid(out, "study", {}, {})
    assert grid.run_id is None
    tags = child_tags(grid, "full", 0, {})
    assert "mlflow.parentRunId" not in tags
    child(out, grid, "full", 0).finish()
    close_grid(grid, out, {})
    assert "has not taken" in grid.note
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    waiting = [j.folder.relative_to(out).as_posix() for j in journals(out)]
    assert waiting == ["studies/study", "experiments/full-s0"]
    for folder in waiting:                                         # the address they were meant for is gone for good: send them to ours
        journal = Journal(out / folder)
        track.Sender(journal, track.store_uri(out), track.artifact_root(out, track.store_uri(out)), out).flush()
    parent = Journal(out / "studies" / "study").state()["run_id"]
    assert [r.info.run_id for r in below(client, parent)] == [Journal(out / "experiments" / "full-s0").state()["run_id"]]


def test_a_run_waits_for_its_grid(out, client):
    grid = open_grid(out, "study", {}, {})
    tags = {**child_tags(grid, "full", 0, {}), "composer.parent": "another", "composer.parent_folder": "studies/late"}
    tags.pop("mlflow.parentRunId")
    close_grid(grid, out, {})                           # its thread, which sends what waits anywhere, is gone
    Journal(out / "studies" / "late").add("start", key="another", name="late", experiment="study", params={}, tags={}, run_id=None, uri="")
    late = Journal(out / "experiments" / "r")
    late.add("start", key="k", name="r", experiment="x", params={}, tags=tags, run_id=None, uri="")
    send = track.Sender(late, track.store_uri(out), track.artifact_root(out, track.store_uri(out)), out)
    with pytest.raises(LookupError):
        send.flush()
    assert late.waiting()
    track.deliver(out)
    assert not late.waiting() and len(below(client, Journal(out / "studies" / "late").state()["run_id"])) == 1


def test_nobody_tracks(tmp_path):
    grid = open_grid(tmp_path, "study", {}, {}, enabled=False)
    assert grid.run_id is None and child_tags(grid, "full", 0, {"ema": True}) == {}
    close_grid(grid, tmp_path, {"a": 1.0})
    assert list(tmp_path.iterdir()) == []


def test_a_run_whose_process_was_killed_is_ended(out, client):
    grid = open_grid(out, "study", {}, {})
    journal = Journal(out / "experiments" / "dead-s0")
    journal.add("start", key="d", name="dead", experiment="x", params={}, tags=child_tags(grid, "dead", 0, {}), run_id=None, uri="")
    close_grid(grid, out, {}, children=[journal.folder, out / "experiments" / "never-began"])
    assert [r.info.status for r in below(client, grid.run_id)] == ["KILLED"] and not journal.waiting()
    before = journal.path.stat().st_size
    end_child(journal)
    assert journal.path.stat().st_size == before, "it is ended once"


@pytest.mark.slow
def test_workers_meet_a_store_that_is_there(tmp_path):
    """Four processes at once on a store that open_grid has just made: no migration is run twice, all runs stand below the parent."""
    grid = open_grid(tmp_path, "study", {}, {})
    code = """
import sys, json
from pathlib import Path
from composer.track import make_tracker
out, n, tags = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
t = make_tracker(out, experiment="e", folder=out / "experiments" / n)
t.start(n, {}, tags)
t.metrics({"a": 1.0}, 1)
t.finish()
assert not t.note, t.note
"""
    import json

    jobs = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(n), json.dumps(child_tags(grid, str(n), n, {}))]) for n in range(4)]
    assert [job.wait(timeout=240) for job in jobs] == [0] * 4
    close_grid(grid, tmp_path, {})
    assert len(below(client_of(track.own_store(tmp_path), tmp_path), grid.run_id)) == 4
