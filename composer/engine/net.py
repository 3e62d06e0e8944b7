"""The classifier as the plan sees it: one forward in a stated mode, float32 logits out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from composer.engine import masks
from composer.engine.scope import fold, install
from composer.errors import ComposerError
from composer.models.weights import project
from composer.seeds import stream_seed

RANDOM = (nn.modules.dropout._DropoutNd,)


class Net:
    """A model, its batch-norm scope and its precision.

    The module stays in eval mode throughout: batch norm asks the scope, and random layers are switched on for train-mode passes only, with
    the generator seeded from the pass's name and the step.
    """

    def __init__(self, model: nn.Module, device: torch.device, *, seed: int = 0, precision: str = "fp32"):
        self.model = model.to(device).eval()
        self.device, self.seed, self.precision = device, seed, precision
        self.scope, self.stats = install(self.model, device)
        self.random = [m for m in model.modules() if isinstance(m, RANDOM) and m.p > 0 or type(m).__name__.removeprefix("Divided") == "StochasticDepth"]
        self.channels_last = any(isinstance(m, nn.Conv2d) for m in model.modules())
        if self.channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.parameters = dict(self.model.named_parameters())
        self._list = list(self.parameters.values())
        self._as_is = contextlib.nullcontext()
        self.attacking = False               # these passes are those of an attack on images
        self._shared: masks.Shared | None = None
        self.dtype = next((p.dtype for p in self._list if p.is_floating_point()), torch.float32)
        self._embeds = hasattr(model, "embed") and hasattr(model, "head")
        self.projects = any(callable(getattr(m, "project", None)) for m in model.modules())
        self._head = self._head_facts()
        self._folds = False

    @property
    def stochastic(self) -> bool:
        return bool(self.random)

    def see(self, piece: masks.Piece | None) -> None:
        """The next passes see these rows of a batch (first, the one behind the last, of so many), or all: random layers draw for the whole."""
        if self.random and self._shared is None:
            self._shared = masks.install(self.random)
        if self._shared is not None:
            self._shared.piece = piece

    def freeze(self, frozen: bool) -> None:
        """Parameters out of (or back on) the tape: the attack keeps no activations for weight gradients."""
        for p in self._list:
            p.requires_grad_(not frozen)

    def project(self) -> None:
        """After the optimiser's step, and wherever else the weights were written: modules with constrained weights bring them back."""
        if self.projects:
            project(self.model)

    def projected(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Other weights of this model (an average of several), projected too; the given tensors stay as they are."""
        if not self.projects:
            return weights
        copies = {name: value.detach().clone() for name, value in weights.items()}
        torch.func.functional_call(_Projector(self.model), {f"model.{name}": value for name, value in copies.items()}, ())
        return copies

    def _head_facts(self) -> tuple[str, Any] | None:
        """The name of the head's weight [K,D] among the parameters, and its scale (1 where it has none)."""
        head = getattr(self.model, "head", None)
        weight = getattr(head, "weight", None)
        name = next((name for name, p in self.parameters.items() if p is weight), "") if weight is not None else ""
        if not name or weight.dim() != 2:
            return None
        scale = getattr(head, "scale", 1.0)
        return name, scale if isinstance(scale, Tensor) else torch.tensor(float(scale), device=self.device, dtype=self.dtype)

    def head_roots(self, weights: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The roots head_weight [K,D] and head_scale []; live, or those of an overlay."""
        if self._head is None:
            head = type(getattr(self.model, "head", None)).__name__
            raise ComposerError(f"a term or view needs the head's weight, and the head {head} has no matrix `weight`", where="model.head",
                                fix='model.head = "linear" or "hypersphere"')
        name, scale = self._head
        return {"head_weight": (self.parameters if weights is None else weights)[name], "head_scale": scale}

    def layout(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last and x.dim() == 4 else x

    def __call__(self, x: Tensor, *, batch: bool, scratch: Tensor | None = None, rows: Tensor | None = None, features: bool = False,
                 weights: dict[str, Tensor] | None = None, name: str = "", step: int = 0, twice: bool = False) -> tuple[Tensor, Tensor | None]:
        """Logits [N,K] in float32, or float64 where the network is (and the head's input, when asked). `twice`: to be differentiated twice."""
        scope = self.scope
        if self.random:
            for module in self.random:
                module.training = batch
            if batch:
                torch.manual_seed(stream_seed(self.seed, f"model/{name}", step))
        if twice and not self._folds:
            self._folds = True
            fold(self.model)
        scope.batch, scope.scratch, scope.rows, scope.twice = batch, scratch, rows, twice
        try:
            with self._autocast():
                if weights is not None:
                    logits, embedded = self._overlay(weights, x, features)
                else:
                    logits, embedded = self._forward(x, features)
        finally:
            scope.batch, scope.scratch, scope.rows, scope.twice = False, None, None, False      # whoever runs the model otherwise sees eval mode
        return _full(logits), None if embedded is None else _full(embedded)

    def _forward(self, x: Tensor, features: bool) -> tuple[Tensor, Tensor | None]:
        if self.half and self._embeds:
            embedded = _full(self.model.embed(x))
            with torch.autocast(self.device.type, enabled=False):      # the head is cheap, and logits of eight bits would tie
                return self.model.head(embedded), embedded if features else None
        if not features:
            return self.model(x), None
        if not self._embeds:
            raise ComposerError(f"the model {type(self.model).__name__} does not hand out features", why="a term needs the input of its head",
                                fix="use one of composer's own models, or give yours the methods `embed` and `head`")
        embedded = self.model.embed(x)
        return self.model.head(embedded), embedded

    def _overlay(self, weights: dict[str, Tensor], x: Tensor, features: bool) -> tuple[Tensor, Tensor | None]:
        """A forward at other weights; the live ones are never touched."""
        shell = _Shell(self, features)
        return torch.func.functional_call(shell, {f"model.{k}": v for k, v in weights.items()}, (x,))

    @property
    def half(self) -> bool:
        """Products of the passes now are bfloat16's; weights, head, logits and losses are float32 all the same."""
        return self.precision == "bf16" or (self.precision == "bf16-attack" and self.attacking)

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, dtype=torch.bfloat16) if self.half else self._as_is

    def attack(self, op: Callable[[Any], None]) -> Callable[[Any], None]:
        """An inner maximum over images, at the precision that attacks have."""
        if self.precision != "bf16-attack":
            return op

        def run(env: Any) -> None:
            self.attacking = True
            try:
                op(env)
            finally:
                self.attacking = False

        return run


class _Projector(nn.Module):
    """A module around the model, so that functional_call can have it project tensors that are not its own."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self) -> Tensor:
        project(self.model)
        return torch.empty(0)


def _full(x: Tensor) -> Tensor:
    """Half precisions as float32; float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


class _Shell(nn.Module):
    """A module around the net, so that functional_call can reach `embed` and `head` as well."""

    def __init__(self, net: Net, features: bool):
        super().__init__()
        self.model = net.model
        self._run = (net, features)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        net, features = self._run
        return net._forward(x, features)
