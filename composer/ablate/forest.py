"""Which tasks of a forest may start: a task follows its parent; of those that may, the first in depth-first order, so that few forks are open."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from composer.ablate.types import Task

Answer = dict[str, Any]


def failed(why: str, *, diverged: bool = False, exit_code: int = 1, **more: Any) -> Answer:
    """The answer of a task that came to nothing."""
    return {"failed": {"why": why, "diverged": diverged, "exit_code": exit_code, **more}}


class Forest:
    """Tasks with their answers. `take` hands out what may start, `finish` takes an answer; both cost O(log n).

    Errors: ValueError where two tasks share an id, a parent is missing, or tasks wait for each other.
    """

    def __init__(self, tasks: Sequence[Task]):
        self.tasks = {task.id: task for task in tasks}
        if doubles := [name for name, n in Counter(task.id for task in tasks).items() if n > 1]:
            raise ValueError(f"two tasks share the id {doubles[0]!r}")
        self.children: dict[str, list[str]] = {name: [] for name in ("", *self.tasks)}
        for task in tasks:
            if task.after not in self.children:
                raise ValueError(f"task {task.id!r} follows {task.after!r}, which is not there")
            self.children[task.after].append(task.id)
        self.order = {name: place for place, name in enumerate(self.below(""))}
        if len(self.order) < len(tasks):
            raise ValueError(f"tasks wait for each other: {sorted(set(self.tasks) - set(self.order))[:5]}")
        self.answers: dict[str, Answer] = {}
        self._ready: list[tuple[int, str]] = []
        self._offer(self.children[""])

    def below(self, name: str) -> Iterable[str]:
        """All tasks that follow, directly or not, depth first."""
        stack = list(reversed(self.children[name]))
        while stack:
            name = stack.pop()
            yield name
            stack.extend(reversed(self.children[name]))

    @property
    def left(self) -> int:
        return len(self.tasks) - len(self.answers)

    @property
    def ready(self) -> bool:
        return bool(self._ready)

    def take(self) -> Task:
        """The next task to start. Errors: IndexError where none may."""
        return self.tasks[heapq.heappop(self._ready)[1]]

    def put_back(self, task: Task) -> None:
        """A task that was taken is to be taken again."""
        self._offer([task.id])

    def finish(self, task: Task, answer: Mapping[str, Any]) -> list[Task]:
        """Note the answer. Behind a failed task all that follow have failed too, for its reason; they are returned."""
        self.answers[task.id] = dict(answer)
        trouble = answer.get("failed")
        if trouble is None:
            self._offer(self.children[task.id])
            return []
        lost = [self.tasks[name] for name in self.below(task.id)]
        why = f"{task.title or task.id} failed: {trouble.get('why', 'for no stated reason')}"
        for each in lost:
            self.answers[each.id] = failed(why, diverged=bool(trouble.get("diverged")), exit_code=trouble.get("exit_code", 1), after=task.id)
        return lost

    def _offer(self, names: Iterable[str]) -> None:
        for name in names:
            heapq.heappush(self._ready, (self.order[name], name))
