"""What is trained: the network, and the networks that parts train along with it (`network()` of a part)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def networks(parts: dict[str, Any]) -> dict[str, nn.Module]:
    """The networks that parts train along, by the part's id."""
    found = {id: part.network() for id, part in parts.items() if hasattr(part, "network")}
    return {id: network for id, network in found.items() if network is not None}


def together(model: nn.Module, others: dict[str, nn.Module]) -> nn.Module:
    """One module around all of them, the model first; the model itself where it is alone."""
    return nn.ModuleDict({"model": model, **{f"parts-{id}": network for id, network in others.items()}}) if others else model


def group_names(optimizer: torch.optim.Optimizer, model: nn.Module, others: dict[str, nn.Module]) -> list[list[str]]:
    """The names of the optimiser's parameters, group by group: the model's own, others' as parts.<id>.<name>."""
    named = {id(p): name for name, p in model.named_parameters()}
    named |= {id(p): f"parts.{key}.{name}" for key, network in others.items() for name, p in network.named_parameters()}
    return [[named[id(p)] for p in group["params"]] for group in optimizer.param_groups]


def renumber(state: dict[str, Any], held: list[list[str]], own: list[list[str]], groups: list[dict[str, Any]]) -> dict[str, Any]:
    """An optimiser's saved state for one whose parameters stand in other places: each finds its own by name, new ones begin anew."""
    before, place = [n for g in held for n in g], {n: k for k, n in enumerate(n for g in own for n in g)}
    kept = {place[name]: state["state"][k] for k, name in enumerate(before) if name in place and k in state["state"]}
    return {"state": kept, "param_groups": groups}
