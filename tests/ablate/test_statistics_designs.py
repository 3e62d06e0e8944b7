"""Effects of designs: textbooks' worked examples, nested toggles, missing cells, fractions and their aliases."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest

from composer.ablate.statistics.design import effects, simple
from composer.errors import ComposerError


def grid(toggles: str) -> dict[str, dict[str, int]]:
    return {"".join(t if s > 0 else t.lower() for t, s in zip(toggles, signs, strict=True)): dict(zip(toggles, signs, strict=True))
            for signs in product((1, -1), repeat=len(toggles))}


def estimates(terms, values: dict[str, float]) -> dict[str, float]:
    return {t.name: sum(w * values[c] for c, w in t.weights.items()) for t in terms if t.status == "ok"}


def yates(toggles: str, numbers: list[float]) -> dict[str, float]:
    """Standard order: (1), a, b, ab, c, ... -> cell name."""
    return {"".join(t if i >> j & 1 else t.lower() for j, t in enumerate(toggles)): y for i, y in enumerate(numbers)}


FILTRATION = yates("ABCD", [45, 71, 48, 65, 68, 60, 80, 65, 43, 100, 45, 104, 75, 86, 70, 96])


def test_montgomerys_filtration_rate():
    """Montgomery, Design and Analysis of Experiments, example 6.2: a 2^4 in one replicate."""
    levels = grid("ABCD")
    found = estimates(effects(levels, list(levels), {}, "full", {}), FILTRATION)
    assert found == pytest.approx({"A": 21.625, "B": 3.125, "C": 9.875, "D": 14.625, "A:B": 0.125, "A:C": -18.125, "A:D": 16.625, "B:C": 2.375,
                                   "B:D": -0.375, "C:D": -1.125})


def test_montgomerys_half_fraction():
    """The same, example 8.1: the half with D = ABC; A:B is aliased with C:D, A:C with B:D, A:D with B:C."""
    levels = {cell: on for cell, on in grid("ABCD").items() if np.prod(list(on.values())) > 0}
    aliases = {"A:B": ("C:D",), "A:C": ("B:D",), "A:D": ("B:C",)}
    terms = effects(levels, list(levels), {}, "fractional", aliases)
    assert estimates(terms, FILTRATION) == pytest.approx({"A": 19.0, "B": 1.5, "C": 14.0, "D": 16.5, "A:B": -1.0, "A:C": -18.5, "A:D": 19.0})
    by = {t.name: t for t in terms}
    assert by["A:D"].aliases == ("B:C",) and by["B:C"].status == "aliased" and by["B:C"].aliases == ("A:D",)
    found = {t.name: t.aliases for t in effects(levels, list(levels), {}, "fractional", {})}
    assert found["A:B"] == ("C:D",) and found["A"] == ("B:C:D",)                              # found from the columns where none are handed in


def test_box_hunter_hunters_pilot_plant():
    """Box, Hunter and Hunter, Statistics for Experimenters, chapter 5: yield under temperature, concentration, catalyst."""
    averages = yates("TCK", [60, 72, 54, 68, 52, 83, 45, 80])
    levels = grid("TCK")
    found = estimates(effects(levels, list(levels), {}, "full", {}), averages)
    assert found == pytest.approx({"T": 23.0, "C": -5.0, "K": 1.5, "T:C": 1.5, "T:K": 10.0, "C:K": 0.0})


@pytest.mark.parametrize("k", [2, 3, 4])
def test_full_design_is_mean_with_minus_mean_without(k):
    levels = grid("ABCD"[:k])
    for term in effects(levels, list(levels), {}, "full", {}):
        expected = {c: np.prod([on[t] for t in term.members]) / 2 ** (k - 1) for c, on in levels.items()}
        assert term.weights == pytest.approx(expected) and not term.aliases and term.status == "ok"


def test_simple_effects_of_an_interaction():
    levels = grid("AB")
    term = next(t for t in effects(levels, list(levels), {}, "full", {}) if t.interaction)
    assert {t.name: t.weights for t in simple(term, levels, list(levels), {}, "full")} == {
        "A with B on": {"AB": 1, "aB": -1}, "A with B off": {"Ab": 1, "ab": -1},
        "B with A on": {"AB": 1, "Ab": -1}, "B with A off": {"aB": 1, "ab": -1}}


NESTED = {"ema": ("align",)}


def nested_levels(*others: str) -> dict[str, dict[str, int]]:
    """Distinct plans of align, ema (void without align) and others."""
    cells = {}
    for signs in product((1, -1), repeat=2 + len(others)):
        on = dict(zip(("align", "ema", *others), signs, strict=True))
        if on["align"] < 0 and on["ema"] < 0:
            continue
        cells["-".join(["full", *(t for t, s in on.items() if s < 0)])] = on
    return cells


def test_nested_toggles_are_conditional_contrasts():
    levels = nested_levels()
    by = {t.name: t for t in effects(levels, list(levels), NESTED, "full", {})}
    assert set(levels) == {"full", "full-ema", "full-align"}
    assert by["ema given align"].weights == pytest.approx({"full": 1, "full-ema": -1}) and by["ema given align"].given == ("align",)
    assert by["align"].weights == pytest.approx({"full": 0.5, "full-ema": 0.5, "full-align": -1})
    undefined = next(t for t in by.values() if set(t.members) == {"ema", "align"})
    assert undefined.status == "not defined" and undefined.why == "ema is void where align is off" and not undefined.weights


def test_nested_toggles_beside_a_third():
    levels = nested_levels("margin")
    by = {t.name: t for t in effects(levels, list(levels), NESTED, "full", {})}
    assert len(levels) == 6
    assert by["ema given align"].weights == pytest.approx({"full": 0.5, "full-margin": 0.5, "full-ema": -0.5, "full-ema-margin": -0.5})
    assert by["ema:margin given align"].weights == pytest.approx({"full": 0.5, "full-margin": -0.5, "full-ema": -0.5, "full-ema-margin": 0.5})
    margin = {"full": 0.25, "full-ema": 0.25, "full-align": 0.5, "full-margin": -0.25, "full-ema-margin": -0.25, "full-align-margin": -0.5}
    assert by["margin"].weights == pytest.approx(margin)           # over the levels of the others; the shared plan carries both its combinations
    assert by["align:margin"].weights["full-align-margin"] == pytest.approx(0.5)


def test_nesting_reaches_through_parents_and_goes_in_no_circle():
    levels = {"full": {"a": 1, "b": 1, "c": 1}, "-c": {"a": 1, "b": 1, "c": -1}, "-b": {"a": 1, "b": -1}, "-a": {"a": -1}}
    by = {t.name for t in effects(levels, list(levels), {"c": ("b",), "b": ("a",)}, "full", {}) if t.status == "ok"}
    assert by == {"a", "b given a", "c given b, a"}
    with pytest.raises(ComposerError, match="void without itself"):
        effects(levels, list(levels), {"c": ("b",), "b": ("c",)}, "full", {})
    with pytest.raises(ComposerError, match="no level for b"):
        effects({"x": {"a": 1}, "y": {"a": 1, "b": -1}}, ["x"], {}, "full", {})


def test_a_missing_cell_of_a_square_says_what_is_entangled():
    levels = grid("AB")
    terms = {t.name: t for t in effects(levels, ["AB", "aB", "Ab"], {}, "full", {})}
    assert all(t.status == "not estimable" and not t.weights for t in terms.values())
    assert terms["A"].aliases == ("B", "A:B") and terms["A"].why == "no result for ab: aliased with B, A:B"


def test_a_missing_cell_of_a_cube_leaves_effects_free_of_the_rest():
    """Without one cell the estimates hold wherever there is no three-way interaction, and name it as their alias."""
    levels = grid("ABC")
    present = [c for c in levels if c != "abc"]
    terms = effects(levels, present, {}, "full", {})
    rng = np.random.default_rng(0)
    truth = {m: float(rng.normal()) for k in (1, 2) for m in combinations("ABC", k)}
    values = {c: 50 + sum(e / 2 * np.prod([levels[c][t] for t in m]) for m, e in truth.items()) for c in present}
    assert estimates(terms, values) == pytest.approx({":".join(m): e for m, e in truth.items()})
    assert all("A:B:C" in t.aliases[0] for t in terms)


def test_a_toggle_at_one_level_and_no_results():
    levels = {"full": {"A": 1, "B": 1}, "-A": {"A": -1, "B": 1}}
    by = {t.name: t for t in effects(levels, list(levels), {}, "fractional", {})}
    assert by["A"].weights == pytest.approx({"full": 1, "-A": -1}) and by["B"].status == "not estimable"
    assert all(t.status == "not estimable" and t.why == "no cell has a result" for t in effects(grid("AB"), [], {}, "full", {}))
