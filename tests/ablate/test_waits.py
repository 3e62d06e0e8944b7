"""Runs that others are measured against come first."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from composer.ablate.forest import Forest
from composer.ablate.types import Task
from composer.ablate.waits import behind_references


def grid(**references: str) -> Any:
    """Cells a, b, c, d, each the recipe of its name; a=b: a's measure names b."""
    def cell(name: str) -> Any:
        options = {"reference": references[name]} if name in references else {}
        return SimpleNamespace(name=name, recipe=SimpleNamespace(name=name, evaluate=SimpleNamespace(measures=(SimpleNamespace(options=options),))))

    cells = tuple(map(cell, "abcd"))
    return SimpleNamespace(distinct=cells, cell=lambda name: next(c for c in cells if c.name == name))


def run(cell: str, after: str = "") -> Task:
    return Task(cell, "run", cell, {}, after, 1, cell)


def prefix(name: str, after: str = "") -> Task:
    return Task(name, "prefix", name, {}, after, 1)


def follows(tasks: list[Task]) -> dict[str, str]:
    order = [task.id for task in tasks]
    assert all(not task.after or order.index(task.after) < k for k, task in enumerate(tasks))
    return {task.id: task.after for task in tasks}


@pytest.mark.parametrize(("tasks", "names", "want"), [
    ([run("a"), run("b")], {}, {"a": "", "b": ""}),
    ([run("a"), run("b"), run("c")], {"a": "c", "b": "c"}, {"c": "", "a": "c", "b": "c"}),
    ([prefix("p"), run("a", "p"), run("b", "p"), run("c")], {"a": "b"}, {"p": "", "b": "p", "a": "b", "c": "b"}),       # within a shared prefix
    ([prefix("p"), run("a", "p"), run("b", "p"), run("c")], {"a": "c"}, {"c": "", "p": "c", "a": "p", "b": "p"}),
    ([prefix("p"), prefix("q", "p"), run("a", "q"), run("b", "q"), run("c", "p"), run("d")], {"a": "c", "b": "d"},
     {"p": "", "c": "p", "d": "c", "q": "d", "a": "q", "b": "q"}),                                                       # two of them, in a row
    ([run("a")], {"a": "b"}, {"a": ""})])                                                                               # it has been run before
def test_what_follows_what(tasks: list[Task], names: dict[str, str], want: dict[str, str]) -> None:
    assert follows(behind_references(tasks, grid(**names))) == want


def test_nothing_is_lost_and_the_forest_takes_it() -> None:
    tasks = [prefix("p"), prefix("q", "p"), run("a", "q"), run("b", "q"), run("c", "p"), run("d")]
    made = behind_references(tasks, grid(a="c", b="d"))
    assert {t.id for t in made} == {t.id for t in tasks}
    Forest(made)
