"""The two modes of AutoAttack against a direct call of the library: flags, forward passes, time. `pytest -m slow -s tests/evaluate/test_evaluate_speed.py`"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from composer.bench import attacks
from composer.bench.attacks import Case, compare, text
from composer.cli import app, run_app


def test_the_record_says_what_was_compared(trained, digits):
    """Short: what the command counts and compares, not how fast."""
    case = Case("toy", trained, digits["test"][0][:30], digits["test"][1][:30], 0.15, iterations=6, queries=20, rounds=1)
    record, timing = compare(case)
    assert record["differ"]["exact"] == 0 and record["differ"]["fast"] <= 1
    assert record["forwards"]["exact"] == record["forwards"]["library"] > 100
    assert set(record["over_library"]) == set(record["holds"]) == {"exact", "fast"}
    assert "exact: 0 flags differ" in text(record, timing) and "times as fast" in text(record, timing)


def test_the_command_writes_a_line_for_each_model_and_trains_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(attacks, "digits", lambda out: replace(tiny(out), iterations=4, queries=5, rounds=1))
    whole = attacks.digits(tmp_path)
    weights = list(tmp_path.glob("digits-1.safetensors"))
    assert len(weights) == 1 and len(whole.y) == 200
    before = weights[0].stat().st_mtime_ns
    assert run_app(app, ["bench", "--attacks", "--out", str(tmp_path), "--models", "digits"]) in (0, 3)
    assert weights[0].stat().st_mtime_ns == before
    (line,) = (tmp_path / "attacks.jsonl").read_text().splitlines()
    assert json.loads(line)["model"] == "digits" and json.loads(line)["machine"]["threads"] == 1
    assert "digits: 200 images" in capsys.readouterr().out


def tiny(out: Path, original=attacks.digits) -> Case:
    return original(out, epochs=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", attacks.NAMES)
def test_exact_equals_the_library_and_fast_is_faster(name, tmp_path):
    """By processor time: another program's turn on the core is not ours."""
    root = Path(os.environ.get("COMPOSER_DATA", "data"))
    if name != "digits" and not (root / "cifar-10-batches-py").is_dir():
        pytest.skip("CIFAR-10 is looked for in $COMPOSER_DATA or ./data")
    (case,) = attacks.cases((name,), tmp_path, root)
    record, timing = compare(case)
    print(text(record, timing))
    assert record["differ"]["exact"] == 0 and record["forwards"]["exact"] == record["forwards"]["library"]
    assert record["differ"]["fast"] <= 1
    assert record["over_library"]["exact"]["processor"] <= 1.05
    assert 1 / record["over_library"]["fast"]["processor"] >= 1.2
