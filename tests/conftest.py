"""What every test may rely on: one thread, no leftovers of the caller's environment, no telemetry, and the shared data where it is there."""

from __future__ import annotations

import os
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"                 # before torch and numpy are imported: bits depend on the number of threads
for _name in [n for n in os.environ if n.startswith(("COMPOSER_", "MLFLOW_", "RAY_")) and not n.startswith("COMPOSER_SMALL_")]:
    del os.environ[_name]
os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true", RAY_USAGE_STATS_ENABLED="0", MPLBACKEND="Agg", TOKENIZERS_PARALLELISM="false")

import pytest

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's root folder."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of data and papers' tables beside the checkout; tests that need it are skipped elsewhere, with this message."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs the folder `shared` (real data, printed tables) beside the checkout")
    return folder
