"""Stopped anywhere and run again, a run ends with the bits of one that was never stopped."""

from __future__ import annotations

import json
import random
import signal
import time

import pytest

from composer.engine import checkpoint
from composer.errors import Stopped
from composer.recipe.find import recipe_names, shipped

RECIPES = recipe_names(shipped())
OFTEN = ["at_rice", "lma_at", "mart_ours", "mwpb_trades", "piat_nmse", "trades_ours"]
QUICK = {name: {"parts.teacher.model": "{ use = 'small_cnn', channels = [4, 8, 8] }"} for name in ("lbgat", "emr_lbgat")}
TIMES = ("seconds", "train_seconds", "out", "peak_memory_bytes")


def timeless(result):
    return {k: v for k, v in result.items() if k not in TIMES}


def quick(recipe):
    """What makes a recipe small besides the setting: networks that parts bring along."""
    return QUICK.get(recipe, {})


def stopped_at(recipe, stops, go, stop_after, record, folder):
    """The recipe in one go, and stopped after so many steps of each sitting: results, and the records of epochs but for times."""
    whole = go(recipe, folder / "whole", **quick(recipe))
    for steps in stops:
        stop_after(steps)
        with pytest.raises(Stopped) as stop:
            go(recipe, folder / "parts", **quick(recipe))
        assert stop.value.exit_code == 75
    stop_after(None)
    parts = go(recipe, folder / "parts", **quick(recipe))
    assert timeless(parts) == timeless(whole) and whole["steps"] == 3 * whole["epochs"] >= 9
    rows = [record(folder / name, whole["run"]).rows for name in ("whole", "parts")]
    assert rows[0] == rows[1] and [row["epoch"] for row in rows[0]] == list(range(1, whole["epochs"] + 1))


@pytest.mark.parametrize("recipe", [r for r in RECIPES if r not in OFTEN])
def test_stopped_once_and_resumed_is_in_one_go(recipe, go, stop_after, record, tmp_path):
    stopped_at(recipe, (5,), go, stop_after, record, tmp_path)


@pytest.mark.parametrize("recipe", OFTEN)
def test_stopped_and_resumed_is_in_one_go(recipe, go, stop_after, record, tmp_path):
    """Stopped within, at the end of, and right after an epoch, before and behind the borders of phases."""
    stopped_at(recipe, (1, 2, 3), go, stop_after, record, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_stopped_after_every_step(recipe, go, stop_after, record, tmp_path):
    stopped_at(recipe, (1,) * 8, go, stop_after, record, tmp_path)


# -- killed ----------------------------------------------------------------------------------------------------------------------------

EPOCHS = 40
LONG = (f"train.epochs={EPOCHS}",)


def killed(recipe, away, out, kills, seed):
    """Kill the run at `kills` random moments, then let it end; its result."""
    rng, struck = random.Random(seed), 0
    for _ in range(kills):
        process = away(recipe, out, *LONG, environment={"COMPOSER_CHECKPOINT_SECONDS": "0.05"})
        lines = sum(len(f.read_text().splitlines()) for f in out.glob("nodes/*/metrics.jsonl"))
        process.until_epoch(lines + rng.randint(1, 24 // kills))
        time.sleep(rng.random() * 0.05)
        process.send(signal.SIGKILL)
        code = process.code()
        assert code == -signal.SIGKILL or (struck and code == 0), process.stderr      # a slow machine may strike too late
        struck += code != 0
    assert struck
    process = away(recipe, out, *LONG, "--json")
    assert process.code() == 0, process.stderr
    return json.loads(process.stdout)


@pytest.mark.parametrize("recipe", ["piat_nmse", "mart_ours"])
def test_killed_twice(recipe, go, away, record, tmp_path):
    whole = go(recipe, tmp_path / "whole", **{"train.epochs": EPOCHS})
    parts = killed(recipe, away, tmp_path / "parts", 2, seed=recipe)
    assert timeless(parts) == timeless(whole)
    assert record(tmp_path / "parts", whole["run"]).rows == record(tmp_path / "whole", whole["run"]).rows
    assert not list((tmp_path / "parts").rglob(".tmp-*")), "a killed process left half a file behind"


@pytest.mark.slow
@pytest.mark.parametrize("recipe", OFTEN)
def test_killed_often(recipe, go, away, record, tmp_path):
    whole = go(recipe, tmp_path / "whole", **{"train.epochs": EPOCHS})
    for seed in range(3):
        parts = killed(recipe, away, tmp_path / f"parts{seed}", 8, seed=f"{recipe}{seed}")
        assert timeless(parts) == timeless(whole)
        assert record(tmp_path / f"parts{seed}", whole["run"]).rows == record(tmp_path / "whole", whole["run"]).rows


class Crash(Exception):
    """What a test puts in the place of a power cut."""


@pytest.mark.parametrize("place", ["Walk.validate", "Walk.epoch_done", "checkpoint.forget", "Runner._evaluate", "Trainer._end_epoch"])
def test_cut_off_at_the_awkward_places(place, go, record, tmp_path, monkeypatch):
    """Before validation, before and after the record of an epoch, between a new best model and its record, before the evaluation."""
    from composer.engine import run, train, walk

    whole = go("piat_nmse", tmp_path / "whole")
    holder, name = {"Runner": run.Runner, "Walk": walk.Walk, "Trainer": train.Trainer, "checkpoint": checkpoint}[place.split(".")[0]], place.split(".")[1]
    plain, cuts = getattr(holder, name), 0
    for countdown in (0, 1, 0, 1):
        left = [countdown]

        def crash(*args, left=left, **kwargs):
            if left[0] == 0:
                raise Crash
            left[0] -= 1
            return plain(*args, **kwargs)

        monkeypatch.setattr(holder, name, crash)
        try:
            go("piat_nmse", tmp_path / "parts", settings={"checkpoint_seconds": 0.0})
        except Crash:
            cuts += 1
    monkeypatch.setattr(holder, name, plain)
    assert cuts >= (1 if name == "_evaluate" else 2)
    parts = go("piat_nmse", tmp_path / "parts")
    assert timeless(parts) == timeless(whole)
    assert record(tmp_path / "parts", whole["run"]).rows == record(tmp_path / "whole", whole["run"]).rows


# -- asked to stop ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_stops_after_a_checkpoint(number, code, go, away, record, tmp_path):
    whole = go("mart", tmp_path / "whole", **{"train.epochs": 60})
    process = away("mart", tmp_path / "parts", "train.epochs=60")
    process.until_epoch(3)
    process.send(number)
    assert process.code() == code
    said = process.stderr.strip().splitlines()[-3:]
    assert "stopped by" in said[0] and "a checkpoint was written" in said[1] and "same command" in said[2]
    store = record(tmp_path / "parts", whole["run"])
    at = checkpoint.facts(store.folders[0] / checkpoint.CURRENT)["progress"]
    assert 3 <= at["judged"] < 60 and not (tmp_path / "parts/experiments" / whole["run"] / "result.json").exists()
    assert not list((tmp_path / "parts").rglob("lock")), "a lock stayed behind"
    again = away("mart", tmp_path / "parts", "train.epochs=60", "--json")
    assert again.code() == 0, again.stderr
    assert timeless(json.loads(again.stdout)) == timeless(whole)


def test_a_second_ctrl_c_does_not_wait(away, tmp_path):
    """The first one waits for the end of a validation of minutes; the second does not."""
    process = away("at", tmp_path / "out", "train.epochs=3", "select.attack.steps=200000")
    process.until(lambda: list((tmp_path / "out").glob("nodes/*/key.json")))
    time.sleep(0.5)
    process.send(signal.SIGINT)
    time.sleep(0.2)
    assert process.process.is_alive()
    began = time.monotonic()
    process.send(signal.SIGINT)
    assert process.code() == 130 and time.monotonic() - began < 10


def test_sigterm_while_judging(go, away, tmp_path):
    """Training is not repeated, and what was judged is kept."""
    words = ("evaluate.pgd-a={use='pgd',steps=300}", "evaluate.pgd-b={use='pgd',steps=1000}", "evaluate.pgd-c={use='pgd',steps=1001}")
    process = away("at", tmp_path / "out", *words)
    process.until(lambda: list((tmp_path / "out").glob("evaluations/*/*/pgd-*.json")))
    process.send(signal.SIGTERM)
    assert process.code() == 75 and "training is done" in process.stderr
    done = next((tmp_path / "out").glob("nodes/*/done")).stat().st_mtime_ns
    judged = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("evaluations/*/*/*.json")}
    again = away("at", tmp_path / "out", *words, "--json")
    assert again.code() == 0, again.stderr
    result = json.loads(again.stdout)
    assert set(result["metrics"]) == {"clean", "pgd-3", "pgd-a", "pgd-b", "pgd-c"}
    assert next((tmp_path / "out").glob("nodes/*/done")).stat().st_mtime_ns == done, "it was trained again"
    assert judged and all(p.stat().st_mtime_ns == then for p, then in judged.items()), "it was judged again"


# -- what a checkpoint holds -----------------------------------------------------------------------------------------------------------


def test_momentum_comes_back_in_the_layout_of_its_weights(go, stop_after, tmp_path, monkeypatch):
    """Channels-last weights have channels-last momenta, after a resume too."""
    from composer.engine.train import Trainer

    stop_after(4)
    with pytest.raises(Stopped):
        go("at", tmp_path, **{"model.channels": [4, 8, 8]})
    seen = []
    plain = Trainer.run

    def look(self, lock):
        seen.extend((p.stride(), s["momentum_buffer"].stride()) for p, s in self.optimizer.state.items())
        plain(self, lock)

    monkeypatch.setattr(Trainer, "run", look)
    stop_after(None)
    go("at", tmp_path, **{"model.channels": [4, 8, 8]})
    assert any(len(p) == 4 and p[1] == 1 for p, _ in seen), "no weight is channels-last: this test sees nothing"
    assert all(p == m for p, m in seen)


def test_a_phase_that_regroups_the_optimiser(go, stop_after, tmp_path):
    """From epoch 2 on biases are spared weight decay: every momentum finds its own parameter again, in one go and after a stop."""
    sets = {"optim.decay_exclude": [], "optim.weight_decay": 0.05, "phase.late": "{ from = 1, set = { 'optim.decay_exclude' = ['bias'] } }",
            "select.report": "last"}
    whole, never = go("at", tmp_path / "whole", **sets), go("at", tmp_path / "never", **{"optim.weight_decay": 0.05, "select.report": "last"})
    for steps in (3, 2, None):                                   # after epoch 1, within epoch 2
        stop_after(steps)
        if steps:
            with pytest.raises(Stopped):
                go("at", tmp_path / "parts", **sets)
    assert timeless(go("at", tmp_path / "parts", **sets)) == timeless(whole)
    assert whole["weights_sha256"] != never["weights_sha256"]
    same = {"optim.decay_exclude": [], "phase.late": "{ from = 1, set = { 'optim.decay_exclude' = ['head'] } }", "optim.weight_decay": 0.0}
    assert go("at", tmp_path / "same", **same)["weights_sha256"] == go("at", tmp_path / "zero", **{"optim.weight_decay": 0.0})["weights_sha256"]


def test_best_models_that_no_checkpoint_names_are_removed(go, record, tmp_path):
    result = go("at", tmp_path, **{"train.epochs": 12, "train.lr": 0.1}, settings={"checkpoint_seconds": 0.0})
    folder = record(tmp_path, result["run"]).folders[0]
    best = {p.name for p in folder.glob("best-*")}
    named = {checkpoint.facts(folder / name)["progress"]["best"]["file"] for name in (checkpoint.CURRENT, checkpoint.PREVIOUS)}
    rises = [row["epoch"] for k, row in enumerate(record(tmp_path, result["run"]).rows)
             if all(row["val/pgd"] > r["val/pgd"] for r in record(tmp_path, result["run"]).rows[:k])]
    assert len(rises) > 2, "the best epoch never changed: this test sees nothing"
    assert best == named


def test_optimisers_with_more_state_resume_too(go, stop_after, tmp_path):
    """Every registered optimiser, schedules on its options included."""
    from composer.registry import REGISTRY

    names = REGISTRY.names("optim")
    assert "sgd" in names
    for name in names:
        sets = {"optim.use": f'"{name}"', "train.lr": 0.001, "optim.weight_decay": '{ use = "cosine", value = 0.001 }'}
        drops = () if name == "sgd" else ("optim.momentum",)
        whole = go("at", tmp_path / f"{name}-whole", drops=drops, **sets)
        stop_after(4)
        with pytest.raises(Stopped):
            go("at", tmp_path / f"{name}-parts", drops=drops, **sets)
        stop_after(None)
        assert timeless(go("at", tmp_path / f"{name}-parts", drops=drops, **sets)) == timeless(whole)
