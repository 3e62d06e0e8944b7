"""What has been read once is not read again: the cells of a grid differ in little, and the rest of each is the same pieces.

The memory hangs at the registry and is emptied whenever a primitive comes or goes. Nothing is kept of a recipe that has mistakes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from composer.recipe.paths import MISSING, Dotted, assign, get
from composer.recipe.uses import Components
from composer.registry import Registry

T = TypeVar("T")
MOST = 20_000              # entries; a memory that is full is emptied


def remembered(uses: Components, what: str, given: Any, path: Dotted, build: Callable[[], T]) -> T:
    """The piece that `build` reads from `given`. It must depend on `given`, the path and the threat alone, and write to `full` only below the path.

    The pieces are immutable and shared, and so are their tables in `full`.
    """
    if uses.problems.found or uses.problems.unread or uses.problems.unread.names:
        return build()
    memory = uses.registry.memory
    key = (what, path, repr(given), uses.threat_text)
    held = memory.get(key)
    if held is None:
        before = len(uses.followed)
        value = build()
        if uses.problems.found or uses.problems.unread or uses.problems.unread.names:
            return value
        keep(uses.registry, key, (value, get(uses.full, path), uses.followed[before:]))
        return value
    value, full, followed = held
    if full is not MISSING:
        assign(uses.full, path, full)
    uses.followed += followed
    return value


def keep(registry: Registry, key: Any, value: Any) -> None:
    if len(registry.memory) >= MOST:
        registry.memory.clear()
    registry.memory[key] = value
