"""The fast mode: AutoAttack's algorithms arranged for speed. The network is folded where it can be, images leave as soon as they have fallen, the targets
of all images share batches, and every image's random numbers are its own. What is found is judged by the plain network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from composer.evaluate.autopgd import AutoPGD, AutoPGD1, ce, dlr, dlr_targeted
from composer.evaluate.boundary import Boundary
from composer.evaluate.draws import Draws
from composer.evaluate.fold import folded
from composer.evaluate.guard import Judge
from composer.evaluate.library import NORMS, tuned
from composer.evaluate.pool import Search, run_jobs
from composer.evaluate.squares import Squares, SquaresP
from composer.shapes import Tensor

BLOCK = 1000        # images at a time: the unit of the ledger, and on a device of the batch
LOSSES = {"apgd-ce": ce, "apgd-dlr": dlr, "apgd-t": dlr_targeted}


def make_quick(library: Any, judge: Judge, few: Tensor, draws: Draws, batch_size: int, eps: float, norm: str, version: str, name: str, classes: int,
               **settings: Any) -> tuple[Callable[[Tensor, Tensor, Tensor], Tensor], str]:
    """(one attack of the version as (images, labels, their places in the whole) -> adversarial images; what was folded).

    few         images on which the folded network is compared with the plain one
    batch_size  searches at work at once; a device takes at least as many as images in the block
    """
    theirs = tuned(library, judge, eps, NORMS[norm], version, name, classes, **settings)         # the library's settings, read off its own object
    model, note = folded(judge, few)

    def run(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        with torch.no_grad():
            if name == "square":
                kind = Squares if norm == "linf" else SquaresP
                return kind(model, eps, norm, draws, name, theirs.n_queries).run(x, y, rows)
            targets = model(x).sort(1).indices if name in ("apgd-t", "fab-t") else None
            search = _search(theirs, model, eps, norm, draws, rows, name, targets)
            tags = torch.arange(2, theirs.n_target_classes + 2) if targets is not None else torch.arange(theirs.n_restarts)
            who, tag = torch.arange(len(x)).repeat(len(tags)), tags.repeat_interleave(len(x))
            return run_jobs(search, x, y, who, tag, max(batch_size, len(x)) if x.is_cuda else batch_size)

    return run, note


def _search(theirs: Any, model: Judge, eps: float, norm: str, draws: Draws, rows: Tensor, name: str, targets: Tensor | None) -> Search:
    if name.startswith("fab"):
        return Boundary(model, eps, norm, draws, rows, name, targets, theirs.n_iter)
    if norm == "l1":
        return AutoPGD1(model, LOSSES[name], eps, norm, draws, rows, name, targets, theirs.n_iter, staged=theirs.use_largereps)
    return AutoPGD(model, LOSSES[name], eps, norm, draws, rows, name, targets, theirs.n_iter)
