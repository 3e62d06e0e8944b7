"""A small book of recipes of our own, so that these tests do not hang on the shipped ones."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from composer.recipe.load import load

BENCH = """
[data]
use = "digits"

[model]
use = "small_cnn"

[threat]
norm  = "linf"
eps   = "8/255"
step  = "eps/4"
steps = 10
start = "uniform"

[optim]
use          = "sgd"
momentum     = 0.9
weight_decay = 5e-4

[train]
epochs     = 20
batch_size = 64
lr         = { use = "multistep", value = 0.05, at = ["14/20"], factor = 0.1 }

[select]
held_out = 157
attack   = { use = "pgd", steps = 10 }
report   = "best"

[evaluate]
use = "quick"
"""
PAPER = """
extends = "../digits.toml"

[train]
epochs = 110

[evaluate]
use = "paper"

[for.trades]
set = { "terms.kl.weight" = 12.0 }
"""
PROTOCOLS = """
[quick]
clean  = {}
pgd-20 = { use = "pgd", steps = 20 }

[paper]
clean   = {}
pgd-100 = { use = "pgd", steps = 100, n = 1000 }
"""
AT = """
about = "adversarial training"

[inner.x_adv]
use   = "pgd"
bn    = "eval"
terms = { ce = {} }

[terms]
ce = {}
"""
TRADES = """
about = "TRADES"

[inner.x_adv]
use   = "pgd"
bn    = "eval"
start = { use = "gaussian", sigma = 0.001 }
terms = { kl = {} }

[outer]
updates = ["x", "x_adv", "x"]

[terms]
ce = { at = "clean" }
kl = { weight = 6.0 }

[toggle]
kl = { drop = ["terms.kl"] }

[search]
"terms.kl.weight" = { low = 1.0, high = 12.0 }
"""


class Book:
    """A folder of recipes; `load` and `write` take names."""

    def __init__(self, root: Path):
        self.root = root

    def write(self, name: str, text: str) -> Path:
        path = self.root / f"{name}.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).strip() + "\n", encoding="utf-8")
        return path

    def load(self, name: str, **options):
        return load(name, root=self.root, **options)

    def line(self, name: str, start: str) -> int:
        """1-based line of the first line that begins so."""
        rows = (self.root / f"{name}.toml").read_text(encoding="utf-8").splitlines()
        return next(n for n, row in enumerate(rows, 1) if row.startswith(start))


@pytest.fixture
def book(tmp_path, monkeypatch) -> Book:
    monkeypatch.chdir(tmp_path)
    book = Book(tmp_path / "recipes")
    for name, text in {"settings/digits": BENCH, "settings/mine/digits": PAPER, "protocols": PROTOCOLS, "at": AT, "trades": TRADES}.items():
        book.write(name, text)
    return book
