"""docs/studies.md: its studies read, and no key of the grammar is missing from it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from composer.recipe.studies import Bases, examine_study
from composer.recipe.study_rows import CELL, HEAD, KINDS
from composer.verbs.checking import look

PAGE = (Path(__file__).parents[2] / "docs" / "studies.md").read_text(encoding="utf-8")
STUDIES = re.findall(r"```toml study\n(.*?)```", PAGE, re.DOTALL)
HEADINGS = {part.split("\n", 1)[0]: part for part in re.split(r"^## ", PAGE, flags=re.MULTILINE)}


@pytest.fixture(scope="module")
def bases():
    return Bases(look=look)


@pytest.mark.parametrize("text", STUDIES)
def test_its_studies_read(text, bases, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(text, encoding="utf-8")
    study, errors = examine_study(file, bases=bases)
    assert [e.text() for e in errors] == [] and study.rows


def test_there_is_a_row_of_every_kind():
    text = "".join(STUDIES)
    assert len(STUDIES) == 5 and all(f'kind    = "{kind}"' in text or f'kind          = "{kind}"' in text for kind in KINDS if kind != "cell")


@pytest.mark.parametrize(("part", "key"), [("The head", key) for key in HEAD] + [("Rows", key) for key in (*CELL, *KINDS, *sum(KINDS.values(), ()))])
def test_every_key_has_its_line(part, key):
    assert re.search(rf"^(\||\*\*).*`{key}`.*(\||\*\*)", HEADINGS[part], re.MULTILINE), key


@pytest.mark.parametrize("written", ["printed = false", 'printed = "', "printed = { row = \"ST\", weight_decay", "column = "])
def test_the_forms_of_printed_are_told(written):
    assert written in HEADINGS["Printed rows"]
