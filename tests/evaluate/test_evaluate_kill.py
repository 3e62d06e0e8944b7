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


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_killed_ten_times(tmp_path, mode):
    import torch

    began = time.monotonic()
    assert start(tmp_path / "whole", mode).wait() == 0
    whole = time.monotonic() - began
    undisturbed = (tmp_path / "whole" / "batches.log").read_text().splitlines()
    out, chance, kills = tmp_path / "killed", random.Random(0), 0
    while not (out / "flags.pt").exists():
        process = start(out, mode)
        log, seen = out / "batches.log", len((out / "batches.log").read_text().splitlines()) if (out / "batches.log").exists() else 0
        if kills < 10:
            wanted = seen + chance.randint(1, 2)                      # in the middle of a batch, a random moment after it began
            while process.poll() is None and (len(log.read_text().splitlines()) if log.exists() else 0) < wanted:
                time.sleep(0.005)
            time.sleep(chance.random() * 2 * whole / max(len(undisturbed), 1))
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                kills += 1
        assert process.wait() in (0, -signal.SIGKILL)
    assert torch.equal(torch.load(out / "flags.pt", weights_only=True), torch.load(tmp_path / "whole" / "flags.pt", weights_only=True))
    done = (out / "batches.log").read_text().splitlines()
    assert kills == 10 and set(done) == set(undisturbed) and len(done) - len(undisturbed) <= kills
    assert not list((out / "store").glob("*.part"))
    record = json.loads(next((out / "store").glob("aa-*.json")).read_text())
    assert record["details"]["attacks"] == ["apgd-ce", "apgd-t", "square"]
