"""What parts share: mixing lists of tensors in place, and loading a state in place with errors that name the tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from composer.errors import ComposerError

if TYPE_CHECKING:
    from torch import Tensor, nn


def mix_(old: list[Tensor], new: list[Tensor], decay: Any) -> None:
    """old <- decay · old + (1 - decay) · new, in place; `decay` a float or a 0-dim tensor.

    As an interpolation from old to new it leaves equal tensors equal, bit for bit: constants such as a model's pixel mean never drift.
    """
    take = 1 - decay
    with torch.no_grad():
        if isinstance(take, torch.Tensor):
            for each, other in zip(old, new, strict=True):
                each.lerp_(other, take.to(each))
        elif old:
            torch._foreach_lerp_(old, new, take)


def tensors_of(model: nn.Module, *, buffers: bool = True) -> dict[str, Tensor]:
    """Parameters, and buffers, by name, detached but sharing memory."""
    found = {name: p.detach() for name, p in model.named_parameters()}
    return {**found, **({name: b.detach() for name, b in model.named_buffers()} if buffers else {})}


def load_(held: dict[str, Tensor], state: dict[str, Tensor], part: str) -> None:
    """Write a saved state into the tensors held, so that their addresses stay.

    Errors: a tensor that is missing or of another shape.
    """
    for name, tensor in held.items():
        if name not in state:
            raise ComposerError(f"part '{part}': the saved state holds no '{name}'", fix="start the run anew: it was saved by another model or part")
        if state[name].shape != tensor.shape:
            raise ComposerError(f"part '{part}': '{name}' was saved as {list(state[name].shape)}, here it is {list(tensor.shape)}",
                                fix="resume with the batch size, data and model of the saved run")
        with torch.no_grad():
            tensor.copy_(state[name])
