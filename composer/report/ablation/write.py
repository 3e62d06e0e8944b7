"""All files of a study's folder: tables in every form, plots, the page."""

from __future__ import annotations

import json
from pathlib import Path

from composer import atomic
from composer.ablate.summary import Summary
from composer.errors import ComposerError
from composer.report.ablation.frames import cell_records, csv_text, effect_records, run_records
from composer.report.ablation.latex import latex
from composer.report.ablation.markdown import markdown
from composer.report.read import read_json


def write_all(summary: Summary, folder: Path | str, *, plots: bool = True, page: bool = True) -> list[Path]:
    """Write results.json, table.{md,csv,json,tex}, effects.csv, runs.csv, failed.json, plots/ and report.html; the paths, for whoever keeps them."""
    folder = Path(folder)
    whole = summary.as_dict()
    made = [atomic.write_json(folder / "results.json", whole),
            atomic.write_text(folder / "table.md", markdown(summary)), atomic.write_text(folder / "table.tex", latex(summary)),
            atomic.write_text(folder / "table.csv", csv_text(cell_records(summary))), atomic.write_json(folder / "table.json", cell_records(summary)),
            atomic.write_text(folder / "effects.csv", csv_text(effect_records(summary))), atomic.write_text(folder / "runs.csv", csv_text(run_records(summary))),
            atomic.write_json(folder / "failed.json", whole["failed"])]
    if plots:
        from composer.report.effects import draw_all
        from composer.report.figures import draw_study

        made += draw_all(summary, folder / "plots") + draw_study(summary, folder / "plots")
    if page:
        from composer.report.page import study_page

        made.append(atomic.write_text(folder / "report.html", study_page(summary, folder / "plots")))
    return made


def read_summary(folder: Path | str) -> Summary:
    """What `write_all` left. Errors: ComposerError where there is no results.json, or another program's."""
    path = Path(folder) / "results.json"
    found = read_json(path)
    if found is None:
        raise ComposerError(f"there is no finished study in {folder}", why=f"{path} is not there, or is no JSON", fix="composer ablate writes it")
    try:
        return Summary.from_dict(found)
    except (KeyError, TypeError, AttributeError) as error:
        raise ComposerError(f"{path} is no summary of a study", why=f"{type(error).__name__}: {error}",
                            fix="run composer ablate again: it trains nothing that is there") from None


def dumped(summary: Summary) -> str:
    """The JSON of `--json`."""
    return json.dumps(summary.as_dict(), ensure_ascii=False, allow_nan=False)
