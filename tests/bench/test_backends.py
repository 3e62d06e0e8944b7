"""The command that holds backends against eager: it agrees where they agree, and shouts where one is wrong."""

from __future__ import annotations

import json

import pytest
import torch

from composer.bench import backends as held
from composer.bench import gates as gates_module
from composer.bench.backends import PIECES, apart, check, text
from composer.bench.gates import GATES, HAND, LOOPS, Gate, gates, passed, verdict
from composer.bench.nets import batch, net
from composer.bench.pruned import STEPS as PRUNED_STEPS
from composer.bench.reference import STEPS as FAITHFUL_STEPS
from composer.bench.subject import Subject, load_like_plain
from composer.bench.timer import Timing, Variant
from composer.engine import backend_lower
from composer.errors import ComposerError
from composer.models import packed_layer


def as_traced(graph, examples):
    return graph


def test_backends_agree_and_the_table_says_so():
    lines: list[str] = []
    found = check(("trades",), names=("folded", "compiled"), n=6, lower=as_traced, say=lines.append)
    assert found["ok"] and json.loads(json.dumps(found)) == found and len(found["rows"]) == 4 == len(lines) - 1
    assert not any("DISAGREES" in line for line in lines) and {tuple(r["apart"]) for r in found["rows"]} == {PIECES}
    exact = [r for r in found["rows"] if r["dtype"] == "float64"]
    assert all(value < 1e-9 for r in exact for value in r["apart"].values()) and all(r["allowed"] == dict.fromkeys(PIECES, 1e-9) for r in exact)
    assert all(r["apart"]["looks"] > 0 for r in exact), "the folded network rounds otherwise, or it was not looked at"


@pytest.mark.parametrize(("break_", "piece"), [("scale", "looks"), ("head", "gradients"), ("batch", "statistics")])
def test_a_wrong_backend_is_found(break_, piece, monkeypatch):
    """One part in ten thousand too much in a folded weight; a gradient left out; batch statistics a thousandth off."""
    if break_ == "scale":
        plain = packed_layer.folded
        monkeypatch.setattr(packed_layer, "folded", lambda conv, norm: (plain(conv, norm)[0] * 1.0001, plain(conv, norm)[1]))
    wrong = held.observe

    def broken(recipe, name, dtype, **more):
        found = wrong(recipe, name, dtype, **more)
        if name != "eager" and break_ == "head":
            found["gradients"][-1].zero_()
        if name != "eager" and break_ == "batch":
            found["statistics"][0].mul_(1.001)
        return found

    monkeypatch.setattr(held, "observe", broken)
    lines: list[str] = []
    found = check(("awp_at",) if break_ == "head" else ("trades",), names=("compiled",), n=6, lower=as_traced, say=lines.append)
    assert not found["ok"] and any(f"DISAGREES: {piece}" in line or f"; {piece} " in line for line in lines)


def test_distances():
    one, two = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5])
    assert apart("losses", [one], [one]) == 0 and apart("losses", [two], [one]) == pytest.approx(0.1)
    assert apart("losses", [], [one]) == apart("losses", [one * float("nan")], [one]) == apart("losses", [one[:1]], [one]) == float("inf")
    assert apart("gradients", [one, torch.full((2,), 1e-6)], [one, torch.zeros(2)]) == pytest.approx(1e-6 * 2**0.5 / 5e-3)
    images = torch.rand(20, 1, 4, 4)
    moved = images.clone()
    moved[3] *= 2
    assert apart("looks", [moved], [images]) == 0, "one image of twenty may have passed a kink in float32"
    assert apart("looks", [moved.double()], [images.double()]) > 0.1
    moved[:5] *= 2
    assert apart("looks", [moved], [images]) > 0.1
    row = {"recipe": "r", "backend": "b", "dtype": "float32", "apart": dict.fromkeys(PIECES, 1e-3), "allowed": dict.fromkeys(PIECES, 1e-2)}
    assert "~1.0e-03" in text(row) and "DISAGREES" in text({**row, "allowed": dict.fromkeys(PIECES, 1e-4)})


def test_the_verb_exits_with_one_where_they_disagree(monkeypatch, capsys):
    from composer.cli import app, run_app

    monkeypatch.setattr(held, "backends", lambda device="cpu": ("folded",))
    assert run_app(app, ["bench", "--backends", "at", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["ok"] and "folded" in err
    monkeypatch.setitem(held.TOLERANCE, torch.float64, 1e-30)
    assert run_app(app, ["bench", "--backends", "at", "--backend", "folded"]) == 1
    assert "DISAGREES" in capsys.readouterr().out


# -- against the authors' loops --------------------------------------------------------------------------------------------------------------


def timing(ratio: float, noise: tuple[str, ...] = ()) -> Timing:
    return Timing("faithful", {"faithful": Variant((1.0,), (1.0,)), "eager": Variant((1 / ratio,), (ratio,))}, noise)


def test_verdicts():
    gate = Gate("at", "cnn28", 128, 1.25, 1.45)
    assert [verdict(timing(r), "eager", gate) for r in (1.2, 1.25, 1.45)] == ["below", "gate", "target"]
    assert verdict(timing(1.2, ("load",)), "eager", gate) == "noisy"
    assert passed({"cases": [{"verdicts": {"eager": "below", "compiled": "gate"}}]}) and passed({"cases": [{"verdicts": {"eager": "noisy"}}]})
    assert not passed({"cases": [{"verdicts": {"eager": "below"}}]})


def test_every_gate_has_its_loops():
    assert all(LOOPS[g.recipe] in FAITHFUL_STEPS and HAND[g.recipe] in PRUNED_STEPS and g.gate < g.target for g in GATES)
    assert {(g.recipe, g.net) for g in GATES} == {*((r, "cnn28") for r in ("trades", "awp_trades", "at_rice", "at", "mart")),
                                                  *((r, "resnet18") for r in ("trades", "at", "mart"))}


def test_a_small_case_from_end_to_end(monkeypatch):
    monkeypatch.setattr(gates_module, "LEAST", 1)
    lines: list[str] = []
    found = gates(("awp_trades",), names=("eager", "folded"), cases=(Gate("awp_trades", "cnn8", 2, 0.1, 0.2),), rounds=1, say=lines.append)
    (case,) = found["cases"]
    assert json.loads(json.dumps(found)) == found and case["units"] == {"faithful": 48, "pruned": 33, "eager": 33, "folded": 33}
    assert set(case["ratios"]) == {"eager", "folded"} == set(case["first_step_s"]) and case["timing"]["variants"]["folded"]["rounds"] == 1
    assert passed(found) and "units faithful 48, pruned 33, eager 33, folded 33" in lines[1] and "(gate 0.1, target 0.2)" in lines[1]


def test_wrong_questions_are_errors():
    with pytest.raises(ComposerError, match="no faithful loop to hold 'mart_ours' against"):
        gates(("mart_ours",))
    with pytest.raises(ComposerError, match="--rounds 3"):
        gates(rounds=3)
    with pytest.raises(ComposerError, match="records CUDA graphs"):
        gates(names=("graph",))
    with pytest.raises(ComposerError, match="unknown backend 'fold'"):
        check(names=("fold",))
    with pytest.raises(ComposerError, match="unknown network 'cnn9'"):
        check(net_name="cnn9")


# -- the real compiler -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_compiled_agrees_with_eager_and_is_never_compiled_again(monkeypatch):
    """The compiler itself, second order included, and epochs of moving dials: compiled in the first step, and never again."""
    from torch._dynamo.utils import counters

    made: list[int] = []
    plain = backend_lower._lowered
    monkeypatch.setattr(backend_lower, "_lowered", lambda *args: made.append(1) or plain(*args))
    found = check(("at_rice", "igr_at"), names=("compiled",), n=8)
    assert found["ok"] and len(made) >= 5 and not [note for row in found["rows"] for note in row["notes"] if "eagerly" in note]
    sets = [f"{path}={{use='linear',points=[[0,{a}],[20,{b}]]}}" for path, a, b in
            (("terms.kl.weight", 2.0, 8.0), ("train.lr", 0.1, 0.01), ("inner.x_adv.eps", 0.02, 0.2))]
    x, y = batch("small_cnn", 8)
    step = Subject(load_like_plain("trades", steps=2, sets=sets), net("small_cnn"), x, y, backend="compiled")
    seen = []
    for epoch in range(4):
        for _ in range(2):
            step.trainer._step(step.batch, step.epoch + epoch)
            step.trainer.progress.batch = 0
        seen.append((len(made), counters["stats"]["unique_graphs"], sum(counters["frames"].values())))
    assert len(set(seen)) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("net", ["small_cnn", "resnet18"])
def test_on_a_gpu(net):
    assert check(names=("compiled", "graph", "compiled-graph"), net_name=net, device="cuda")["ok"]
