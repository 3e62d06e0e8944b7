"""Stopped anywhere and run again, a run ends with the bits of one that was never stopped."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from composer.engine import checkpoint
from composer.errors import Diverged, Stopped
from composer.recipe.find import recipe_names, shipped

RECIPES = recipe_names(shipped())
TIMES = ("seconds", "train_seconds", "out")


def timeless(result):
    return {k: v for k, v in result.items() if k not in TIMES}


@pytest.mark.parametrize("recipe", RECIPES)
def test_stopped_and_resumed_is_in_one_go(recipe, go, stop_after, record, tmp_path):
    """Stopped at several steps (within, at the end of, and right after an epoch; across phases), each recipe ends the same."""
    whole = go(recipe, tmp_path / "whole")
    sittings = 0
    for steps in (1, 2, 3, None):                               # 9 steps in all, 3 an epoch: stops after 1, 3 and 6
        stop_after(steps)
        if steps is None:
            parts = go(recipe, tmp_path / "parts")
            continue
        with pytest.raises(Stopped) as stop:
            go(recipe, tmp_path / "parts")
        assert stop.value.exit_code == 75
        sittings += 1
    assert sittings == 3 and whole["steps"] == 9
    assert timeless(parts) == timeless(whole)
    rows = [record(tmp_path / name, whole["run"]).rows for name in ("whole", "parts")]
    assert rows[0] == rows[1] and [row["epoch"] for row in rows[0]] == [1, 2, 3]
