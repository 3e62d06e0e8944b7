"""Two evaluations beside one another: numbers against an exact binomial, same images only, same attack only."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from composer.compare import compare, text
from composer.errors import ComposerError
from composer.subject import record


def kept(out: Path, name: str, columns: dict[str, list[int]], **more: Any) -> str:
    flags = {k: torch.tensor(v, dtype=torch.bool) for k, v in columns.items()}
    result = {"model": name, "protocol": "mine", "trust": {"ok": True, "flags": []}, "n": {k: len(v) for k, v in flags.items()}, "seed": 0, "subject": name,
              "metrics": {k: float(v.double().mean()) for k, v in flags.items()}, "worst_of": ["clean", "pgd"], "classes": 10,
              "measures": {"clean": {"use": "clean"}, "pgd": {"use": "pgd", "eps": 0.1}}, "data": {"digest": "d", "images": {}}} | more
    return str(record.keep(out, name, result, flags))


def bits(*counts: tuple[int, int, int]) -> tuple[list[int], list[int]]:
    """Columns of a and b from (a, b, how many)."""
    return [a for a, _, n in counts for _ in range(n)], [b for _, b, n in counts for _ in range(n)]


def test_the_exact_test_and_the_difference(tmp_path: Path) -> None:
    a, b = bits((1, 1, 80), (1, 0, 9), (0, 1, 2), (0, 0, 9))
    kept(tmp_path, "first", {"clean": a})
    kept(tmp_path, "second", {"clean": b})
    (row,) = compare("first", "second", tmp_path)["rows"]
    expected = 2 * sum(math.comb(11, k) for k in range(3)) / 2**11
    assert (row["only_a"], row["only_b"], row["n"], row["method"]) == (9, 2, 100, "exact")
    assert row["p"] == pytest.approx(expected) and row["difference"] == pytest.approx(0.07) and row["ci95"][0] < 0.07 < row["ci95"][1]
    back = compare("second", "first", tmp_path)["rows"][0]
    assert back["difference"] == pytest.approx(-0.07) and back["p"] == pytest.approx(expected)


def test_many_discordant_images_take_the_chi_square(tmp_path: Path) -> None:
    a, b = bits((1, 1, 60), (1, 0, 40), (0, 1, 20))
    kept(tmp_path, "first", {"clean": a})
    kept(tmp_path, "second", {"clean": b})
    (row,) = compare("first", "second", tmp_path)["rows"]
    assert row["method"] == "chi-square" and row["p"] == pytest.approx(math.erfc(math.sqrt((40 - 20 - 1) ** 2 / 60 / 2)))


def test_the_worst_case_and_the_common_images(tmp_path: Path) -> None:
    kept(tmp_path, "first", {"clean": [1, 1, 0, 1], "pgd": [1, 0], "worst": [1, 0]})
    kept(tmp_path, "second", {"clean": [1, 1, 1], "pgd": [0, 0], "worst": [0, 0]})
    rows = {row["measure"]: row for row in compare("first", "second", tmp_path)["rows"]}
    assert rows["clean"]["n"] == 3 and rows["worst"]["n"] == 2 and rows["worst"]["only_a"] == 1


def test_other_attacks_and_other_images_are_left_out(tmp_path: Path) -> None:
    columns = {"clean": [1, 0, 1], "pgd": [1, 0, 0], "worst": [1, 0, 0]}
    kept(tmp_path, "a", columns)
    other = {"clean": {"use": "clean"}, "pgd": {"use": "pgd", "eps": 0.2}}
    kept(tmp_path, "b", columns, measures=other)
    found = compare("a", "b", tmp_path)
    assert [row["measure"] for row in found["rows"]] == ["clean"]
    assert any("eps is 0.1 there and 0.2 here" in note for note in found["notes"]) and any("over other attacks" in note for note in found["notes"])
    kept(tmp_path, "c", columns, data={"digest": "e", "images": {"clean": "x"}})
    with pytest.raises(ComposerError, match="cannot be compared") as caught:
        compare("a", "c", tmp_path)
    assert "not the same images" in caught.value.why


def test_doubts_and_the_latest_by_protocol(tmp_path: Path) -> None:
    kept(tmp_path, "a", {"clean": [1, 0]}, trust={"ok": False, "flags": ["masked"]})
    kept(tmp_path, "b", {"clean": [1, 1]})
    kept(tmp_path, "b", {"clean": [1, 0]}, protocol="other", seed=1)
    found = compare("a", "b", tmp_path)
    assert found["notes"] == ["A: its numbers are in doubt (masked)"] and found["doubted"] == ["a"]
    row = next(line.split() for line in text(found).splitlines() if line.startswith("clean"))
    assert row[2:5] == ["50.00†", "50.00", "+0.00†"] and "† the trust checks doubt these numbers" in text(found)
    with pytest.raises(ComposerError, match="no evaluation of 'a' by the protocol other"):
        compare("a", "b", tmp_path, "other")
    with pytest.raises(ComposerError, match="no evaluation of 'nobody'") as caught:
        compare("nobody", "b", tmp_path)
    assert caught.value.fix == "composer evaluate nobody"


def test_exports_are_compared_too_and_the_table_is_read(tmp_path: Path) -> None:
    folder = kept(tmp_path, "first", {"clean": [1, 1, 0, 1]})
    kept(tmp_path, "second", {"clean": [1, 0, 0, 1]})
    record.export_flags(tmp_path / "f.npz", *record.held(Path(folder)))
    found = compare(str(tmp_path / "f.npz"), "second", tmp_path)
    assert found["rows"][0]["only_a"] == 1
    shown = text(found).splitlines()
    assert shown[0] == "A  first" and shown[4].split()[:4] == ["clean", "4", "75.00", "50.00"] and "+25.00" in shown[4]
