"""Names and values as MLflow takes them."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from composer.track_names import KEY, PARAM, bare, clean, clean_keys, finite, flat, short, texts


@given(st.text())
def test_clean_is_legal_and_stable(name):
    from mlflow.utils.validation import _validate_metric_name, _validate_param_name

    found = clean(name)
    _validate_metric_name(found), _validate_param_name(found)
    assert clean(found) == found and len(found) <= KEY


def test_our_names_stay():
    for name in ("train/terms.kl", "val/pgd-10", "test/aa", "robust acc: a_b"):
        assert clean(name) == name
    assert clean("acc@8/255") == "acc_8/255" and clean("../a//b/") == "_/a/b" and clean("a" * 300) != clean("a" * 301)


def test_names_that_fall_together_stay_apart():
    found = clean_keys({"a<1": 1, "a>1": 2, "b": 3})
    assert sorted(found.values()) == [1, 2, 3] and found["b"] == 3


def test_values():
    assert finite({"a": 1, "b": math.nan, "c": -math.inf}) == ({"a": 1.0}, ["b", "c"])
    assert flat({"a": {"b": {"c": 1}, "d": []}, "e": {}}) == {"a.b.c": "1", "a.d": "[]", "e": "{}"}
    assert texts({"a": ""}, PARAM) == {"a": "-"}
    cut = short("x" * 7000, PARAM)
    assert len(cut) <= PARAM and short("x" * 7000, PARAM) == cut != short("x" * 6999 + "y", PARAM)


def test_bare():
    assert bare("https://u:p@h:1/x") == "https://h:1/x" and bare("sqlite:////a@b/c") == "sqlite:////a@b/c"
