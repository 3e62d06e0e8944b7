"""The precision gate: paired differences against seed noise, from numbers written here and from runs."""

from __future__ import annotations

import json
import math
import statistics

import pytest
from scipy import stats

from composer.bench.precision import compared, gate, verdict
from composer.engine.session import Settings
from composer.errors import ComposerError


def test_the_interval_is_student_s_of_the_paired_differences():
    full, lower = [0.50, 0.52, 0.47, 0.55], [0.49, 0.53, 0.47, 0.53]
    found = compared(full, lower)
    d = [b - a for a, b in zip(full, lower, strict=True)]
    half = stats.t.ppf(0.975, 3) * statistics.stdev(d) / math.sqrt(4)
    assert found["differences"] == pytest.approx(d) and found["mean_difference"] == pytest.approx(-0.005)
    assert found["ci95"] == pytest.approx([-0.005 - half, -0.005 + half]) and found["seed_noise"] == pytest.approx(statistics.stdev(full))
    assert found["ci95"] == pytest.approx(stats.ttest_1samp(d, 0).confidence_interval(0.95))


@pytest.mark.parametrize(("interval", "noise", "says"), [
    ((-0.004, 0.006), 0.01, "within seed noise."), ((0.001, 0.006), 0.01, "within seed noise, though the difference is not zero."),
    ((-0.05, -0.02), 0.01, "beyond seed noise"), ((0.02, 0.05), 0.01, "beyond seed noise"), ((-0.02, 0.005), 0.01, "undecided"),
    ((0.005, 0.02), 0.01, "undecided"), ((0.0, 0.0), 0.0, "within seed noise.")])
def test_the_verdict_in_words(interval, noise, says):
    text = verdict(sum(interval) / 2, interval, noise, 5)
    assert text.startswith(says) and "5 paired seeds" in text and f"{100 * noise:.2f} (standard deviation)" in text


def test_equal_differences_have_an_interval_of_no_width():
    assert compared([0.5, 0.6], [0.5, 0.6])["ci95"] == [0, 0]


def test_runs_are_paired_and_kept(tmp_path):
    """Two seeds, bf16 against fp32 on the digits: the second call reads what the first has trained."""
    lines: list[str] = []
    options = {"settings": Settings(out=tmp_path, device="cpu"), "seeds": 2, "epochs": 1, "sets": ("model.channels=[4,8,8]", "threat.steps=2", "select.n=8")}
    report = gate("standard", **options, say=lines.append)
    assert report["epochs"] == 1 and report["of"] == 20 and report["n"] == 360 and set(report["robust"]) == {"fp32", "bf16"}
    assert len(lines) == 4 and lines[-1] == report["verdict"] and "seed 1: fp32" in lines[2]
    names = sorted(p.name for p in (tmp_path / "experiments").iterdir())
    assert [name.rpartition("-s")[2] for name in names] == ["0", "0-bf16", "1", "1-bf16"]
    result = json.loads((tmp_path / "experiments" / names[1] / "result.json").read_text())
    assert result["precision"] == "bf16" and report["robust"]["bf16"][0] == result["metrics"]["pgd-20"]
    again = gate("standard", **options)
    assert {k: v for k, v in again.items() if k != "machine"} == {k: v for k, v in report.items() if k != "machine"}


def test_what_is_asked_must_mean_something(tmp_path):
    for more in ({"seeds": 1}, {"precision": "fp16"}, {"precision": "fp32"}, {"epochs": -1}):
        with pytest.raises(ComposerError, match="command line"):
            gate("standard", settings=Settings(out=tmp_path), **more)
