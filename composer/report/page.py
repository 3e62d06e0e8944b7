"""`composer report`: one page that needs nothing beside it, for a run or for a study, with the same content as files."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from composer import atomic
from composer.ablate.summary import Summary
from composer.errors import ComposerError, suggest
from composer.report.ablation.sheet import Cell, Head, Sheet
from composer.report.ablation.sheets import sheets_of
from composer.report.ablation.terminal import headline
from composer.report.effects import TITLES, ours
from composer.report.figures.draw import head_of, run_pictures, study_pictures
from composer.report.figures.record import FACTS, FOLDER
from composer.report.read import read_json


def report(target: str | Path, out: Path | str = "runs") -> Path:
    """Write the page of a study or a run, and a study's tables and plots anew; the path of the page.

    target  a name in the store, a folder of it, or a study's file
    Errors: ComposerError where the store has neither, or where it is not finished.
    """
    folder, kind = find(target, Path(out))
    if kind == "study":
        from composer.report.ablation import read_summary, write_all

        write_all(read_summary(folder), folder)
        return folder / "report.html"
    return run_files(folder)


def find(target: str | Path, out: Path) -> tuple[Path, str]:
    """(folder, "study" or "run"). A name that is both is the study."""
    path = Path(target)
    name = path.name.removesuffix(".toml")
    for folder, kind, proof in ((out / "studies" / name, "study", "results.json"), (out / "experiments" / name, "run", "result.json"),
                                (path, "study", "results.json"), (path, "run", "result.json")):
        if (folder / proof).is_file():
            return folder, kind
    held = [*names(out, "studies", "results.json"), *names(out, "experiments", "result.json")]
    for folder, kind in ((out / "studies" / name, "study"), (out / "experiments" / name, "run")):
        if folder.is_dir():
            raise ComposerError(f"the {kind} {name} has no results yet", where=str(folder), fix="give the command that began it again: it goes on from there")
    raise ComposerError(f"there is no study and no run '{target}' in {out}", fix=suggest(name, held, "studies and runs") if held else f"nothing is finished in {out}")


def names(out: Path, room: str, proof: str) -> list[str]:
    return sorted(path.parent.name for path in (out / room).glob(f"*/{proof}"))


def study_page(summary: Summary, plots: Path) -> str:
    pictures = [path for name in TITLES for path in sorted(plots.glob(f"{name}*.png")) if ours(path.stem)]
    figures = [{"uri": data_uri(path), "words": words} for path, words in study_pictures(plots, summary.tables)]
    return render(title=headline(summary), about=summary.about, banners=summary.banners, sheets=sheets_of(summary), footer=summary.footer,
                  pictures=[*figures, *(_picture(path, summary) for path in pictures)])


def _picture(path: Path, summary: Summary) -> dict[str, str]:
    name, _, number = path.stem.rpartition("-")
    known, at = (name, int(number)) if number.isdigit() and name in TITLES else (path.stem, 1)
    table = summary.tables[at - 1] if at <= len(summary.tables) else None
    return {"uri": data_uri(path), "words": f"{TITLES.get(known, known)}{f': {table.title}' if table else ''}"}


def run_files(folder: Path) -> Path:
    """A run's table as Markdown, LaTeX and CSV, and its page; the path of the page."""
    from composer.report.ablation.frames import csv_text
    from composer.report.ablation.latex import HEAD, sheet_latex
    from composer.report.ablation.markdown import escape, sheet_text
    from composer.report.table import head, rows_of, trusts

    result = read_json(folder / "result.json")
    if not isinstance(result, dict):
        raise ComposerError(f"{folder / 'result.json'} is no JSON", fix="remove it and give the command of the run again: nothing is trained twice")
    sheet, n = run_sheet(result), result.get("n") or {}
    records = [{"checkpoint": checkpoint, "metric": name, "value": value, "n": n.get(name), "trusted": trust.get("ok")}
               for (checkpoint, values), trust in zip(rows_of(result), trusts(result), strict=True) for name, value in values.items()]
    if (folder / FACTS).is_file():
        run_pictures(folder, folder.name)
    atomic.write_text(folder / "table.md", f"# {escape(head(result))}\n\n{sheet_text(sheet)}\n")
    atomic.write_text(folder / "table.tex", f"{HEAD}\n\n{sheet_latex(sheet, str(result.get('run') or folder.name))}\n")
    atomic.write_text(folder / "table.csv", csv_text(records))
    return atomic.write_text(folder / "report.html", run_page(folder, result))


def run_page(folder: Path, result: Mapping[str, Any]) -> str:
    """A run's table, its curves, its recipe and its plans."""
    from composer.report.table import foot, head

    picture = folder / "curves.png"
    texts = [(title, folder / name) for title, name in (("Recipe, filled in", "recipe.toml"), ("Plans", "plan.txt"))]
    banners = [line for line, tone in foot(result) if tone == "bad"]
    return render(title=head(result), about="", banners=banners, sheets=[sheet for sheet in [run_sheet(result)] if not sheet.empty],
                  footer=[*(("note", line) for line, tone in foot(result) if tone != "bad"), *facts(result)],
                  pictures=[*([{"uri": data_uri(picture), "words": "Training curves"}] if picture.is_file() else []),
                            *({"uri": data_uri(path), "words": head_of(path.stem)} for path in sorted((folder / FOLDER).glob("*.png")))],
                  blocks=[{"title": title, "text": path.read_text(encoding="utf-8", errors="replace")} for title, path in texts if path.is_file()])


def run_sheet(result: Mapping[str, Any]) -> Sheet:
    """Measures as columns, checkpoints as rows."""
    from composer.report.table import grid

    cells = grid(result)
    heads = tuple(Head(name or "checkpoint", (count,) if count else (), left=at == 0) for at, (name, count) in enumerate(zip(cells[0], cells[1], strict=True)))
    return Sheet("run", "Result", heads, tuple(tuple(Cell(text) for text in row) for row in cells[2:]))


def facts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    passes = result.get("passes") or {}
    made = [("experiment", result.get("experiment_id")), ("weights", result.get("weights_sha256")), ("selected epoch", result.get("selected_epoch")),
            ("passes", ", ".join(f"{name} {count:,}" for name, count in passes.items()))]
    return [(head, str(text)) for head, text in made if text not in (None, "")]


def data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def render(*, title: str, about: str, banners: Sequence[str], sheets: Sequence[Sheet], footer: Sequence[tuple[str, str]],
           pictures: Sequence[Mapping[str, str]], blocks: Sequence[Mapping[str, str]] = ()) -> str:
    """The template filled; every text is escaped."""
    from jinja2 import Environment, StrictUndefined

    source = files("composer.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    template = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True).from_string(source)
    return template.render(title=title, about=about, banners=banners, sheets=sheets, footer=footer, pictures=pictures, blocks=blocks)
