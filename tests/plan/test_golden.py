"""The plan of every method, as text. A difference in a golden file *is* the review of a method.

UPDATE_GOLDEN=1 writes them anew.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
GOLDEN = HERE / "golden"
NAMES = sorted({f.stem for f in GOLDEN.glob("*.txt")} | {f.stem for f in (HERE.parents[1] / "recipes").glob("*.toml")} - {"papers", "protocols"}
               | {f"paper_{f.stem}" for f in (HERE / "paper").glob("*.toml")})


@pytest.fixture(scope="module")
def plans() -> dict[str, str]:
    done = subprocess.run([sys.executable, str(HERE / "print_plans.py")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", NAMES)
def test_golden(plans: dict[str, str], name: str) -> None:
    file = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN") == "1":
        file.write_text(plans[name] + "\n")
    assert file.exists(), f"no golden plan of {name}; UPDATE_GOLDEN=1 writes it, then read it"
    assert plans[name] + "\n" == file.read_text()


UNITS = {"standard": 3, "at": 23, "at_rice": 24, "trades": 27, "mart": 26, "alp": 26, "mwpb_trades": 27, "at_ours": 26, "trades_ours": 26, "mart_ours": 26,
         "lma_at": 26, "piat_nmse": 26, "awp_trades": 33, "awp_at": 27, "mwpb_at": 24, "mwpb_mart": 27, "mwpb_awp": 27, "st_at": 69, "fast_at": 5, "gairat": 23,
         "fat": 23, "lbgat": 27}


@pytest.mark.parametrize("name", sorted(UNITS))
def test_units(plans: dict[str, str], name: str) -> None:
    """The cost of the last stretch's step with ten attack steps, as counted by hand from the method's mathematics."""
    assert f"\nstep      {UNITS[name]} units = " in plans[name].rsplit("\n\n", 1)[-1] + "\n"
