from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from composer import plugins
from composer.errors import ComposerError, Errors
from composer.registry import REGISTRY
from composer.shipped import plugins_dir, recipes_dir
from composer.testing import scratch

ROOT = Path(plugins.__file__).parent.parent
GAIN = '''
from composer import gain
from composer.shapes import PerExample, Probs

@gain
def {name}(probs: Probs) -> PerExample:
    """Ones."""
    return probs.sum(1)
'''


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    monkeypatch.delenv("COMPOSER_PLUGINS", raising=False)
    monkeypatch.chdir(tmp_path)
    with scratch():
        for each in plugins.loaded():
            if each.path:
                REGISTRY.remove_file(each.path)
        plugins._loaded.clear()
        yield


def write(folder: Path, name: str, text: str | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.py"
    file.write_text(GAIN.format(name=name) if text is None else text)
    return file


def by_name():
    return {each.name: each for each in plugins.loaded()}


def test_shipped_plugins_come_by_themselves_and_the_registry_freezes(tmp_path):
    found = plugins.load_all()
    assert [each.name for each in found] == sorted(f.stem for f in plugins.files_of(plugins_dir()))
    mail = by_name()["mail"]
    assert (mail.door, mail.primitives, mail.stands_for) == ("shipped", ("gain/mail",), None)
    assert REGISTRY.frozen and plugins.load_all() == found
    assert "test_mail" not in by_name()


def test_the_working_folder_is_not_named_by_standing_in_it(tmp_path):
    write(tmp_path / "plugins", "stray")
    write(tmp_path, "stray_too")
    plugins.load_all()
    assert not REGISTRY.has("gain", "stray") and not REGISTRY.has("gain", "stray_too")


def test_each_door(tmp_path, monkeypatch):
    write(tmp_path / "env", "by_env")
    single = write(tmp_path / "single", "by_env_file")
    write(tmp_path / "single", "unnamed")
    write(tmp_path / "mine", "by_project")
    flag = write(tmp_path, "by_flag")
    (tmp_path / "pyproject.toml").write_text('[tool.composer]\nplugins = ["mine"]\n')
    monkeypatch.setenv("COMPOSER_PLUGINS", os.pathsep.join([str(tmp_path / "env"), str(single)]))
    plugins.load_all([flag])
    doors = {name: by_name()[name].door for name in ("by_env", "by_env_file", "by_project", "by_flag")}
    assert doors == {"by_env": "COMPOSER_PLUGINS", "by_env_file": "COMPOSER_PLUGINS", "by_project": "pyproject.toml", "by_flag": "--plugin"}
    assert "unnamed" not in by_name()
    assert all(REGISTRY.has("gain", name) for name in doors)


def test_a_worker_gets_the_same_set_and_nothing_else(tmp_path, monkeypatch):
    flag = write(tmp_path, "by_flag")
    write(tmp_path / "mine", "by_project")
    (tmp_path / "pyproject.toml").write_text('[tool.composer]\nplugins = ["mine"]\n')
    plugins.load_all(["by_flag.py"])
    files = plugins.for_workers()
    assert files == (str(tmp_path / "mine" / "by_project.py"), str(flag))
    monkeypatch.setenv("COMPOSER_PLUGINS", str(write(tmp_path / "other", "of_the_worker")))
    with scratch():
        for file in files:
            REGISTRY.remove_file(Path(file))
        plugins._loaded.clear()
        for each in plugins.files_of(plugins_dir()):
            REGISTRY.remove_file(each)
        plugins.load_all(files, exact=True)
        assert {"by_project", "by_flag", "mail"} <= set(by_name()) and "of_the_worker" not in by_name()


def test_a_named_file_stands_in_for_the_shipped_one(tmp_path):
    mine = write(tmp_path / "mine", "mail", GAIN.format(name="mail"))
    write(tmp_path / "mine", "test_mail", "raise SystemExit('a test is no plugin')")
    write(tmp_path / "mine", "_helper", "raise SystemExit('a private file is no plugin')")
    plugins.load_all([tmp_path / "mine"])
    assert by_name()["mail"].stands_for == plugins_dir() / "mail.py"
    assert REGISTRY.get("gain", "mail").file == mine
    plugins.load_all()
    assert REGISTRY.get("gain", "mail").file == mine, "asked again without the name, the shipped one must not come back"


def test_the_shipped_folder_named_again_loads_once():
    (Path.cwd() / "pyproject.toml").write_text(f'[tool.composer]\nplugins = ["{plugins_dir()}"]\n')
    plugins.load_all()
    assert by_name()["mail"].door == "shipped" and by_name()["mail"].stands_for is None
    assert plugins.for_workers() == ()


def test_two_plugins_with_one_primitive_are_an_error_that_names_both(tmp_path):
    write(tmp_path / "a", "one", GAIN.format(name="same"))
    write(tmp_path / "b", "two", GAIN.format(name="same"))
    with pytest.raises(ComposerError, match="registered twice") as caught:
        plugins.load_all([tmp_path / "a", tmp_path / "b"])
    assert "one.py" in str(caught.value) and "two.py" in str(caught.value)


def test_two_files_of_one_name_both_load(tmp_path):
    write(tmp_path / "a", "extra", GAIN.format(name="first"))
    write(tmp_path / "b", "extra", GAIN.format(name="second"))
    plugins.load_all([tmp_path / "a", tmp_path / "b"])
    assert REGISTRY.has("gain", "first") and REGISTRY.has("gain", "second")


@pytest.mark.parametrize(("text", "line", "said"), [("x = 1\n\ny = 1 / 0\n", 3, "ZeroDivisionError"), ("def f(:\n", 1, "SyntaxError"),
                                                    ("import sys\nsys.exit('stop')\n", 2, "stop"),
                                                    ("import no_such_module_at_all\n", 1, "no_such_module")])
def test_a_broken_plugin_is_one_located_error(tmp_path, text, line, said):
    bad = write(tmp_path, "bad", text)
    with pytest.raises(ComposerError, match=said) as caught:
        plugins.load_all([bad])
    assert caught.value.where == f"{bad}:{line}" and caught.value.exit_code == 2
    assert not REGISTRY.frozen and "bad" not in by_name()


def test_a_plugin_that_breaks_halfway_leaves_nothing_behind(tmp_path):
    bad = write(tmp_path, "half", GAIN.format(name="half") + "\n1 / 0\n")
    with pytest.raises(ComposerError):
        plugins.load_all([bad])
    assert not REGISTRY.has("gain", "half")
    bad.write_text(GAIN.format(name="half"))
    plugins.load_all([bad])
    assert REGISTRY.has("gain", "half")


def test_all_broken_plugins_are_told_at_once(tmp_path):
    write(tmp_path / "p", "a_bad", "1 / 0")
    write(tmp_path / "p", "b_bad", "1 / 0")
    with pytest.raises(Errors, match="2 errors"):
        plugins.load_all([tmp_path / "p"])


def test_names_that_are_not_there_say_where_they_were_given(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPOSER_PLUGINS", "nowhere")
    with pytest.raises(ComposerError, match="COMPOSER_PLUGINS") as caught:
        plugins.load_all(["nothing.py"])
    assert "--plugin nothing.py" in str(caught.value)
    monkeypatch.delenv("COMPOSER_PLUGINS")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ComposerError, match="no Python file"):
        plugins.load_all(["notes.txt"])


@pytest.mark.parametrize("text", ['[tool.composer]\nplugins = "mine"\n', "[tool.composer\n"])
def test_a_pyproject_that_cannot_be_read_is_located(tmp_path, text):
    (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(ComposerError) as caught:
        plugins.load_all()
    assert caught.value.where == str(tmp_path / "pyproject.toml")


def test_plugins_come_before_the_first_recipe(tmp_path):
    plugins.load_all()
    with pytest.raises(ComposerError, match="after a recipe was read"):
        plugins.load_all([write(tmp_path, "late")])


def test_an_entry_point_is_a_door(tmp_path, monkeypatch):
    write(tmp_path, "an_installed_package", GAIN.format(name="from_afar"))
    monkeypatch.syspath_prepend(tmp_path)
    point = importlib.metadata.EntryPoint("afar", "an_installed_package", "composer.plugins")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point] if group == "composer.plugins" else [])
    plugins.load_all()
    sys.modules.pop("an_installed_package")
    assert (by_name()["afar"].door, by_name()["afar"].primitives) == ("entry point", ("gain/from_afar",))


def test_the_catalogue_loads_without_torch(tmp_path):
    code = ("import sys; from composer.plugins import load_all; from composer.registry import REGISTRY; load_all();"
            "[(p.needs, p.options, p.card) for p in REGISTRY.all()];"
            "print('torch' in sys.modules, len(list(REGISTRY.all())))")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path,
                         env={**os.environ, "PYTHONPATH": str(ROOT)})
    loaded, count = out.stdout.split()
    assert loaded == "False" and int(count) > 20


def test_shipped_folders_are_found_in_a_checkout_and_in_a_wheel(tmp_path, monkeypatch):
    from composer import shipped

    assert recipes_dir() == ROOT / "recipes" and plugins_dir() == ROOT / "plugins"
    package = tmp_path / "site-packages" / "composer"
    (package.parent / "plugins").mkdir(parents=True)
    monkeypatch.setattr(shipped, "_PACKAGE", package)
    with pytest.raises(ComposerError, match="not beside it"):
        plugins_dir()                                           # somebody else's site-packages/plugins is not ours
    (package / "_shipped" / "plugins").mkdir(parents=True)
    assert plugins_dir() == package / "_shipped" / "plugins"
