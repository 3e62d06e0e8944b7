"""The page of a study or a run: valid, self-contained, escaped."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from composer.ablate.summary import summarise
from composer.errors import ComposerError
from composer.report.ablation import write_all
from composer.report.page import report

VOID = {"meta", "img", "br", "link", "hr", "input"}


class Checker(HTMLParser):
    """Every tag closed in order; addresses and pictures collected."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"


def checked(path: Path) -> Checker:
    text = path.read_text(encoding="utf-8")
    page = Checker()
    page.feed(text)
    assert not page.open and text.startswith("<!DOCTYPE html>") and "script" not in page.tags and "link" not in page.tags
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses) and not re.search(r"url\(|@import", text)
    assert all(base64.b64decode(address.split(",")[1]).startswith(b"\x89PNG") for address in page.addresses)
    return page


def test_the_page_of_a_study(square, curves, tmp_path: Path) -> None:
    grid, outcome = square(3)
    for result in outcome.results.values():
        curves(tmp_path, result)
    summary = replace(summarise(grid, outcome, tmp_path), about="<b>not bold</b>")
    write_all(summary, tmp_path / "studies" / grid.name, plots=False, page=False)
    page = report(grid.name, tmp_path)
    assert page == tmp_path / "studies" / grid.name / "report.html"
    found = checked(page)
    text = page.read_text(encoding="utf-8")
    assert len(found.addresses) == 5 and "&lt;b&gt;not bold" in text and "intervals only" in text and "Difference to full" in text
    assert report(tmp_path / "studies" / grid.name, tmp_path / "elsewhere") == page


def test_the_page_of_a_run(recipe, made, tmp_path: Path) -> None:
    from composer.ablate.types import Cell

    result = made(Cell("full", recipe), 0, run="mart_ours-1-s0", trust={"ok": False, "flags": ["fgsm <is> stronger"]}) | {"experiment_id": "ab12"}
    folder = tmp_path / "experiments" / "mart_ours-1-s0"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "recipe.toml").write_text(recipe.filled())
    page = report("mart_ours-1-s0", tmp_path)
    checked(page)
    text = page.read_text(encoding="utf-8")
    assert "fgsm &lt;is&gt; stronger" in text and "modified_huber" in text and "ab12" in text and "n = 360" in text
    shown = f"{100 * result['metrics']['clean']:.2f} ±"
    assert shown in text and shown in (folder / "table.md").read_text() and shown.replace("±", "$") in (folder / "table.tex").read_text()
    assert f"best,clean,{result['metrics']['clean']},360" in (folder / "table.csv").read_text()


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ComposerError, match="no study and no run 'nothing'"):
        report("nothing", tmp_path)
    (tmp_path / "studies" / "begun").mkdir(parents=True)
    with pytest.raises(ComposerError, match="has no results yet"):
        report("begun", tmp_path)
