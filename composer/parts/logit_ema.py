"""LMA-AT's moving average of logits."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch

from composer.parts._state import load_
from composer.registry import part
from composer.shapes import Ge, Indices, Labels, Le, Logits, Tensor


@part(neutral={"decay": 0.0}, rescales={"decay": "the gradient through the averaged logits carries the factor 1 - decay"})
class logit_ema:
    """Moving average of the logits of each point: old memory, cut from the graph, plus the current logits, attached.

    Formula: e_t = decay · e_{t-1} + (1 - decay) · z_t, read before the step, kept after it   [logits]
    Paper:   LMA-AT, Algorithm 1 (t counts steps; appendix A swaps the two roles)

    state             which memory an example meets: its row in the batch (the paper's: examples change, rows stay; a smaller last batch uses
                      the first rows), its own (`index`, one row for each training example) or its class's (`class`, fed with batch means)
    init              `zero`, or `first`: a row's memory begins with what it first meets
    compensate        give the current logits gradient 1 instead of 1 - decay; values stay, so decay no longer rescales the term's weight
    reset_each_epoch  forget everything at the end of each epoch
    """

    makes = ("logits",)
    per_point = True
    writes_model = False

    def __init__(self, *, decay: Annotated[float, Ge(0), Le(1)] = 0.2, state: Literal["position", "index", "class"] = "position",
                 init: Literal["zero", "first"] = "zero", compensate: bool = False, reset_each_epoch: bool = False):
        self.decay, self.state, self.init = decay, state, init
        self.compensate, self.reset_each_epoch = compensate, reset_each_epoch
        self.offset = 0                                   # the row of the batch that the rows given begin with
        self._memory: dict[str, Tensor] = {}
        self._seen: dict[str, Tensor] = {}

    def start(self, facts: Any) -> None:
        rows = {"position": facts.batch_size, "index": facts.train_size, "class": facts.classes}[self.state]
        self._memory = {point: torch.zeros(rows, facts.classes, device=facts.device) for point in facts.points}
        seen = facts.points if self.init == "first" else ()
        self._seen = {point: torch.zeros(rows, 1, dtype=torch.bool, device=facts.device) for point in seen}

    def _rows(self, held: Tensor, i: Tensor, y: Tensor, n: int) -> Tensor:
        """The memory each example of the batch meets, [N,…]."""
        return held[self.offset:self.offset + n] if self.state == "position" else held[i if self.state == "index" else y]

    def _old(self, logits: Tensor, i: Tensor, y: Tensor, point: str) -> Tensor:
        old = self._rows(self._memory[point], i, y, len(logits))
        if self.init == "first":
            old = torch.where(self._rows(self._seen[point], i, y, len(logits)), old, logits.detach())
        return old

    def read(self, logits: Logits, i: Indices, y: Labels, *, point: str) -> dict[str, Tensor]:
        new = self.decay * self._old(logits, i, y, point) + (1 - self.decay) * logits
        if self.compensate:
            new = new.detach() + (logits - logits.detach())
        return {"logits": new}

    def after_step(self, logits: Logits, i: Indices, y: Labels, *, point: str) -> None:
        with torch.no_grad():
            if self.state == "class":
                self._feed_classes(logits, y, point)
                return
            new = self.decay * self._old(logits, i, y, point) + (1 - self.decay) * logits
            for held, value in ((self._memory, new), (self._seen, torch.ones_like(new[:, :1], dtype=torch.bool))):
                if point in held:
                    self._write(held[point], value.to(held[point].dtype), i)

    def _write(self, held: Tensor, value: Tensor, i: Tensor) -> None:
        if self.state == "position":
            held[: len(value)].copy_(value)
        else:
            held.index_copy_(0, i, value)

    def _feed_classes(self, logits: Tensor, y: Tensor, point: str) -> None:
        """Classes that the batch holds take a step towards their mean logits; a product with the one-hot labels sums in a fixed order."""
        memory = self._memory[point]
        member = torch.nn.functional.one_hot(y, len(memory)).to(logits.dtype)                          # [N,K]
        count = member.sum(0).unsqueeze(1)                                                              # [K,1]
        mean = (member.T @ logits) / count.clamp(min=1)
        old = torch.where(self._seen[point], memory, mean) if self.init == "first" else memory
        memory.copy_(torch.where(count > 0, self.decay * old + (1 - self.decay) * mean, memory))
        if self.init == "first":
            self._seen[point].logical_or_(count > 0)

    def epoch_end(self, model: Any, *, epoch: int) -> None:
        if self.reset_each_epoch:
            for held in (*self._memory.values(), *self._seen.values()):
                held.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        return {**self._memory, **{f"{point}.seen": seen for point, seen in self._seen.items()}}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """A point that the saved state does not know (nothing read it then) begins anew."""
        known = [point for point in self._memory if point in state]
        load_({name: tensor for name, tensor in self.state_dict().items() if name.removesuffix(".seen") in known}, state, "logit_ema")
