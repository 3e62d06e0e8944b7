"""Sweeps on a real Ray: slow to start, so few."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from composer.engine.session import Settings
from composer.search.sweep import sweep

pytest.importorskip("ray")
GRID = {"train.lr": {"choices": [0.02, 0.1]}}


@pytest.mark.slow
def test_a_grid_on_ray_gives_what_this_process_gives(recipe, options, tmp_path):
    here = sweep(recipe, options(grid=True), space=GRID)
    there = sweep(recipe, options(grid=True, jobs=2, settings=Settings(out=tmp_path / "ray", quiet=True, track=False)), space=GRID)
    assert [t["metrics"] for t in there["trials"]] == [t["metrics"] for t in here["trials"]] and there["winners"]["pgd"]["trial"] == here["winners"]["pgd"]["trial"]


@pytest.mark.slow
def test_optuna_and_asha_on_ray_tracked_below_one_parent(recipe, options, tmp_path):
    pytest.importorskip("mlflow")
    from composer.track import own_store
    from composer.track_mlflow import client_of

    result = sweep(recipe, options(trials=4, jobs=2, grace=1, eta=2.0, track=True))
    assert len(result["trials"]) == 4 and {t["status"] for t in result["trials"]} <= {"done", "pruned"} and result["winners"]
    out = tmp_path / "runs"
    client = client_of(own_store(out), out)
    parent = client.get_run(result["mlflow_parent_run_id"])
    assert parent.info.status == "FINISHED" and {a.path for a in client.list_artifacts(parent.info.run_id)} >= {"best.toml", "trials.csv", "plots"}
    children = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert sorted(c.data.tags["cell"] for c in children) == [f"trial-{n:03d}" for n in range(4)]
    assert sorted(c.info.status for c in children) == sorted({"done": "FINISHED", "pruned": "KILLED"}[t["status"]] for t in result["trials"])


DRIVER = """
import sys
from pathlib import Path
from composer.engine.session import Settings
from composer.recipe.load import load
from composer.search.options import SweepOptions
from composer.search.sweep import sweep
sweep(load(sys.argv[1]), SweepOptions(grid=True, jobs=2, threads=1, name="k", settings=Settings(out=Path(sys.argv[2]), quiet=True, track=False)),
      space={"train.lr": {"choices": [0.02, 0.05, 0.1]}})
"""


@pytest.mark.slow
def test_a_killed_driver_loses_no_finished_trial(tiny, tmp_path):
    command, folder = [sys.executable, "-c", DRIVER, str(tiny), str(tmp_path / "out")], tmp_path / "out" / "sweeps" / "k"
    first = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not list(folder.glob("trial-*/end.json")) and time.monotonic() < deadline and first.poll() is None:
        time.sleep(0.1)
    if first.poll() is None:
        os.kill(first.pid, signal.SIGKILL)
    first.wait()
    ended = {p.parent.name: p.stat().st_mtime_ns for p in folder.glob("trial-*/end.json")}
    assert ended
    subprocess.run(command, check=True, timeout=300, stdout=subprocess.DEVNULL)
    result = json.loads((folder / "results.json").read_text())
    assert [t["status"] for t in result["trials"]] == ["done"] * 3 and result["winners"]["pgd"]
    assert all((Path(folder) / name / "end.json").stat().st_mtime_ns == at for name, at in ended.items())
