"""The same network in fewer operations: batch norm folded into the convolution before it. Used to search only; answers are checked on the plain one."""

from __future__ import annotations

import copy
import warnings

import torch

from composer.evaluate.guard import Judge
from composer.shapes import Tensor

CLOSE = 1e-3        # logits of the folded network against the plain one's, relative to their largest: rounding is 1e-6 a layer


class _Channels(Judge):
    """Convolutions on images whose channels lie side by side: on a CPU forward and backward take half the time. Gradients come back contiguous."""

    def __init__(self, module: torch.nn.Module, meter: list[int]):
        super().__init__(module.to(memory_format=torch.channels_last), meter)

    def raw(self, x: Tensor) -> Tensor:
        return super().raw(x.contiguous(memory_format=torch.channels_last))


def folded(judge: Judge, x: Tensor) -> tuple[Judge, str]:
    """(a judge of the folded network, or the judge itself; what was done in words). x: a few images to compare on."""
    if judge.module is None:
        return judge, "plain: the model is a function"
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
    want, got = judge(x), other(x)
    if got.shape != want.shape or not torch.allclose(got, want, rtol=0, atol=CLOSE * float(want.abs().max())):
        return judge, "plain: the folded network answered otherwise"
    return other, f"{before - after} of {before} batch norms folded"
