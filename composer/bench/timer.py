"""Interleaved timing. Every round times each variant once, in an order that rotates, and gives one ratio per variant; the medians of these
ratios stand a slow minute of the machine, which two separate timings do not.
"""

from __future__ import annotations

import gc
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from composer.errors import ComposerError

SPREAD = 1.5        # slowest over fastest round of the base, beyond which a timing is called noisy


@dataclass(frozen=True)
class Variant:
    """One variant's times. `ratio` is how many times faster than the base: base's time over its own, the median over rounds.

    `processor` is the processor time of the same rounds, all threads together: less moved by other programs, blind to a device and to waiting.
    """

    seconds: tuple[float, ...]
    ratios: tuple[float, ...]
    processor: tuple[float, ...] = ()

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def lo(self) -> float:
        return min(self.ratios)

    @property
    def hi(self) -> float:
        return max(self.ratios)


@dataclass(frozen=True)
class Timing:
    """The result of `interleave`. `noise` says why the numbers are not to be trusted; empty where they are."""

    base: str
    variants: dict[str, Variant]
    noise: tuple[str, ...]
    machine: dict[str, Any] = field(default_factory=dict)

    @property
    def noisy(self) -> bool:
        return bool(self.noise)

    def min_ratio(self, name: str) -> float:
        """Fastest round of the base over the variant's fastest."""
        return min(self.variants[self.base].seconds) / min(self.variants[name].seconds)

    def over(self, name: str, other: str, processor: bool = False) -> float:
        """Median over rounds of one variant's time over another's in the same round."""
        a, b = self.variants[name], self.variants[other]
        pairs = zip(a.processor, b.processor, strict=True) if processor else zip(a.seconds, b.seconds, strict=True)
        return statistics.median(x / max(y, 1e-9) for x, y in pairs)

    def as_dict(self) -> dict[str, Any]:
        rows = {name: {"ms": 1e3 * v.median, "min_ms": 1e3 * min(v.seconds), "ratio": v.ratio, "ratio_lo": v.lo, "ratio_hi": v.hi,
                       "ratio_of_minima": self.min_ratio(name), "rounds": len(v.seconds), "processor_ms": 1e3 * statistics.median(v.processor or (0.0,))} for name, v in self.variants.items()}
        return {"base": self.base, "variants": rows, "noisy": self.noisy, "noise": list(self.noise), **self.machine}

    def json(self) -> str:
        """One line."""
        return json.dumps(self.as_dict())

    def text(self, machine: bool = True, floor: float | None = None) -> str:
        """A table: median time, ratio to the base as median, of minima, and range over rounds; then the machine, and what made it noisy.

        `floor` [s] (bench/floor.py) adds a column, each median over it, and a row: as many times faster than the base nothing can be.
        """
        width = max(len(name) for name in (*self.variants, "floor"))
        column = "" if floor is None else f"  {'/ floor':>7}"
        lines = [f"{'':{width}}  {'ms':>9}{column}  {'faster':>7}  {'minima':>7}  range"]
        for name, v in self.variants.items():
            over = "" if floor is None else f"  {v.median / floor:7.2f}"
            lines.append(f"{name:{width}}  {1e3 * v.median:9.2f}{over}  {v.ratio:7.3f}  {self.min_ratio(name):7.3f}  {v.lo:.3f} to {v.hi:.3f}")
        if floor is not None:
            lines.append(f"{'floor':{width}}  {1e3 * floor:9.2f}  {1:7.2f}  {self.variants[self.base].median / floor:7.3f}")
        if machine:
            lines.append(", ".join(f"{key} {value}" for key, value in self.machine.items()))
        return "\n".join(lines + [f"noisy: {reason}" for reason in self.noise])


def interleave(variants: dict[str, Callable[[], Any]], *, rounds: int = 10, base: str | None = None, warmup: int = 2, calls: int = 1,
               again: bool = True) -> Timing:
    """Time `calls` calls of every variant in each of `rounds` rounds, after `warmup` rounds that do not count.

    A noisy timing is taken once more (`again`), and the quieter of the two is returned, which may still be noisy.
    Errors: ComposerError where the base is none of the variants or a count is not positive.
    """
    base = base if base is not None else next(iter(variants), "")
    if base not in variants:
        raise ComposerError(f"base '{base}' is none of the variants {', '.join(variants)}")
    if min(rounds, calls) < 1 or warmup < 0:
        raise ComposerError(f"rounds = {rounds}, calls = {calls}, warmup = {warmup}", why="rounds and calls are at least 1, warmup at least 0")
    first = _measure(variants, rounds, base, warmup, calls)
    if not (first.noisy and again):
        return first
    second = _measure(variants, rounds, base, warmup, calls)
    return min(first, second, key=lambda t: (len(t.noise), _spread(t.variants[base].seconds)))


def _measure(variants: dict[str, Callable[[], Any]], rounds: int, base: str, warmup: int, calls: int) -> Timing:
    names = list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    processor: dict[str, list[float]] = {name: [] for name in names}
    began, busy = time.perf_counter(), time.process_time()
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for r in range(-warmup, rounds):
            turn = r % len(names)
            for name in names[turn:] + names[:turn]:
                used = time.process_time()
                taken = _time(variants[name], calls)
                if r >= 0:
                    seconds[name].append(taken)
                    processor[name].append((time.process_time() - used) / calls)
    finally:
        if enabled:
            gc.enable()
    elapsed = time.perf_counter() - began
    load, cores = _load(), _cores()
    others = foreign_load(load, (time.process_time() - busy) / max(elapsed, 1e-9), elapsed)
    table = {name: Variant(tuple(seconds[name]), tuple(b / s for b, s in zip(seconds[base], seconds[name], strict=True)), tuple(processor[name]))
             for name in names}
    machine = {"threads": torch.get_num_threads(), "cores": cores, "loadavg": round(load, 2), "load_of_others": round(others, 2),
               "torch": torch.__version__, "machine": platform.machine(), "cpu": torch.backends.cpu.get_cpu_capability()}
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    return Timing(base, table, noise(seconds[base], others, torch.get_num_threads(), cores), machine)


def _time(call: Callable[[], Any], calls: int) -> float:
    _wait()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    _wait()
    return (time.perf_counter() - start) / calls


def _wait() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def noise(base_seconds: list[float], others: float, threads: int, cores: int) -> tuple[str, ...]:
    """Why a timing is not to be trusted: the base itself varied, or other work wanted the cores."""
    reasons = []
    if _spread(base_seconds) > SPREAD:
        reasons.append(f"the base's slowest round took {_spread(base_seconds):.2f} times its fastest (limit {SPREAD})")
    room = cores - 0.5 - (threads - 1)
    if others > room:
        reasons.append(f"load of other programs {others:.2f}, and {threads} of {cores} cores are ours (limit {room:g})")
    return tuple(reasons)


def foreign_load(loadavg: float, own_cores: float, elapsed: float) -> float:
    """The one-minute load average less our own part: a job that keeps c cores busy for t seconds puts c (1 - exp(-t/60)) into it."""
    return max(0.0, loadavg - own_cores * (1 - math.exp(-elapsed / 60)))


def _spread(seconds: list[float] | tuple[float, ...]) -> float:
    return max(seconds) / min(seconds)


def _load() -> float:
    try:
        return os.getloadavg()[0]
    except OSError:
        return 0.0


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
