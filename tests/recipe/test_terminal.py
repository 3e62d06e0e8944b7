"""What people read in a terminal of 80 columns."""

from __future__ import annotations

import pytest

from composer.cli import app, run_app
from composer.verbs.text import fit


@pytest.fixture
def cli(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments):
        assert run_app(app, list(arguments)) == 0
        return capsys.readouterr().out

    return call


def test_diff_names_the_recipes_and_keeps_values_inside_the_screen(cli):
    out = cli("diff", "trades", "trades_ours")
    rows = out.splitlines()
    values = [row for row in rows if ".toml:" not in row]
    assert max(map(len, values)) <= 80 and "  trades       not there" in rows
    assert any(row.startswith("  trades_ours  { use = \"margin\"") for row in rows)
    assert not [row for row in rows if row.strip() in ("}", "{")] and "[]" not in out
    places = [row for row in rows if ".toml:" in row]
    assert places and all(row.strip().rsplit(":", 1)[1].isdigit() for row in places)


def test_why_marks_the_line_that_won_and_follows_words_of_the_threat(cli):
    rows = cli("show", "mart_ours", "--why", "inner.x_adv.step").splitlines()
    said = " ".join(" ".join(rows).split())
    assert said.count("->") == 2 and '-> inner.x_adv.step = "threat"' in said and '-> threat.step = "eps/4"' in said
    assert said.index("mart.toml") < said.index("mart_ours.toml") < said.index("digits.toml")
    assert '-> threat.eps = 0.2' in " ".join(cli("show", "mart_ours", "--why", "inner.x_adv.eps").split())


def test_a_value_and_its_place_share_a_line_where_it_fits(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert fit("a = 1", "recipes/at.toml:3", 4) == ["a = 1  recipes/at.toml:3"]
    rows = fit("a = { " + ", ".join(f"key_{n} = {n}" for n in range(12)) + " }", "recipes/at.toml:3", 4)
    assert rows[-1] == "  recipes/at.toml:3" and all(len(row) <= 76 for row in rows) and rows[-2].endswith(" }")
    assert " ".join(" ".join(rows[:-1]).split()).startswith("a = { key_0 = 0, key_1 = 1")
    assert not any(row.endswith("=") or row.strip().startswith("=") for row in rows)
