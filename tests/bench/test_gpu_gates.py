"""The table of what a GPU is held to: its arithmetic on numbers written here, its looks on a CPU at sizes that take no time."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from composer.bench import gpu_looks as looks
from composer.bench.gpu import epochs, synthetic
from composer.bench.gpu_gates import Line, fastest, lines, measure, text

ROW = {"recipe": "at", "precision": "bf16", "backend": "graph", "seconds_per_epoch": 6.0, "ms_per_step": 15.0, "batch": 128, "tflops": 200.0, "finite": True}
ROWS = [ROW, {**ROW, "backend": "eager", "seconds_per_epoch": 9.0}, {**ROW, "backend": "compiled-graph", "seconds_per_epoch": 1.0, "finite": False},
        {**ROW, "precision": "fp32", "seconds_per_epoch": 3.0}, {**ROW, "recipe": "mart_ours", "seconds_per_epoch": 8.0}]
WIDE = [{**ROW, "seconds_per_epoch": 50.0, "tflops": 300.0}]
CASES = [{"recipe": "at", "net": "resnet18", "peak_bytes": {"pruned": 100, "engine": 101}}]
FOUND = {"peak_tflops": {"fp32": 50.0, "tf32": 400.0, "bf16": 600.0}, "faithful_s": 0.06, "wide": WIDE, "first_step_s": 59.0,
         "host": {"eager": {"host_us": 9000.0, "step_ms": 20.0, "idle": 0.4}, "graph": {"host_us": 40.0, "step_ms": 15.0, "idle": 0.02}},
         "straight": {"off_by_batch": 0.2, "off_by_steps": 0.01}}


def test_of_several_backends_the_fastest_finite_one_counts():
    assert fastest(ROWS, "at", "bf16") == ROW
    assert fastest(ROWS, "trades", "bf16") is None


def test_every_number_stands_beside_its_limit():
    table = {line.what.strip(): line for line in lines(FOUND, ROWS, CASES)}
    assert table["ResNet-18 AT, bf16, graph"].value == 6.0 and table["ResNet-18 AT, bf16, graph"].verdict == "holds"
    times = table["times as fast as the authors' loop at fp32"]
    assert times.value == pytest.approx(4.0) and times.verdict == "holds"
    assert table["mart_ours, bf16, graph: 110 epochs of training, evaluation on top"].value == pytest.approx(110 * 8 / 60)
    assert table["WRN-34-10 AT, bf16, graph"].verdict == "DOES NOT HOLD"
    shares = [line.value for line in lines(FOUND, ROWS, CASES) if line.what == "  share of the matrix peak"]
    assert shares == [pytest.approx(1 / 3), pytest.approx(0.5)]
    assert table["at on resnet18: peak memory over the plain loop's"].verdict == "DOES NOT HOLD"
    assert table["graph: the host's time for a step"].verdict == "holds" and table["off a straight line over images"].verdict == "DOES NOT HOLD"
    assert table["first compiled step of ResNet-18, fp32"].verdict == "holds"


def test_a_batch_of_another_size_is_compared_by_images():
    row = {**ROW, "batch": 256, "ms_per_step": 30.0}
    times = next(line for line in lines(FOUND, [row], []) if "times as fast" in line.what)
    assert times.value == pytest.approx(4.0)


def test_what_was_not_measured_has_no_line():
    whats = [line.what for line in lines({**FOUND, "wide": []}, [], [])]
    assert not any("ResNet-18 AT" in w or "WRN" in w or "mart_ours" in w for w in whats) and any("first compiled" in w for w in whats)


@pytest.mark.parametrize(("value", "most", "said"), [(0.9, True, "reaches the target"), (1.5, True, "holds"), (2.1, True, "DOES NOT HOLD"),
                                                     (2.0, False, "holds"), (1.9, False, "DOES NOT HOLD")])
def test_verdicts(value: float, most: bool, said: str):
    assert Line("x", value, "s", 2.0, 1.0 if most else 3.0, most=most).verdict == said
    assert Line("x", value, "s").verdict == ""


def test_verdicts_stand_only_where_the_limits_are_meant():
    table = lines(FOUND, ROWS, CASES)
    assert "DOES NOT HOLD" in text(table, True) and "held to the limits of one H200" in text(table, True)
    assert "DOES NOT HOLD" not in text(table, False) and "no verdict" in text(table, False)


def test_gaps_are_what_no_span_covers():
    assert looks.gaps([(0, 2), (1, 3), (5, 6), (9, 10)]) == pytest.approx(1 - 5 / 10)
    assert looks.gaps([(0, 10), (2, 3)]) == 0 and looks.gaps([]) == 0


def test_off_the_line():
    assert looks.off_the_line((1, 2, 4), (10, 20, 40)) == pytest.approx(0)
    assert looks.off_the_line((1, 2, 3), (1, 3, 3)) == pytest.approx(0.5)


def test_the_looks_on_a_cpu():
    """Real steps of a small network: the numbers hang together."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert looks.matrix_peak("cpu", "fp32", sizes=(128,), repeats=2) > 1e-3
        assert 0 < looks.faithful("cpu", net="cnn8", batch=4, calls=1) < 5
        seen = looks.host("cpu", "eager", net="cnn8", batch=4, calls=2)
        assert seen["host_us"] / 1e3 == pytest.approx(seen["step_ms"], rel=0.9)        # a CPU is its own device: a step returns when it is done
        assert 0 <= looks.idle("cpu", "eager", net="cnn8", batch=4, calls=1) < 1
        line = looks.straight("cpu", "eager", net="cnn8", batches=(4, 8, 16), steps=(1, 2, 3), calls=1)
        assert len(line["batch_ms"]) == len(line["attack_ms"]) == 3 and line["off_by_steps"] >= 0
        assert 0 < looks.first_step_here("cpu", "eager", "at", "cnn8", 4) < 20
    finally:
        torch.set_num_threads(threads)


def test_the_first_step_finds_no_cache(monkeypatch, tmp_path):
    """Whatever this process and earlier ones have compiled."""
    seen = []

    def run(command, env, **more):
        seen.append(env["TORCHINDUCTOR_CACHE_DIR"])
        assert not list(Path(seen[-1]).iterdir()) and "TRITON_CACHE_DIR" not in env and command[-5:] == ["cuda:0", "compiled", "at", "resnet18", "128"]
        return SimpleNamespace(stdout="a remark\n12.5\n")

    monkeypatch.setattr(looks.subprocess, "run", run)
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    assert looks.first_step("cuda:0") == looks.first_step("cuda:0") == 12.5 and len({*seen, str(tmp_path)}) == 3


@pytest.mark.slow
def test_the_first_step_of_another_process():
    assert 0 < looks.first_step("cpu", "eager", net="cnn8", batch=4) < 20


def test_the_whole_of_it_is_told_and_plain():
    """The order of a real run, with looks that answer at once and real epochs of a small network."""
    told: list[str] = []
    quick = SimpleNamespace(matrix_peak=lambda device, precision: 1.0, faithful=lambda device: 0.06, host=lambda device, backend: {"host_us": 40.0, "step_ms": 1.0},
                            idle=lambda device, backend: 0.1, straight=lambda device, backend: FOUND["straight"], first_step=lambda device: 3.0)

    def wide(device, **options):
        assert options["setting"] == "cifar10-wrn-34-10" and options["precisions"] == ("bf16",)
        sets = ("threat.steps=1", "train.batch_size=16", "model.use=small_cnn", "select.held_out=0", "select.report=last")
        return epochs("cpu", dataset=synthetic((3, 32, 32), 32), sets=sets, recipes=("at",), precisions=("bf16",), steps=1, warmup=0)

    found = measure("cpu", ROWS, CASES, say=told.append, look=quick, wide=wide)
    assert json.loads(json.dumps(found)) == found and not found["held"]
    assert all(line["verdict"] == "" for line in found["lines"]) and "no verdict" in told[-1]
