"""A registry to try things in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from composer import plugins
from composer.registry import REGISTRY


@contextlib.contextmanager
def scratch() -> Iterator[None]:
    """Within the block primitives and plugins may be registered, frozen or not; behind it registry and plugins are as they were."""
    plugins.load_catalogue()            # a room imported within the block would be forgotten and never come back
    primitives, frozen, loaded = {kind: dict(table) for kind, table in REGISTRY._of.items()}, REGISTRY.frozen, dict(plugins._loaded)
    REGISTRY.frozen = False
    try:
        yield
    finally:
        REGISTRY._of, REGISTRY.frozen = primitives, frozen
        REGISTRY.memory.clear()
        plugins._loaded.clear()
        plugins._loaded.update(loaded)
