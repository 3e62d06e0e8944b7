"""docs/recipes.md: its recipes read and compile, its command runs, and no key of the grammar is missing from it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from composer.cli import app, run_app
from composer.recipe import fixed
from composer.recipe.keys import ROOTS
from composer.recipe.layers import RECIPE_HEADS, SETTING_HEADS
from composer.recipe.load import examine
from composer.registry import RESERVED
from composer.verbs.checking import look

PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
CODE = set(re.findall(r"`([^`\n]+)`", PAGE))
RECIPES = re.findall(r"```toml recipe\n(.*?)```", PAGE, re.DOTALL)


def named(key: str) -> bool:
    """In code marks, alone or first in an assignment, or as the end of a path."""
    return any(code == key or code.startswith(f"{key} =") or code.endswith(f".{key}") or code.startswith(f"[{key}") for code in CODE)


@pytest.mark.parametrize("text", RECIPES)
def test_its_recipes_read_and_compile(text, tmp_path):
    file = tmp_path / "example.toml"
    file.write_text(text, encoding="utf-8")
    assert [e.text() for e in examine(file, look=look)[1]] == []


def test_there_are_examples():
    assert len(RECIPES) == 3


@pytest.mark.parametrize(("table", "key"), [(table, key) for table, fields in fixed.FIELDS.items() for key in fields])
def test_every_key_of_every_table_is_there(table, key):
    assert f"{table}.{key}" in CODE or table not in ("train", "threat", "select", "trace", "evaluate", "model", "optim") and named(key), f"{table}.{key}"


@pytest.mark.parametrize("key", sorted({*ROOTS, *RECIPE_HEADS, *SETTING_HEADS, *RESERVED, "set", "put", "drop", "terms", "surface", "eps", "low", "high",
                                        "log", "step", "choices", "value", "within"}))
def test_every_head_and_reserved_key_is_there(key):
    assert any(re.search(rf"\b{key}\b", code) for code in CODE), key


def test_its_command_reads(capsys):
    command = shlex.split(re.search(r"```sh\ncomposer (run .*?)\n```", PAGE)[1])
    assert run_app(app, [*command, "--dry-run"]) == 0
    assert "modified_huber" not in capsys.readouterr().out


def test_defaults_are_the_true_ones():
    """Defaults in the settings' table, where a number or word stands there."""
    rows = re.findall(r"^\| `(\w+)\.(\w+)` \| `?([\w.]+)`? \|", PAGE, re.MULTILINE)
    checked = 0
    for table, key, said in rows:
        default = fixed.option(table, key).default
        if said in ("all", "must"):
            continue
        assert said == str(default).lower() or float(said) == default, (table, key)
        checked += 1
    assert checked >= 14
