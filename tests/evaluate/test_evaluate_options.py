from __future__ import annotations

import math

import pytest

from composer.errors import ComposerError
from composer.evaluate import wilson
from composer.evaluate.options import resolve_options
from composer.options import Ref
from composer.recipe.types import MeasureSpec, Threat

THREAT = Threat(Ref("ball", "l2"), 0.4, 0.1, 7, Ref("start", "gaussian", {"sigma": "eps/4"}))


def test_what_is_left_out_is_the_threats():
    options = resolve_options(MeasureSpec("p", "pgd", {}), THREAT)
    assert (options["eps"], options["step"], options["steps"]) == (0.4, 0.1, 7)
    assert options["norm"] == Ref("ball", "l2")
    assert options["start"] == Ref("start", "gaussian", {"sigma": 0.1})
    assert options["loss"] == Ref("loss", "ce")


@pytest.mark.parametrize(("given", "name", "value"), [
    ({"eps": "threat/2"}, "eps", 0.2), ({"eps": "8/255"}, "eps", 8 / 255), ({"step": "eps/4"}, "step", 0.1), ({"step": "threat/2"}, "step", 0.05),
    ({"eps": "threat/2", "step": "1.25*eps"}, "step", 0.25), ({"start": "zero"}, "start", Ref("start", "zero")),
    ({"eps": 0.2, "start": Ref("start", "gaussian", {"sigma": "eps/2"})}, "start", Ref("start", "gaussian", {"sigma": 0.1})),
])
def test_words_become_numbers(given, name, value):
    found = resolve_options(MeasureSpec("p", "pgd", given), THREAT)[name]
    assert found == (pytest.approx(value) if isinstance(value, float) else value)


def test_fgsm_takes_one_step_of_its_own_eps_from_the_image():
    options = resolve_options(MeasureSpec("f", "fgsm", {"eps": 0.3}), THREAT)
    assert options["step"] == 0.3
    assert options["start"] == Ref("start", "zero")


@pytest.mark.parametrize(("spec", "said"), [
    (MeasureSpec("p", "pgd", {"stepz": 3}), "no option 'stepz'\n.*'step' or 'steps'"), (MeasureSpec("p", "pgd", {"eps": "wide"}), "no size in pixels"),
    (MeasureSpec("p", "pdg", {}), "did you mean 'pgd'"), (MeasureSpec("p", "pgd", {"steps": Ref("schedule", "ramp")}), "no epochs"),
])
def test_errors_name_the_fix(spec, said):
    with pytest.raises(ComposerError, match=said):
        resolve_options(spec, THREAT)


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (10, 10), (517, 1000)])
def test_wilson_is_the_printed_formula(k, n):
    z, p = 1.959963984540054, k / n
    middle, half = (p + z * z / (2 * n)) / (1 + z * z / n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    low, high = wilson(k, n)
    assert low == pytest.approx(max(0.0, middle - half), abs=1e-9)
    assert high == pytest.approx(min(1.0, middle + half), abs=1e-9)


def test_wilson_without_a_trial_knows_nothing():
    assert wilson(0, 0) == (0.0, 1.0)
