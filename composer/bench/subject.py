"""The engine's real training step on the data and network of the plain loops: what `composer bench` sets against them.

Nothing is rebuilt here: a `Trainer` is made around a network that is given, and its step is called, so draws, dials, attack, loss, backward,
clipping, optimiser, running statistics, parts' moments and the meter are all in. Left out is what comes once in a while: checkpoints,
validation, logging.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from composer.bench.nets import CLASSES, SHAPES, batch, net
from composer.engine.feed import Batch
from composer.engine.net import Net
from composer.engine.session import Session
from composer.engine.streams import Streams
from composer.engine.train import Progress, Trainer
from composer.plan.whole import plans_of
from composer.recipe.load import load

PLAIN_OPTIM = {"momentum": 0.9, "weight_decay": 5e-4}       # of every loop that is timed
LR, EPS, STEP, STEPS = 0.01, 8 / 255, 2 / 255, 10
LIKE_PLAIN = ("optim.clip",)                                # of the setting's protocol, and in no plain loop


def load_like_plain(name: str, *, steps: int = STEPS, eps: float = EPS, step: float = STEP, sets: Sequence[str] = ()) -> Any:
    """A shipped recipe under the plain loops' threat and optimiser: SGD, constant learning rate, no clipping."""
    fixed = [f"train.lr={LR}", *(f"optim.{k}={v}" for k, v in PLAIN_OPTIM.items()), f"threat.eps={eps!r}", f"threat.step={step!r}",
             f"threat.steps={steps}"]
    return load(name, setting="digits", sets=[*fixed, *sets], drops=LIKE_PLAIN)


class Bench(Session):
    """A session around a network and a shape of data, in place of those a recipe names. Holds no data set."""

    def __init__(self, recipe: Any, model: nn.Module, *, batch_size: int, seed: int = 0, device: torch.device | str = "cpu",
                 precision: str = "fp32", classes: int = CLASSES, steps: int = 1, train_size: int | None = None, layout: str = "auto"):
        self.recipe, self.seed, self.device = recipe, seed, torch.device(device)
        self.dataset = SimpleNamespace(classes=classes, train=range(train_size or batch_size), extra=None)
        self.steps, self.batch_size = steps, batch_size
        self.net = Net(model, self.device, seed=seed, precision=precision)
        if layout == "contiguous":
            self.net.channels_last = False
            self.net.model.to(memory_format=torch.contiguous_format)
        self.streams = Streams(seed, self.device)
        self.nodes = [SimpleNamespace(segment=s, plan=p) for s, p in plans_of(recipe, share=not self.net.stochastic)]

    def feed(self, segment: Any) -> Any:
        return SimpleNamespace(steps=self.steps)

    def facts(self, part: str) -> SimpleNamespace:
        facts = super().facts(part)
        facts.batch_size = self.batch_size
        return facts


class Subject:
    """One recipe's step on one network and one batch. Calling it makes one training step."""

    def __init__(self, recipe: Any, model: nn.Module, x: Tensor, y: Tensor, *, segment: int = -1, **session: Any):
        self.session = Bench(recipe, model, batch_size=len(y), device=x.device, **session)
        node: Any = self.session.nodes[segment]
        self.parts = self.session.parts(node, {})
        self.optimizer = self.session.optimizer(node.segment)
        self.trainer = Trainer(self.session, node, Progress(), self.parts, self.optimizer, None)
        self.epoch = node.segment.first
        self.batch = Batch(self.session.net.layout(x), y, torch.arange(len(y), device=x.device))
        self.model = self.session.net.model

    def __call__(self) -> None:
        self.trainer._step(self.batch, self.epoch)
        self.trainer.progress.batch = 0


def subject(recipe_name: str, net_name: str, *, n: int, steps: int = STEPS, device: torch.device | str = "cpu", **session: Any) -> Subject:
    """The engine's step of a shipped recipe on a network of `composer.bench.nets`, with the plain loops' batch and initial weights."""
    x, y = batch(net_name, n, device=device)
    return Subject(load_like_plain(recipe_name, steps=steps), net(net_name).to(device), x, y, **session)


__all__ = ["SHAPES", "Bench", "Subject", "load_like_plain", "subject"]
