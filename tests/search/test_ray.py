"""Sweeps on a real Ray: slow to start, so few."""

from __future__ import annotations

import contextlib
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
    stopped = {f"trial-{t['number']:03d}": t["why"] for t in result["trials"] if t["status"] == "pruned"}
    assert {c.data.tags["cell"]: c.data.tags["dropped"] for c in children if "dropped" in c.data.tags} == stopped
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


# -- Ray itself dies, and signals ------------------------------------------------------------------------------------------------------

LONG = ("--set", "train.batch_size=64", "--device", "cpu", "--threads", "1", "--jobs", "2", "--quiet")
SWEEP = ("sweep", "--trials", "3", "--no-asha", "--set", "train.epochs=16", *LONG)
TUNED = ("ablate", "--toggle", "attack", "--seeds", "1", "--tune", "2", "--set", "train.epochs=6", *LONG)


@pytest.fixture
def begun(tiny, tmp_path):
    """begun(SWEEP) -> that command on the tiny recipe in a session of its own; what is left of it at the end of the test is ended."""
    started = []

    def call(words) -> subprocess.Popen:
        verb, *rest = words
        with (tmp_path / "err.txt").open("w") as errors:
            started.append(subprocess.Popen(
                [sys.executable, "-m", "composer.cli", verb, str(tiny), "--out", str(tmp_path / "runs"), *rest], stdout=subprocess.DEVNULL, stderr=errors,
                start_new_session=True, env={**os.environ, "COMPOSER_CHECKPOINT_SECONDS": "0.05"}))
        return started[-1]

    yield call
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def epochs(out: Path) -> int:
    return sum(len(f.read_text().splitlines()) for f in out.glob("sweeps/*/trial-*/epochs.jsonl"))


def until(holds, process: subprocess.Popen, seconds: float = 400.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert process.poll() is None, "it ended before"
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def server_of(driver: int, name: str) -> int:
    """The server of that name that this driver has started, 0 while there is none."""
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            if int((place / "stat").read_text().rpartition(")")[2].split()[1]) == driver and f"/{name}\0".encode() in (place / "cmdline").read_bytes():
                return int(place.name)
    return 0


@pytest.mark.slow
@pytest.mark.parametrize(("words", "server"), [(SWEEP, "raylet"), (SWEEP, "gcs_server"), (TUNED, "raylet")], ids=["sweep", "sweep-head", "tune"])
def test_ray_itself_dies(begun, tmp_path, words, server) -> None:
    """One sentence and an exit code that asks for another try; no trial is blamed, and the command goes on, here without Ray."""
    out = tmp_path / "runs"
    process = begun(words)
    until(lambda: epochs(out) >= 2, process)
    os.kill(server_of(process.pid, server), signal.SIGKILL)
    assert process.wait(timeout=200) == 75, (tmp_path / "err.txt").read_text()[-3000:]
    errors = (tmp_path / "err.txt").read_text()
    told = [line for line in errors.splitlines() if "Ray died" in line]
    assert len(told) == 1 and ("head" if server == "gcs_server" else "raylet") in told[0] and "run the same command again" in told[0], errors[-3000:]
    assert "Traceback" not in errors and "trials are kept" in told[0]
    ends = [json.loads(f.read_text())["status"] for f in out.glob("sweeps/*/trial-*/end.json")]
    assert set(ends) <= {"done"} and not list(out.glob("sweeps/*/.tune")) and not list(out.glob("sweeps/*/.stop-*"))
    before = {f.parent.name: f.stat().st_mtime_ns for f in sorted(out.glob("sweeps/*/trial-*/end.json"))[:1]}
    again = begun((*words, "--jobs", "0"))
    assert again.wait(timeout=600) == 0, (tmp_path / "err.txt").read_text()[-3000:]
    for folder in out.glob("sweeps/*"):
        trials = json.loads((folder / "results.json").read_text())["trials"]
        assert [t["status"] for t in trials] == ["done"] * (3 if words is SWEEP else 2)
    first = sorted(out.glob("sweeps/*/trial-*/end.json"))[:1]
    assert not before or {f.parent.name: f.stat().st_mtime_ns for f in first} == before, "a trial that was done was trained again"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)], ids=["ctrl-c", "sigterm"])
def test_a_signal_to_the_whole_group_lets_trials_write_their_checkpoints(begun, tmp_path, number, code) -> None:
    out = tmp_path / "runs"
    process = begun((*SWEEP, "--set", "train.epochs=400"))
    until(lambda: epochs(out) >= 2, process)
    os.killpg(process.pid, number)
    assert process.wait(timeout=150) == code, (tmp_path / "err.txt").read_text()[-3000:]
    errors = (tmp_path / "err.txt").read_text()
    assert "the sweep was stopped by" in errors and "Traceback" not in errors
    assert list(out.glob("nodes/*/checkpoint.safetensors")) and not list(out.glob("nodes/*/lock")) and not list(out.glob("sweeps/*/trial-*/end.json"))
    assert not list(out.glob("sweeps/*/.stop-*"))
