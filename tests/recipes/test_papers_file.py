"""papers.toml: the keys recipes name, and the printed tables as the papers have them."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAPERS = tomllib.loads((ROOT / "recipes" / "papers.toml").read_text())
SOURCE = ROOT.parent / "shared" / "paper_tables.toml"


def same(a: Any, b: Any) -> bool:
    """Equality in which nan, the mark of an unprinted number, equals itself."""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return a == b or (isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b))


def test_tables_equal_the_source() -> None:
    if not SOURCE.exists():
        pytest.skip("the transcription of the papers' tables is not beside this checkout")
    source = tomllib.loads(SOURCE.read_text())
    assert same(source["table"], PAPERS["table"])
    for key, fields in source["paper"].items():
        assert fields.items() <= PAPERS["paper"][key].items(), key


def test_every_row_has_a_value_for_every_column() -> None:
    for table in PAPERS["table"]:
        assert table["id"].split("/")[0] in PAPERS["paper"]
        for row in table["rows"]:
            assert len(row["values"]) == len(table["columns"]), (table["id"], row["row"])
            assert len(row.get("pm", row["values"])) == len(row["values"]), (table["id"], row["row"])
    ids = [t["id"] for t in PAPERS["table"]]
    assert len(set(ids)) == len(ids) == 33


def test_anchors_read_from_print() -> None:
    tables = {t["id"]: t for t in PAPERS["table"]}
    cell = {(i, r.get("group"), r["row"]): dict(zip(tables[i]["columns"], r["values"], strict=True)) for i in tables for r in tables[i]["rows"]}
    assert cell["lma_at/12", None, "C"] == {"clean": 83.56, "fgsm": 61.19, "pgd-20": 57.21, "pgd-100": 55.64, "cw": 52.3, "aa": 49.1,
                                            "square": 59.54, "spsa": 60.44}
    assert cell["mwpb/1", None, "MWPB-TRADES"]["aa"] == 50.73
    assert cell["piat/1", "cifar10", "PIAT+NMSE"]["pgd-100"] == 53.59
    assert cell["emr/9", None, "TRADES+EMR"]["aa"] == 48.86


def test_a_paper_can_be_cited() -> None:
    for key, paper in PAPERS["paper"].items():
        assert paper["title"] and paper["authors"] and paper["type"] in {"inproceedings", "article", "misc"}, key
        assert paper["type"] == "misc" or {"where", "year"} <= paper.keys(), key
    assert {"trades", "mart", "madry", "rice", "alp", "autoattack", "mail"} <= PAPERS["paper"].keys()


def test_recipes_name_papers_that_are_here() -> None:
    for path in (ROOT / "recipes").glob("*.toml"):
        if "terms" in (tables := tomllib.loads(path.read_text())):
            assert "paper" not in tables or tables["paper"] in PAPERS["paper"], path.name
