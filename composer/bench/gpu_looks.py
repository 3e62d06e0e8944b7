"""What `composer bench --gpu` measures beside seconds per epoch: the device's matrix peak, the authors' loop, what a step costs the host, whether cost grows in a
straight line, how long the first compiled step takes. Every look takes a device, so that tests make them on a CPU.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from composer.bench import reference
from composer.bench.compiling import CACHE
from composer.bench.gpu import wait
from composer.bench.run import FAITHFUL, Case, plain_loop
from composer.bench.subject import numerics, subject

TYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}
SIZES, BATCHES, ATTACK_STEPS = (4096, 8192), (64, 128, 256), (5, 10, 20)


def matrix_peak(device: torch.device | str, precision: str, sizes: Sequence[int] = SIZES, repeats: int = 10) -> float:
    """The fastest of square matrix products at a precision [TFLOP/s]: the peak that a share of it refers to."""
    device, best = torch.device(device), 0.0
    with numerics(precision), torch.no_grad():
        for n in sizes:
            a, b = (torch.randn(n, n, device=device, dtype=TYPES[precision]) for _ in range(2))
            seconds = timed(lambda a=a, b=b: a @ b, device, repeats)  # type: ignore[misc]
            best = max(best, 2 * n**3 / seconds / 1e12)
    return best


def timed(call: Callable[[], Any], device: torch.device, calls: int, warmup: int = 3) -> float:
    """Median over five chunks of the seconds a call takes; the device is waited for between chunks only."""
    for _ in range(warmup):
        call()
    found = []
    for _ in range(5):
        wait(device)
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        wait(device)
        found.append((time.perf_counter() - begin) / calls)
    return statistics.median(found)


def faithful(device: torch.device | str, recipe: str = "at", net: str = "resnet18", batch: int = 128, calls: int = 5) -> float:
    """Seconds a step of the authors' loop at float32."""
    with numerics("fp32"):
        return timed(plain_loop(reference, FAITHFUL[recipe], Case(recipe, net, batch), device), torch.device(device), calls)


def host(device: torch.device | str, backend: str, recipe: str = "at", net: str = "resnet18", batch: int = 128, calls: int = 20) -> dict[str, float]:
    """What a step costs the host: microseconds until it returns without anybody waiting for the device, and milliseconds until the device is done.

    The queue of launches holds some thousand, so a host that is ahead of the device is not held back within these calls where a step is one launch;
    where it is held back (eager), the two are nearly equal and the host is the limit.
    """
    device = torch.device(device)
    with numerics("fp32"):
        step = subject(recipe, net, n=batch, device=device, backend=backend)
        for _ in range(3):
            step()
        wait(device)
        begin, returned = time.perf_counter(), []
        for _ in range(calls):
            at = time.perf_counter()
            step()
            returned.append(time.perf_counter() - at)
        wait(device)
        return {"host_us": 1e6 * statistics.median(returned), "step_ms": 1e3 * (time.perf_counter() - begin) / calls}


def idle(device: torch.device | str, backend: str, recipe: str = "at", net: str = "resnet18", batch: int = 128, calls: int = 5) -> float:
    """Share of the time in which the device runs no kernel: the gaps between launches. From PyTorch's profiler, which itself slows a step somewhat."""
    from torch.profiler import ProfilerActivity, profile

    device = torch.device(device)
    with numerics("fp32"):
        step = subject(recipe, net, n=batch, device=device, backend=backend)
        for _ in range(5):
            step()
        wait(device)
        with profile(activities=[ProfilerActivity.CUDA] if device.type == "cuda" else [ProfilerActivity.CPU]) as seen:
            for _ in range(calls):
                step()
            wait(device)
    kind = torch.autograd.DeviceType.CUDA if device.type == "cuda" else torch.autograd.DeviceType.CPU
    return gaps([(e.time_range.start, e.time_range.end) for e in seen.events() if e.device_type == kind])


def gaps(spans: Sequence[tuple[float, float]]) -> float:
    """Share of the time from the first beginning to the last end that no span covers; 0 where there is none."""
    if not spans:
        return 0.0
    ordered = sorted(spans)
    covered, (begin, end) = 0.0, ordered[0]
    for a, b in ordered[1:]:
        if a > end:
            covered, begin, end = covered + end - begin, a, b
        else:
            end = max(end, b)
    covered += end - begin
    whole = end - ordered[0][0]
    return 1 - covered / whole if whole > 0 else 0.0


def straight(device: torch.device | str, backend: str, recipe: str = "at", net: str = "resnet18", batches: Sequence[int] = BATCHES,
             steps: Sequence[int] = ATTACK_STEPS, calls: int = 5) -> dict[str, Any]:
    """Milliseconds a step over images and over attack steps, and how far the middle one lies from the line through the outer ones."""
    device = torch.device(device)
    with numerics("fp32"):
        images = [1e3 * timed(subject(recipe, net, n=n, device=device, backend=backend), device, calls) for n in batches]
        ascents = [1e3 * timed(subject(recipe, net, n=batches[1], steps=k, device=device, backend=backend), device, calls) for k in steps]
    return {"batches": list(batches), "batch_ms": images, "off_by_batch": off_the_line(batches, images),
            "attack_steps": list(steps), "attack_ms": ascents, "off_by_steps": off_the_line(steps, ascents)}


def off_the_line(at: Sequence[float], values: Sequence[float]) -> float:
    """|middle value / its place on the line through the first and the last - 1|."""
    (a, m, b), (u, v, w) = at, values
    return abs(v / (u + (w - u) * (m - a) / (b - a)) - 1)


def first_step(device: torch.device | str, backend: str = "compiled", recipe: str = "at", net: str = "resnet18", batch: int = 128) -> float:
    """Seconds from a fresh network to the end of its first step, compiling included: in a process of its own that finds every cache empty."""
    with tempfile.TemporaryDirectory() as empty:
        env = {**os.environ, CACHE: empty}
        env.pop("TRITON_CACHE_DIR", None)                         # Triton's lies in the other one then
        command = [sys.executable, "-m", "composer.bench.gpu_looks", str(device), backend, recipe, net, str(batch)]
        return float(subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])


def first_step_here(device: torch.device | str, backend: str, recipe: str, net: str, batch: int) -> float:
    """The same in this process; caches of earlier runs on this machine shorten it."""
    device = torch.device(device)
    with numerics("fp32"):
        step = subject(recipe, net, n=batch, device=device, backend=backend)
        begin = time.perf_counter()
        step()
        wait(device)
        return time.perf_counter() - begin


if __name__ == "__main__":
    print(first_step_here(*sys.argv[1:5], int(sys.argv[5])), file=sys.stdout)
