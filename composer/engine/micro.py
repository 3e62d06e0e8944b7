"""Steps that do not fit into memory: the batch is divided, on demand (`--micro-batch N`) or when memory has run out (`--micro-batch auto`).

    whole   the batch as it is; where it does not fit, an error says what to do
    N       pieces of at most N images
    auto    whole until memory runs out; then the pieces are halved and the step is made again, from the same state with the same draws

A division is exact (equal to rounding) for networks without batch norm in train mode. With it, statistics are taken over a piece: that is said and
recorded. Terms that couple the rows of a batch are refused. What was done stands in every checkpoint, so a resumed run goes on alike.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from composer.engine import masks
from composer.engine.pieces import Pieces
from composer.errors import ComposerError
from composer.plan.types import Plan

WHERE = "--micro-batch"
OUT_OF_MEMORY = re.compile(r"DefaultCPUAllocator: (can't allocate|not enough) memory|out of memory|_STATUS_ALLOC_FAILED|bad_alloc|could not create a memory",
                           re.IGNORECASE)
VAGUE = "could not create a primitive"                   # oneDNN, for want of memory or for something else
Gradients = tuple[Tensor, Tensor, dict[str, Any]]       # the sum, the terms' means [T], the tensors of the step by name


def parse(text: str | int) -> str | int:
    """`whole`, `auto`, or a number of images. Errors: ComposerError for anything else."""
    if text in ("whole", "auto"):
        return text
    if str(text).isdecimal() and int(text) > 0:
        return int(text)
    raise ComposerError(f"{WHERE} {text}", where="command line", fix="a number of images, auto, or whole")


def out_of_memory(error: BaseException) -> bool:
    """PyTorch's own error, or the words of its allocators and libraries."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (isinstance(error, RuntimeError) and bool(OUT_OF_MEMORY.search(str(error))))


# -- what a division does --------------------------------------------------------------------------------------------------------------


def refused(plan: Plan, net: Any = None, parts: dict[str, Any] | None = None) -> str:
    """Why a batch cannot be divided under this plan, or ''."""
    if plan.coupled:
        return f"{', '.join(dict.fromkeys(plan.coupled))}: an image's number depends on the other images of the batch"
    if net is not None and (kinds := masks.indivisible(net.random)):
        return f"{', '.join(kinds)} cannot draw for a part of a batch"
    taught = [id for id, part in (parts or {}).items() if getattr(part, "bn", "train") != "eval" and hasattr(part, "network")
              and part.network() is not None and batch_norms(part.network())]
    return f"the part '{taught[0]}' trains a network of its own with batch norm" if taught else ""


def batch_norms(model: nn.Module) -> bool:
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


def coupled_by_norm(plan: Plan, model: nn.Module) -> bool:
    """Whether some pass takes batch statistics: then a division changes the mathematics."""
    programs = (plan.prelude, plan.outer, *(p for i in plan.inner for p in (i.preamble, i.body)))
    return batch_norms(model) and (bool(plan.after) or any(p.batch for program in programs for p in program.passes))


def declared(plan: Plan, model: nn.Module, size: int, batch: int) -> str:
    """What a division into pieces of that size means, in one sentence."""
    if coupled_by_norm(plan, model):
        return (f"micro-batches of {size}: batch norm takes its statistics over at most {size} images instead of {batch}; "
                "this is another experiment than the undivided batch")
    return f"micro-batches of {size}: gradients equal those of the undivided batch of {batch} to rounding"


def check(asked: str | int, plans: list[Plan]) -> None:
    """Before anything is trained. Errors: ComposerError where a division was asked for that some phase refuses."""
    for plan in plans if isinstance(parse(asked), int) else ():
        if why := refused(plan):
            raise refusal(f"{WHERE} {asked}", why)


def refusal(what: str, why: str) -> ComposerError:
    return ComposerError(what, where="command line", why=f"the batch cannot be divided: {why}", fix="a smaller train.batch_size, or leave that piece of the recipe out")


# -- at work ---------------------------------------------------------------------------------------------------------------------------


class Micro:
    """The gradients of a trainer's steps, divided as asked and as memory demands.

    Reads and writes `trainer.progress.micro` (images a piece, 0: as asked) and `.halved` (what happened, for the record).
    """

    def __init__(self, trainer: Any, asked: str | int = "whole"):
        self.trainer, self.asked = trainer, parse(asked)
        self._pieces: Pieces | None = None
        if isinstance(self.asked, int) and self.asked < trainer.recipe.train.batch_size:
            self._check(f"{WHERE} {asked}")

    @property
    def size(self) -> int:
        """Images a piece; 0: the batch is not divided."""
        found = [n for n in (self.asked, self.trainer.progress.micro) if isinstance(n, int) and n]
        return min(found, default=0)

    def gradients(self, batch: Any, whole: Callable[[], Gradients]) -> Gradients:
        """Let `whole` make the gradients of the undivided batch, or make them in pieces; again, in smaller ones, where memory runs out."""
        t = self.trainer
        return self._fitting(len(batch.y), whole, lambda size: self.pieces.run({**batch.roots(), "model": t.net.model}, t.progress.step, size))

    def after(self, env: dict[str, Any], n: int) -> None:
        """Forwards at the updated weights that only write running statistics."""
        if self.trainer.plan.after:
            self._fitting(n, lambda: self.trainer.executor.after(env), lambda size: self.pieces.after(env, n, size))

    def _fitting(self, n: int, whole: Callable[[], Any], divided: Callable[[int], Any]) -> Any:
        while True:
            size, before = self.size, self._statistics()
            try:
                return divided(size) if size and size < n else whole()
            except (RuntimeError, MemoryError) as error:
                if not (out_of_memory(error) or (self.asked != "whole" and VAGUE in str(error))):
                    raise
                said = (str(error).strip() or type(error).__name__).splitlines()[0]
            self._clear(before)                               # outside of the handler: its traceback held the step's tensors
            self._halve(min(size, n) if size else n, n, said)

    @property
    def pieces(self) -> Pieces:
        t = self.trainer
        if self._pieces is None:
            backend = getattr(t.session, "backend", None)
            if backend is not None and backend.name != "eager":
                backend.tell(f"micro-batches run by the backend eager: {backend.name} makes whole batches only")
            self._pieces = Pieces(t.plan, t.net, t.parts, t.session.streams, numbers=t.executor.numbers, threat_eps=t.executor.threat_eps, reads=t.meter.reads)
        return self._pieces

    def _statistics(self) -> tuple[Tensor, Tensor] | None:
        """Running statistics, where a train-mode attack writes them before the step is done; everything else is written after the backward."""
        stats, plan = self.trainer.net.stats, self.trainer.plan
        if self.asked == "whole" or stats is None or not (plan.after or any(inner.writes for inner in plan.inner)):
            return None
        return stats.flat.clone(), stats.count.clone()

    def _clear(self, before: tuple[Tensor, Tensor] | None) -> None:
        """The state as it was before the step, and as much memory as there is."""
        t = self.trainer
        t.optimizer.zero_grad(set_to_none=True)
        if before is not None:
            t.net.stats.flat.copy_(before[0])
            t.net.stats.count.copy_(before[1])
        gc.collect()
        if t.session.device.type == "cuda":
            torch.cuda.empty_cache()

    def _halve(self, size: int, n: int, said: str) -> None:
        t = self.trainer
        what = f"a training step with {size} images at once does not fit into memory"
        if self.asked == "whole":
            raise ComposerError(what, where=str(t.node.folder), why=said, fix="--micro-batch auto divides the batch; or a smaller train.batch_size")
        self._check(what)
        if size < 2 or (size < 4 and coupled_by_norm(t.plan, t.net.model)):
            raise ComposerError(what, where=str(t.node.folder), why=said, fix="a smaller model, or more memory")
        half = -(-size // 2)
        t.progress.micro = half
        t.progress.halved = [*t.progress.halved, {"step": t.progress.step, "from": size, "to": half, "why": said[:200]}]
        if remark := getattr(t.hooks, "remark", None):
            remark(f"memory ran out at step {t.progress.step}; " + declared(t.plan, t.net.model, half, n))

    def _check(self, what: str) -> None:
        if why := refused(self.trainer.plan, self.trainer.net, self.trainer.parts):
            raise refusal(what, why)


def record(asked: str | int, progress: Any, plans: list[Plan], model: nn.Module, batch: int) -> dict[str, Any]:
    """What stands in a run's result: {} where the batch was never divided and nobody asked for it."""
    size = min([n for n in (parse(asked), progress.micro) if isinstance(n, int) and n], default=0)
    if asked == "whole" and not progress.halved:
        return {}
    exact = not size or size >= batch or not any(coupled_by_norm(plan, model) for plan in plans)
    return {"micro_batch": {"asked": asked, "images": size if size and size < batch else batch, "exact": exact, "halved": progress.halved}}


__all__ = ["Micro", "batch_norms", "check", "coupled_by_norm", "declared", "out_of_memory", "parse", "record", "refused"]
