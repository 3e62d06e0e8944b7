"""The wheel carries the recipes and plugins, and an installation finds them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy without what earlier builds left."""
    folder = tmp_path_factory.mktemp("wheel")
    leave = shutil.ignore_patterns(".*", "build", "dist", "runs", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, folder / "source", ignore=leave)
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(folder / "source")], check=True, timeout=300)
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_every_recipe_and_plugin_and_no_test(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for folder, pattern in (("recipes", "*.toml"), ("plugins", "*.py")):
        expected = {f"composer/_shipped/{p.relative_to(ROOT).as_posix()}" for p in (ROOT / folder).rglob(pattern)
                    if not p.name.startswith("test_") and "tests" not in p.parts}
        assert expected and expected <= names
    assert not [n for n in names if Path(n).name.startswith(("test_", "conftest")) or n.startswith("tests/")]
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / "composer").rglob("*.py") if "_shipped" not in p.parts}
    assert modules <= names
    assert any(n.endswith("licenses/LICENSE") for n in names)


@pytest.mark.slow
def test_an_installation_finds_them(wheel, tmp_path):
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path / "site"), str(wheel)], check=True, timeout=300)
    code = ("import composer.shipped as s; from composer.plugins import load_all; names = {p.name for p in load_all()}; "
            "print(s.recipes_dir()); print(s.plugins_dir()); print(len(names))")
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path, timeout=120,
                          env={"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin"})
    recipes, plugins, count = done.stdout.split()
    assert Path(recipes) == tmp_path / "site" / "composer" / "_shipped" / "recipes" and (Path(recipes) / "mart_ours.toml").is_file()
    assert Path(plugins) == tmp_path / "site" / "composer" / "_shipped" / "plugins" and int(count) >= 1
    assert {p.name for p in (tmp_path / "site" / "bin").iterdir()} >= {"composer", "rcomposer"}
