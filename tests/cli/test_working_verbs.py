"""The verbs as a user calls them, in this process; what needs signals or fresh interpreters is in tests/engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from composer.cli import app, run_app

TINY = ["--set", "train.epochs=1", "--set", "evaluate.use=cheap", "--set", "evaluate.n=32", "--quiet"]


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run_app(app, list(arguments))
    said = capsys.readouterr()
    return code, said.out, said.err


def test_show_prints_the_plan_with_its_cost(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "show", "trades")
    assert code == 0
    assert "step      27 units = 13 forward + 12 input gradient + 2 weight gradient" in out
    assert "writes    running statistics of clean_logits, then adv_logits, then clean_logits" in out


def test_show_without_a_toggle(capsys: pytest.CaptureFixture[str]) -> None:
    full, less = call(capsys, "show", "mart_ours")[1], call(capsys, "show", "mart_ours", "--without", "align")[1]
    assert "terms.align" in full and "terms.align" not in less


def test_show_why_names_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "show", "mart_ours", "--why", "terms.kl.weight", "--set", "terms.kl.weight=2")
    assert code == 0
    winner = next(line for line in out.splitlines() if line.startswith("->"))
    assert "--set #1" in winner and "mart.toml:" in out


def test_show_a_primitive(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "show", "loss/kl")
    assert code == 0 and "Formula:" in out and "target_logp" in out


def test_an_unknown_recipe_suggests(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "show", "mart_our")
    assert code == 2 and out == "" and "mart_ours" in err and "Traceback" not in err


def test_dry_run_trains_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = call(capsys, "run", "at", "--dry-run", "--out", str(tmp_path / "runs"))
    assert code == 0 and "23 units" in out and not (tmp_path / "runs").exists()
    code, out, _ = call(capsys, "run", "at", "--dry-run", "--json")
    assert json.loads(out)["plans"][0]["cost"]["units"] == 23


def test_run_prints_a_table_and_then_knows_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["run", "standard", "--out", str(tmp_path), *TINY]
    code, out, _ = call(capsys, *arguments)
    assert code == 0 and "clean" in out and "n = 32" in out
    code, again, _ = call(capsys, *arguments)
    assert code == 0 and again == out


def test_run_json_is_one_object(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = call(capsys, "run", "standard", "--json", "--out", str(tmp_path), *TINY)
    result = json.loads(out)
    assert code == 0 and result["recipe"] == "standard" and set(result["metrics"]) == {"clean", "pgd-20"} and 0 <= result["metrics"]["clean"] <= 1
    steps = result["steps"]
    assert result["passes"] == {"forward": steps, "dgrad": steps, "wgrad": steps}


@pytest.mark.parametrize("flag, value", [("--precision", "fp8"), ("--backend", "tpu"), ("--device", "abacus")])
def test_wrong_values_of_flags(capsys: pytest.CaptureFixture[str], tmp_path: Path, flag: str, value: str) -> None:
    code, _, err = call(capsys, "run", "standard", flag, value, "--out", str(tmp_path), *TINY)
    assert code == 2 and value in err and "Traceback" not in err


def test_doctor_reports(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = call(capsys, "doctor", "--json", "--out", str(tmp_path))
    assert code == 0 and "torch" in json.dumps(json.loads(out))


def test_plugin_new_writes_what_check_accepts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = call(capsys, "plugin", "new", "shift_loss", "--folder", str(tmp_path))
    files = [Path(line) for line in out.split()]
    assert code == 0 and all(file.exists() for file in files) and len(files) == 2
