"""Pictures of an ablation: what is drawn, read from the figure itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from composer.ablate.summary import summarise
from composer.report import effects


def test_clean_against_robust_marks_means_intervals_and_seeds(square, tmp_path: Path) -> None:
    summary = summarise(*square(4), tmp_path)
    figure = effects.clean_robust(summary, summary.tables[0])
    axis = figure.axes[0]
    line = summary.line("-ema")
    drawn = [tuple(float(v[0]) for v in data) for container in axis.containers for data in [container.lines[0].get_data()]]
    assert (pytest.approx(100 * line.metrics["clean"]["mean"]), pytest.approx(100 * line.metrics["aa"]["mean"])) in drawn
    assert len(axis.containers) == 4 and all(container.has_xerr and container.has_yerr for container in axis.containers)
    assert sum(len(line.get_xdata()) == 4 for line in axis.lines) == 4                    # a small mark for each seed


def test_effects_and_deltas_have_a_row_each(square, tmp_path: Path) -> None:
    summary = summarise(*square(5), tmp_path)
    names = [[t.get_text() for t in draw(summary, summary.tables[0]).axes[0].get_yticklabels()] for draw in (effects.effects, effects.deltas)]
    assert names == [["ema", "margin", "ema:margin"], ["-ema", "-margin", "-ema -margin"]]


def test_interactions_are_the_cell_means(square, tmp_path: Path) -> None:
    from dataclasses import replace

    summary = summarise(*square(3), tmp_path)
    figure = effects.interactions(summary, summary.tables[0])
    ys = sorted(round(float(y), 6) for container in figure.axes[0].containers for y in container.lines[0].get_ydata())
    assert ys == sorted(round(100 * line.metrics["aa"]["mean"], 6) for line in summary.tables[0].lines)
    assert effects.interactions(replace(summary, nested={"ema": ["margin"]}), summary.tables[0]) is None


def test_curves_are_means_over_seeds_with_bands(square, curves, tmp_path: Path) -> None:
    grid, outcome = square(3)
    for (cell, seed), result in outcome.results.items():
        curves(tmp_path, result, last=0.6 + 0.05 * seed)
    summary = summarise(grid, outcome, tmp_path)
    figure = effects.curves(summary, summary.tables[0])
    robust = figure.axes[0]
    assert len(figure.axes) == 2 and len(robust.lines) == 4 and len(robust.collections) == 4
    assert float(robust.lines[0].get_ydata()[-1]) == pytest.approx(65.0) and len(robust.lines[0].get_xdata()) == 30
    assert effects.curves(summarise(grid, outcome, tmp_path / "nowhere"), summary.tables[0]) is None


def test_pictures_of_an_earlier_writing_go(square, tmp_path: Path) -> None:
    summary = summarise(*square(2), tmp_path)
    (tmp_path / "plots").mkdir()
    for name in ("curves-2.png", "importance.png"):
        (tmp_path / "plots" / name).write_bytes(b"x")
    made = effects.draw_all(summary, tmp_path / "plots")
    left = {p.name for p in (tmp_path / "plots").iterdir()}
    assert left == {p.name for p in made} | {"importance.png"} and all(p.read_bytes().startswith((b"\x89PNG", b"<?xml")) for p in made)


def test_titles_stay_within_their_picture_and_legends_off_the_marks(square, tmp_path: Path) -> None:
    from dataclasses import replace

    from matplotlib.backends.backend_agg import FigureCanvasAgg

    summary = summarise(*square(3), tmp_path)
    summary = replace(summary, study="mart_ours-" + "-".join(["ema", "margin", "align", "boost"] * 3) + "-0a1b2c")
    for draw in (effects.clean_robust, effects.effects, effects.deltas, effects.interactions):
        figure = draw(summary, summary.tables[0])
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        seen = figure._suptitle.get_window_extent(canvas.get_renderer())
        assert 0 <= seen.x0 and seen.x1 <= figure.bbox.width and seen.y1 <= figure.bbox.height, draw.__name__
        for axis in figure.axes:
            box = axis.get_legend() and axis.get_legend().get_window_extent(canvas.get_renderer())
            assert box is None or not box.overlaps(axis.get_window_extent()), f"{draw.__name__}: the legend lies on the marks"


def test_what_marks_mean_stands_in_the_picture(square, tmp_path: Path) -> None:
    from dataclasses import replace

    summary = summarise(*square(3), tmp_path)
    table = summary.tables[0]
    words = [text.get_text() for text in effects.effects(summary, table).legends[0].get_texts()]
    assert {"one seed", "95 %, seeds"} <= set(words)
    assert "doubted" not in effects.clean_robust(summary, replace(table, lines=tuple(replace(line, doubts=()) for line in table.lines)))._suptitle.get_text()
    assert "† doubted" in effects.clean_robust(summary, replace(table, lines=tuple(replace(line, doubts=("why",)) for line in table.lines)))._suptitle.get_text()


def test_doubted_is_said_where_a_mark_is_drawn_or_a_cell_without_a_name_is_doubted(square, tmp_path: Path) -> None:
    from dataclasses import replace

    def titles(*doubted: str, same_as: str = "") -> list[str]:
        lines = tuple(replace(line, doubts=("why",) if line.name in doubted else (), same_as="full" if line.name == same_as else "") for line in table.lines)
        figures = [draw(summary, replace(table, lines=lines)) for draw in (effects.deltas, effects.effects, effects.interactions)]
        return [figure._suptitle.get_text().replace("\n", " ") for figure in figures if figure]

    summary = summarise(*square(3), tmp_path)
    table = summary.tables[0]
    assert not any("doubted" in title or "†" in title for title in titles())
    deltas, *others = titles("full")
    assert "minus that of full†, paired" in deltas and "† doubted" in deltas and all("some cells are doubted" in title and "†" not in title for title in others)
    assert "minus that of full, paired" in titles("-ema")[0] and "† doubted" in titles("-ema")[0]
    assert "doubted" not in titles("-ema", same_as="-ema")[0], "that line is not drawn"
