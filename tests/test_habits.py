"""Habits of the source: short files and functions, nothing that runs code from data, no traces of one machine, a quick command line."""

from __future__ import annotations

import ast
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILE_LINES, FUNCTION_LINES = 300, 60
CODE = ("composer", "plugins")
TEXT = ("composer", "plugins", "recipes", "docs", "tests", ".ci")
RUNS_DATA = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
SPEAKS = ("composer/cli.py", "composer/cli_ablate.py", "composer/cli_bench.py", "composer/cli_evaluate.py", "composer/cli_run.py", "composer/verbs/", "composer/__main__.py")
MACHINE = re.compile(r"/(work|farm|root|opt|home)/\w|/tmp/bash|://[a-z.]*(pypi|pythonhosted)")


def python(*folders: str) -> list[Path]:
    return sorted(p for folder in folders for p in (ROOT / folder).rglob("*.py") if "_shipped" not in p.parts)


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def test_files_hold_one_idea():
    lengths = {named(p): len(p.read_text(encoding="utf-8").splitlines()) for p in python(*CODE)}
    assert not (long := {name: n for name, n in lengths.items() if n > FILE_LINES}), f"files over {FILE_LINES} lines: {long}"


def test_functions_fit_on_a_screen():
    long = {f"{named(p)}:{n.lineno} {n.name}": n.end_lineno - n.lineno + 1 for p in python(*CODE) for n in nodes(p)
            if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)) and n.end_lineno - n.lineno >= FUNCTION_LINES}
    assert not long, f"functions over {FUNCTION_LINES} lines: {long}"


def test_public_modules_say_what_they_are():
    sources = {named(p): ast.parse(p.read_text(encoding="utf-8")) for p in python(*CODE) if not p.name.startswith("test_")}
    silent = [name for name, tree in sources.items() if tree.body and not ast.get_docstring(tree)]
    assert not silent, f"modules without a docstring: {silent}"


def dangers(node: ast.AST) -> str:
    """What runs code from data, or reads weights in a way that may."""
    if isinstance(node, ast.Import) and (bad := {a.name.split(".")[0] for a in node.names} & RUNS_DATA):
        return f"imports {bad.pop()}"
    if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in RUNS_DATA:
        return f"imports {node.module}"
    if not isinstance(node, ast.Call):
        return ""
    called = ast.unparse(node.func)
    keywords = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
    if called in ("eval", "exec", "__import__", "yaml.load", "os.system"):
        return f"calls {called}"
    if called == "torch.load" and keywords.get("weights_only") is not True:
        return "calls torch.load without weights_only=True"
    if called in ("np.load", "numpy.load") and keywords.get("allow_pickle", False) is not False:
        return "lets numpy unpickle"
    if keywords.get("shell") is True:
        return "runs a shell"
    return ""


def test_no_data_is_run_as_code():
    found = [f"{named(p)}:{n.lineno} {danger}" for p in python(*CODE) for n in nodes(p) if (danger := dangers(n))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(("code", "danger"), [
    ("import pickle", "imports pickle"), ("eval(text)", "calls eval"), ("model.eval()", ""), ("torch.load(path)", "calls torch.load without"),
    ("torch.load(path, weights_only=True)", ""), ("torch.load(path, weights_only=False)", "calls torch.load without"),
    ("np.load(f, allow_pickle=True)", "lets numpy"), ("np.load(f, allow_pickle=False)", ""), ("subprocess.run(c, shell=True)", "runs a shell")])
def test_the_search_for_dangers_itself(code, danger):
    found = next((d for n in ast.walk(ast.parse(code)) if (d := dangers(n))), "")
    assert found.startswith(danger) and bool(found) == bool(danger)


def test_only_the_command_line_prints():
    found = [f"{named(p)}:{n.lineno}" for p in python("composer") if not named(p).startswith(SPEAKS) for n in nodes(p)
             if isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id == "print" and "file" not in {k.arg for k in n.keywords}]
    assert not found, f"print() outside the command line, to no stream that was given: {found}"


def texts() -> list[Path]:
    found = [p for folder in TEXT for p in sorted((ROOT / folder).rglob("*")) if p.is_file()
             and p.suffix in (".py", ".toml", ".md", ".sh", ".txt", ".json", "") and "__pycache__" not in p.parts and "venv" not in p.parts]
    return [*found, *ROOT.glob("*.md"), *ROOT.glob("*.toml"), ROOT / "setup.py"]


def test_no_path_of_one_machine():
    found = [f"{named(p)}:{i}: {line.strip()[:100]}" for p in texts() if p != Path(__file__).resolve()
             for i, line in enumerate(p.read_text(encoding="utf-8").splitlines(), 1) if MACHINE.search(line)]
    assert not found, "\n".join(found)


def test_the_product_does_not_know_the_test_data():
    """Only tests may look for the folder of data beside a checkout."""
    found = [f"{named(p)}:{i}" for p in texts() if not named(p).startswith("tests/")
             for i, line in enumerate(p.read_text(encoding="utf-8").splitlines(), 1) if re.search(r"\.\./shared\b|ROOT\.parent / .shared", line)]
    assert not found, f"the data beside a checkout is named outside tests: {found}"


def cpu_seconds(*arguments: str) -> float:
    """Processor time of one command, which a busy neighbour does not change."""
    def used() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = used()
    command = [sys.executable, "-c", "from composer.cli import main; main()", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip(), "the command said nothing"
    return used() - before


@pytest.mark.parametrize("arguments", [("--help",), ("list",)], ids=["help", "list"])
def test_the_command_line_starts_quickly(arguments):
    """Under a second once its bytecode is written: nothing heavy may be imported for a look at the catalogue."""
    assert min(cpu_seconds(*arguments) for _ in range(3)) < 1.0


def test_readme_begins_with_the_two_commands():
    """The first sh block installs and runs the main job, the second installs and runs the tests; the continuous check runs the second."""
    blocks = re.findall(r"^```sh[ \t]*\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert "composer run recipes/mart_ours.toml" in blocks[0] and "pytest" in blocks[1]
    assert all("-m venv" in block and "pip install" in block for block in blocks[:2]), "each must work on its own"
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111, ".ci/run is not executable"
