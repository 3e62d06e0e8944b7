"""The torch-free verbs, as functions and as commands."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import pytest

from composer import verbs
from composer.cli import app, run_app
from composer.errors import ComposerError


@pytest.fixture
def cli(capsys):
    def call(*arguments):
        code = run_app(app, list(arguments))
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_check(cli, tmp_path):
    bad = tmp_path / "bad.toml"
    bad.write_text('extends = "at.toml"\n[terms]\nce = { wieght = 1 }\n')
    code, out, err = cli("check", "mart_ours", str(bad), "--json")
    found = json.loads(out)
    assert code == 2 and not found["ok"] and [r["ok"] for r in found["recipes"]] == [True, False]
    assert found["recipes"][0]["experiment_id"] and found["recipes"][0]["segments"][0] == {"first": 1, "last": 20, "phases": []}
    error = found["recipes"][1]["errors"][0]
    assert error["where"] == f"{bad}:3  terms.ce.wieght" and "did you mean 'weight'" in error["fix"]
    code, out, err = cli("check", "mart_ours")
    assert (code, out) == (0, "ok    mart_ours on digits\n")
    code, out, err = cli("check", "mart_ours", "--set", "terms.kl.weigth=2")
    assert code == 2 and "--set #1" in out and "did you mean 'terms.kl.weight'" in out


def test_check_sees_what_only_a_plan_can_see(cli, tmp_path):
    """Dropping a part whose view a term still reads."""
    bad = tmp_path / "bad.toml"
    bad.write_text('extends = "mart_ours.toml"\n[toggle]\nhalf = { drop = ["parts.ema"] }\n')
    code, out, err = cli("check", str(bad))
    assert code == 2 and f"{bad}:3  toggle.half" in out and "ema" in out


def test_diff(cli):
    code, out, err = cli("diff", "mart", "mart_ours", "--json")
    rows = {row["path"]: row for row in json.loads(out)["differs"]}
    assert code == 0 and "a" not in rows["terms.margin"] and rows["terms.margin"]["b"]["delta"] == 0.9
    assert rows["terms.margin"]["where_b"].startswith("recipes/mart_ours.toml:") or "mart_ours.toml:" in rows["terms.margin"]["where_b"]
    assert cli("diff", "mart", "mart")[1] == "no difference\n"
    changed = verbs.diff("mart", verbs.load("mart", sets=["terms.kl.weight=7"]))
    assert [(r["path"], r["a"], r["b"], r["where_b"]) for r in changed] == [("terms.kl.weight", 5.0, 7.0, "--set #1")]


def test_list(cli):
    code, out, err = cli("list", "loss", "--json")
    rows = json.loads(out)
    assert code == 0 and {r["kind"] for r in rows} == {"loss"}
    assert set(rows[0]) == {"kind", "name", "summary", "formula", "paper", "needs", "options", "origin"}
    margin = next(r for r in rows if r["name"] == "margin")
    assert next(o for o in margin["options"] if o["name"] == "delta")["default"] == 0.9
    assert "Formula:" in cli("list", "loss")[1] and "measure" in cli("list")[1]
    code, out, err = cli("list", "lss")
    assert (code, out) == (2, "") and "did you mean 'loss'" in err


def test_schema_prints_one_object(cli):
    code, out, err = cli("schema")
    assert code == 0 and json.loads(out)["title"] == "composer recipe"


def test_users_errors_go_to_stderr_without_a_traceback(cli):
    code, out, err = cli("diff", "mart", "nope")
    assert (code, out) == (2, "") and "there is no recipe 'nope'" in err and "Traceback" not in err
    code, out, err = cli("chekc")
    assert code == 2 and out == "" and "chekc" in err


@pytest.mark.parametrize(("error", "code", "said"), [(KeyboardInterrupt(), 130, "interrupted"), (RuntimeError("boom"), 1, "defect of composer"),
                                                     (ComposerError("what", fix="this"), 2, "Fix: this")])
def test_exit_codes(cli, monkeypatch, error, code, said):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(verbs, "schema", fail)
    monkeypatch.delenv("COMPOSER_DEBUG", raising=False)
    got, out, err = cli("schema")
    assert (got, out) == (code, "") and said in err and "Traceback" not in err


def test_a_defect_shows_its_traceback_when_asked(cli, monkeypatch):
    monkeypatch.setattr(verbs, "schema", lambda: 1 / 0)
    monkeypatch.setenv("COMPOSER_DEBUG", "1")
    code, out, err = cli("schema")
    assert code == 1 and "Traceback" in err and "ZeroDivisionError" in err


@pytest.mark.parametrize("arguments", [["--help"], ["list", "loss"], ["check", "mart_ours"]])
def test_torch_stays_out_and_the_answer_is_quick(arguments):
    program = "import sys\nfrom composer.cli import app, run_app\ncode = run_app(app, sys.argv[1:])\nsys.exit(code or 9 * ('torch' in sys.modules))"
    times = []
    for _ in range(3):
        start = cpu_seconds()           # of the process, not of the clock: tests share the cores
        done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60)
        times.append(cpu_seconds() - start)
        assert done.returncode == 0, done.stderr
        if times[-1] < 1.0:
            break
    assert min(times) < 1.0, times


def cpu_seconds() -> float:
    """Spent so far by all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_diff_after_show(cli):
    """`show` is a module of the same room, and a name the room once used for something else."""
    assert cli("show", "at")[0] == 0 and cli("diff", "at", "trades")[0] == 0
