"""PIAT: between epochs the model moves back towards where it was."""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Any, Literal

import torch

from composer.parts._state import load_, mix_, tensors_of
from composer.registry import part
from composer.shapes import Ge, Le, Tensor


def _forwards(options: dict[str, Any], *, epoch: float, batches: float) -> float:
    """Forwards at the end of an epoch that has so many batches."""
    again = options["buffers"] == "recompute" and epoch >= options["start_epoch"]
    return min(batches, options["recompute_batches"] or batches) if again else 0


@part(neutral={"lam": 0.0}, epoch_forwards=_forwards)
class interpolate:
    """At the end of each epoch the weights become a mean of themselves and those the epoch began with; training goes on from there.

    Formula: theta'_n = lam_n · theta'_{n-1} + (1 - lam_n) · theta_n, theta'_0 = the initial weights   [unit of the weights]
    Paper:   PIAT, Algorithm 1, with lam = { use = "piat" }: (n+1)/(n+10), n = 1, 2, …

    buffers            floating-point buffers (running statistics) are interpolated alike, or `copy`: stay those of the epoch's end, or
                       `recompute`: the running statistics become the mean over training batches (clean, augmented as in training, drawn
                       apart from the training's own) of the batch statistics at the new weights. The paper writes theta only. Integer
                       buffers always stay
    start_epoch        the first epoch at whose end this happens (1: also during a burn-in)
    recompute_batches  how many batches a recomputation forwards; default all of an epoch

    The optimiser keeps its momentum.
    """

    makes = ()
    per_point = False
    writes_model = True

    def __init__(self, *, lam: Annotated[float, Ge(0), Le(1)], buffers: Literal["interpolate", "copy", "recompute"] = "interpolate",
                 start_epoch: Annotated[int, Ge(1)] = 1, recompute_batches: Annotated[int, Ge(1)] | None = None):
        self.lam, self.buffers, self.start_epoch, self.recompute_batches = lam, buffers, start_epoch, recompute_batches
        self._before: dict[str, Tensor] = {}
        self._facts: Any = None

    def _mixed(self, model: Any) -> dict[str, Tensor]:
        """The tensors that move, in the model's order."""
        found = tensors_of(model, buffers=self.buffers == "interpolate")
        return {name: tensor for name, tensor in found.items() if tensor.is_floating_point()}

    def start(self, facts: Any) -> None:
        self._facts = facts
        self._before = {name: tensor.clone() for name, tensor in self._mixed(facts.model).items()}

    def epoch_end(self, model: Any, *, epoch: int) -> None:
        now = self._mixed(model)
        before = [self._before[name] for name in now]
        if epoch >= self.start_epoch:
            mix_(before, list(now.values()), self.lam)
            for name, tensor in now.items():
                tensor.copy_(self._before[name])
            if self.buffers == "recompute":
                self._recompute(epoch)
        else:
            mix_(before, list(now.values()), 0.0)

    def _recompute(self, epoch: int) -> None:
        """Forwards in train mode, whose batch statistics replace the running ones."""
        net = self._facts.net
        if net.stats is None:
            return

        def passes() -> Any:
            for k, x in enumerate(islice(self._facts.batches(epoch), self.recompute_batches)):
                scratch = net.stats.scratch()
                net(x, batch=True, scratch=scratch, name=f"interpolate/{epoch}", step=k)
                yield scratch, len(x)

        with torch.no_grad():
            net.stats.replace(passes())

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self._before)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        load_(self._before, state, "interpolate")
