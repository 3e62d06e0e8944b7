"""The final table, its intervals, and the comparison with what a recipe expects."""

from __future__ import annotations

import io

import pytest

from composer.report.table import compare_expect, final_table, fitted, grid, half_width, is_rate, layout, plain_table, print_result, show, span

RESULT = {
    "recipe": "mart_ours", "setting": "digits", "seed": 0, "epochs": 20, "steps": 260, "seconds": 72.3, "protocol": "quick",
    "n": {"clean": 1000, "pgd-20": 1000, "aa": 500, "margin": 500}, "selected": "best",
    "metrics": {"clean": 0.841, "pgd-20": 0.543, "aa": 0.5, "margin": 0.0312345}, "metrics_other": {"clean": 0.851, "aa": 0.48},
    "trust": {"ok": False, "flags": ["gradients are probably masked"]}, "out": "runs", "mlflow_run_id": "abc",
}


@pytest.mark.parametrize("k, n", [(0, 10), (5, 10), (10, 10), (543, 1000), (9999, 10000), (1, 1)])
def test_half_width_is_wilsons(k, n):
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    low, high = proportion.proportion_confint(k, n, method="wilson")
    assert half_width(k / n, n) == pytest.approx((high - low) / 2, abs=1e-12)


def test_rates_and_other_numbers():
    assert show(0.543, 1000) == "54.30 ± 3.08" and show(0.0312345, 500) == "0.03123" and show(None, 5) == show(float("nan"), 5) == "-"
    assert is_rate(1.0, 7) and is_rate(1 / 3, 3) and not is_rate(0.5, None) and not is_rate(1.2, 10)


def test_rows_best_and_last_with_the_selected_first():
    cells = grid(RESULT)
    assert cells[0] == ["", "clean", "pgd-20", "aa", "margin"] and cells[1][3] == "n = 500"
    assert [row[0] for row in cells[2:]] == ["best *", "last"] and cells[3][2] == "-"
    assert [row[0] for row in grid(RESULT | {"selected": "last"})[2:]] == ["last *", "best"]
    assert [row[0] for row in grid(RESULT | {"metrics_other": None})[2:]] == ["best"]


def test_every_doubted_number_is_marked_and_only_those():
    cells = grid(RESULT)
    assert all(cell.endswith("†") for cell in cells[2][1:]) and not any("†" in cell for cell in cells[3])
    assert "† doubt: gradients are probably masked" in plain_table(RESULT)
    other = RESULT | {"trust": {"ok": True, "flags": []}, "trust_other": {"ok": False, "flags": ["aa is weaker than pgd-20"]}}
    cells = grid(other)
    assert not any("†" in cell for cell in cells[2]) and cells[3] == ["last", "85.10 ± 2.21†", "-", "48.00 ± 4.36†", "-"]
    assert "† doubt of last: aa is weaker than pgd-20" in plain_table(other) and "no reason to doubt" not in plain_table(other)
    assert "† doubt: the trust checks doubt these numbers" in plain_table(RESULT | {"trust": {"ok": False, "flags": []}})


def test_a_narrow_page_turns_the_table():
    cells = grid(RESULT)
    assert fitted(cells, 200) is cells
    turned = fitted(cells, 40)
    assert turned[0] == ["measure", "images", "best *", "last"] and turned[1] == ["clean", "1,000", "84.10 ± 2.27†", "85.10 ± 2.21"]
    assert max(map(len, layout(turned))) <= 50


def test_plain_text_says_all_of_it():
    text = plain_table(RESULT)
    for part in ("mart_ours on digits, seed 0", "0:01:12", "n = 1,000", "84.10 ± 2.27", "doubt: gradients are probably masked", "MLflow run abc", "Wilson"):
        assert part in text
    assert "no reason to doubt" in plain_table(RESULT | {"trust": {"ok": True, "flags": []}})
    assert plain_table({"model": "net.pt", "metrics": {"clean": 0.5}, "n": {"clean": 10}, "seconds": 3.0}).startswith("net.pt, 0:00:03\n")
    assert "[expect]  aa: expected 60.00 %, not measured" in plain_table(RESULT | {"expect": compare_expect({"aa": 0.6}, {}, {})})
    assert "nothing was measured" in plain_table({"recipe": "x", "metrics": {}})


@pytest.mark.parametrize("width", [50, 80, 200])
def test_rich_table_fits(width):
    from rich.console import Console

    file = io.StringIO()
    Console(file=file, width=width).print(final_table(RESULT, width))
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= width and "84.10 ± 2.27" in file.getvalue() and "…" not in file.getvalue()


def test_a_pipe_gets_plain_text(capsys):
    print_result(RESULT)
    said = capsys.readouterr()
    assert said.out == plain_table(RESULT) + "\n" and said.err == "" and "\x1b" not in said.out


def test_span():
    assert span(72.3) == "0:01:12" and span(90061) == "1 d 01:01:01" and span(-1) == "0:00:00"


def test_expectations():
    lines = compare_expect({"aa": {"value": 0.60, "within": 0.05}, "clean": 0.9, "fgsm": 0.5, "note": "four hours", "ok": True, "table": {"x": 1}},
                           {"aa": 0.56, "clean": 0.85}, {"aa": 500, "clean": 10000})
    assert lines == ["aa: expected 60.00 %, got 56.00 % (-4.00), within ±5.00", "clean: expected 90.00 %, got 85.00 % (-5.00), OUTSIDE ±1.00",
                     "fgsm: expected 50.00 %, not measured"]
    assert "within ±19.8" in compare_expect({"aa": 0.5}, {"aa": 0.5}, {"aa": 45})[0], "few images allow more"
    assert "within" in compare_expect({"aa": {"value": 0.6, "within": 0.05}}, {"aa": 0.65}, {})[0], "the edge counts as within"


def test_a_diagnostic_is_never_a_percentage() -> None:
    """Not even where its mean is a whole number of n images."""
    result = {"recipe": "x", "metrics": {"clean": 0.5, "margin": 0.5, "pace": 1.0}, "n": {"clean": 10, "margin": 10, "pace": 4}, "units": {"margin": "pixels", "pace": "s"}}
    lines = plain_table(result).splitlines()
    assert lines[2].split() == ["clean", "margin", "pace"] and "n = 10 [pixels]" in lines[3] and "n = 4 [s]" in lines[3]
    assert lines[4].split() == ["result", "50.00", "±", "26.34", "0.5", "1"]
    assert "interval" not in plain_table(result | {"metrics": {"margin": 0.5}})
    assert compare_expect({"margin": 0.4, "pace": {"value": 2.0, "within": 0.5}, "gone": 1.0}, result["metrics"], result["n"], result["units"] | {"gone": "s"}) == [
        "margin: expected 0.4 pixels, got 0.5 pixels (+0.1), OUTSIDE ±0.04", "pace: expected 2 s, got 1 s (-1), OUTSIDE ±0.5", "gone: expected 1 s, not measured"]
