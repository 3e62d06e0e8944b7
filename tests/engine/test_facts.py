"""What a run tells the measures that ask: radii by a formula and by a memory, training images, times."""

from __future__ import annotations

import json

import pytest
import torch

from composer.engine import checkpoint
from composer.engine.facts import Facts
from composer.engine.judge import plain_model
from composer.engine.session import Session, Settings
from composer.errors import ComposerError
from composer.recipe.load import load

MEASURES = {"evaluate.radius": "{ use = 'mean_radius' }", "evaluate.train": "{ use = 'clean', split = 'train' }",
            "evaluate.margin": "{ use = 'effective_margin', split = 'train', n = 10 }", "evaluate.pace": "{ use = 'seconds_per_step' }"}


def of(recipe, tiny, out, **sets):
    """The session of a finished run and its last weights."""
    made = load(recipe, setting=tiny, sets=[f"{k}={v}" for k, v in {**MEASURES, **sets}.items()])
    session = Session(made, 0, Settings(out=out, track=False, quiet=True, device="cpu"))
    saved, _ = checkpoint.newest(session.nodes[-1].folder)
    return session, {k.removeprefix("model/"): v for k, v in saved.tensors.items() if k.startswith("model/")}, saved


def test_the_radius_of_mwpb_is_its_formula_at_the_judged_weights(go, tiny, tmp_path):
    sets = {"select.report": "last", "inner.x_adv.bn": "train"}
    result = go("mwpb_at", tmp_path, **MEASURES, **sets)
    session, weights, _ = of("mwpb_at", tiny, tmp_path, **sets)
    x, y = Facts(session, weights).images("train")
    assert len(y) == 80 - 16 and torch.equal(x[3], session.dataset.train.x[session.rows[3]] / 16)
    with torch.no_grad():
        p = plain_model(session, weights)(x).double().softmax(1)
    own = p.gather(1, y[:, None])[:, 0]
    want = 0.2 * torch.exp(0.58 * (own - p.scatter(1, y[:, None], -1).amax(1)))
    torch.testing.assert_close(Facts(session, weights).radii().double(), want, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(Facts(session, weights).radii("adv"), Facts(session, weights).radii("x_adv"))
    assert result["metrics"]["radius"] == pytest.approx(float(want.mean()), rel=1e-5) and result["n"]["radius"] == 64
    assert result["metrics"]["train"] == float((p.argmax(1) == y).double().mean()) and result["n"]["train"] == 64
    assert 0 < result["n"]["margin"] <= 10 and result["metrics"]["margin"] > 0
    rows = [json.loads(line) for node in session.nodes for line in (node.folder / "metrics.jsonl").read_text().splitlines()]
    times = [row["time/step_ms"] / 1000 for row in rows]
    assert len(times) == 3 and result["metrics"]["pace"] == pytest.approx(sum(times[1:]) / 2)
    with pytest.raises(ComposerError, match="makes 'x_bd'"):
        Facts(session, weights).radii("bd")


def test_the_weights_are_those_it_is_given(go, tiny, tmp_path):
    go("mwpb_at", tmp_path, **MEASURES)
    session, weights, _ = of("mwpb_at", tiny, tmp_path)
    before = {k: v.clone() for k, v in session.net.model.state_dict().items()}
    flat = Facts(session, {k: v * 0 if v.is_floating_point() else v for k, v in weights.items()}).radii()
    torch.testing.assert_close(flat, torch.full((64,), 0.2), rtol=0, atol=1e-6)                  # all probabilities alike: no margin
    assert all(torch.equal(v, before[k]) for k, v in session.net.model.state_dict().items())


def test_mma_s_radius_is_its_memory(go, tiny, tmp_path):
    result = go("mma", tmp_path, **MEASURES, **{"select.report": "last"})
    session, weights, saved = of("mma", tiny, tmp_path, **{"select.report": "last"})
    want = saved.tensors["parts/memory/eps"][session.rows].clamp_min(0.005)
    torch.testing.assert_close(Facts(session, weights).radii(), want)
    assert want.std() > 0 and result["metrics"]["radius"] == pytest.approx(float(want.mean()), rel=1e-5)


@pytest.mark.parametrize(("recipe", "radius"), [("at", 0.2), ("standard", 0.0), ("trades", 0.2)])
def test_a_radius_that_is_a_number(go, tiny, tmp_path, recipe, radius):
    assert go(recipe, tmp_path, **MEASURES)["metrics"]["radius"] == pytest.approx(radius)


def test_a_scheduled_radius_is_that_of_the_end(go, tmp_path):
    result = go("at", tmp_path, **MEASURES, **{"inner.x_adv.eps": "{ use = 'ramp', first = 0.05, last = 0.17 }", "select.report": "last"})
    assert result["metrics"]["radius"] == pytest.approx(0.13)        # the third epoch of three begins two thirds up


def test_traced_diagnostics_stand_apart_from_accuracies(go, record, tmp_path):
    sets = {"trace.every": 1, "trace.margin": "{ use = 'effective_margin', split = 'train', over = 'all' }", "trace.radius": "{ use = 'mean_radius' }",
            "trace.clean": "{ use = 'clean' }"}
    result = go("mwpb_at", tmp_path, **sets)
    rows = record(tmp_path, result["run"]).rows
    assert len(rows) == 3 and all({"trace-val/clean", "diagnostic-val/margin", "diagnostic-val/radius"} <= row.keys() for row in rows)
    assert not [k for row in rows for k in row if k.startswith("trace-") and ("margin" in k or "radius" in k)]
    assert rows[0]["diagnostic-val/radius"] == pytest.approx(0.1), "the epoch's own stretch, at half the radius"
    assert rows[2]["diagnostic-val/radius"] > 0.17


def test_a_trace_reads_the_live_memory(go, record, tiny, tmp_path):
    sets = {"trace.every": 1, "trace.radius": "{ use = 'mean_radius' }", "train.epochs": 6, "train.lr": 0.05}
    rows = record(tmp_path, go("mma", tmp_path, **sets)["run"]).rows
    session, _, saved = of("mma", tiny, tmp_path, **sets)
    last = saved.tensors["parts/memory/eps"][session.rows].clamp_min(0.005)
    assert rows[-1]["diagnostic-val/radius"] == pytest.approx(float(last.mean()), rel=1e-5) and rows[0]["diagnostic-val/radius"] < float(last.mean())


def test_the_unselected_model_is_spared_what_is_costly(go, tmp_path):
    sets = {"select.report": "both", "evaluate.spsa": "{ samples = 2, steps = 1, n = 4 }", "evaluate.radius": "{ use = 'mean_radius' }"}
    result = go("at", tmp_path, **sets)
    assert "spsa" in result["metrics"] and set(result["metrics_other"]) == {"clean", "pgd-3", "radius"}


@pytest.mark.parametrize(("sets", "said"), [
    ({"evaluate.radius": "{ use = 'mean_radius', point = 'bd' }"}, "makes 'x_bd'"),
    ({"evaluate.val": "{ use = 'clean', split = 'val' }", "select.held_out": 0, "select.report": "last"}, "asks for the val images, and there are none"),
])
def test_what_a_run_cannot_tell_is_said_before_it_trains(go, tmp_path, sets, said):
    with pytest.raises(ComposerError, match=said):
        go("at", tmp_path, **sets)
    assert not list(tmp_path.rglob("metrics.jsonl"))


def test_a_diagnostic_may_not_select(tiny):
    with pytest.raises(ComposerError, match="a diagnostic in pixels is no accuracy, and selects nothing"):
        load("at", setting=tiny, sets=["select.attack={ use = 'effective_margin' }"])
