"""The fast mode: AutoAttack's algorithms arranged for speed. The network is folded and packed where it can be, images leave as soon as they have
fallen, and the random numbers are the library's own. What is found is judged by the plain network.
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
from composer.evaluate.luck import Luck
from composer.evaluate.pool import run_jobs
from composer.evaluate.squares import Squares, SquaresP
from composer.shapes import Tensor

LOSSES = {"apgd-ce": ce, "apgd-dlr": dlr, "apgd-t": dlr_targeted}
Search = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def make_quick(library: Any, judge: Judge, few: Tensor, draws: Draws, eps: float, norm: str, version: str, name: str, classes: int, alone: bool = False,
               **settings: Any) -> tuple[Search, str]:
    """(one attack of the version as (images, labels, their places in the whole, searches at once) -> adversarial images; what was folded).

    few     images on which the folded network is compared with the plain one
    alone   the attack stands for itself and not in a version: Square then also asks along the edges that the library leaves out
    """
    theirs = tuned(library, judge, eps, NORMS[norm], version, name, classes, **settings)         # the library's settings, read off its own object
    model, note = folded(judge, few)

    def run(x: Tensor, y: Tensor, rows: Tensor, width: int) -> Tensor:
        with torch.no_grad():
            if name == "square":
                kind = Squares if norm == "linf" else SquaresP
                return kind(model, eps, norm, draws.base, theirs.n_queries, alone, width).run(x, y)
            targets = torch.cat([model(some) for some in x.split(width)]).sort(1).indices if name in ("apgd-t", "fab-t") else None
            tags = range(2, theirs.n_target_classes + 2) if targets is not None else range(theirs.n_restarts)
            if name.startswith("fab"):
                return _boundaries(Boundary(model, eps, norm, draws, rows, name, targets, theirs.n_iter), x, y, tags, width)
            more = (theirs.use_largereps,) if norm == "l1" else ()
            return _ascents((AutoPGD1 if more else AutoPGD)(model, LOSSES[name], eps, norm, targets, theirs.n_iter, *more), x, y, tags, width, draws.base)

    return run, note


def _boundaries(search: Boundary, x: Tensor, y: Tensor, tags: range, width: int) -> Tensor:
    """No draw depends on another: the targets of all images share batches."""
    who = torch.arange(len(x)).repeat(len(tags))
    return run_jobs(search, x, y, who, torch.tensor(tags).repeat_interleave(len(x)), width)


def _ascents(search: AutoPGD, x: Tensor, y: Tensor, tags: range, width: int, seed: int) -> Tensor:
    """Target after target, or restart after restart, of the images that still stand, as the library draws for them."""
    luck, found, alive = Luck(len(x), seed), x.clone(), torch.ones(len(x), dtype=torch.bool)
    for tag in tags:
        who = alive.nonzero().flatten()
        if not len(who):
            break
        search.noise = luck.noise(search.kind, alive, x, search.idle)
        run_jobs(search, x, y, who, torch.full_like(who, tag), width, found, alive)
    return found
