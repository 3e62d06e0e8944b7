"""Names of grids and of their cells' files."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace

from composer.ablate.types import Grid


def slug(name: str) -> str:
    """A cell's name as a file name."""
    plain = re.sub(r"[^\w.+-]+", "_", name)[:80]
    if plain == name:
        return plain
    return f"{plain}-{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"


def named(grid: Grid, *, stem: str) -> Grid:
    """The grid under a name of its own: what its cells are is part of it, so that two grids never share a folder."""
    text = json.dumps([[c.name, c.recipe.experiment_id] for c in grid.cells])
    return replace(grid, name=f"{stem}-{hashlib.blake2b(text.encode(), digest_size=3).hexdigest()}")
