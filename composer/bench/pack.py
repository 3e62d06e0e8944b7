"""`composer bench --pack`: seeds of a small network, and cells of a grid, trained together, beside the same runs one after the other.

Both sides make the engine's real step (composer.bench.subject), with the same recipe, images and seeds, in float32, interleaved in one process.
The first case is the gate: 16 seeds of a small MLP, adversarial training with 5 attack steps, batches of 64. The others say where the gain ends: a
pack saves calls, so it pays while a call costs more than what it computes. The last is a grid: as many runs, of cells that differ in numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from composer.bench.machine import machine
from composer.bench.nets import CLASSES, SHAPES, batch
from composer.bench.subject import Subject, load_like_plain
from composer.bench.timer import Timing, interleave
from composer.engine.feed import Batch
from composer.engine.pack import Lockstep
from composer.engine.pack_net import PackedNet
from composer.errors import ComposerError
from composer.options import Ref

GATE, TARGET = 3.0, 5.0
Say = Callable[[str], None]


@dataclass(frozen=True)
class PackCase:
    """`seeds` runs of a recipe on one network, of every cell where there are cells (their settings); `gate` is the least ratio that is asked for, 0
    where none is."""

    model: str
    options: dict[str, Any] = field(default_factory=dict)
    seeds: int = 16
    gate: float = 0.0
    recipe: str = "at"
    batch: int = 64
    steps: int = 5
    cells: tuple[tuple[str, ...], ...] = ()

    @property
    def title(self) -> str:
        widths = f" {list(self.options['widths'])}" if "widths" in self.options else ""
        cells = f"{len(self.cells)} cells × " if self.cells else ""
        return f"{cells}{self.seeds} seeds of {self.recipe} on {self.model}{widths}, batch {self.batch}, {self.steps} attack steps"


GRID = tuple((f"parts.ema.decay={tau}", f"terms.margin.delta={delta}", f"inner.x_adv.terms.margin.delta={delta}")
             for tau in (0.2, 0.9) for delta in (0.5, 0.9))
CASES = (PackCase("mlp", {"widths": (64, 64)}, 16, GATE), PackCase("mlp", {"widths": (64, 64)}, 4), PackCase("mlp", {"widths": (256, 256)}, 16),
         PackCase("small_cnn", {}, 4), PackCase("mlp", {"widths": (64, 64)}, 4, recipe="at_ours", cells=GRID))


def runs(case: PackCase, device: torch.device | str = "cpu") -> list[Subject]:
    """The runs, cell by cell: one network, images and labels a seed."""
    from composer.models.build import build_model
    from composer.recipe.load import catalogue
    from composer.recipe.types import ModelSpec

    catalogue()
    found = []
    for sets in case.cells or ((),):
        recipe = load_like_plain(case.recipe, steps=case.steps, sets=sets)
        for seed in range(case.seeds):
            x, y = batch("small_cnn", case.batch, seed=seed, device=device)
            model = build_model(ModelSpec(case.model, case.options, Ref("head", "linear")), SHAPES["small_cnn"], CLASSES, seed).to(device)
            found.append(Subject(recipe, model, x, y, seed=seed))
    return found


def one_after_the_other(members: list[Subject]) -> Callable[[], None]:
    """A step of every run."""
    def step() -> None:
        for member in members:
            member()

    return step


def together(members: list[Subject]) -> Callable[[], None]:
    """A step of all runs at once; putting their batches together is in it."""
    pack = Lockstep([m.trainer for m in members], PackedNet([m.session.net for m in members], SHAPES["small_cnn"]))
    epoch = members[0].epoch

    def step() -> None:
        given = [m.batch for m in members]
        pack._step(Batch(*(torch.cat([getattr(b, name) for b in given]) for name in ("x", "y", "i"))), epoch)
        for member in members:
            member.trainer.progress.batch = 0

    return step


def measure(case: PackCase, *, rounds: int, device: torch.device | str = "cpu", again: bool = True) -> tuple[dict[str, Any], str]:
    """Times of S steps both ways, their ratio round by round, and the verdict; and all of it as text."""
    sides = {"one after the other": one_after_the_other(runs(case, device)), "together": together(runs(case, device))}
    timing = interleave(sides, rounds=rounds, calls=3, again=again)
    on_cpu = torch.device(device).type == "cpu"
    processor = timing.over("one after the other", "together", processor=True) if on_cpu else None
    found = {"model": case.model, "options": {k: list(v) for k, v in case.options.items()}, "seeds": case.seeds, "cells": [list(c) for c in case.cells],
             "recipe": case.recipe,
             "batch": case.batch, "attack_steps": case.steps, "ratio": timing.variants["together"].ratio, "ratio_processor": processor,
             "gate": case.gate or None, "target": TARGET if case.gate else None,
             "verdict": verdict(case, timing, processor), "timing": timing.as_dict()}
    return found, "\n".join(["", case.title, timing.text(machine=False), f"together {found['ratio']:.2f} times as fast"
                             + (f" (processor time {processor:.2f})" if processor else "") + f": {found['verdict']}"])


def verdict(case: PackCase, timing: Timing, processor: float | None) -> str:
    """By the clock where it was quiet, else by processor time, which says so."""
    ratio = processor if timing.noisy and processor else timing.variants["together"].ratio
    by = ", judged by processor time, as the clock was noisy" if timing.noisy and processor else ""
    if not case.gate:
        return f"no gate{by}"
    said = f"at the target of {TARGET:g}" if ratio >= TARGET else f"{'above' if ratio >= case.gate else 'BELOW'} the gate of {case.gate:g}"
    return said + by


def bench_packs(*, rounds: int = 7, threads: int = 1, device: str = "cpu", cases: tuple[PackCase, ...] = CASES, again: bool = True,
                say: Say = lambda line: None) -> dict[str, Any]:
    """All cases as plain data; `say` is told each as it comes.

    Errors: ComposerError for numbers that are not positive, or a device that is not there.
    """
    if min(rounds, threads) < 1:
        raise ComposerError(f"--rounds {rounds} --threads {threads}", where="command line", why="both are at least 1")
    if device != "cpu" and not torch.cuda.is_available():
        raise ComposerError("composer bench --pack --gpu needs a CUDA device, and PyTorch finds none here.")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        report: dict[str, Any] = {"machine": machine(device), "rounds": rounds, "packs": []}
        for case in cases:
            found, text = measure(case, rounds=rounds, device=device, again=again)
            report["packs"].append(found)
            say(text)
        return report
    finally:
        torch.set_num_threads(before)
