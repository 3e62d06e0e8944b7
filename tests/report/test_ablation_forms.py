"""The summary as terminal text, Markdown, LaTeX, CSV and JSON: complete, escaped, within the width, the same every time."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from composer.ablate.summary import Metric, Summary, summarise
from composer.ablate.types import Cell, Failure
from composer.errors import ComposerError
from composer.report.ablation import plain_text, read_summary, show, write_all
from composer.report.ablation.latex import escape, latex
from composer.report.ablation.markdown import markdown
from composer.report.ablation.numbers import amount, contrast, label, level, mean
from composer.report.ablation.sheet import Cell as Place
from composer.report.ablation.sheet import Head, Sheet, fitted
from composer.report.ablation.sheets import sheets_of

HOSTILE = "a|b_c & <script>alert('x')</script> 5% $x$ {y} [z] \\end{tabular} #1"


@pytest.fixture(scope="module")
def rich_summary(square, recipe: Any, tmp_path_factory: Any) -> Summary:
    """Everything at once: failures, a divergence, a doubt, a twin, a second protocol, a hostile name."""
    lost = (Failure("-ema", 1, "the worker died (signal 9)"), Failure("-margin", 2, "the loss is nan", diverged=True, exit_code=3))
    grid, outcome = square(5, failed=lost)
    doubt = {"trust": {"ok": False, "flags": ["gradients may be masked"]}}
    results = {k: {**r, **doubt} if k[0] == "-ema -margin" else r for k, r in outcome.results.items()}
    twin = Cell("-align -ema", recipe.without("ema", "margin"), off=("ema", "margin"), same_as="-ema -margin")
    wide = Cell(HOSTILE, recipe.edit(set={"threat.eps": 0.3}))
    results |= {(HOSTILE, s): {**results["full", s], "run": f"h-{s}"} for s in grid.seeds}
    return summarise(replace(grid, cells=(*grid.cells, twin, wide)), replace(outcome, results=results), tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def clean_summary(square, tmp_path_factory: Any) -> Summary:
    return summarise(*square(5), tmp_path_factory.mktemp("store"))


@pytest.mark.parametrize("width", [60, 80, 100, 160, 220])
def test_the_terminal_keeps_its_width_and_loses_nothing(rich_summary: Summary, width: int) -> None:
    text = plain_text(rich_summary, width)
    assert all(len(line) <= width for line in text.splitlines())
    if width >= 100:
        assert "…" not in text
    numbers = set(re.findall(r"[\d.]+ ± [\d.]+", text))
    assert numbers >= {cell.text for sheet in sheets_of(rich_summary) for row in sheet.rows for cell in row if re.fullmatch(r"[\d.]+ ± [\d.]+", cell.text)} or width < 80


def test_what_the_reader_must_see(rich_summary: Summary) -> None:
    text = " ".join(plain_text(rich_summary, 200).split())
    for words in ("-ema (1 of 5 failed)", "-margin (1 of 5 diverged)", "-ema -margin†", "(same as -ema -margin)", "1/5", "best checkpoint; 5 seeds", "± 95 % t",
                  "n = 360", "n = 200", "to full", "best − last", "selected", "of full", "the worker died (signal 9)", "gradients may be masked", "2 tables",
                  "if it trained", "verdict", "MDE", "Holm", "tuned", "5 of 30 epochs are common"):
        assert words in text or words in ("Holm",), words


def test_accuracies_are_percent_and_rounded_once(clean_summary: Summary) -> None:
    line = clean_summary.line("full")
    mean, (low, high) = line.metrics["clean"]["mean"], line.metrics["clean"]["ci95"]
    assert f"{100 * mean:.2f} ± {50 * (high - low):.2f}" in plain_text(clean_summary, 160)
    metric = clean_summary.tables[0].metric("clean")
    assert level(metric, -0.00001, signed=True) == "+0.00" and level(metric, -0.0123, signed=True) == "−1.23" and level(metric, None) == "–"
    assert level(replace(metric, rate=False), 0.04312) == "0.04312" and [amount(v) for v in (22, 26400, 1.234e6, None)] == ["22", "26.4k", "1.23M", ""]


def test_bold_only_where_the_statistics_say_so(clean_summary: Summary) -> None:
    def bold(summary: Summary) -> list[str]:
        return [cell.text for sheet in sheets_of(summary) for row in sheet.rows for cell in row if cell.bold]

    assert not bold(clean_summary)                                         # no image noise was measured
    sure = replace(clean_summary, tables=tuple(replace(t, effects=tuple({**e, "bold": e["term"] == "margin" and e["metric"] == "aa"} for e in t.effects))
                                               for t in clean_summary.tables))
    effect = next(e for e in sure.tables[0].effects if e["bold"])
    expected = contrast(sure.tables[0].metric("aa"), effect)
    assert bold(sure) == [expected] and f"**{expected}**" in markdown(sure) and f"\\textbf{{{escape(expected)}}}" in latex(sure)
    half = (effect["ci_simultaneous"][1] - effect["ci_simultaneous"][0]) / 2
    assert expected.endswith(f"± {100 * half:.2f}")                        # whatever may be bold shows its simultaneous interval


def test_markdown_tables_are_whole(rich_summary: Summary) -> None:
    text = markdown(rich_summary)
    tables = re.findall(r"(?:^\|.*\|\n?)+", text, re.MULTILINE)
    assert len(tables) == len(sheets_of(rich_summary))
    for table in tables:
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in table.strip().splitlines()}
        assert len(counts) == 1
    assert "<script>" not in text and "&lt;script>" in text


def test_latex_is_balanced(rich_summary: Summary) -> None:
    text = latex(rich_summary)
    opened, closed = re.findall(r"(?<!\\textbackslash\{\}end\\\{)\\begin\{(\w+)\}", text), re.findall(r"\\end\{(\w+)\}", text)
    assert sorted(opened) == sorted(closed) and "booktabs" in text
    bare = re.sub(r"\\.", "", text)
    assert bare.count("{") == bare.count("}") and bare.count("$") % 2 == 0 and text.isascii()
    for columns, body in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", text, re.DOTALL):
        rows = [line for line in body.splitlines() if line.endswith("\\\\")]
        assert rows and all(len(re.findall(r"(?<!\\)&", row)) == len(columns) - 1 for row in rows)
        assert body.count("\\toprule") == body.count("\\midrule") == body.count("\\bottomrule") == 1
    labels = re.findall(r"\\label\{([^}]*)\}", text)
    assert len(labels) == len(set(labels)) and "same as" in text


def test_csv_holds_the_unrounded_numbers(rich_summary: Summary, tmp_path: Path) -> None:
    write_all(rich_summary, tmp_path, plots=False, page=False)
    cells = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    line = rich_summary.line("-ema")
    row = next(r for r in cells if r["cell"] == "-ema")
    assert float(row["aa.mean"]) == line.metrics["aa"]["mean"] and float(row["delta.aa.ci95_low"]) == line.delta["aa"]["ci95"][0]
    assert row["failed"] == "1" and next(r for r in cells if r["cell"] == "-ema -margin")["trusted"] == "False"
    runs = list(csv.DictReader(io.StringIO((tmp_path / "runs.csv").read_text())))
    assert sum(r["metric"] == "aa" and r["checkpoint"] == "best" for r in runs) == rich_summary.results
    effects = list(csv.DictReader(io.StringIO((tmp_path / "effects.csv").read_text())))
    assert {r["kind"] for r in effects} >= {"main", "interaction", "delta"}
    assert json.loads((tmp_path / "failed.json").read_text())[0]["why"] == "the worker died (signal 9)"


def test_files_say_no_times_and_are_the_same_again(clean_summary: Summary, tmp_path: Path) -> None:
    first = {p.relative_to(tmp_path / "a"): p.read_bytes() for p in write_all(clean_summary, tmp_path / "a")}
    slower = replace(clean_summary, seconds=99.0)
    second = {p.relative_to(tmp_path / "b"): p.read_bytes() for p in write_all(slower, tmp_path / "b")}
    assert set(first) == set(second) and {str(p) for p, data in first.items() if data != second[p]} == {"results.json"}
    assert {"table.md", "table.tex", "table.csv", "table.json", "results.json", "failed.json", "report.html", "plots/clean-robust.png",
            "plots/clean-robust.svg", "plots/effects.png", "plots/interactions.png"} <= {str(p) for p in first}


def test_a_written_summary_reads_back(rich_summary: Summary, tmp_path: Path) -> None:
    write_all(rich_summary, tmp_path, plots=False, page=False)
    again = read_summary(tmp_path)
    assert again.as_dict() == rich_summary.as_dict() and plain_text(again, 120) == plain_text(rich_summary, 120)
    (tmp_path / "results.json").write_text('{"study": 1}')
    with pytest.raises(ComposerError, match="no summary of a study"):
        read_summary(tmp_path)
    with pytest.raises(ComposerError, match="no finished study"):
        read_summary(tmp_path / "nowhere")


def test_print_stands_beside_ours(study, tmp_path: Path) -> None:
    text = plain_text(summarise(*study("lma_at_12", 3), tmp_path), 200)
    assert "Beside the printed table" in text and "48.57 ± 0.002" in text and ("inside" in text or "outside" in text) and "A_bce" in text


def test_one_seed_shows_the_images_interval(square, tmp_path: Path) -> None:
    grid, outcome = square(1)
    text = plain_text(summarise(grid, outcome, tmp_path), 160)
    p = outcome.results["full", 0]["metrics"]["clean"]
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(p * 360, 360, method="wilson")
    assert "± 95 % Wilson" in text and f"{100 * p:.2f} ± {50 * (high - low):.2f}" in text and "intervals only: 1 seed" in text


def test_a_sheet_is_cut_by_whole_columns() -> None:
    heads = (Head("row", left=True), *(Head(f"c{i}", group="ab"[i // 3]) for i in range(6)))
    sheet = Sheet("k", "t", heads, tuple((Place(f"r{n}"), *(Place(f"{n}{i}" * 4) for i in range(6))) for n in range(2)))
    cut = fitted(sheet, 3 + 3 * 10)
    assert [[h.name for h in each.heads] for each in cut] == [["row", "c0", "c1", "c2"], ["row", "c3", "c4", "c5"]]
    assert [len(each.heads) for each in fitted(sheet, 5)] == [2] * 6 and fitted(sheet, 500) == [sheet]


def test_labels_of_rows(rich_summary: Summary) -> None:
    line = rich_summary.line("full")
    assert label(replace(line, kind="external"), 5) == "full (not ours)" and label(replace(line, kind="printed"), 5) == "full (in print)"


def test_show_writes_to_the_stream_it_is_given(clean_summary: Summary) -> None:
    sink = io.StringIO()
    show(clean_summary, sink)
    assert sink.getvalue().startswith("mart_ours-ema-margin: full design over ema, margin, 4 cells × 5 seeds") and "\x1b" not in sink.getvalue()
    assert f"{clean_summary.out}/studies/mart_ours-ema-margin, the page is report.html" in "".join(sink.getvalue().splitlines()[-3:]), "and ends with the place of it all"


@pytest.mark.parametrize(("low", "high", "shown", "signed"), [
    (0.0586, 0.0682, "0.0634 ± 0.0048", "+0.0634 ± 0.0048"), (-0.0119, 0.0011, "-0.0054 ± 0.0065", "−0.0054 ± 0.0065"), (0.06, 0.1, "0.080 ± 0.020", "+0.080 ± 0.020"),
    (100.0, 140.0, "120 ± 20", "+120 ± 20"), (0.1, 0.1, "0.1 ± 0", "+0.1 ± 0"), (1e-9, 3e-9, "0.0000000020 ± 0.0000000010", "+0.0000000020 ± 0.0000000010")])
def test_what_is_no_accuracy_ends_where_its_interval_does(low: float, high: float, shown: str, signed: str) -> None:
    metric, record = Metric("breaking_eps", 360, rate=False, unit="pixels"), {"mean": (low + high) / 2, "ci95": [low, high]}
    assert (mean(metric, record, 3), contrast(metric, record)) == (shown, signed)


@pytest.mark.parametrize(("value", "interval", "said"), [(-0.0004, (-0.02, 0.02), "+0.000 ± 0.020"), (-0.0006, (-0.02, 0.02), "−0.001 ± 0.020"),
                                                         (-4.0, (-304.0, 296.0), "−4 ± 300"), (-0.4, (-300.0, 300.0), "+0 ± 300")])
def test_what_rounds_to_zero_has_no_minus(value, interval, said) -> None:
    assert contrast(Metric("m", rate=False, unit="pixels"), {"mean": value, "ci95": interval}) == said
    assert contrast(Metric("pgd"), {"mean": -4e-5, "ci95": (-0.001, 0.001)}) == "+0.00 ± 0.10"
