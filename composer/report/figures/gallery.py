"""The pictures of docs/gallery.md: `python -m composer.report.figures.gallery` runs the study `figures` (or finds it finished) and puts its plots there."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from composer import atomic
from composer.errors import ComposerError

SHOWN = ("figure-curve", "figure-effective_margin", "figure-mean_radius", "figure-rank", "figure-landscape", "figure-calibration", "figure-per_class", "figure-traces")
WIDEST, COLOURS = 1200, 256        # pixels across; colours of the palette, which line drawings do not miss


def gallery(out: Path, folder: Path) -> list[Path]:
    """Run what is missing of the study below `out`, and copy its pictures, made small, into `folder`; their paths.

    Errors: those of the runs; a picture that the study did not make is left out.
    """
    from composer.ablate.door import ablate

    summary = ablate("figures", out=out, jobs=0, threads=1, quiet=True, track=False)
    if summary["failed"]:
        raise ComposerError(f"{summary['failed'][0]['name']}, seed {summary['failed'][0]['seed']}: {summary['failed'][0]['why']}")
    plots = Path(summary["out"]) / "studies" / summary["study"] / "plots"
    return [small(plots / f"{name}.png", folder / f"{name.removeprefix('figure-')}.png") for name in SHOWN if (plots / f"{name}.png").is_file()]


def small(source: Path, target: Path) -> Path:
    """The picture with a palette, and no wider than a page."""
    from PIL import Image

    with Image.open(source) as picture:
        shown = picture.convert("RGB")
    if shown.width > WIDEST:
        shown = shown.resize((WIDEST, round(shown.height * WIDEST / shown.width)), Image.Resampling.LANCZOS)
    palette = shown.quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    return atomic.replace_with(target, lambda beside: palette.save(beside, optimize=True))


def main() -> None:
    words = argparse.ArgumentParser(prog="python -m composer.report.figures.gallery", description=__doc__)
    words.add_argument("--out", type=Path, default=Path("runs"), help="the store that the study runs in")
    words.add_argument("--folder", type=Path, default=Path("docs/gallery"), help="where the pictures go")
    asked = words.parse_args()
    try:
        made = gallery(asked.out, asked.folder)
    except ComposerError as error:
        raise SystemExit(error.text()) from None
    for path in made:
        print(f"{path} ({path.stat().st_size / 1000:.0f} kB)", file=sys.stdout)


if __name__ == "__main__":
    main()
