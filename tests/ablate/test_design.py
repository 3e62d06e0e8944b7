"""Designs: textbook tables of two-level fractions (Chen, Sun & Wu 1993; Montgomery, Design and Analysis of Experiments), and matrices of ±1."""

from __future__ import annotations

import re
from itertools import combinations

import numpy as np
import pytest

from composer.ablate import design
from composer.ablate.cells import alias_names
from composer.ablate.design import fraction, letters
from composer.errors import ComposerError

# factors -> (runs, resolution, words of 4, 5, 6, … letters) of the least aberration fraction
TEXTBOOK = {4: (8, 4, [1]), 5: (16, 5, [0, 1]), 6: (16, 4, [3]), 7: (16, 4, [7]), 8: (16, 4, [14, 0, 0, 0, 1]), 9: (32, 4, [6, 8, 0, 0, 1]),
            10: (32, 4, [10, 16, 0, 0, 5]), 11: (32, 4, [25, 0, 27, 0, 10, 0, 1]), 12: (32, 4, [38, 0, 52, 0, 33, 0, 4]), 16: (32, 4, [140, 0, 448])}


def columns(cells: list[int], factors: int) -> np.ndarray:
    """Codes +1 (on) and -1 (off), a row a cell."""
    return np.array([[-1 if bits >> k & 1 else 1 for k in range(factors)] for bits in cells])


def effect(codes: np.ndarray, bits: int) -> np.ndarray:
    return codes[:, letters(bits)].prod(1)


@pytest.mark.parametrize("factors", TEXTBOOK)
def test_fractions_are_the_textbooks(factors: int) -> None:
    runs, resolution, pattern = TEXTBOOK[factors]
    found = fraction(factors)
    assert (len(found.cells()), found.resolution) == (runs, resolution)
    assert found.pattern[0] == 0 and list(found.pattern[1:1 + len(pattern)]) == pattern
    assert sum(found.pattern) == 2**(factors - found.base) - 1


def test_higher_resolutions_are_the_textbooks() -> None:
    assert (2**fraction(6, 5).base, fraction(6, 5).resolution) == (32, 6)
    assert (2**fraction(7, 5).base, fraction(7, 5).resolution) == (64, 7)
    assert (2**fraction(8, 5).base, fraction(8, 5).resolution) == (64, 5) and fraction(8, 5).pattern[2:4] == (2, 1)      # I = ABCDG = ABEFH = CDEFGH
    assert (2**fraction(7, 3).base, fraction(7, 3).resolution) == (8, 3) and fraction(7, 3).pattern == (7, 7, 0, 0, 1)


@pytest.mark.parametrize("factors", [4, 5, 6, 7, 9, 12, 17, 24])
def test_cells_are_a_balanced_half_of_everything_and_hold_the_whole_recipe(factors: int) -> None:
    found = fraction(factors)
    cells = found.cells()
    codes = columns(cells, factors)
    assert cells[0] == 0 and len(set(cells)) == len(cells)
    assert np.array_equal(codes.T @ codes, len(cells) * np.eye(factors, dtype=int))
    for bits in found.words[:200]:
        assert (effect(codes, bits) == 1).all()
    assert found.resolution >= 4


@pytest.mark.parametrize(("factors", "words"), [(2, ""), (3, "main effects"), (4, "interactions with each other"), (5, ""), (6, "")])
def test_the_highest_resolution_that_there_is_is_named(factors: int, words: str) -> None:
    """It is the number of factors; the fix holds what it says, and no higher one exists."""
    with pytest.raises(ComposerError, match="only the full design") as caught:
        fraction(factors, factors + 1)
    named = re.search(r"--resolution (\d+)", caught.value.fix)
    assert words in caught.value.fix and (named is None) == (factors == 2)
    assert named is None or fraction(factors, int(named[1])).resolution == int(named[1]) == factors


@pytest.mark.parametrize("factors,resolution", [(4, 4), (5, 4), (6, 4), (7, 4), (7, 3), (8, 4), (9, 4)])
def test_aliases_are_exactly_the_equal_columns(factors: int, resolution: int) -> None:
    found = fraction(factors, resolution)
    codes = columns(found.cells(), factors)
    every = [sum(1 << k for k in some) for size in (1, 2, 3) for some in combinations(range(factors), size)]
    for bits in every:
        equal = {other for other in every if other != bits and (effect(codes, other) == effect(codes, bits)).all()}
        assert set(found.aliases(bits, 3)) == equal


def test_aliases_of_four_in_eight_runs_by_name() -> None:
    """2^(4-1), D = ABC: AB = CD, AC = BD, AD = BC, and main effects are clear of them."""
    assert alias_names(fraction(4), "ABCD") == {"A:B": ("C:D",), "C:D": ("A:B",), "A:C": ("B:D",), "B:D": ("A:C",), "A:D": ("B:C",), "B:C": ("A:D",)}
    assert alias_names(fraction(5), "ABCDE") == {}
    seven = alias_names(fraction(7, 3), "ABCDEFG")
    assert all(len(seven[name]) == 3 for name in "ABCDEFG")                       # resolution III: each main effect with three interactions


def test_other_designs() -> None:
    assert design.one_out(3) == [0, 1, 2, 4]
    assert design.one_in(3) == [0, 7, 6, 5, 3] and design.one_in(1) == [0, 1]
    assert design.full(2) == [0, 1, 2, 3] and design.full(3) == [0, 1, 2, 4, 3, 5, 6, 7]


def test_what_cannot_be_designed_is_told() -> None:
    with pytest.raises(ComposerError, match="1,048,576 cells"):
        design.full(20)
    with pytest.raises(ComposerError, match="no fraction of resolution IV"):
        fraction(3)
    with pytest.raises(ComposerError, match="use --design full"):
        fraction(2)
