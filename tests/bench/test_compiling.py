"""The command that says what compiling takes, and the bound that is promised for a residual network."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from composer.bench import compiling, subject
from composer.bench.compiling import measure, spent, text


def test_spent_is_of_this_process_and_its_children():
    own = spent(lambda: sum(i * i for i in range(3_000_000)))
    child = spent(lambda: subprocess.run([sys.executable, "-c", "sum(i * i for i in range(3_000_000))"], check=True))
    assert own["process"] > 3 * own["children"] and child["children"] > 3 * child["process"] and own["clock"] > 0 < child["clock"]


def test_a_measurement_is_said(monkeypatch):
    monkeypatch.setattr(compiling, "subject", lambda recipe, net, **more: subject.subject(recipe, net, steps=1, **{**more, "backend": "folded"}))
    before = torch.get_num_threads()
    found = measure("at", "cnn8", 2, 2)
    torch.set_num_threads(before)
    assert json.loads(json.dumps(found)) == found and set(found["step"]) == {"folded", "compiled"} and abs(found["gain"]) < 1
    said = text({**found, "first": {"process": 3.0, "children": 2.0, "clock": 4.0}, "step": {"folded": 0.2, "compiled": 0.19}, "gain": 0.05}, "empty")
    assert "batch 2, empty cache: first step 5.0 s of processor time (3.0 s this process, 2.0 s g++), 4.0 s by the clock" in said
    assert said.endswith("a later step: folded 200 ms, compiled 190 ms; compiling saves 5.0% of it")


@pytest.mark.slow
def test_a_residual_network_compiles_within_a_minute():
    """Of processor time, from an empty cache; and another process that needs the same compiles nothing."""
    run = [sys.executable, "-m", "composer.bench.compiling", "at", "resnet18", "--rounds", "0", "--json"]
    empty, full = (json.loads(line)["first"] for line in subprocess.run(run, check=True, capture_output=True, text=True).stdout.splitlines())
    assert 5 < empty["process"] + empty["children"] < 60 and full["process"] + full["children"] < 15
