"""Epochs trained once for several runs: whoever goes on from them has the bits it would have had alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from composer.engine.prefix import train_prefix
from composer.engine.session import Session, Settings
from composer.recipe.load import load

TIMES = ("seconds", "train_seconds", "out", "mlflow_run_id", "peak_memory_bytes")
BASE = {"train.epochs": 4, "select.from": 3, "select.report": "both"}
EMA = "{{ use = 'weight_ema', decay = {} }}"
LATE = {"parts.ema": "{ use = 'logit_ema', decay = 0.6 }",
        "terms.align": "{ use = 'mse', a = 'ema_adv_logits', b = 'ema_clean_logits', begin = 3, weight = 2.0 }"}
RAMP = "{{ use = 'multistep', value = 0.05, at = [3], factor = {} }}"


def timeless(result):
    return {k: v for k, v in result.items() if k not in TIMES}


@pytest.fixture
def made(tiny):
    def build(recipe, sets):
        return load(recipe, setting=tiny, sets=[f"{k}={v}" for k, v in {**BASE, **sets}.items()])

    return build


def settings(out) -> Settings:
    return Settings(out=Path(out), track=False, quiet=True, device="cpu")


@pytest.fixture
def share(made, tmp_path):
    """Train the first epochs of the first recipe with the others as guests, in a store of their own."""

    def call(recipes, until, out=None):
        host, *guests = [made(name, sets) for name, sets in recipes]
        return train_prefix(host, seed=0, until=until, guests=guests, settings=settings(out or tmp_path / "shared"))

    return call


@pytest.fixture
def steps_of(monkeypatch):
    """Counts training steps."""
    from composer.engine.walk import Walk

    seen, plain = [], Walk.step_done
    monkeypatch.setattr(Walk, "step_done", lambda self, *args: (seen.append(args), plain(self, *args)))
    return seen


def both(go, made, tmp_path, name, sets):
    alone = go(name, tmp_path / f"alone-{name}", **{**BASE, **sets})
    return go(name, tmp_path / "shared", **{**BASE, **sets}), alone


@pytest.mark.parametrize(("recipes", "until"), [
    ([("at", {"train.lr": RAMP.format(0.1)}), ("at", {"train.lr": RAMP.format(0.5)})], 2),                          # schedules equal so far
    ([("mart", {"terms.mae": "{ begin = 2 }"}), ("mart", {"terms.mae": "{ begin = 3 }"})], 2),                      # a component that comes late
    ([("at", {}), ("at", {"parts.mean": EMA.format(0.8), "evaluate.weights": "mean", "select.held_out": 0, "select.report": "last"})], 0),
    ([("mwpb_at", {"phase.half.until": 2}), ("mwpb_at", {"phase.half.until": 2, "inner.x_adv.eps.alpha": 0.0})], 2),
], ids=["schedule", "begin", "unlike", "mwpb"])
def test_shared_epochs_change_no_bit(go, made, share, steps_of, tmp_path, recipes, until):
    if until:
        trained = share(recipes, until)
        assert (tmp_path / "shared" / "nodes" / trained["node"] / "done").exists()
    for k, (name, sets) in enumerate(recipes):
        alone = go(name, tmp_path / f"alone{k}", **{**BASE, **sets})
        steps_of.clear()
        shared = go(name, tmp_path / "shared", **{**BASE, **sets})
        assert timeless(shared) == timeless(alone)
        assert until == 0 or len(steps_of) == (4 - until) * 3, "the shared epochs are not trained again"


def test_passive_parts_of_all_runs_are_trained_along(go, share, steps_of, tmp_path):
    """Two averages of one name and another decay, an average of logits that is read late, and a run without any: one prefix."""
    judged = {"evaluate.weights": "mean"}
    recipes = [("at", {}), ("at", {"parts.mean": EMA.format(0.5), **judged}), ("at", {"parts.mean": EMA.format(0.9), **judged}), ("at", LATE)]
    share(recipes, 2)
    for k, (name, sets) in enumerate(recipes):
        alone = go(name, tmp_path / f"alone{k}", **{**BASE, **sets})
        steps_of.clear()
        shared = go(name, tmp_path / "shared", **{**BASE, **sets})
        assert timeless(shared) == timeless(alone) and len(steps_of) == 6


def test_a_store_without_the_passive_part_is_of_no_use(go, share, steps_of, tmp_path):
    share([("at", {})], 2)
    judged = {"parts.mean": EMA.format(0.5), "evaluate.weights": "mean"}
    alone = go("at", tmp_path / "alone", **{**BASE, **judged})
    steps_of.clear()
    assert timeless(go("at", tmp_path / "shared", **{**BASE, **judged})) == timeless(alone) and len(steps_of) == 12


def test_a_prefix_on_a_prefix(go, share, steps_of, tmp_path):
    """A fork below a fork: the second stretch goes on from the first, guests and all."""
    judged = {"parts.mean": EMA.format(0.5), "evaluate.weights": "mean"}
    recipes = [("at", {}), ("at", judged)]
    share(recipes, 1)
    steps_of.clear()
    share(recipes, 2)
    assert len(steps_of) == 3
    for k, (name, sets) in enumerate(recipes):
        alone = go(name, tmp_path / f"alone{k}", **{**BASE, **sets})
        steps_of.clear()
        assert timeless(go(name, tmp_path / "shared", **{**BASE, **sets})) == timeless(alone) and len(steps_of) == 6, k


def test_a_shared_run_s_curves_are_whole(go, share, tmp_path):
    from composer import atomic

    share([("at", {})], 2)
    result = go("at", tmp_path / "shared", **BASE)
    rows = atomic.read_lines(tmp_path / "shared" / "experiments" / result["run"] / "metrics.jsonl")
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]


def test_a_cut_does_not_end_a_phase(go, share, tmp_path):
    """Weights averaged at a phase's end: the cut before it is none."""
    averaged = {"parts.average": "{ use = 'swa', start_epoch = 2 }", "evaluate.weights": "average"}
    share([("at", averaged)], 2)
    assert timeless(go("at", tmp_path / "shared", **{**BASE, **averaged})) == timeless(go("at", tmp_path / "alone", **{**BASE, **averaged}))


def test_without_sharing_nothing_of_others_is_used(made, share, steps_of, tmp_path):
    from dataclasses import replace

    from composer.engine.run import run

    share([("at", {})], 2)
    recipe = made("at", {})
    steps_of.clear()
    apart = timeless(run(recipe, settings=replace(settings(tmp_path / "shared"), share=False)))
    assert len(steps_of) == 12
    alone = timeless(run(recipe, settings=settings(tmp_path / "alone")))
    assert apart.pop("run") == alone.pop("run") + "-fp32-alone" and apart == alone, "a result of its own, with the same bits"


def test_a_prefix_stopped_and_resumed(go, share, stop_after, tmp_path):
    from composer.errors import Stopped

    recipes = [("at", {}), ("at", {"parts.mean": EMA.format(0.5), "evaluate.weights": "mean"})]
    stop_after(4)
    with pytest.raises(Stopped):
        share(recipes, 2)
    stop_after(None)
    share(recipes, 2)
    for k, (name, sets) in enumerate(recipes):
        assert timeless(go(name, tmp_path / "shared", **{**BASE, **sets})) == timeless(go(name, tmp_path / f"alone{k}", **{**BASE, **sets}))


def test_recipes_that_part_earlier_are_refused(share):
    from composer.errors import ComposerError

    with pytest.raises(ComposerError, match="parts from"):
        share([("at", {}), ("at", {"parts.mean": EMA.format(0.5), "evaluate.weights": "mean"})], 3)


def test_keys_do_not_depend_on_where_a_run_is_cut(made, tmp_path):
    whole = Session(made("at", {}), 0, settings(tmp_path)).nodes
    split = Session(made("at", {"terms.mae": "{ begin = 3 }"}), 0, settings(tmp_path)).nodes
    assert len(whole) == 1 and whole[0].chain[:3] == split[0].chain
