"""Sources of trials: rungs against ASHA worked out by hand, draws that go on after a death."""

from __future__ import annotations

import random

import pytest

from composer.search.propose import Drawn, Points, Rungs, rungs
from composer.search.store import Store

SPACE = {"x": {"low": 0.0, "high": 1.0}, "k": {"choices": ["a", "b"]}}


def asha(at, eta, reports):
    """Li et al. 2020, asynchronous: at a rung a trial goes on unless it is below the (1 - 1/eta) quantile of those that came there before it."""
    import numpy as np

    seen, stopped = {}, []
    for trial, epoch, value in reports:
        here = [r for r in at if r <= epoch and trial not in seen.get(r, {})]
        if trial in stopped or not here:
            continue
        before = seen.setdefault(here[-1], {})
        if before and value < np.percentile(list(before.values()), 100 * (1 - 1 / eta)):
            stopped.append(trial)
        before[trial] = value
    return stopped


@pytest.mark.parametrize(("grace", "eta"), [(1, 2.0), (2, 3.0), (1, 4.0)])
def test_the_rungs_stop_whom_asha_stops(grace, eta):
    pytest.importorskip("ray")
    draw, epochs = random.Random(3), 12
    at = rungs(epochs, grace, eta)
    reports = [(t, e, draw.random()) for e in range(1, epochs + 1) for t in draw.sample(range(12), 12)]
    mine, stopper = [], Rungs(at, eta, "pgd")
    for trial, epoch, value in reports:
        if trial not in mine and stopper.stops(trial, epoch, {"pgd": value, "clean": 1.0}):
            mine.append(trial)
    assert mine == asha(at, eta, reports) and mine


def test_rungs_lie_inside_the_run():
    assert rungs(20, 5, 3.0) == (5, 15) and rungs(20, 0, 3.0) == (5, 15) and rungs(1, 0, 3.0) == () and rungs(3, 1, 2.0) == (1, 2) and rungs(4, 9, 3.0) == ()


def play(source, count, value=lambda values: values["x"], epochs=2):
    """Train nothing: an epoch's accuracy is a function of the values."""
    store, jobs = source.store, []
    for _ in range(count):
        job = source.next()
        if job is None:
            break
        jobs.append(job)
        from composer import atomic

        for epoch in range(1, epochs + 1):
            atomic.append_line(store.trial(job.number) / "epochs.jsonl", {"epoch": epoch, "pgd": value(job.values)})
            if source.seen(job.number, epoch, {"pgd": value(job.values)}):
                break
        else:
            store.end(job.number, "done", metrics={"pgd": value(job.values)})
        source.ended(job.number)
    return jobs


def drawn(tmp_path, options, trials=12, **changes):
    return Drawn(Store(tmp_path, "s"), SPACE, options(trials=trials, **changes), "pgd", Rungs((), 3.0, "pgd"))


def test_draws_climb_and_are_the_same_for_a_seed(tmp_path, options):
    pytest.importorskip("optuna")
    first = play(drawn(tmp_path / "a", options, 30), 99)
    again = play(drawn(tmp_path / "b", options, 30), 99)
    assert first == again and len(first) == 30 and {j.values["k"] for j in first} == {"a", "b"}
    late = [j.values["x"] for j in first[20:]]
    assert sum(late) / len(late) > 0.7, "TPE has found where the accuracy is high"


def test_a_later_sitting_knows_the_earlier_one_and_draws_anew(tmp_path, options):
    pytest.importorskip("optuna")
    early = play(drawn(tmp_path, options), 5)
    source = drawn(tmp_path, options)
    left = source.next()                                          # handed out, and the driver dies
    again = drawn(tmp_path, options)
    late = play(again, 99)
    assert late[0] == left, "the unfinished trial comes first, with its values"
    assert [j.number for j in early + late] == list(range(12)) and again.next() is None
    assert len({j.values["x"] for j in early + late}) == 12, "no draw is given twice"
    assert len([t for t in again.study.trials if t.state.name == "COMPLETE"]) == 12


def test_what_was_pruned_diverged_or_crashed_is_told_as_such(tmp_path, options):
    pytest.importorskip("ray")
    source = drawn(tmp_path, options)
    source.rungs = Rungs((1,), 2.0, "pgd")
    scores = {}
    play(source, 2, value=lambda values: scores.setdefault(values["x"], 0.1 if scores else 0.5))
    assert source.store.read(1).status == "pruned" and "epoch 1" in source.store.read(1).why
    for status in ("diverged", "failed"):
        job = source.next()
        source.store.end(job.number, status, why="x")
        source.ended(job.number)
    assert [t.state.name for t in source.study.trials] == ["COMPLETE", "PRUNED", "COMPLETE", "FAIL"] and source.study.trials[2].value == 0.0
    again = drawn(tmp_path, options)
    assert again.waiting == [3], "a crash is tried again, a divergence is not"
    assert [t.state.name for t in again.study.trials] == ["COMPLETE", "PRUNED", "COMPLETE"]


def test_points_go_on_where_they_were(tmp_path):
    store, points = Store(tmp_path, "g"), [{"a": n} for n in range(4)]
    source = Points(store, points)
    assert [source.next().number for _ in range(2)] == [0, 1]
    store.end(0, "done", metrics={"pgd": 0.5})
    store.end(1, "failed", why="x")
    assert [j.number for j in Points(store, points).jobs] == [1, 2, 3] and Points(store, points, deadline=1.0).next() is None
