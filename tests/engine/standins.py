"""What stands in for a compiler and for CUDA graphs where there are none: the same traces, run call by call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from composer.engine.backend_program import trace


def as_traced(graph: Any, examples: Any) -> Any:
    """In place of the compiler: the graph itself."""
    return graph


class TracedRecorder:
    """In place of CUDA graphs: device operations are written down once and run again on the same tensors; Python is not run again.

    As on a device, a rehearsal runs the step, the recording itself leaves no results, and replays write into the same result tensors.
    """

    def __init__(self) -> None:
        self.recordings = self.replays = 0

    def record(self, step: Callable[[], list[Any]]) -> tuple[Callable[[], None], list[Any]]:
        rehearsed = step()
        graph, held = trace(lambda: step(), [])
        results = [t.detach().clone().fill_(float("nan")) if t.is_floating_point() else t.detach().clone() for t in rehearsed]
        self.recordings += 1

        def replay() -> None:
            self.replays += 1
            for place, value in zip(results, graph(*held), strict=True):
                place.copy_(value)

        return replay, results
