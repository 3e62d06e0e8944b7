"""What compiling takes and gains, in processor time, which other programs on the machine move less than the clock:

    python -m composer.bench.compiling at resnet18 --batch 8 --rounds 7

One thread. First the step that compiles, from an empty cache; then as many later ones of `compiled` and `folded` by turns; then the first step of
another process that finds the cache full.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch

from composer.bench.subject import numerics, subject

CACHE = "TORCHINDUCTOR_CACHE_DIR"


def spent(call: Callable[[], Any]) -> dict[str, float]:
    """Seconds of a call: processor time of this process, of the processes it waited for (g++), and of the clock."""
    before, own, begin = os.times(), time.process_time(), time.perf_counter()
    call()
    clock, own, after = time.perf_counter() - begin, time.process_time() - own, os.times()
    return {"process": own, "children": after.children_user + after.children_system - before.children_user - before.children_system, "clock": clock}


def measure(recipe: str, net: str, batch: int, rounds: int) -> dict[str, Any]:
    """The first step of `compiled`; with rounds, processor time of a step of both backends and the median share that compiling saves of a folded one."""
    torch.set_num_threads(1)
    with numerics("fp32"):
        steps = {name: subject(recipe, net, n=batch, backend=name) for name in ("folded", "compiled")}
        steps["folded"]()
        found: dict[str, Any] = {"recipe": recipe, "net": net, "batch": batch, "first": spent(steps["compiled"])}
        times: dict[str, list[float]] = {name: [] for name in steps}
        for k in range(rounds):
            for name in sorted(steps, reverse=k % 2 == 1):
                times[name].append(spent(steps[name])["process"])
        if rounds:
            found["step"] = {name: min(seen) for name, seen in times.items()}
            found["gain"] = statistics.median(1 - fast / slow for fast, slow in zip(times["compiled"], times["folded"]))
    return found


def text(found: dict[str, Any], cache: str) -> str:
    first = found["first"]
    said = (f"{found['recipe']} on {found['net']}, batch {found['batch']}, {cache} cache: first step {first['process'] + first['children']:.1f} s of "
            f"processor time ({first['process']:.1f} s this process, {first['children']:.1f} s g++), {first['clock']:.1f} s by the clock")
    if "step" in found:
        steps = ", ".join(f"{name} {value * 1e3:.0f} ms" for name, value in found["step"].items())
        said += f"\na later step: {steps}; compiling saves {found['gain']:.1%} of it"
    return said


def main() -> None:
    asked = argparse.ArgumentParser(prog="python -m composer.bench.compiling", description="What compiling takes and gains, in processor time.")
    asked.add_argument("recipe")
    asked.add_argument("net")
    asked.add_argument("--batch", type=int, default=8)
    asked.add_argument("--rounds", type=int, default=7, help="of later steps; 0: only the first")
    asked.add_argument("--json", action="store_true")
    asked.add_argument("--cache", default="", help="a cache to read; empty: from an empty one, and then once more in a second process")
    given = asked.parse_args()
    with tempfile.TemporaryDirectory() as empty:
        os.environ[CACHE] = given.cache or empty
        found = measure(given.recipe, given.net, given.batch, given.rounds)
        print(json.dumps(found) if given.json else text(found, "full" if given.cache else "empty"), file=sys.stdout, flush=True)
        if not given.cache:
            more = ["--json"] if given.json else []
            subprocess.run([sys.executable, "-m", "composer.bench.compiling", given.recipe, given.net, "--batch", str(given.batch), "--rounds", "0",
                            "--cache", empty, *more], check=True)


if __name__ == "__main__":
    main()
