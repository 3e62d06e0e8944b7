"""Optimisers, and which parameters are decayed. `composer.optim` is this module and, called, the decorator of the same name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import torch
from torch import nn

from composer import registry
from composer.callmodule import make_callable
from composer.errors import ComposerError
from composer.registry import optim
from composer.shapes import Ge, Lt

make_callable(__name__, registry.optim)

WORDS = ("bias", "norm")
FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")       # devices torch.optim.SGD has a fused kernel for


@optim
def sgd(groups: Any, *, momentum: Annotated[float, Ge(0), Lt(1)] = 0.9, nesterov: bool = False, weight_decay: Annotated[float, Ge(0)] = 5e-4,
        fused: Literal["auto", "yes", "no"] = "auto") -> Any:
    """Stochastic gradient descent with momentum; weight decay is added to the gradient.

    Formula: v = momentum · v + g + weight_decay · w;  w = w - lr · v   (nesterov: w - lr · (g + weight_decay · w + momentum · v))   [unit of w]
    Paper:   Sutskever et al., ICML 2013, in the form of torch.optim.SGD (lr outside the velocity)

    `groups` that carry a `weight_decay` keep theirs. The learning rate starts at 0: the engine sets it before every step.
    `fused` = "auto" takes the one-kernel update where every parameter is floating point on a device that has it.
    """
    groups = [group if isinstance(group, dict) else {"params": [group]} for group in groups]
    parameters = [p for group in groups for p in group["params"]]
    able = all(p.is_floating_point() and p.device.type in FUSED_DEVICES for p in parameters)
    return torch.optim.SGD(groups, lr=0.0, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay,
                           fused=able if fused == "auto" else fused == "yes")


def parameter_groups(model: nn.Module, weight_decay: float, exclude: Iterable[str] = ()) -> list[dict[str, Any]]:
    """The trainable parameters as one or two optimiser groups: decayed, and spared (weight decay 0).

    `exclude` holds substrings of parameter names, and two words: "bias" (every parameter called bias) and "norm" (the one-dimensional
    parameters of normalisation layers, whatever they are called). Order within a group is the model's.

    Errors: a substring that matches no parameter, since it would silently decay what it was meant to spare.
    """
    exclude = tuple(exclude)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    for word in exclude:
        if word not in WORDS and not any(word in name for name in names):
            raise ComposerError(f"optim.decay_exclude: no parameter's name holds '{word}'",
                                why=f"the model's parameters: {', '.join(names[:8])}{', …' if len(names) > 8 else ''}",
                                fix='name a part of one of them, or use "bias" or "norm"')
    norm = _norm_parameters(model) if "norm" in exclude else set()
    spared: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (spared if id(parameter) in norm or _named(name, exclude) else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _named(name: str, exclude: tuple[str, ...]) -> bool:
    if "bias" in exclude and name.rpartition(".")[2] == "bias":
        return True
    return any(word in name for word in exclude if word not in WORDS)


def _norm_parameters(model: nn.Module) -> set[int]:
    """Identities of the one-dimensional parameters of normalisation layers."""
    kinds = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
    return {id(p) for module in model.modules() if isinstance(module, kinds) for p in module.parameters(recurse=False) if p.ndim <= 1}
