"""What is known of judging before anything has run: how many test images there are, the passes that a protocol makes, the seconds of one."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

from composer.errors import ComposerError
from composer.evaluate.pace import RULES, passes
from composer.recipe.recipe import Recipe
from composer.registry import REGISTRY

TIMED = 256                     # images of a timed pass, at most


def count_test_images(recipe: Recipe, data_root: Any) -> int | None:
    """Of the recipe's data; None where that is not known, as of data that is not there. A set that does not declare its size is loaded and counted."""
    data = recipe.data
    known = data.options.get("test_size") or REGISTRY.get("data", data.use).flags.get("test")
    if known is not None or data_root is None:
        return known
    from composer.data.sets import load

    try:
        return len(load(data.use, data.options, data_root).test)
    except ComposerError:
        return None


def image_passes(measure: Any, recipe: Recipe, selects: bool = False) -> float | None:
    """Of one image under the measure, as the recipe has it; None where nothing is known of it."""
    from composer.evaluate.options import resolve_options

    return passes(measure.use, resolve_options(measure, recipe.threat, selects)) if measure.use in RULES else None


def protocol_passes(recipe: Recipe, images: int) -> tuple[float, tuple[str, ...]]:
    """(passes of one run's judging, measures that are not in them): of both checkpoints where both are reported, the second without what is costly."""
    total, unknown = 0.0, []
    both = recipe.select.report == "both" and recipe.select.held_out > 0
    for m in recipe.evaluate.measures:
        each = image_passes(m, recipe)
        if each is None:
            unknown.append(m.name)
            continue
        costly = REGISTRY.get("measure", m.use).flags.get("costly")
        total += each * min(m.n or images, images) * (2 if both and not costly else 1)
    return total, tuple(unknown)


def validation_passes(recipe: Recipe) -> float:
    """Of one epoch; the recipe's trace is not in them."""
    select = recipe.select
    if not select.held_out or select.attack is None:
        return 0.0
    return (1 + (image_passes(select.attack, recipe, selects=True) or 0)) * min(select.n or select.held_out, select.held_out)


def seconds_an_image(session: Any, repeats: int = 3) -> float:
    """Seconds of one pass of one image through the network that is judged: the median of some forwards and input gradients of a batch, halved."""
    import torch

    from composer.engine.judge import batch_of, plain_model
    from composer.evaluate.guard import undisturbed

    x = session.images("test")[0][:min(batch_of(session), TIMED)].to(session.device)
    times = []
    with undisturbed(plain_model(session, session.net.model.state_dict())) as judge:
        for _ in range(repeats + 1):
            began = time.perf_counter()
            point = x.clone().requires_grad_()
            torch.autograd.grad(judge(point).sum(), point)[0].sum().item()          # the sum waits for the device
            times.append(time.perf_counter() - began)
    return median(times[1:]) / (2 * len(x))
