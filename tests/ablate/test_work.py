"""One task in a process: prefixes, runs, what they answer, and what they do a second time."""

from __future__ import annotations

import json

import pytest

from composer.ablate.work import FORK, load_cell, settings_of, work
from composer.errors import ComposerError, Diverged, Stopped


@pytest.fixture
def tasks(grid, drive, tmp_path):
    it = drive(grid("late", "mean"), tmp_path / "runs")
    return {task.title: task for task in it.tasks(set())}


def spec(task, tmp_path, **more):
    return json.loads(json.dumps({**task.spec, "progress_file": str(tmp_path / "told.json"), "stop_file": str(tmp_path / "stop"), **more}))


def test_the_tasks_of_a_grid(tasks) -> None:
    prefix = tasks["epochs 1-3 of 4 cells, seed 0"]
    assert (prefix.kind, prefix.after, prefix.epochs, prefix.cell) == ("prefix", "", 3, "") and len(prefix.spec["guests"]) == 1, "-late has an average too"
    runs = [t for t in tasks.values() if t.kind == "run"]
    assert len(runs) == 4 and all(t.after == prefix.id and t.epochs == 1 and t.seed == 0 for t in runs)
    assert prefix.spec["settings"]["track"] is False and json.dumps(prefix.spec)


def test_a_prefix_then_a_run(tasks, tmp_path, steps) -> None:
    prefix, run = tasks["epochs 1-3 of 4 cells, seed 0"], tasks["-late, seed 0"]
    answer = work(spec(prefix, tmp_path))
    assert answer["epochs"] == 3 and (tmp_path / "runs" / "nodes" / answer["node"] / FORK).exists() and len(steps) == 9
    assert json.loads((tmp_path / "told.json").read_text()) == {"epoch": 3, "of": 3, "stage": "evaluate", "since": 0}
    result = work(spec(run, tmp_path))["result"]
    assert len(steps) == 12 and result["epochs"] == 4 and json.loads((tmp_path / "told.json").read_text())["epoch"] == 4
    assert json.loads(json.dumps(result)) == result


def test_a_second_time_answers_at_once(tasks, tmp_path, steps) -> None:
    for title in ("epochs 1-3 of 4 cells, seed 0", "full, seed 0"):
        first = work(spec(tasks[title], tmp_path))
        steps.clear()
        assert work(spec(tasks[title], tmp_path)) == first and not steps


def test_what_was_there_already_is_told_first(tasks, tmp_path, monkeypatch) -> None:
    """A task that goes on says so before it trains, and from where: its pace is of what it trains itself."""
    from composer.ablate import progress
    from composer.engine.walk import Walk

    told, asked = [], [0]
    monkeypatch.setattr(progress, "tell", lambda path, epoch=0, of=0, stage="", since=0: told.append((epoch, of, stage, since)))
    with monkeypatch.context() as patch:
        patch.setattr(Walk, "stop_asked", lambda self: "SIGTERM" if asked.append(0) or len(asked) > 5 else "")
        with pytest.raises(Stopped):
            work(spec(tasks["epochs 1-3 of 4 cells, seed 0"], tmp_path))
    assert told == [(0, 3, "start", 0), (1, 3, "train", 0)]
    told.clear()
    work(spec(tasks["epochs 1-3 of 4 cells, seed 0"], tmp_path))
    assert told == [(0, 3, "start", 0), (1, 3, "resumed", 1), (2, 3, "train", 1), (3, 3, "evaluate", 1)]
    told.clear()
    work(spec(tasks["full, seed 0"], tmp_path))
    assert told[:2] == [(0, 4, "start", 0), (3, 4, "resumed", 3)]


def test_a_run_without_its_prefix_trains_it_all(tasks, tmp_path, steps) -> None:
    """A cell that is launched without its prefix has the same bits."""
    whole = work(spec(tasks["full, seed 0"], tmp_path))["result"]
    assert len(steps) == 12
    other = tmp_path / "other"
    prefix, run = (spec(tasks[t], tmp_path) for t in ("epochs 1-3 of 4 cells, seed 0", "full, seed 0"))
    for each in (prefix, run):
        each["settings"]["out"] = str(other)
        again = work(each)
    assert again["result"]["weights_sha256"] == whole["weights_sha256"]


def test_a_stop_file_stops(tasks, tmp_path) -> None:
    (tmp_path / "stop").touch()
    with pytest.raises(Stopped, match="checkpoint was written"):
        work(spec(tasks["full, seed 0"], tmp_path))
    assert list((tmp_path / "runs").glob("nodes/*/checkpoint.safetensors"))


def test_divergence_is_told(grid, drive, tmp_path) -> None:
    it = drive(grid("wild"), tmp_path / "runs")
    task = next(t for t in it.tasks(set()) if t.cell == "-wild")
    with pytest.raises(Diverged):
        work(spec(task, tmp_path))


def test_guests_that_part_earlier_are_refused(grid, drive, tmp_path) -> None:
    it = drive(grid("start"), tmp_path / "runs")
    host, guest = it.tasks(set())
    wrong = {**spec(host, tmp_path), "kind": "prefix", "until": 2, "guests": [[guest.spec["recipe"], guest.spec["name"]]]}
    with pytest.raises(ComposerError, match="parts from"):
        work(wrong)


def test_a_cell_is_read_under_its_recipes_name(tasks, tmp_path) -> None:
    """Nothing of the recipe's file or the setting's is applied a second time."""
    task = tasks["-late, seed 0"]
    read = load_cell(task.spec["recipe"], task.spec["name"])
    assert read.name == "late" and not any(t.id == "mae" for t in read.method.terms) and read.segments()[-1].last == 4
    settings = settings_of(spec(task, tmp_path))
    assert settings.out == tmp_path / "runs" and settings.stop_file == str(tmp_path / "stop") and settings.share
