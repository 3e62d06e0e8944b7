"""The ResNet-18 that ships inside pyautoattack: composer's network with its weights is the library's own."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from composer.engine.session import Settings
from composer.recipe.types import MeasureSpec
from composer.subject import door, find
from composer.subject.foreign import EXAMPLE, example_file
from composer.subject.types import Asked

SLICE = Path(__file__).resolve().parents[1] / "slices" / "cifar10.npz"


def the_librarys_own() -> torch.nn.Module:
    net = runpy.run_path(str(example_file().with_name("resnet.py")))["ResNet18"]()
    net.load_state_dict(torch.load(example_file(), map_location="cpu", weights_only=True))
    return net.eval()


def test_its_logits_are_the_librarys() -> None:
    asked = Asked(EXAMPLE, setting="cifar10-resnet18", sets=(f'data={{ use = "npz", file = "{SLICE}" }}',), settings=Settings(device="cpu"))
    subject, bench = find.subject(asked)
    with torch.no_grad():
        ours, theirs = subject.model(bench.x[:4]), the_librarys_own()(bench.x[:4])
    assert torch.allclose(ours, theirs, atol=1e-4) and int((ours.argmax(1) == bench.y[:4]).sum()) >= 3
    assert "pixels in [0,1]" in subject.notes[-1] and subject.normalisation == "none"


@pytest.mark.slow
def test_a_thousand_real_images(shared: Any, tmp_path: Path) -> None:
    """94.22 % of the 10,000 test images are right; of the first 1,000, as many as the library's own network gets right."""
    real = shared / "data"
    subprocess.run([sys.executable, str(real / "cifar_pack.py"), "unpack", str(real / "packed"), str(tmp_path)], check=True, capture_output=True)
    settings = Settings(out=tmp_path / "runs", data_root=tmp_path, device="cpu", quiet=True)
    asked = Asked(EXAMPLE, data="cifar10", sets=('evaluate.use="cheap"',), n=1000, settings=settings)
    subject, bench = find.subject(asked)
    measures = [MeasureSpec("clean", "clean", {}, 1000)]
    judged = door.attack(subject, bench, asked, measures)
    with torch.no_grad():
        right = torch.cat([the_librarys_own()(x).argmax(1) for x in bench.x[:1000].split(100)]) == bench.y[:1000]
    assert (judged.flags["clean"][:1000] == right).all() and 0.92 < judged.metrics["clean"] < 0.965
