"""The update of a pack: one optimiser over the stacked weights; each member's own where numbers differ, or where it looks across a tensor.

Both are told `tune` before a step, step, and leave every member's optimiser as if it had made the steps itself (`hand_back`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from composer.engine.pack_net import PackedNet
from composer.engine.pack_plans import apart

ROWWISE = ("SGD", "Adam", "AdamW", "NAdam", "RAdam", "RMSprop", "Adagrad", "Adadelta", "Adamax")     # optimisers that treat every number alone


class Update(Protocol):
    def tune(self, epoch: int, batch: int) -> None: ...
    def step(self) -> None: ...
    def hand_back(self, trainer: Any, slot: int) -> None: ...
    def decays(self) -> list[tuple[int | slice, dict[str, float]]]:
        """The weight decay of this step by parameter, and the slots it holds for."""


def update_of(members: Sequence[Any], net: PackedNet, said: Sequence[Any]) -> Update:
    """members: trainers in the order of the net's seats; said: their recipes and values by slot."""
    moved = apart([each.values for each in said])
    kinds = [(each.recipe.optim.use, each.recipe.optim.decay_exclude) for each in said]
    same = all(kind == kinds[0] for kind in kinds[1:]) and not any(path == "train.lr" or path.startswith("optim.") for path in moved)
    return Stacked(members, net) if same and type(members[0].optimizer).__name__ in ROWWISE else Own(members, net)


class Stacked:
    """Of the stacked parameters, in the groups and with the state of the members' own."""

    def __init__(self, members: Sequence[Any], net: PackedNet):
        self.lead, self.net, slots = members[0], net, net.seats.spread(members)
        groups = [{**{k: v for k, v in group.items() if k != "params"}, "params": [net.parameters[n] for n in names]}
                  for group, names in zip(self.lead.optimizer.param_groups, self.lead.names, strict=True)]
        self.optimizer = type(self.lead.optimizer)(groups)
        for name, stacked in net.parameters.items():
            held = [t.optimizer.state.get(t.net.parameters[name]) or {} for t in slots]
            if held[0]:
                self.optimizer.state[stacked] = {key: _stacked(stacked, [h[key] for h in held]) for key in held[0]}

    def tune(self, epoch: int, batch: int) -> None:
        self.lead.set_rates(self.optimizer, epoch, batch)

    def step(self) -> None:
        self.optimizer.step()

    def decays(self) -> list[tuple[int | slice, dict[str, float]]]:
        return [(slice(None), _decays(self.optimizer, self.lead.names))]

    def hand_back(self, trainer: Any, slot: int) -> None:
        for name, stacked in self.net.parameters.items():
            state = self.optimizer.state.get(stacked) or {}
            own = {k: v[slot] if isinstance(v, Tensor) and v.shape == stacked.shape else v for k, v in state.items()}
            trainer.optimizer.state[trainer.net.parameters[name]] = own
        for mine, group in zip(trainer.optimizer.param_groups, self.optimizer.param_groups, strict=True):
            mine.update({k: v for k, v in group.items() if k != "params"})


class Own:
    """The members' own optimisers, one after the other: their weights are slices of the stacked ones. What sits in a free seat stays as it is."""

    def __init__(self, members: Sequence[Any], net: PackedNet):
        self.members, self.net = list(members), net

    def tune(self, epoch: int, batch: int) -> None:
        for t in self.members:
            t.set_rates(t.optimizer, epoch, batch)

    def step(self) -> None:
        for t, slot in zip(self.members, self.net.seats.taken, strict=True):
            for name, p in t.net.parameters.items():
                grad = self.net.parameters[name].grad
                p.grad = None if grad is None else grad[slot]
            t.optimizer.step()
            t.optimizer.zero_grad(set_to_none=True)

    def decays(self) -> list[tuple[int | slice, dict[str, float]]]:
        return [(slot, _decays(t.optimizer, t.names)) for t, slot in zip(self.members, self.net.seats.taken, strict=True)]

    def hand_back(self, trainer: Any, slot: int) -> None:
        """Its optimiser made the steps."""


def _stacked(parameter: Tensor, values: list[Any]) -> Any:
    """[S, …] laid out as the parameter, or what is the same for all (a count of steps)."""
    if not isinstance(values[0], Tensor) or values[0].shape != parameter.shape[1:]:
        return values[0]
    return torch.empty_like(parameter, dtype=values[0].dtype, requires_grad=False).copy_(torch.stack(values))


def clip_each(parameters: Sequence[Tensor], limit: float | Tensor) -> None:
    """torch.nn.utils.clip_grad_norm_, with each member's own norm. limit: one for all, or [S]; inf: none."""
    grads = [p.grad for p in parameters if p.grad is not None]
    norms = torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1) for g in grads])          # [tensors,S]
    share = (limit / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1.0)
    for g in grads:
        g.mul_(share.view(-1, *([1] * (g.dim() - 1))))


def decay_at_perturbed(update: Update, net: PackedNet, overlay: dict[str, Tensor]) -> None:
    """decay · perturbation onto each member's gradient (`Trainer._decay_at_perturbed`)."""
    for rows, decays in update.decays():
        for name, p in net.parameters.items():
            if p.grad is not None and (decay := decays.get(name)):
                p.grad[rows].add_((overlay[name][rows] - p[rows]).detach(), alpha=decay)


def _decays(optimizer: torch.optim.Optimizer, names: Sequence[Sequence[str]]) -> dict[str, float]:
    """Weight decay by parameter; names: of the parameters of each group."""
    return {name: group.get("weight_decay", 0.0) for group, own in zip(optimizer.param_groups, names, strict=True) for name in own}
