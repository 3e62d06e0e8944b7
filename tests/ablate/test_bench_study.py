"""Studies of kind bench: a stated number of steps for each cell, nothing trained to its end, nothing judged."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from composer.ablate import bench
from composer.errors import ComposerError

STUDY = """
kind   = "bench"
recipe = "at"
seeds  = 2
[cells.plain]
[cells.same]
[cells.more]
set = { "threat.steps" = 6 }
"""


@pytest.fixture
def study(tmp_path: Path, tiny: str):
    from composer.ablate.door import grid_for

    path = tmp_path / "times.toml"
    path.write_text(STUDY)
    return lambda **more: grid_for(path, setting=tiny, **more)


@pytest.fixture
def taken(monkeypatch):
    """Steps that were taken, with their seconds; nobody is judged."""
    from composer.engine import run
    from composer.engine.train import Trainer

    seen: list[float] = []
    plain = Trainer._step

    def step(self, batch, epoch):
        began = time.perf_counter()
        plain(self, batch, epoch)
        seen.append(time.perf_counter() - began)

    monkeypatch.setattr(Trainer, "_step", step)
    monkeypatch.setattr(run, "judge", lambda *_, **__: pytest.fail("a bench judges nothing"))
    return seen


def test_every_cell_takes_its_steps_and_no_more(study, drive, tmp_path, taken) -> None:
    it = drive(study(), tmp_path / "runs", steps=20)
    found = it.run()
    assert len(taken) == 2 * 2 * (bench.WARM + 20), "two cells that differ, two seeds; an epoch here has three steps"
    assert not list((tmp_path / "runs").glob("experiments/*")) and not list((tmp_path / "runs").glob("nodes/*"))
    table = found.tables[0]
    assert [m.name for m in table.metrics] == ["seconds_per_step"] and table.primary == "seconds_per_step" and not table.metrics[0].rate
    lines = {line.name: line for line in table.lines}
    assert lines["same"].same_as == "plain" and lines["plain"].n == lines["more"].n == 2
    counted = taken[bench.WARM:bench.WARM + 20]
    assert lines["plain"].runs[0]["metrics"]["seconds_per_step"] == pytest.approx(sum(counted) / 20, rel=0.1), "the first cell's first measurement"
    assert lines["more"].cost["step"] > lines["plain"].cost["step"] and lines["more"].metrics["seconds_per_step"]["mean"] > 0
    said = [text for head, text in found.footer if head == "times"]
    assert "20 steps after 10" in said[0] and "relative to plain: more " in said[1] and found.epochs_trained == 0


def test_seeds_are_rounds_over_all_cells(study, drive, tmp_path) -> None:
    """What slows the machine for a while does not fall on one cell."""
    it = drive(study(), tmp_path / "runs", steps=5)
    assert [(t.cell, t.seed) for t in it.tasks(set())] == [("plain", 0), ("more", 0), ("plain", 1), ("more", 1)]


def test_what_was_measured_is_not_measured_again(study, drive, tmp_path, taken) -> None:
    first = drive(study(seeds=1), tmp_path / "runs", steps=5).run()
    taken.clear()
    assert drive(study(seeds=1), tmp_path / "runs", steps=5).run().as_dict()["cells"] == first.as_dict()["cells"] and not taken
    drive(study(seeds=1), tmp_path / "runs", steps=10).run()
    assert len(taken) == 2 * (bench.WARM + 10), "another number of steps is another measurement"


def test_the_dry_run_promises_steps(study, drive, tmp_path, taken) -> None:
    from composer.ablate.preview import preview, renderables

    it = drive(study(), tmp_path / "runs", steps=30)
    numbers = preview(it)
    assert (numbers["steps"], numbers["missing"], numbers["epochs_trained"]) == (30, 4, 0)
    assert any("30 steps of each cell" in str(each) for each in renderables(it, numbers))


def test_too_few_steps_are_refused(study, drive, tmp_path) -> None:
    from composer.ablate.drive import check_jobs

    with pytest.raises(ComposerError, match="--steps 2"):
        check_jobs(drive(study(), tmp_path / "runs", steps=2).options)


def test_two_jobs_measure_one_after_the_other(study, drive, tmp_path, monkeypatch) -> None:
    from composer.ablate import launch

    asked = []
    monkeypatch.setattr(launch, "launch", lambda tasks, work, options, report=None: asked.append(options.jobs) or {})
    drive(study(), tmp_path / "runs", jobs=4).run()
    assert asked == [1]


def test_a_record_is_json(study, drive, tmp_path, taken) -> None:
    it = drive(study(seeds=1), tmp_path / "runs", steps=5)
    it.run()
    held = json.loads(bench.record_file(it.folder, "more", 0).read_text())
    assert held["of"]["steps"] == 5 and len(held["result"]["bench"]["blocks"]) == bench.BLOCKS
