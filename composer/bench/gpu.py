"""Seconds per epoch of whole training steps, data included: a data set of the bench's size, held on the device as uint8, shuffled and augmented.

The images are noise, so no data set is needed; time does not depend on what they show. The learning rate is small and constant, because noise
cannot be learnt and a loss that overflows would end the run. By default some steps are timed and multiplied by
the steps of an epoch, and the report says how many; `whole` times every step of one epoch.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import torch

from composer.bench.counter import flops
from composer.bench.subject import Bench, numerics
from composer.bench.timer import SPREAD
from composer.data.sets import DataSet, Split
from composer.models.build import build_model
from composer.plan.cost import plan_cost
from composer.recipe.load import load

RECIPES, SETTING, PRECISIONS = ("at", "mart_ours"), "cifar10-resnet18", ("fp32", "tf32", "bf16")
SHAPE, CLASSES, IMAGES = (3, 32, 32), 10, 50_000
CHUNKS, LR = 5, 1e-4


def synthetic(shape: tuple[int, int, int] = SHAPE, images: int = IMAGES, classes: int = CLASSES) -> DataSet:
    """A data set of noise."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (images, *shape), dtype=torch.uint8, generator=generator)
    y = torch.randint(0, classes, (images,), generator=generator)
    return DataSet("noise", Split(x, y), Split(x[:1], y[:1]), classes, shape, digest="")


def epochs(device: torch.device | str, *, whole: bool = False, recipes: tuple[str, ...] = RECIPES, setting: str = SETTING,
           precisions: tuple[str, ...] = PRECISIONS, backends: tuple[str, ...] = ("eager",), dataset: DataSet | None = None, sets: tuple[str, ...] = (), steps: int = 50,
           warmup: int = 10, say: Callable[[str], None] = lambda line: None) -> list[dict[str, Any]]:
    """Each recipe at each precision on each backend, on the setting's network, threat, batch and augmentation."""
    device = torch.device(device)
    dataset = dataset if dataset is not None else synthetic()
    rows = []
    for name in recipes:
        recipe = load(name, setting=setting, sets=[f"train.lr={LR}", *sets])
        for precision, backend in product(precisions, backends):
            with numerics(precision):
                rows.append(epoch(recipe, dataset, device, precision, None if whole else steps, warmup, backend))
            say(epoch_text(rows[-1]))
    return rows


def epoch(recipe: Any, dataset: DataSet, device: torch.device, precision: str, steps: int | None, warmup: int,
          backend: str = "eager") -> dict[str, Any]:
    """One recipe at one precision on one backend. `steps` None: every step of an epoch. Compiling and recording fall into the warm-up."""
    model = build_model(recipe.model, dataset.shape, dataset.classes, seed=0)
    session = Bench(recipe, model, dataset=dataset, device=device, precision=precision, backend=backend)
    trainer = session.trainer()
    batches = endless(trainer, trainer.node.segment.first)
    for _ in range(warmup):
        trainer._step(*next(batches))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    timed = steps or trainer.feed.steps
    chunks = min(CHUNKS, timed)
    sizes = [timed * (k + 1) // chunks - timed * k // chunks for k in range(chunks)]
    seconds = [chunk(trainer, batches, size, device) for size in sizes]
    whole = sum(s * size for s, size in zip(seconds, sizes, strict=True)) if steps is None else None
    return report(recipe, trainer, precision, timed, seconds, whole, device)


def endless(trainer: Any, first: int) -> Iterator[tuple[Any, int]]:
    """Batches with their epoch, epoch after epoch, within the stretch of the recipe that is timed."""
    done = 0
    while True:
        for batch in trainer.feed.batches(first, done):
            yield batch, first
        done += trainer.feed.steps
        trainer.progress.batch = 0


def chunk(trainer: Any, batches: Iterator[tuple[Any, int]], steps: int, device: torch.device) -> float:
    """Seconds a step, over some of them; the device is waited for at both ends only."""
    wait(device)
    start = time.perf_counter()
    for _ in range(steps):
        trainer._step(*next(batches))
    wait(device)
    return (time.perf_counter() - start) / steps


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def report(recipe: Any, trainer: Any, precision: str, timed: int, seconds: list[float], whole: float | None, device: torch.device) -> dict[str, Any]:
    """`seconds` a step by chunk; `whole` those of all steps of an epoch together, where all were timed."""
    step, size = statistics.median(seconds), trainer.feed.batch_size
    units, broken = plan_cost(trainer.plan).units, trainer.meter.broken()
    work = units * size * flops(trainer.net.model, trainer.session.dataset.shape)
    return {"recipe": recipe.name, "setting": recipe.setting, "model": recipe.model.use, "precision": precision,
            "device": device.type, "backend": trainer.session.backend.name, "backend_notes": trainer.session.backend.notes,
            "batch": size, "units": units, "steps_timed": timed, "chunks": len(seconds), "steps_of_an_epoch": trainer.feed.steps, "ms_per_step": 1e3 * step,
            "seconds_per_epoch": step * trainer.feed.steps if whole is None else whole, "images_per_second": size / step, "tflops": work / step / 1e12,
            "peak_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
            "noisy": max(seconds) / min(seconds) > SPREAD, "spread": max(seconds) / min(seconds), "finite": not broken}


def epoch_text(r: dict[str, Any]) -> str:
    line = (f"{r['recipe']} on {r['setting']} at {r['precision']}, {r['backend']}: {r['seconds_per_epoch']:.2f} s per epoch "
            f"({r['ms_per_step']:.1f} ms a step of {r['batch']}, "
            f"median of {r['chunks']} chunks of {r['steps_timed']} steps in all; an epoch has {r['steps_of_an_epoch']}), "
            f"{r['images_per_second']:.0f} images/s, {r['tflops']:.2f} TFLOP/s")
    line += f", peak {r['peak_bytes'] / 2**30:.2f} GiB" if r["peak_bytes"] else ""
    line += f"; noisy: slowest chunk {r['spread']:.2f} times the fastest" if r["noisy"] else ""
    return line + ("" if r["finite"] else "; the loss was not finite")
