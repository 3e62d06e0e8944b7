"""The prefix tree of hand-written chains, and of grids of the bench."""

from __future__ import annotations

import random
import time

import pytest

from composer.ablate.tree import Tree, courses, grow, passes_of, tree_of


def chains(**texts: str) -> dict[str, list[tuple[str, ...]]]:
    """A letter an epoch; equal letters in the same place, behind equal ones, are the same epoch."""
    return {name: [(text[:n],) for n in range(1, len(text) + 1)] for name, text in texts.items()}


def shape(tree: Tree) -> list[tuple[int, int, str, str]]:
    return [(s.first, s.last, "".join(s.cells), "".join(s.ends)) for s in tree.walk()]


def test_cells_that_fork() -> None:
    tree = grow(chains(a="xxyy", b="xxyz", c="xxzz", d="wxyy"))
    assert shape(tree) == [(1, 2, "abc", ""), (3, 3, "ab", ""), (4, 4, "a", "a"), (4, 4, "b", "b"), (3, 4, "c", "c"), (1, 4, "d", "d")]
    assert (tree.trained, tree.unshared, tree.forks) == (2 + 1 + 1 + 1 + 2 + 4, 16, (0, 2, 3))
    assert tree.common() == {"a": 3, "b": 3, "c": 2, "d": 0}


def test_a_cell_that_ends_inside_anothers_chain() -> None:
    tree = grow(chains(a="xx", b="xxyy", c="xxyz"))
    assert shape(tree) == [(1, 2, "abc", "a"), (3, 3, "bc", ""), (4, 4, "b", "b"), (4, 4, "c", "c")]
    assert tree.trained == 5 and tree.unshared == 10 and tree.common() == {"a": 2, "b": 3, "c": 3} and tree.forks == (2, 3)


def test_two_cells_that_are_one() -> None:
    tree = grow(chains(a="xyz", b="xyz"))
    assert shape(tree) == [(1, 3, "ab", "ab")] and tree.trained == 3 and tree.common() == {"a": 3, "b": 3}


def test_cells_with_nothing_in_common() -> None:
    tree = grow(chains(a="xx", b="yx"))
    assert shape(tree) == [(1, 2, "a", "a"), (1, 2, "b", "b")] and tree.forks == (0,) and tree.common() == {"a": 0, "b": 0} and tree.trained == tree.unshared


def test_a_single_cell() -> None:
    tree = grow(chains(a="xyz"))
    assert shape(tree) == [(1, 3, "a", "a")] and tree.forks == () and tree.common() == {"a": 0} and tree.trained == tree.unshared == 3


def test_no_cell() -> None:
    tree = grow({})
    assert tree.stems == () and tree.trained == tree.unshared == 0 and tree.forks == ()


@pytest.mark.parametrize("seed", range(5))
def test_epochs_trained_are_the_distinct_beginnings(seed: int) -> None:
    """A second count, without a tree: every different beginning is trained once."""
    draw = random.Random(seed)
    texts = {f"c{n}": "".join(draw.choice("xy") for _ in range(draw.randint(1, 9))) for n in range(60)}
    tree = grow(chains(**texts))
    beginnings = {text[:n] for text in texts.values() for n in range(1, len(text) + 1)}
    assert tree.trained == len(beginnings) and tree.unshared == sum(map(len, texts.values()))
    for name, text in texts.items():
        others = [t for n, t in texts.items() if n != name]
        assert tree.common()[name] == max(n for n in range(len(text) + 1) if any(t[:n] == text[:n] for t in others))
    ends = [name for stem in tree.walk() for name in stem.ends]
    assert sorted(ends) == sorted(texts)


def test_a_thousand_cells_at_once() -> None:
    deep = {f"c{n}": [("x", min(k, n)) for k in range(1000)] for n in range(1000)}      # every cell leaves a little later than the one before
    began = time.process_time()
    tree = grow(deep)
    assert tree.trained == sum(1000 - n for n in range(1000)) and time.process_time() - began < 3
    assert len(list(tree.walk())) == 2 * 1000 - 1


# -- of grids ------------------------------------------------------------------------------------------------------------------------


def planned(grid, tmp_path, share=True):
    from composer.engine.session import Settings

    found = courses(grid, Settings(out=tmp_path, track=False, quiet=True, device="cpu"))
    return tree_of(found, share=share), found


def test_a_term_that_comes_late_and_an_average_that_is_read_late(grid, tmp_path) -> None:
    tree, found = planned(grid("late", "mean"), tmp_path)
    assert (tree.trained, tree.unshared, tree.forks) == (3 + 4, 16, (3,)) and set(tree.common().values()) == {3}
    assert all(course.passive for name, course in found.items() if "mean" not in name) and not found["-mean"].passive


def test_what_differs_from_the_first_step_shares_nothing(grid, tmp_path) -> None:
    tree, _ = planned(grid("start", "late"), tmp_path)
    assert tree.forks == (0, 3) and tree.trained == 2 * (3 + 2)


def test_an_average_that_nobody_reads_parts_nothing(grid, tmp_path) -> None:
    """Judged live, with and without an average beside, and with another decay: one run."""
    live = grid("slow", sets=["evaluate.weights='mean'", "select.held_out=0", "select.report='last'"])
    tree, _ = planned(live, tmp_path)
    assert tree.trained == 4, "the last weights alone are judged at the average: all epochs are common"
    assert tree.common() == {"full": 4, "-slow": 4}


def test_without_sharing_every_cell_stands_alone(grid, tmp_path) -> None:
    tree, _ = planned(grid("late", "mean"), tmp_path, share=False)
    assert tree.trained == tree.unshared == 16 and set(tree.common().values()) == {0}


def test_passes_are_counted_along_the_tree(grid, tmp_path) -> None:
    """By hand, in epochs of 3 steps: two steps of attack (forward and input gradient) and the outer pass (and its weight gradient) are 7; the late
    term compares with the clean images, another 3."""
    tree, found = planned(grid("late"), tmp_path)
    assert passes_of(tree, found) == 3 * (3 * 7 + 7 + 10)
    assert passes_of(*planned(grid("late"), tmp_path, share=False)) == 3 * (7 * 7 + 10)


def test_the_data_set_is_read_once(grid, tmp_path, monkeypatch) -> None:
    from composer.data import sets

    calls = []
    plain = sets.load
    monkeypatch.setattr(sets, "load", lambda *args, **more: (calls.append(args), plain(*args, **more))[1])
    planned(grid("late", "mean", "start", "heavy"), tmp_path)
    assert len(calls) == 1


PLANNING = """
import sys, time, tracemalloc
from pathlib import Path
import sklearn.datasets, torch
from composer.ablate.studygrid import grid_of_study
from composer.ablate.tree import courses, tree_of
from composer.engine.session import Settings
from composer.recipe.load import load
from composer.recipe.studies import load_study
load("mart_ours")
if sys.argv[2] == "size":
    tracemalloc.start()
began = time.process_time()
grid = grid_of_study(load_study(sys.argv[1]))
tree = tree_of(courses(grid, Settings(out=Path(sys.argv[1]).parent, device="cpu", track=False)))
assert tree.trained == tree.unshared == 4096 * 20, tree.trained
print(tracemalloc.get_traced_memory()[1] / 2**20 if sys.argv[2] == "size" else time.process_time() - began)
"""
POINTS = """
recipe = "mart_ours"
setting = "digits"
[cells.all]
kind = "sweep"
select = ["clean"]
[cells.all.grid]
"terms.margin.weight" = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
"terms.align.weight"  = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
"parts.ema.decay"     = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
"terms.kl.weight"     = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
"""


@pytest.mark.slow
def test_the_tree_of_4096_cells(tmp_path) -> None:
    """From a study's file to the tree, every cell with keys of its own for each of 20 epochs: seconds of the processor, and of memory what Python holds."""
    import subprocess
    import sys

    study = tmp_path / "points.toml"
    study.write_text(POINTS)

    def measured(what: str) -> float:
        return float(subprocess.run([sys.executable, "-c", PLANNING, str(study), what], capture_output=True, text=True, check=True).stdout)

    assert min(measured("time") for _ in range(3)) < 5
    assert measured("size") < 500
