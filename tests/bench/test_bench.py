"""`composer bench` itself, on sizes that take no time: what it reports, that it compares like with like, and the GPU's part on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from composer.bench.gpu import epoch_text, epochs, synthetic
from composer.bench.machine import cpu_name, machine
from composer.bench.run import FAITHFUL, FULL, GPU, GPU_FULL, PRUNED, QUICK, SAME_LAYOUT, Case, against, bench, case_text, measure, variants
from composer.bench.subject import numerics, subject
from composer.bench.timer import Timing, Variant
from composer.errors import ComposerError

TINY = (Case("trades", "cnn8", 4, steps=2), Case("mart_ours", "cnn8", 4, steps=2), Case("standard", "cnn8", 4))


@pytest.fixture(scope="module")
def told() -> tuple[dict, list[str]]:
    lines: list[str] = []
    return bench(cases=TINY, rounds=2, say=lines.append), lines


def test_the_report_is_plain_and_whole(told):
    report, lines = told
    assert json.loads(json.dumps(report)) == report
    assert {"cpu", "cores", "threads", "load", "load_after", "torch", "python", "composer"} <= set(report["machine"])
    assert [case["recipe"] for case in report["cases"]] == ["trades", "mart_ours", "standard"] and len(lines) == 1 + len(TINY)
    trades = report["cases"][0]
    assert {name: made["units"] for name, made in trades["passes"].items()} == {"reference": 15, "pruned": 11, "engine": 11}
    assert trades["passes_on_paper"]["units"] == 11 and set(trades["peak_bytes"]) == {"reference", "pruned", SAME_LAYOUT, "engine"}
    assert "reference" not in report["cases"][1]["passes"]
    assert all(case["over_pruned"]["time"] > 0 < case["over_pruned"]["processor"] for case in report["cases"])
    assert all(case["timing"]["variants"]["engine"]["rounds"] == 2 for case in report["cases"])
    assert "passes in units: reference 15, pruned 11, engine 11; on paper 11" in lines[1] and "peak memory in MiB" in lines[1]


def test_a_verdict_over_the_limit_is_shouted(told):
    def said(clock: float, processor: float | None, noisy: bool) -> str:
        case = told[0]["cases"][0]
        return case_text({**case, "over_pruned": {"time": clock, "processor": processor}, "timing": {**case["timing"], "noisy": noisy}}, "")

    assert "1.200 (processor time 1.000)" in said(1.2, 1.0, False) and "OVER the limit of 1.05\n" in said(1.2, 1.0, False)
    assert "within the limit of 1.05\n" in said(1.05, 1.2, False)
    assert "within the limit of 1.05, judged by processor time" in said(1.2, 1.05, True) and "OVER" in said(1.0, 1.06, True)
    assert "OVER the limit of 1.05\n" in said(1.2, None, True), "on a device the clock decides"


def test_against_is_the_median_of_paired_rounds():
    """A slow round slows both; a mean or a ratio of medians would not see that."""
    timing = Timing("pruned", {"pruned": Variant((1.0, 5.0, 2.0, 1.0), (1.0,) * 4, (1.0, 1.0, 2.0, 1.0)),
                               "engine": Variant((1.1, 5.5, 2.6, 1.0), (0.9,) * 4, (0.9, 0.9, 1.8, 7.0))}, ())
    assert against(timing, "pruned", "cpu") == {"time": pytest.approx(1.1), "processor": pytest.approx(0.9)}
    assert against(timing, "pruned", "cuda")["processor"] is None


def test_all_variants_start_from_one_state():
    """Same weights, same batch, same first loss but for the draw of the noise: standard training draws none."""
    found = variants(Case("standard", "cnn8", 4))
    assert set(found) == {"pruned", SAME_LAYOUT, "engine"}
    weights = [dict(step.model.named_parameters()) for step in found.values()]
    assert all(torch.equal(other[name], p) for other in weights for name, p in weights[0].items())
    for step in found.values():
        step()
    for name, p in weights[0].items():
        for other in weights[1:]:
            torch.testing.assert_close(other[name], p, rtol=1e-4, atol=1e-6)
    assert weights[1]["3.weight"].is_contiguous(memory_format=torch.channels_last)


def test_every_timed_case_has_its_loop():
    for case in (*QUICK, *FULL, *GPU, *GPU_FULL):
        assert case.recipe in PRUNED
    assert {case.recipe for case in QUICK} == {"at", "trades", "mart_ours"} and set(FAITHFUL) < set(PRUNED)


def test_the_layout_can_be_that_of_the_plain_loops():
    made = subject("at", "cnn8", n=4, steps=1, layout="contiguous")
    made()
    assert all(p.is_contiguous() for p in made.model.parameters())
    assert not made.session.net.channels_last and subject("at", "cnn8", n=4).session.net.channels_last


def test_the_engine_holds_no_more_than_the_pruned_loop_in_its_layout(told):
    """Bytes are exact on a CPU. One per cent is room for what batches this small make visible: statistics handed out, the meter."""
    for recipe in ("at", "trades", "mart_ours"):
        report = bench(cases=(Case(recipe, "cnn8", 32, steps=2),), rounds=1)["cases"][0]
        assert report["peak_bytes"]["engine"] <= 1.01 * report["peak_bytes"][SAME_LAYOUT], recipe


def test_on_the_digits_network_the_engine_holds_no_more_than_any_pruned_loop(told):
    for recipe in ("at", "trades", "mart_ours"):
        peak = bench(cases=(Case(recipe, "small_cnn", 128, steps=2),), rounds=1)["cases"][0]["peak_bytes"]
        assert peak["engine"] <= min(peak["pruned"], peak[SAME_LAYOUT]), recipe


# -- seconds per epoch -----------------------------------------------------------------------------------------------------------------------


def tiny_epochs(**options) -> list[dict]:
    sets = ("threat.steps=1", "train.batch_size=16", "model.use=small_cnn", "select.held_out=0", "select.report=last")
    return epochs("cpu", dataset=synthetic((3, 32, 32), 72), sets=sets, **options)


def test_seconds_per_epoch_on_noise():
    """Augmentation, last partial batch and schedules as on the real data; steps run past an epoch's end."""
    lines: list[str] = []
    rows = tiny_epochs(steps=7, warmup=1, precisions=("fp32", "bf16"), say=lines.append)
    assert [(r["recipe"], r["precision"]) for r in rows] == [("at", "fp32"), ("at", "bf16"), ("mart_ours", "fp32"), ("mart_ours", "bf16")]
    for r in rows:
        assert r["steps_of_an_epoch"] == 5 and r["steps_timed"] == 7 and r["chunks"] == 5 and r["finite"]
        assert r["seconds_per_epoch"] == pytest.approx(5e-3 * r["ms_per_step"]) and r["images_per_second"] == pytest.approx(16e3 / r["ms_per_step"])
        assert r["setting"] == "cifar10-resnet18" and r["model"] == "small_cnn"
    assert {r["backend"] for r in rows} == {"eager"} and [r["units"] for r in rows] == [5, 5, 8, 8] and len(lines) == 4 and "an epoch has 5)" in lines[0]


def test_a_whole_epoch_is_the_sum_of_its_steps():
    (row,) = tiny_epochs(whole=True, warmup=0, recipes=("at",), precisions=("fp32",))
    assert row["steps_timed"] == row["steps_of_an_epoch"] == 5 == row["chunks"]
    assert row["seconds_per_epoch"] >= 5e-3 * row["ms_per_step"] / row["spread"]
    assert "the loss was not finite" in epoch_text({**row, "finite": False}) and "noisy: slowest chunk 2.00" in epoch_text({**row, "noisy": True, "spread": 2.0})


def test_seconds_per_epoch_on_another_backend():
    rows = tiny_epochs(steps=1, warmup=0, recipes=("at",), precisions=("fp32",), backends=("eager", "folded"))
    assert [r["backend"] for r in rows] == ["eager", "folded"] and all(r["finite"] for r in rows)
    assert rows[1]["backend_notes"] == ["attack on the packed network: 3 of 3 convolutions packed, 3 of 3 batch norms folded"]
    assert "at fp32, folded: " in epoch_text(rows[1])


def test_numerics_are_put_back():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    with numerics("tf32"):
        assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32
        with numerics("fp32"):
            assert not torch.backends.cudnn.allow_tf32
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


def test_synthetic_data_are_of_the_right_kind():
    data = synthetic((3, 4, 4), 20)
    assert data.train.x.dtype == torch.uint8 and tuple(data.train.x.shape) == (20, 3, 4, 4) and int(data.train.y.max()) < 10
    assert int(data.train.x.max()) > 200


# -- the verb --------------------------------------------------------------------------------------------------------------------------------


def test_without_a_gpu_the_verb_says_so_in_one_sentence(monkeypatch, capsys):
    from composer.cli import app, run_app

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run_app(app, ["bench", "--gpu"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.strip() == "composer bench --gpu needs a CUDA device, and PyTorch finds none here."


@pytest.mark.parametrize("wrong", ["--rounds", "--threads"])
def test_numbers_below_one_are_errors(wrong, capsys):
    from composer.cli import app, run_app

    assert run_app(app, ["bench", wrong, "0"]) == 2 and "at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(("flags", "words"), [(["--methods", "--pack"], "one measurement at a time"), (["--methods", "--net", "cnn9"], "--net cnn9"),
                                              (["--attacks", "--models", "mine"], "no model 'mine'")])
def test_what_the_verb_cannot_do_is_one_sentence(flags, words, capsys, tmp_path):
    from composer.cli import app, run_app

    assert run_app(app, ["bench", *flags, "--out", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and words in err and "Traceback" not in err


def test_the_verb_prints_json_alone(monkeypatch, capsys):
    from composer.bench import run
    from composer.cli import app, run_app

    monkeypatch.setattr(run, "QUICK", TINY[2:])
    assert run_app(app, ["bench", "--json", "--rounds", "1"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["cases"][0]["recipe"] == "standard" and "standard on cnn8, batch 4" in err
    assert run_app(app, ["bench", "--rounds", "1"]) == 0
    assert "standard on cnn8, batch 4" in capsys.readouterr().out


def test_threads_are_put_back():
    before = torch.get_num_threads()
    report = bench(cases=(), threads=2)
    assert report["machine"]["threads"] == 2 and torch.get_num_threads() == before


def test_the_machine_is_named(tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: A Fast One\nflags\t: x\nmodel name\t: Another\n")
    assert cpu_name(info) == "A Fast One" and cpu_name(tmp_path / "absent")
    assert machine()["cores"] >= 1


def test_wrong_devices_are_our_errors(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ComposerError, match="needs a CUDA device"):
        bench(gpu=True)


def test_nothing_heavy_is_needed():
    """A bare machine with a GPU has PyTorch, and no tracking, search or data packages."""
    code = ("import sys\n"
            "for name in ('mlflow', 'ray', 'optuna', 'pyautoattack', 'sklearn', 'scipy', 'statsmodels', 'matplotlib', 'timm'):\n"
            "    sys.modules[name] = None\n"
            "from composer.bench.gpu import epochs, synthetic\n"
            "from composer.bench.run import Case, bench\n"
            "assert bench(cases=(Case('mart_ours', 'cnn8', 4, steps=1),), rounds=1)['cases']\n"
            "epochs('cpu', dataset=synthetic((3, 32, 32), 32), sets=('threat.steps=1', 'train.batch_size=16', 'model.use=small_cnn', "
            "'select.held_out=0', 'select.report=last'), steps=1, warmup=0, recipes=('at',), precisions=('fp32',))\n")
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
def test_on_a_gpu():
    """The same on a CUDA device, small: passes as on paper, every precision finite, bytes by the device's own account."""
    report = bench(gpu=True, rounds=2, cases=())
    assert report["machine"]["gpu"] and len(report["epochs"]) == 13 and all(r["finite"] and r["peak_bytes"] for r in report["epochs"])
    assert report["gates"]["peak_tflops"]["bf16"] > 1 and report["gates"]["lines"]
    small = measure(Case("trades", "cnn8", 16, steps=2), rounds=2, device="cuda")[0]
    assert small["passes"]["engine"]["units"] == small["passes_on_paper"]["units"] == 11 and small["over_pruned"]["processor"] is None
