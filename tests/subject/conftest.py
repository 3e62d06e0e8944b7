from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from composer.engine.session import Settings
from composer.subject.own import weights_of
from composer.subject.types import Asked


@dataclass
class Store:
    """A store with one finished run on digits."""

    out: Path
    run: str
    result: dict[str, Any]

    @property
    def folder(self) -> Path:
        return self.out / "experiments" / self.run

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return weights_of(self.folder / "final.safetensors")

    def asked(self, target: str, **more: Any) -> Asked:
        more.setdefault("settings", Settings(out=self.out, quiet=True))
        return Asked(target, **more)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    import composer

    out = tmp_path_factory.mktemp("store")
    recipe = composer.load("standard", sets=["train.epochs=3", "train.lr=0.05", 'evaluate.use="cheap"', "evaluate.pgd-20.steps=3", "evaluate.pgd-20.n=64", "evaluate.n=64"])
    result = composer.run(recipe, out=out, quiet=True, track=False)
    return Store(out, result["run"], result)


@pytest.fixture(scope="session")
def digits() -> Any:
    from composer.data.sets import load
    from composer.plugins import load_catalogue

    load_catalogue()
    return load("digits", {}, Path("data"))
