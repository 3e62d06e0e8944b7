"""Stochastic weight averaging: the plain mean of the weights at the ends of epochs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch

from composer.parts._state import load_, mix_, tensors_of
from composer.registry import part
from composer.shapes import Ge, Tensor


@part
class swa:
    """Mean of the model's weights at the ends of epochs, to be judged instead of the live ones; training itself does not see it.

    Formula: w = (1/n) sum of theta at the ends of epochs start_epoch, start_epoch + every, …   [unit of the weights]
    Paper:   Izmailov et al., UAI 2018 (SWA), eq. 1

    start_epoch   the first epoch whose end counts; until then the live weights of each epoch's end are offered
    every         epochs between two ends that count
    buffers       running statistics: `average` them alike, or `copy` those of the epoch's end; the paper takes them anew over the training set
                  afterwards, which is not done here. Integer buffers are always copied
    """

    makes = ()
    per_point = False
    writes_model = False

    def __init__(self, *, start_epoch: Annotated[int, Ge(1)] = 1, every: Annotated[int, Ge(1)] = 1, buffers: Literal["average", "copy"] = "average"):
        self.start_epoch, self.every, self.buffers = start_epoch, every, buffers
        self._mean: dict[str, Tensor] = {}
        self._count = torch.empty(0)
        self._mixed: list[str] = []

    def start(self, facts: Any) -> None:
        live, parameters = tensors_of(facts.model), tensors_of(facts.model, buffers=False)
        self._mean = {name: tensor.clone() for name, tensor in live.items()}
        self._count = torch.zeros((), dtype=torch.float64, device=facts.device)
        self._mixed = [name for name, tensor in live.items() if tensor.is_floating_point() and (name in parameters or self.buffers == "average")]

    def epoch_end(self, model: Any, *, epoch: int) -> None:
        if epoch >= self.start_epoch and (epoch - self.start_epoch) % self.every:
            return
        live = tensors_of(model)
        mix_([self._mean[name] for name in self._mixed], [live[name] for name in self._mixed], self._count / (self._count + 1))
        for name in live.keys() - set(self._mixed):
            self._mean[name].copy_(live[name])
        if epoch >= self.start_epoch:
            self._count.add_(1)

    def weights(self) -> dict[str, Tensor]:
        """The mean's parameters and buffers by name; the tensors themselves, not copies."""
        return dict(self._mean)

    def state_dict(self) -> dict[str, Tensor]:
        return {**self._mean, "swa.count": self._count}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        load_(self.state_dict(), state, "swa")
