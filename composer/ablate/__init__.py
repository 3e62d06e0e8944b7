"""Grids of components: cells, the prefix tree, tasks, statistics. `composer.ablate(…)` runs one."""

from typing import Any

from composer.callmodule import make_callable


def _ablate(*args: Any, **options: Any) -> Any:
    from composer.ablate.door import ablate

    return ablate(*args, **options)


_ablate.__doc__ = "See composer.ablate.door.ablate."
make_callable(__name__, _ablate)
