"""The engine's real training step on the network and batch of the plain loops: what `composer bench` sets against them.

Nothing is rebuilt here. A `Trainer` is made around a network that is given and its own step is called, so draws, dials, attack, loss, backward,
optimiser, running statistics, parts' moments and the meter are all in. Left out is what comes once in a while: checkpoints, validation, logging.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from composer.bench.nets import CLASSES, batch, net
from composer.engine.backend import Backend, resolve
from composer.engine.feed import Batch
from composer.engine.net import Net
from composer.engine.session import Node, Session, Settings, set_numerics
from composer.engine.streams import Streams
from composer.engine.train import Progress, Trainer
from composer.plan.whole import plans_of
from composer.recipe.load import load

EPS, STEP, STEPS = 8 / 255, 2 / 255, 10                     # the threat of every timed step
LR, MOMENTUM, DECAY = 1e-3, 0.9, 5e-4                       # and its update
Layout = Literal["auto", "contiguous"]


def load_like_plain(name: str, *, steps: int = STEPS, lr: float = LR, sets: Sequence[str] = ()) -> Any:
    """A shipped recipe with the threat and the update of the plain loops: SGD at a constant learning rate, no clipping."""
    fixed = [f"threat.eps={EPS!r}", f"threat.step={STEP!r}", f"threat.steps={steps}", f"train.lr={lr!r}", f"optim.momentum={MOMENTUM}",
             f"optim.weight_decay={DECAY}"]
    return load(name, setting="digits", sets=[*fixed, *sets], drops=["optim.clip"])


class Bench(Session):
    """A session around a network that is given. Without a data set it has one batch an epoch, of `batch_size` images.

    layout    `auto` is the engine's choice of memory layout; `contiguous` is that of the plain loops
    """

    def __init__(self, recipe: Any, model: nn.Module, *, batch_size: int = 0, dataset: Any = None, device: torch.device | str = "cpu",
                 seed: int = 0, precision: str = "fp32", layout: Layout = "auto", shape: tuple[int, ...] = (), backend: Backend | str = "eager"):
        self.recipe, self.seed, self.device = recipe, seed, torch.device(device)
        self.batch_size = batch_size or recipe.train.batch_size
        self.dataset = dataset if dataset is not None else SimpleNamespace(classes=CLASSES, train=range(self.batch_size), extra=None, shape=shape)
        self.rows = torch.arange(len(self.dataset.train))
        self.net = Net(model, self.device, seed=seed, precision=precision)
        if layout == "contiguous":
            self.net.channels_last = False
            self.net.model.to(memory_format=torch.contiguous_format)
        self.streams = Streams(seed, self.device)
        self.backend = backend if isinstance(backend, Backend) else Backend(resolve(backend, self.device, self._work).name)
        self.guests: dict[str, tuple[str, ...]] = {}
        self.nodes = [Node(segment, plan, {}, "", Path("bench")) for segment, plan in plans_of(recipe, share=not self.net.stochastic)]

    def feed(self, segment: Any, path: str = "") -> Any:
        return SimpleNamespace(steps=1) if isinstance(self.dataset, SimpleNamespace) else super().feed(segment, path)

    def trainer(self, segment: int = -1) -> Trainer:
        """Parts, optimiser and trainer of one stretch of the recipe."""
        node = self.nodes[segment]
        parts = self.parts(node, {})
        return Trainer(self, node, Progress(), parts, self.optimizer(node.segment, parts), None)

    def facts(self, part: str) -> SimpleNamespace:
        facts = super().facts(part)
        facts.batch_size = self.batch_size
        return facts


class Subject:
    """One stretch of a recipe on one network and one batch. A call makes one training step."""

    def __init__(self, recipe: Any, model: nn.Module, x: Tensor, y: Tensor, *, segment: int = -1, **session: Any):
        self.session = Bench(recipe, model, batch_size=len(y), device=x.device, shape=tuple(x.shape[1:]), **session)
        self.trainer = self.session.trainer(segment)
        self.plan, self.model = self.trainer.plan, self.session.net.model
        self.parts, self.optimizer = self.trainer.parts, self.trainer.optimizer
        self.epoch = self.trainer.node.segment.first
        soft = F.one_hot(y, self.session.dataset.classes).to(x.dtype) if self.plan.soft else None
        self.batch = Batch(self.session.net.layout(x), y, torch.arange(len(y), device=x.device), soft)

    def __call__(self) -> None:
        self.trainer._step(self.batch, self.epoch)
        self.trainer.progress.batch = 0


def subject(recipe_name: str, net_name: str, *, n: int, steps: int = STEPS, device: torch.device | str = "cpu", **session: Any) -> Subject:
    """The engine's step of a shipped recipe on a network of `composer.bench.nets`: batch and initial weights are those of the plain loops."""
    x, y = batch(net_name, n, device=device)
    return Subject(load_like_plain(recipe_name, steps=steps), net(net_name).to(device), x, y, **session)


@contextmanager
def numerics(precision: str) -> Iterator[None]:
    """Within, float32 products are what a run at this precision has (PyTorch's own default lets CUDA's convolutions round to tf32)."""
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    deterministic = torch.are_deterministic_algorithms_enabled()
    set_numerics(Settings(precision=precision))
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn
        torch.use_deterministic_algorithms(deterministic)
