"""Reading the catalogue costs no torch, and fills the registry."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
from composer.lazytorch import lazy_torch
with lazy_torch():
    import composer.losses, composer.views, composer.gains, composer.inner
from composer.registry import REGISTRY
for kind in ("loss", "view", "gain", "radius", "inner", "start", "ball"):
    for p in REGISTRY.all(kind):
        p.needs, p.options, p.Options
        assert p.card.summary.endswith(".") and p.card.formula and p.card.paper, p.name
        assert kind in ("inner", "ball") or "[" in p.card.formula, p.name
        print(kind, p.name)
assert "torch" not in sys.modules, "torch was imported"
import composer
assert callable(composer.inner)
from composer.losses import ce
from composer.inner.pgd import pgd
import torch
assert abs(float(ce(torch.zeros(1, 2), torch.tensor([0]))) - 0.6931472) < 1e-6
"""

WANTED = """loss: boosted_ce ce cw dlr kl mae margin modified_huber mse nmse soft_ce
view: clean_miss logp margin_logit margin_prob margin_soft probs
gain: correct
radius: mwpb
inner: fgsm pgd
start: gaussian uniform zero
ball: l2 linf"""


def test_rooms_register_without_torch():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = set(done.stdout.splitlines())
    wanted = {f"{line.split(':')[0]} {name}" for line in WANTED.splitlines() for name in line.split(": ")[1].split()}
    assert wanted <= found
