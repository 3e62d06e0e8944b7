"""The same network in fewer operations: batch norm folded into the convolutions, on a CPU their weights laid out for it. Used to search only; answers
are checked on the plain one.
"""

from __future__ import annotations

import copy
import warnings

import torch

from composer.evaluate.guard import Judge
from composer.shapes import Tensor

CLOSE = 1e-3        # logits of the folded network against the plain one's, relative to their largest: rounding is 1e-6 a layer
SLOPES = 1e-2       # their gradients, relative, of the middle one of a few images


class _Channels(Judge):
    """Convolutions on images whose channels lie side by side: on a CPU forward and backward take half the time. Gradients come back contiguous."""

    def __init__(self, module: torch.nn.Module, meter: list[int]):
        super().__init__(module.to(memory_format=torch.channels_last), meter)

    def raw(self, x: Tensor) -> Tensor:
        return super().raw(x.contiguous(memory_format=torch.channels_last))


class _Packed(Judge):
    """The frozen network of `composer.models.packed`: prepared weights, a convolution with its bias, sum and ReLU in one call."""

    def __init__(self, judge: Judge, net: object):
        super().__init__(judge.model, judge.meter)
        self.net = net

    def raw(self, x: Tensor) -> Tensor:
        self.meter[0] += 1
        return self.net(x.contiguous(memory_format=torch.channels_last))[0].float()  # type: ignore[operator]


def folded(judge: Judge, x: Tensor) -> tuple[Judge, str]:
    """(a judge of the network in fewer operations, or the judge itself; what was done in words). x: a few images to compare on."""
    if judge.module is None:
        return judge, "plain: the model is a function"
    if x.device.type == "cpu" and (found := _packed(judge, x)):
        return found
    return _fused(judge, x)


def _packed(judge: Judge, x: Tensor) -> tuple[Judge, str] | None:
    """None where nothing can be packed or the packed network answers otherwise: the folded one is tried then."""
    try:
        from composer.models.packed import PackedNet, available

        if not available() or judge.dtype != torch.float32:
            return None
        net = PackedNet(judge.module)
        net.refresh()
        other = _Packed(judge, net)
        return (other, net.note) if net.layers and _alike(judge, other, x) else None
    except Exception:  # noqa: BLE001 (private calls of this PyTorch, on a foreign network: the folded one remains)
        return None


def _alike(judge: Judge, other: Judge, x: Tensor) -> bool:
    """The same logits but for rounding, and of most images the same gradient: rounding may take one across a rectifier's kink."""
    (want, slope), (got, other_slope) = _answer(judge, x), _answer(other, x)
    if want.shape != got.shape or not torch.allclose(got, want, rtol=0, atol=CLOSE * float(want.abs().max())):
        return False
    away = (other_slope - slope).flatten(1).norm(dim=1) / slope.flatten(1).norm(dim=1).clamp_min(1e-12)
    return bool(away.median() <= SLOPES)


def _answer(judge: Judge, x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        z = judge(leaf)
        slope = torch.autograd.grad(z[:, 0].sum(), leaf, allow_unused=True)[0] if z.requires_grad else None
    return z.detach(), torch.zeros_like(x) if slope is None else slope


def _fused(judge: Judge, x: Tensor) -> tuple[Judge, str]:
    assert judge.module is not None
    try:
        from torch.fx.experimental.optimization import fuse

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fused = fuse(copy.deepcopy(judge.module).eval()).eval()
    except Exception as error:  # noqa: BLE001 (whatever a foreign forward does under tracing, the plain network remains)
        return judge, f"plain: {type(error).__name__} under tracing"
    before, after = (sum(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in net.modules()) for net in (judge.module, fused))
    for parameter in fused.parameters():
        parameter.requires_grad_(False)
    other = _Channels(fused, judge.meter) if any(isinstance(m, torch.nn.Conv2d) for m in fused.modules()) else Judge(fused, judge.meter)
    if not _alike(judge, other, x):
        return judge, "plain: the folded network answered otherwise"
    return other, f"{before - after} of {before} batch norms folded"
