"""Pictures of measures: what is drawn of one model, of rows with seeds, and what is left where there is nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from composer.evaluate.figures_calibration import reliability
from composer.evaluate.figures_curve import curved
from composer.evaluate.figures_rank import distribution
from composer.evaluate.results import Evaluation, Measured, wilson
from composer.plugins import load_catalogue
from composer.recipe.types import MeasureSpec
from composer.report.figures import curve, histogram, keep_run, landscape, numbers, record, run_pictures, traces
from composer.report.figures import reliability as reliable
from composer.report.figures.draw import KINDS, head_of, pictures, study_pictures
from composer.report.figures.record import Series, Shown
from composer.report.figures.style import pixels

load_catalogue()
LADDER = [0.0, 2 / 255, 4 / 255, 8 / 255]


def measured(seed: int = 0) -> dict[str, tuple[str, str, Measured]]:
    """Printed name -> (measure, unit, answer), of plausible numbers."""
    g = torch.Generator().manual_seed(seed)
    radius = torch.rand(200, generator=g) * 0.04
    standing = [radius > e for e in LADDER]
    logits = 2 * torch.randn((200, 5), generator=g, dtype=torch.float64)
    axis = [-1.0, 0.0, 1.0]
    surface = [[0.5 + seed + a * a + b * b for a in axis] for b in axis]
    rows = [{"class": k, "n": 40, "clean": 0.9, "robust": 0.1 * k + 0.2, "clean_ci95": list(wilson(36, 40)), "robust_ci95": list(wilson(4 * k + 8, 40))} for k in range(5)]
    half = torch.where(radius > 0.01, radius, float("nan"))
    return {
        "curve": ("curve", "pixels", curved(LADDER, standing, True, 0, 8 / 255)),
        "margin": ("effective_margin", "pixels", Measured(half)), "margin-adv": ("effective_margin", "pixels", Measured(half / 2)),
        "mean_radius": ("mean_radius", "pixels", Measured(torch.full((50,), 8 / 255))),
        "rank": ("rank", "rank", distribution(torch.randint(1, 6, (200,), generator=g).float(), torch.zeros(200), 5, [])),
        "calibration": ("calibration", "share", reliability(logits, torch.randint(5, (200,), generator=g), 15)),
        "per_class": ("per_class", "share", Measured(torch.rand(200, generator=g), {}, {"classes": rows, "worst": 0})),
        "landscape": ("landscape", "nats", Measured(torch.rand(200, generator=g), {}, {"axis": axis, "loss": surface, "centre": 0.5 + seed, "reach": 1.0})),
        "clean": ("clean", "", Measured(radius > 0))}


def judged(seed: int = 0, only: tuple[str, ...] = ()) -> tuple[Evaluation, list[MeasureSpec]]:
    made = {name: each for name, each in measured(seed).items() if not only or name in only}
    specs = [MeasureSpec(name, use, {}) for name, (use, _, _) in made.items()]
    return Evaluation(
        metrics={name: m.metric for name, (_, _, m) in made.items()}, n={name: len(m.counted) for name, (_, _, m) in made.items()},
        flags={name: m.values for name, (_, _, m) in made.items()}, trust={"ok": True, "flags": []}, seconds=1.0,
        details={name: m.details for name, (_, _, m) in made.items()}, units={name: unit for name, (_, unit, _) in made.items() if unit}), specs


def rows_of(tmp_path: Path, labels: tuple[str, ...], seeds: int) -> list[Series]:
    found = []
    for at, label in enumerate(labels):
        folders = tuple(tmp_path / f"{label}-s{s}" for s in range(seeds))
        for seed, folder in enumerate(folders):
            record.write(folder, *judged(10 * at + seed))
        found.append(Series(label, tuple(map(record.read, folders)), folders))
    return found


def texts(figure: Any) -> str:
    import matplotlib.text

    return "\n".join(t.get_text() for t in figure.findobj(matplotlib.text.Text) if t.get_text())


def clipped(figure: Any) -> list[str]:
    """Texts that reach beyond the paper."""
    import matplotlib.text
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    paper = figure.bbox
    found = []
    for text in figure.findobj(matplotlib.text.Text):
        if text.get_visible() and text.get_text().strip():
            box = text.get_window_extent(canvas.get_renderer())
            if box.width and (box.x0 < paper.x0 - 1 or box.x1 > paper.x1 + 1 or box.y0 < paper.y0 - 1 or box.y1 > paper.y1 + 1):
                found.append(text.get_text())
    return [t for t in found if not t.replace(".", "").replace("−", "").isdigit()]


def test_what_is_kept_is_read_back(tmp_path: Path) -> None:
    result, specs = judged()
    made = keep_run(tmp_path, result, specs, "a run")
    assert {p.stem for p in made} == {"curve", "effective_margin", "mean_radius", "rank", "calibration", "per_class", "landscape"}
    assert all(p.read_bytes().startswith(b"\x89PNG") and p.parent.name == "figures" for p in made)
    held = record.read(tmp_path)
    assert set(held) == set(measured()) - {"clean"} and held["curve"].figure == "curve" and held["curve"].details["counts"][0] == 200
    assert np.array_equal(held["margin"].values, result.flags["margin"].numpy(), equal_nan=True) and held["curve"].values is None
    assert held["margin"].n == int((~result.flags["margin"].isnan()).sum()) and held["margin"].metric == pytest.approx(result.metrics["margin"])
    first = {p.name: p.read_bytes() for p in made}
    assert {p.name: p.read_bytes() for p in run_pictures(tmp_path, "a run")} == first, "the same record gives the same bytes"


def test_pictures_of_an_earlier_protocol_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    keep_run(Path("run"), *judged(), "a run")
    keep_run(Path("run"), *judged(only=("curve", "clean")), "a run")
    assert [p.name for p in Path("run/figures").iterdir()] == ["curve.png"], "also below a folder that is named from the working one"


def test_a_picture_that_cannot_be_drawn_costs_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(names: Any, series: Any) -> Any:
        raise ValueError("no such axis")

    monkeypatch.setitem(KINDS, "curve", broken)
    assert keep_run(tmp_path, *judged(only=("curve",)), "a run") == []
    assert (tmp_path / "figures" / "not-drawn.txt").read_text() == "ValueError: no such axis\n" and "curve" in record.read(tmp_path)
    monkeypatch.undo()
    assert [p.name for p in run_pictures(tmp_path)] == ["curve.png"] and [p.name for p in (tmp_path / "figures").iterdir()] == ["curve.png"]


def test_without_such_a_measure_nothing_is_kept(tmp_path: Path) -> None:
    assert keep_run(tmp_path, *judged(only=("clean",)), "a run") == [] and not list(tmp_path.iterdir())
    assert record.read(tmp_path) == {} and pictures([Series("a", ({},), (tmp_path,))]) == []
    (tmp_path / record.FACTS).write_text("{")
    assert record.read(tmp_path) == {}


@pytest.mark.parametrize("labels,seeds", [(("one",), 1), (("at", "at_with_something_of_a_long_name", "trades"), 2), pytest.param(tuple(f"row {k}" for k in range(11)), 1, marks=pytest.mark.slow)])
def test_every_kind_is_drawn_with_axes_units_and_nothing_clipped(tmp_path: Path, labels: tuple[str, ...], seeds: int) -> None:
    series = rows_of(tmp_path, labels, seeds)
    drawn = dict(pictures(series))
    assert len(drawn) == 7 and {s.figure for s in series[0].seeds[0].values()} == set(KINDS)
    for name, figure in drawn.items():
        axes = [a for a in figure.axes if a.get_visible()]
        assert all(a.get_xlabel() or a.get_ylabel() for a in axes), name
        assert not clipped(figure), (name, clipped(figure))
        assert not figure.legends or not figure._suptitle.get_window_extent().overlaps(figure.legends[0].get_window_extent()), name
        assert len(labels) == 1 or all(label in texts(figure) for label in labels), name
    assert "/255" in texts(drawn["curve"]) and "pixels" in texts(drawn["effective_margin"]) and "nats" in texts(drawn["landscape"])


def test_the_curve_has_its_intervals_and_its_ratios(tmp_path: Path) -> None:
    series = rows_of(tmp_path, ("at", "at_emr", "trades"), 1)
    assert curve.extensions(["at", "at_emr", "at_emr_x", "trades", "atx"]) == {"at_emr": "at", "at_emr_x": "at_emr"}
    figure = curve.draw(["curve"], series)
    left, right = figure.axes
    shown = series[0].of("curve")[0].details
    assert left.lines[0].get_ydata().tolist() == pytest.approx([100 * a for a in shown["accuracy"]]) and left.lines[0].get_xdata().tolist() == pytest.approx([0, 2, 4, 8])
    path = left.collections[0].get_paths()[0].vertices
    assert path[:, 1].max() == pytest.approx(100 * max(high for _, high in shown["ci95"])) and path[:, 1].min() == pytest.approx(100 * shown["ci95"][-1][0])
    mine, other = (s.of("curve")[0].details["accuracy"] for s in (series[1], series[0]))
    assert right.lines[0].get_ydata().tolist() == pytest.approx([a / b for a, b in zip(mine, other) if b >= 0.01])
    many = curve.draw(["curve"], rows_of(tmp_path / "b", ("at",), 3))
    assert "lowest to highest seed" in texts(many)


def test_histograms_count_every_value_once(tmp_path: Path) -> None:
    series = rows_of(tmp_path, ("at",), 2)
    values = histogram.pooled(series[0], "margin")
    assert len(values) == sum(f.n for f in series[0].of("margin"))
    axis = histogram.draw(["margin"], series).axes[0]
    heights = axis.patches[0].get_data().values
    assert heights.sum() == pytest.approx(100 * (values <= axis.get_xlim()[1]).mean(), abs=1e-6)
    constant = histogram.draw(["mean_radius"], series).axes[0]
    assert constant.patches[0].get_data().values.max() == pytest.approx(100)
    assert histogram.bins(np.array([-1.0, 2.0]))[0] <= -1 and histogram.draw(["none"], [Series("a", ({"none": Shown("none", "u", "histogram", "pixels", None, 0, {},
                                                                                                                 np.full(3, np.nan, np.float32))},))]) is None


def test_pooled_bins_are_the_bins_of_all_images() -> None:
    g = torch.Generator().manual_seed(2)
    logits, y = torch.randn((300, 4), generator=g, dtype=torch.float64), torch.randint(4, (300,), generator=g)
    pieces = [reliability(logits[part], y[part], 15) for part in (slice(0, 100), slice(100, 300))]
    together = reliable.together([Shown("c", "calibration", "reliability", "share", m.metric, 1, m.details) for m in pieces])
    for row, want in zip(together, reliability(logits, y, 15).details["bins"]):
        assert row["n"] == want["n"] and row["confidence"] == pytest.approx(want["confidence"]) and row["accuracy"] == pytest.approx(want["accuracy"])


def test_landscapes_share_their_colours_and_a_steep_one_is_logarithmic() -> None:
    flat, _ = landscape._levels(-0.1, 0.5)
    assert flat[0] <= -0.1 and flat[-1] >= 0.5 and np.allclose(np.diff(flat), np.diff(flat)[0])
    steep, _ = landscape._levels(-0.01, 90.0)
    assert steep[-1] == 90.0 and 0.0 in steep and steep[0] == -0.01 and (np.diff(steep) > 0).all()
    assert len(landscape._levels(0.0, 0.0)[0]) > 1


def test_pixels_are_told_in_255ths_where_they_are() -> None:
    assert pixels([0.0, 2 / 255, 16 / 255]) == (255.0, "/255") and pixels([0.0, 0.1, 0.2]) == (1.0, "pixels in [0, 1]") and pixels([])[0] == 1.0


# -- over epochs, and over numbers ---------------------------------------------------------------------------------------------------


def run_folder(folder: Path, values: list[float], **recipe: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"epoch": e, "step": 9 * e, "trace-test/clean": v, "diagnostic-test/margin": 2 * v, "val/clean": 0.5}) + "\n"
                                                  for e, v in enumerate(values, 1)))
    flat = {"terms.kl.weight": 1.0, "train.lr": 0.1, **recipe}
    lines = [f"{k.rpartition('.')[0]}.{k.rpartition('.')[2]} = {json.dumps(v)}" for k, v in flat.items()]
    (folder / "recipe.toml").write_text("\n".join(lines) + '\ntrace.margin = { use = "effective_margin" }\n')
    return folder


def test_traces_have_a_panel_each_and_a_band_over_seeds(tmp_path: Path) -> None:
    folders = [run_folder(tmp_path / f"s{s}", [0.1 + s / 10, 0.4 + s / 10, 0.6]) for s in range(2)]
    figure = traces.draw([Series("at", ({}, {}), tuple(folders)), Series("none", ({},), (tmp_path / "gone",))])
    clean, margin = figure.axes
    assert clean.lines[0].get_ydata().tolist() == pytest.approx([15, 45, 60]) and margin.lines[0].get_ydata().tolist() == pytest.approx([0.3, 0.9, 1.2])
    band = clean.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (pytest.approx(10), pytest.approx(60))
    assert clean.get_ylabel() == "clean, %" and margin.get_ylabel() == "margin, pixels" and "closed to selection" in texts(figure) and not clipped(figure)
    assert traces.draw([Series("none", ({},), (tmp_path / "gone",))]) is None


def table_of(rows: dict[str, dict[str, Any]], tmp_path: Path) -> tuple[Any, list[Series]]:
    from composer.ablate.summary import Line, Metric, Table

    lines, series = [], []
    for at, (name, recipe) in enumerate(rows.items()):
        folder = run_folder(tmp_path / name, [0.5], **recipe)
        value = 0.3 + 0.01 * at
        lines.append(Line(name, runs=({"run": name},), metrics={"aa": {"mean": value, "ci95": [value - 0.01, value + 0.01], "values": [value], "seeds": [0], "n": 1},
                                                                "m": {"mean": value, "ci95": None, "values": [value], "seeds": [0], "n": 1}}))
        series.append(Series(name, ({},), (folder,)))
    return Table("results", "best", (Metric("aa", 200), Metric("m", 10, False, "pixels")), "aa", "", tuple(lines)), series


def test_rows_that_differ_in_one_number_are_a_line(tmp_path: Path) -> None:
    table, series = table_of({"w2": {"terms.kl.weight": 2.0}, "w1": {}, "w8": {"terms.kl.weight": 8.0}, "other": {"terms.kl.weight": 4.0, "train.lr": 0.01}}, tmp_path)
    ((name, figure),) = numbers.pictures(table, series)
    assert name == "numbers-over-terms.kl.weight" and head_of(name) == "Accuracy over terms.kl.weight"
    assert figure.axes[0].lines[0].get_xdata().tolist() == [1, 2, 8] and figure.axes[0].lines[0].get_ydata().tolist() == pytest.approx([31, 30, 32])
    assert len(figure.axes) == 2 and "m, pixels" in texts(figure) and not clipped(figure)
    assert numbers.pictures(*table_of({"a": {}, "b": {"terms.kl.weight": 2.0}}, tmp_path / "two")) == [], "two rows are no line"


def test_rows_over_a_grid_of_two_numbers_are_a_map(tmp_path: Path) -> None:
    grid = {f"a{a}-b{b}": {"terms.kl.weight": float(a), "train.lr": b / 10} for a in (1, 2, 3) for b in (1, 2)}
    ((name, figure),) = numbers.pictures(*table_of(grid, tmp_path))
    assert name == "numbers-over-terms.kl.weight-and-train.lr"
    shown = figure.axes[0].images[0].get_array()
    assert shown.shape == (2, 3) and shown[1, 0] == pytest.approx(31) and shown[0, 2] == pytest.approx(34) and "aa, %" in texts(figure) and not clipped(figure)


def test_pictures_of_a_study_are_listed_with_their_tables(tmp_path: Path) -> None:
    table, _ = table_of({"a": {}}, tmp_path / "t")
    for name in ("figure-curve.png", "figure-traces.png", "figure-numbers-over-train.lr.png", "curves.png"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "figure-landscape-of-wide.png").write_bytes(b"")
    assert study_pictures(tmp_path, [table]).pop(1) == (tmp_path / "figure-landscape-of-wide.png", "Loss around the weights: wide")
    (tmp_path / "figure-landscape-of-wide.png").unlink()
    found = study_pictures(tmp_path, [table])
    assert [(p.name, words) for p, words in found] == [("figure-curve.png", "Accuracy by radius"), ("figure-traces.png", "Measures over epochs"),
                                                       ("figure-numbers-over-train.lr.png", "Accuracy over train.lr")]
    (tmp_path / "figure-curve-2.png").write_bytes(b"")
    assert ("figure-curve-2.png", "Accuracy by radius: results") in [(p.name, w) for p, w in study_pictures(tmp_path, [table, table])]


def test_the_plots_of_a_study_stay_where_its_store_is_named_from_the_working_folder(square: Any, curves: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from composer.ablate.summary import summarise
    from composer.report.ablation import write_all

    grid, outcome = square(2)
    for at, result in enumerate(outcome.results.values()):
        curves(tmp_path, result, **{"trace-test/clean": 0.5 + at / 100})
        record.write(tmp_path / "experiments" / result["run"], *judged(at))
    monkeypatch.chdir(tmp_path)
    write_all(summarise(grid, outcome, Path()), Path("studies/s"))
    made = {p.name for p in Path("studies/s/plots").iterdir()}
    assert {"clean-robust.png", "curves.svg", "figure-curve.png", "figure-traces.png", "figure-landscape.svg", "figure-rank.png"} <= made
    assert "figure-rows.png" not in made, "an ablation has its effects"
    page = Path("studies/s/report.html").read_text(encoding="utf-8")
    assert page.count("<figure>") == len([name for name in made if name.endswith(".png")]) and "Where adversarial examples go" in page
