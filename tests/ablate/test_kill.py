"""Driver and workers killed at random moments: the same command goes on, and the table is that of an undisturbed grid."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

WORDS = ("--toggle", "late,mean", "--seeds", "3", "--device", "cpu", "--threads", "1", "--set", "train.epochs=8", "--quiet", "--json")
PATIENCE = 400.0                                                # seconds for one command


def command(recipe: Path, tiny: str, out: Path, jobs: int) -> list[str]:
    return [sys.executable, "-m", "composer.cli", "ablate", str(recipe), "--setting", tiny, "--out", str(out), "--jobs", str(jobs), *WORDS]


def begun(words: list[str], folder: Path) -> subprocess.Popen[str]:
    with (folder / "err.txt").open("w") as errors:
        return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=errors, text=True, env={**os.environ, "COMPOSER_CHECKPOINT_SECONDS": "0.05"},
                                start_new_session=True)


def workers(driver: int) -> list[int]:
    """Processes of Ray's workers below the driver."""
    found, below = [], {driver}
    rows = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            rows.append((int(place.name), int((place / "stat").read_text().rpartition(")")[2].split()[1]), (place / "cmdline").read_bytes().decode(errors="replace")))
        except (OSError, IndexError, ValueError):
            continue
    grown = True
    while grown:
        more = {pid for pid, parent, _ in rows if parent in below} - below
        below |= more
        grown = bool(more)
    for pid, _, name in rows:
        if pid in below and name.startswith("ray::call"):                 # at work on a task
            found.append(pid)
    return found


def wait_for(holds, process: subprocess.Popen[str], seconds: float = PATIENCE) -> bool:
    """False where the process ended first."""
    end = time.monotonic() + seconds
    while not holds():
        if process.poll() is not None:
            return False
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return True


def traces(out: Path) -> int:
    """How far it is: grows with every epoch and result."""
    return sum(len(f.read_text().splitlines()) for f in out.glob("nodes/*/metrics.jsonl")) + len(list(out.glob("experiments/*/result.json")))


@pytest.fixture(scope="module")
def undisturbed(recipe, tiny, tmp_path_factory, helpers):
    folder = tmp_path_factory.mktemp("whole")
    done = subprocess.run(command(recipe, tiny, folder / "runs", 0), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return helpers.timeless(json.loads(done.stdout)), helpers.digests(folder / "runs"), traces(folder / "runs")


def finish(recipe, tiny, out, jobs, undisturbed, helpers) -> None:
    """The last command runs to its end: same table, same bits, nothing left lying about."""
    table, digests, _ = undisturbed
    done = subprocess.run(command(recipe, tiny, out, jobs), capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert helpers.timeless(json.loads(done.stdout)) == table and helpers.digests(out) == digests
    assert not list(out.glob("nodes/*/lock")) and not list(out.glob("experiments/*/lock"))


@pytest.mark.parametrize("seed", range(3))
def test_the_driver_is_killed(recipe, tiny, tmp_path, undisturbed, helpers, seed) -> None:
    """Four kills each, in this process's own training."""
    draw, out = random.Random(f"driver {seed}"), tmp_path / "runs"
    for _ in range(4):
        process = begun(command(recipe, tiny, out, 0), tmp_path)
        goal = traces(out) + draw.randint(1, undisturbed[2] // 6)
        assert wait_for(lambda goal=goal: traces(out) >= goal, process), "it ended before it could be killed"
        time.sleep(draw.random() * 0.2)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    finish(recipe, tiny, out, 0, undisturbed, helpers)


@pytest.mark.parametrize("seed", range(2))
def test_workers_and_drivers_of_ray_are_killed(recipe, tiny, tmp_path, undisturbed, helpers, seed) -> None:
    """Two workers and two drivers each. A worker's task is tried again by the driver; a driver's workers end with it."""
    draw, out = random.Random(f"ray {seed}"), tmp_path / "runs"
    for _ in range(2):
        process = begun(command(recipe, tiny, out, 2), tmp_path)
        goal, victim = traces(out) + draw.randint(1, 8), 0
        assert wait_for(lambda goal=goal, process=process: traces(out) >= goal and workers(process.pid), process), "it ended before a worker could be killed"
        while not victim:
            with contextlib.suppress(ProcessLookupError, IndexError):       # it may have ended since it was seen
                victim = draw.choice(workers(process.pid))
                os.kill(victim, signal.SIGKILL)
        goal = traces(out) + draw.randint(1, 8)
        assert wait_for(lambda goal=goal: traces(out) >= goal, process), "it ended before it could be killed"
        process.kill()
        assert process.wait() == -signal.SIGKILL
    finish(recipe, tiny, out, 2, undisturbed, helpers)


def raylet_of(driver: int) -> int:
    """The raylet that this driver has started, 0 while there is none."""
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            if int((place / "stat").read_text().rpartition(")")[2].split()[1]) == driver and b"/raylet/raylet" in (place / "cmdline").read_bytes():
                return int(place.name)
    return 0


def test_ray_itself_dies(recipe, tiny, tmp_path, undisturbed, helpers) -> None:
    """One sentence and an exit code that asks for another try; nothing is recorded as failed, and the same command goes on."""
    out = tmp_path / "runs"
    process = begun(command(recipe, tiny, out, 2), tmp_path)
    assert wait_for(lambda: traces(out) >= 4 and workers(process.pid), process), "it ended before Ray could be killed"
    os.kill(raylet_of(process.pid), signal.SIGKILL)
    assert process.wait(timeout=120) == 75
    errors = (tmp_path / "err.txt").read_text()
    told = [line for line in errors.splitlines() if "Ray died" in line]
    assert len(told) == 1 and "raylet" in told[0] and "run the same command again" in told[0] and "of 12 runs are kept" in told[0], errors[-3000:]
    study = next((out / "studies").iterdir())
    assert not (study / "failed.json").exists() and json.loads((study / "diverged.json").read_text()) == {}
    finish(recipe, tiny, out, 2, undisturbed, helpers)


def test_a_pack_of_cells_is_killed(tiny, tmp_path, helpers) -> None:
    """Two cells that differ in a number, with two seeds each, in one pack: three kills, and the table and bits of one that was left alone."""
    def words(out: Path) -> list[str]:
        return [sys.executable, "-m", "composer.cli", "ablate", "at_ours", "--toggle", "ema", "--seeds", "2", "--pack", "4", "--setting", tiny, "--out", str(out),
                "--jobs", "0", *WORDS[4:]]

    draw, whole, out = random.Random("cells"), tmp_path / "whole", tmp_path / "runs"
    done = subprocess.run(words(whole), capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    for _ in range(3):
        process = begun(words(out), tmp_path)
        goal = traces(out) + draw.randint(1, traces(whole) // 6)
        assert wait_for(lambda goal=goal: traces(out) >= goal, process), "it ended before it could be killed"
        time.sleep(draw.random() * 0.2)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    finished = subprocess.run(words(out), capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert finished.returncode == 0, finished.stderr
    assert helpers.timeless(json.loads(finished.stdout)) == helpers.timeless(json.loads(done.stdout)) and helpers.digests(out) == helpers.digests(whole)
    assert {json.loads(p.read_text())["packed"] for p in out.glob("experiments/*/result.json")} == {4}
