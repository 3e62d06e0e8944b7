"""Pictures of a run."""

from __future__ import annotations

from pathlib import Path

from composer.report.plots import curves


def test_curves_are_drawn(tmp_path: Path) -> None:
    rows = [{"epoch": e, "train/accuracy.adv": 0.1 * e, "val/clean": 0.2 * e, "train/terms.ce": 2.0 / e} for e in range(1, 5)]
    picture = curves(rows, tmp_path / "c.png", "a run", best=3)
    assert picture is not None and picture.read_bytes().startswith(b"\x89PNG")


def test_nothing_to_draw(tmp_path: Path) -> None:
    assert curves([], tmp_path / "c.png") is None
    assert curves([{"epoch": 1, "time/step_ms": 3.0}], tmp_path / "c.png") is None
    assert not list(tmp_path.iterdir())
