"""`composer run` needs torch and little more: what is absent or broken is told in a sentence, and in time."""

from __future__ import annotations

import json
import subprocess
import sys

OPTIONAL = ["mlflow", "ray", "optuna", "pyautoattack", "matplotlib", "statsmodels", "pandas", "timm"]


def store(out) -> set[str]:
    return {path.relative_to(out).parts[0] for path in out.rglob("*")}


def test_none_of_them_can_be_imported(cli, tmp_path):
    """In a fresh interpreter that finds none of them: the run ends, and one sentence says that nothing is tracked."""
    block = tmp_path / "site"
    block.mkdir()
    (block / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({OPTIONAL}))\n")
    env = {"PYTHONPATH": str(block)}
    check = subprocess.run([sys.executable, "-c", "import mlflow"], check=False, env={"PYTHONPATH": str(block), "PATH": ""}, capture_output=True, text=True)
    assert "ModuleNotFoundError" in check.stderr, "the block does not block"
    done = cli("run", "mart_ours", "--out", tmp_path / "out", "--json", env=env)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["steps"] == 9 and result["mlflow_run_id"] is None
    assert done.stderr.count("mlflow is not installed") == 1 and "Traceback" not in done.stderr
    assert store(tmp_path / "out") == {"nodes", "experiments", "evaluations"}
    table = cli("run", "mart_ours", "--out", tmp_path / "out", env=env)
    assert table.returncode == 0 and "pgd-3" in table.stdout, "the table needs none of them either"


def test_a_broken_mlflow(cli, tmp_path):
    """Installed, and unusable: the training is not touched, the journal keeps what could not be sent."""
    broken = tmp_path / "site" / "mlflow"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('libsomething.so.1: cannot open shared object file')\n")
    done = cli("run", "at", "--out", tmp_path / "out", "--json", env={"PYTHONPATH": str(broken.parent)})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["mlflow_run_id"] is None
    assert done.stderr.count("libsomething.so.1") == 1 and "are kept in" in done.stderr and "Traceback" not in done.stderr


def test_autoattack_missing_is_said_before_training(away, tmp_path):
    process = away("at", tmp_path / "out", "evaluate.aa={n=8}", absent=["pyautoattack"])
    assert process.code() == 2
    assert "'aa' needs the package pyautoattack" in process.stderr and "pip install pyautoattack" in process.stderr
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_autoattack_present_but_broken(away, tmp_path):
    """Seen only when it is imported: what was trained and judged until then is kept, and the next call only judges."""
    broken = tmp_path / "site" / "pyautoattack"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('no kernel image')\n")
    words = ("evaluate.aa={n=8}",)
    process = away("at", tmp_path / "out", *words, path=[str(broken.parent)])
    assert process.code() == 2 and "no kernel image" in process.stderr and "Traceback" not in process.stderr
    done = next((tmp_path / "out").glob("nodes/*/done")).stat().st_mtime_ns
    process = away("at", tmp_path / "out", *words, "--json")
    assert process.code() == 0, process.stderr
    assert set(json.loads(process.stdout)["metrics"]) == {"clean", "pgd-3", "aa"}
    assert next((tmp_path / "out").glob("nodes/*/done")).stat().st_mtime_ns == done


def test_a_run_imports_none_of_them_unasked(away, tmp_path):
    """Without tracking and AutoAttack nothing of them is loaded: a run starts without their seconds."""
    process = away("at", tmp_path / "out", tell=True)
    assert process.code() == 0
    (said,) = (line for line in process.stderr.splitlines() if line.startswith("imported: "))
    assert not set(said.split()) & {"mlflow", "ray", "optuna", "pyautoattack", "statsmodels"} and "torch" in said.split()
