"""AutoAttack killed with SIGKILL at ten random moments ends with the flags of an undisturbed run, and repeats at most one batch a kill."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = '''
import inspect
import sys
from pathlib import Path
import torch
from torch import nn
torch.set_num_threads(1)
from composer.evaluate import library, autoattack
from composer.evaluate.protocol import evaluate
from composer.options import Ref
from composer.recipe.types import MeasureSpec, Threat

out, mode = Path(sys.argv[1]), sys.argv[2]
torch.manual_seed(0)
net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
x = torch.rand(120, 1, 8, 8)
y = net(x).argmax(1)
made = autoattack._attack

def logged(*args):
    attack = made(*args)
    name = inspect.signature(made).bind(*args).arguments["name"]
    def run(xb, yb, rows, *more):
        with open(out / "batches.log", "a") as log:
            log.write(f"{name} {int(rows[0])} {len(rows)}\\n")
        return attack(xb, yb, rows, *more)
    return run

autoattack._attack = logged
autoattack.GROUP = 15
threat = Threat(Ref("ball", "linf"), 0.02, 0.01, 5, Ref("start", "uniform"))
spec = MeasureSpec("aa", "aa", {"mode": mode, "version": "custom", "attacks": ("apgd-ce", "apgd-t", "square")})
found = evaluate(net, x, y, [spec], threat=threat, seed=0, store=out / "store", batch_size=15)
torch.save(found.flags["aa"], out / "flags.pt")
'''


def start(out: Path, mode: str) -> subprocess.Popen:
    out.mkdir(exist_ok=True)
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(out), mode])


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def killed(out: Path, mode: str, most: int, pause: float, chance: random.Random) -> int:
    """Start it again and again until it ends, and kill it up to `most` times, each time some moments after another batch began. How often it was."""
    kills, log = 0, out / "batches.log"
    while not (out / "flags.pt").exists():
        wanted = len(lines(log)) + chance.randint(1, 2)
        process = start(out, mode)
        if kills < most:
            while process.poll() is None and len(lines(log)) < wanted:
                time.sleep(0.005)
            time.sleep(chance.random() * pause)
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                kills += 1
        assert process.wait() in (0, -signal.SIGKILL)
    return kills


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_killed_ten_times(tmp_path, mode):
    """A machine that is fast for a moment may end a round before ten kills: then another one begins anew."""
    import torch

    assert start(tmp_path / "whole", mode).wait() == 0
    undisturbed, want = lines(tmp_path / "whole" / "batches.log"), torch.load(tmp_path / "whole" / "flags.pt", weights_only=True)
    record = json.loads(next((tmp_path / "whole" / "store").glob("aa-*.json")).read_text())
    assert record["details"]["attacks"] == ["apgd-ce", "apgd-t", "square"] and 0 < int(want.sum()) < len(want)
    pause, chance, kills = 2 * record["details"]["seconds"] / len(undisturbed), random.Random(0), 0
    for number in range(10):
        out = tmp_path / f"killed-{number}"
        often = killed(out, mode, 10 - kills, pause, chance)
        done = lines(out / "batches.log")
        assert torch.equal(torch.load(out / "flags.pt", weights_only=True), want)
        assert set(done) == set(undisturbed) and len(done) - len(undisturbed) <= often, "more than one batch a kill was repeated"
        assert not list((out / "store").glob("*.part"))
        if (kills := kills + often) == 10:
            return
    raise AssertionError(f"only {kills} kills in ten rounds")
