"""What selection during training costs, as a share of an epoch: `composer bench --selection`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

from composer.bench.nets import batch, net
from composer.bench.subject import numerics, subject
from composer.bench.timer import Timing, interleave

SHARE = 0.10
# bench: network, images of a training step, images trained on, images held out. cnn28 stands for the network of cifar10-tiny.
BENCHES = {"digits": ("small_cnn", 64, 1280, 157), "cifar10-tiny": ("cnn28", 64, 1800, 200), "cifar10-resnet18": ("resnet18", 16, 48000, 2000)}
AT_ONCE = 160           # held-out images of a timing, at most; of ResNet-18 a tenth


def selection(rounds: int = 5, say: Callable[[str], None] = lambda line: None) -> list[dict[str, Any]]:
    """Validation by pgd-10 (the benches' own, and the default on the margin) beside a step of adversarial training by pgd-10, eager and in float32.

    The share is their time an image times the bench's images. Labels are the network's own answers, so no image is spared the attack; in training
    those that are wrong as they stand are.
    """
    found = []
    for bench, (name, step, trains, held) in BENCHES.items():
        images = min(held, 16 if name == "resnet18" else AT_ONCE)
        with numerics("fp32"):
            timing = _timed(name, step, images, rounds)
        shares = {way: timing.over(way, "step", processor=timing.noisy) * (held / images) / (trains / step) for way in timing.variants if way != "step"}
        found.append({"bench": bench, "net": name, "trains": trains, "held_out": held, "share": shares, "limit": SHARE, "timing": timing.as_dict()})
        say(f"{bench}: {held:,} held-out images beside {trains:,}: " + ", ".join(f"{way} {100 * share:.1f} % of an epoch" for way, share in shares.items())
            + (" (processor time: noisy)" if timing.noisy else ""))
    return found


def _timed(name: str, step: int, images: int, rounds: int) -> Timing:
    from composer.evaluate.protocol import attack_accuracy
    from composer.options import Ref
    from composer.recipe.types import MeasureSpec, Threat

    threat = Threat(Ref("ball", "linf"), 8 / 255, 2 / 255, 10, Ref("start", "uniform"))
    model, x = copy.deepcopy(net(name)).eval(), batch(name, images)[0]
    with torch.no_grad():
        y = model(x).argmax(1)

    def validate(**options: Any) -> Callable[[], Any]:
        return lambda: attack_accuracy(model, x, y, MeasureSpec("pgd", "pgd", {"steps": 10, **options}), threat, 0, 1)

    calls = {"step": subject("at", name, n=step, steps=10), "pgd-10": validate(), "pgd-10 on the margin": validate(loss=Ref("loss", "cw", {}), keep="any")}
    return interleave(calls, rounds=rounds, base="step", warmup=1, again=False)
