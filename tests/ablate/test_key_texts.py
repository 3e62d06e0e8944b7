"""Keys are written by hand where that is quicker: they are those of the plain definition."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from composer.engine import chain, keys
from composer.recipe.load import load

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner)
                      | st.dictionaries(st.text(max_size=3) | st.integers(0, 9), inner, max_size=3), max_leaves=12)


def typed(value):
    """With types: True is 1 and a tuple may equal nothing else."""
    if isinstance(value, dict):
        return {k: typed(v) for k, v in value.items()}
    return [typed(v) for v in value] if isinstance(value, list) else (type(value), value)


@given(VALUES, st.booleans())
def test_as_json_is_a_way_through_text_and_back(value, once) -> None:
    assert typed(keys.as_json(value, once)) == typed(json.loads(json.dumps(value, default=str)))


def test_what_json_does_not_know_becomes_its_text() -> None:
    assert keys.as_json({"a": [Path("x"), {"b": (1, Path("y"))}]}) == {"a": ["x", {"b": [1, "y"]}]}


@pytest.mark.parametrize("name", ["mart_ours", "mwpb_trades", "piat"])
def test_a_chain_is_the_digests_of_its_definition(name, tmp_path) -> None:
    ground = chain.Ground("data", lambda size, keep: 10, False, None, lambda file, where: "f", {"device": "cpu"})
    nodes = chain.grow(chain.stretches(load(name, setting="digits"), ground, tmp_path), chain.root(3, None), tmp_path)
    key = keys.digest({"init": None, "seed": 3})
    for node in nodes:
        assert node.content == json.loads(json.dumps(node.content, default=str)) and node.content["parent"] == key
        base = keys.digest({k: v for k, v in node.content.items() if k not in chain.ASIDE})
        for special, found in zip(node.content["each"], node.chain, strict=True):
            key = keys.digest([key, base, special])
            assert key == found
    assert keys.text_digest('["a", "b", {"dials": "c", "kept": ""}]') == keys.digest(["a", "b", {"kept": "", "dials": "c"}])
