from __future__ import annotations

from pathlib import Path

import pytest

from composer.engine.session import Settings
from composer.recipe.load import load
from composer.search.options import SweepOptions

TINY = """
about = "plain adversarial training, tiny"
extends = "at.toml"
setting = "digits"

[model]
use = "mlp"
widths = [16]

[threat]
steps = 2

[train]
epochs = 2
batch_size = 128
lr = 0.05

[select]
n = 60
attack = { use = "pgd", steps = 2 }

[evaluate]
use = "cheap"

[search]
"train.lr"           = { low = 0.005, high = 0.2, log = true }
"train.batch_size"   = { choices = [128, 256] }
"optim.weight_decay" = { low = 0.0, high = 0.002 }
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.toml"
    file.write_text(TINY)
    return file


@pytest.fixture
def recipe(tiny: Path):
    return load(tiny)


@pytest.fixture
def options(tmp_path: Path):
    """Options of a sweep in this process, quick and untracked."""
    def make(**changes):
        settings = Settings(out=tmp_path / "runs", quiet=True, track=changes.pop("track", False))
        return SweepOptions(**{"jobs": 0, "threads": 1, "settings": settings, **changes})

    return make
