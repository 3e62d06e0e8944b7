"""Lines of keys, syntax errors, and the writer, against tomllib."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from composer.errors import ComposerError
from composer.recipe.paths import leaves, show, split
from composer.recipe.source import parse, read
from composer.recipe.write import toml_text

TEXT = '''# a comment with = and [brackets]
about = "a # no comment, an \\" escaped quote"
long  = """
[not.a.header]
key = 1
""" # after
raw   = 'C:\\dir'

[inner.x_adv]   # header
use   = "pgd"
terms = { ce = {}, margin = { delta = 0.9, "odd.key" = [1, { a = 2 }] } }
list  = [
  1, # one
  "]",
]

[on."lma_at/cifar10-resnet18"]
set = { "terms.align.weight" = 96.0 }
a.b.c = 1
'''


def first_prefix_with(text: str, path: tuple[str, ...]) -> int:
    """The line by another way: the shortest prefix of whole lines that is TOML and has the path."""
    rows = text.splitlines(keepends=True)
    for n in range(1, len(rows) + 1):
        try:
            table = tomllib.loads("".join(rows[:n]))
        except tomllib.TOMLDecodeError:
            continue
        for key in path:
            table = table.get(key) if isinstance(table, dict) else None
        if table is not None:
            return n
    raise AssertionError(path)


def test_every_key_has_its_line():
    doc = parse(TEXT, Path("x.toml"))
    multi = {("long",): 3, ("inner", "x_adv", "list"): 12}      # a value over several lines: the key's line, not its last
    for path, _ in leaves(doc.table):
        expected = multi.get(path) or first_prefix_with(TEXT, path)
        assert doc.lines[path] == expected, path
    assert doc.place(("inner", "x_adv", "terms", "margin", "nope")).endswith(":11")
    assert doc.lines[("on", "lma_at/cifar10-resnet18", "set", "terms.align.weight")] == 18


@pytest.mark.parametrize(("text", "line"), [('a = 1\nb = "x\nc = 2\n', 2), ("a = 1\na = 2\n", 2), ("[t\n", 1),
                                            ("a = 1\n\nb = [1,\n", 4), ("x = {a = 1,\n", 1)])
def test_syntax_errors_are_located(tmp_path, text, line):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ComposerError) as caught:
        read(path)
    assert "not TOML" in caught.value.what
    assert abs(int(caught.value.where.rsplit(":", 1)[1]) - line) <= 1      # tomllib tells where it gave up


def test_not_utf8_and_missing(tmp_path):
    (tmp_path / "latin.toml").write_bytes(b'about = "\xe9"\n')
    with pytest.raises(ComposerError, match="UTF-8"):
        read(tmp_path / "latin.toml")
    with pytest.raises(ComposerError, match="cannot be read"):
        read(tmp_path / "nope.toml")


scalars = st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(st.characters(exclude_categories=["Cs"]))
texts = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(texts, v, max_size=3), max_leaves=12)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), values, max_size=4))
def test_what_is_written_reads_back(table):
    text = toml_text(table)
    assert tomllib.loads(text) == table
    doc = parse(text, Path("x.toml"))
    for path, _ in leaves(table):
        assert not path or path in doc.lines


@pytest.mark.parametrize("text", ["terms.kl.weight", 'evaluate."pgd-20@6/255".n', "a . b", "inner.x_adv.terms"])
def test_paths_round_trip(text):
    assert split(show(split(text))) == split(text)


@pytest.mark.parametrize("text", ["", "a..b", ".a", "a.", 'a."b'])
def test_paths_that_are_none(text):
    with pytest.raises(ValueError, match="path"):
        split(text)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=4))
def test_any_path_round_trips(path):
    assert split(show(tuple(path))) == tuple(path)
