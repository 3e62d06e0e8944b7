"""`composer bench --pack`: both sides make the same steps, and the verdict is that of the ratio."""

from __future__ import annotations

import pytest
import torch

from composer.bench.pack import CASES, GATE, GRID, PackCase, bench_packs, one_after_the_other, runs, together, verdict
from composer.bench.timer import Timing, Variant
from composer.errors import ComposerError

TINY = PackCase("mlp", {"widths": (8,)}, 3, gate=1e-3, batch=4, steps=1)


def test_both_sides_make_the_same_steps():
    alone, packed = runs(TINY), runs(TINY)
    one, all_ = one_after_the_other(alone), together(packed)
    for _ in range(3):
        one(), all_()
    for a, b in zip(alone, packed):
        assert a.trainer.progress.step == b.trainer.progress.step == 3
        for name, value in a.model.state_dict().items():
            torch.testing.assert_close(b.model.state_dict()[name], value, rtol=1e-3, atol=1e-5)
    assert not torch.equal(alone[0].model.head.weight, alone[1].model.head.weight)


def test_the_report_holds_ratio_and_verdict(capsys):
    said = []
    report = bench_packs(rounds=2, cases=(TINY,), again=False, say=said.append)
    found = report["packs"][0]
    assert found["seeds"] == 3 and found["ratio"] > 0 and found["ratio_processor"] > 0 and found["timing"]["base"] == "one after the other"
    assert "gate" in found["verdict"] or "target" in found["verdict"]
    assert said and "3 seeds of at on mlp [8], batch 4" in said[0]


def test_a_case_of_cells_makes_the_same_steps():
    case = PackCase("mlp", {"widths": (8,)}, 2, recipe="at_ours", batch=4, steps=1, cells=GRID[:3])
    alone, packed = runs(case), runs(case)
    one, all_ = one_after_the_other(alone), together(packed)
    for _ in range(2):
        one(), all_()
    assert len(alone) == 6 and case.title == "3 cells × 2 seeds of at_ours on mlp [8], batch 4, 1 attack steps"
    assert len({(s.parts["ema"].decay, s.session.recipe.experiment_id) for s in packed}) == 3
    for a, b in zip(alone, packed):
        for name, value in a.model.state_dict().items():
            torch.testing.assert_close(b.model.state_dict()[name], value, rtol=1e-3, atol=1e-5)


def test_the_gate_is_the_first_case():
    assert CASES[0].seeds == 16 and CASES[0].model == "mlp" and CASES[0].batch == 64 and CASES[0].steps == 5 and CASES[0].gate == GATE == 3.0
    assert any(c.model == "small_cnn" and c.seeds == 4 for c in CASES)


@pytest.mark.parametrize(("ratio", "said"), [(2.0, "BELOW the gate of 3"), (3.5, "above the gate of 3"), (5.5, "at the target of 5")])
def test_verdicts(ratio, said):
    sides = {"one after the other": Variant((1.0,), (1.0,), (1.0,)), "together": Variant((1 / ratio,), (ratio,), (1.0,))}
    timing = Timing("one after the other", sides, ())
    assert verdict(CASES[0], timing, 1.0) == said
    noisy = Timing(timing.base, timing.variants, ("load",))
    assert verdict(CASES[0], noisy, 4.0) == "above the gate of 3, judged by processor time, as the clock was noisy"
    assert verdict(CASES[1], timing, None) == "no gate"


def test_numbers_that_mean_nothing():
    with pytest.raises(ComposerError):
        bench_packs(rounds=0)
