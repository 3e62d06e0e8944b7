"""How many times faster than the authors' loops: `composer bench --reference`, with the gates that a release is held to.

Each case interleaves the faithful loop, the same loop pruned by hand, and the engine on one or several backends, in one process. A ratio is the
faithful loop's time over a variant's, paired by round. Passes are counted first: they are exact. A noisy timing has no verdict. Beside each stands
its time over the floor (`floor.py`), which says how much any implementation could still win.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from composer.bench import pruned, reference
from composer.bench.backends import backends
from composer.bench.backends import known as known_backends
from composer.bench.counter import count
from composer.bench.floor import floor_of
from composer.bench.machine import machine
from composer.bench.run import FAITHFUL, PRUNED, Case, plain_loop
from composer.bench.subject import numerics, subject
from composer.bench.timer import Timing, interleave
from composer.errors import ComposerError

LOOPS = {**FAITHFUL, "awp_trades": "trades_awp"}
HAND = {**PRUNED, "awp_trades": "trades_awp"}
LEAST = 7               # rounds
SAID = {"noisy": "no verdict, noisy", "target": "reaches the target", "gate": "passes the gate", "below": "BELOW THE GATE"}
Say = Callable[[str], None]


@dataclass(frozen=True)
class Gate:
    """A case and the ratios it is held to: the least, and what is aimed at."""

    recipe: str
    net: str
    batch: int
    gate: float
    target: float


GATES = (Gate("trades", "cnn28", 128, 1.7, 2.0), Gate("awp_trades", "cnn28", 128, 1.38, 1.9), Gate("at_rice", "cnn28", 128, 1.7, 2.1),
         Gate("at", "cnn28", 128, 1.25, 1.45), Gate("mart", "cnn28", 128, 1.25, 1.45), Gate("trades", "resnet18", 8, 1.40, 1.50),
         Gate("at", "resnet18", 8, 0.98, 1.05), Gate("mart", "resnet18", 8, 0.98, 1.05))


def gates(recipes: Sequence[str] = (), *, names: Sequence[str] = (), rounds: int = LEAST, threads: int = 1, cases: Sequence[Gate] = GATES,
          say: Say = lambda line: None) -> dict[str, Any]:
    """Every case of these recipes (all, where none is named), on these backends (eager and all that the machine has, where none is named).

    Errors: ComposerError where a recipe has no case, or rounds are fewer than 7.
    """
    if rounds < LEAST or threads < 1:
        raise ComposerError(f"--rounds {rounds} --threads {threads}", where="command line", why=f"a median of fewer than {LEAST} rounds says little")
    known = sorted({c.recipe for c in cases})
    for recipe in recipes:
        if recipe not in known:
            raise ComposerError(f"no faithful loop to hold '{recipe}' against", where="command line", fix=f"one of {', '.join(known)}")
    known_backends([name for name in names if name != "auto"], "cpu")
    names = names or ["eager", *backends()]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        report: dict[str, Any] = {"machine": machine("cpu"), "rounds": rounds, "cases": []}
        say(", ".join(f"{name} {' '.join(map(str, value)) if isinstance(value, list) else value}" for name, value in report["machine"].items()))
        for case in cases:
            if not recipes or case.recipe in recipes:
                with numerics("fp32"):
                    report["cases"].append(measure(case, names, rounds, say))
        return report
    finally:
        torch.set_num_threads(before)


def measure(gate: Gate, names: Sequence[str], rounds: int, say: Say) -> dict[str, Any]:
    """One case: passes, seconds of the first step of each backend (compiling is in it), times, the floor, verdicts."""
    case = Case(gate.recipe, gate.net, gate.batch)
    steps: dict[str, Any] = {"faithful": plain_loop(reference, LOOPS[gate.recipe], case), "pruned": plain_loop(pruned, HAND[gate.recipe], case)}
    steps |= {name: subject(gate.recipe, gate.net, n=gate.batch, backend=name) for name in names}
    first = {name: seconds(steps[name]) for name in names}
    units = {name: count(step.model, step, gate.batch).units for name, step in steps.items()}
    timing = interleave(steps, rounds=rounds, base="faithful", warmup=1)
    floor = floor_of(steps[names[0]])
    found = {"recipe": gate.recipe, "net": gate.net, "batch": gate.batch, "gate": gate.gate, "target": gate.target, "units": units,
             "first_step_s": first, "ratios": {name: timing.variants[name].ratio for name in names}, "verdicts": {name: verdict(timing, name, gate) for name in names},
             "notes": {name: steps[name].session.backend.notes for name in names}, "timing": timing.as_dict(), "floor": floor.as_dict(timing)}
    say(text(found, floor.table(timing)))
    return found


def seconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def verdict(timing: Timing, name: str, gate: Gate) -> str:
    if timing.noisy:
        return "noisy"
    ratio = timing.variants[name].ratio
    return "target" if ratio >= gate.target else "gate" if ratio >= gate.gate else "below"


def text(found: dict[str, Any], table: str) -> str:
    units = ", ".join(f"{name} {n}" for name, n in found["units"].items())
    lines = ["", f"{found['recipe']} on {found['net']}, batch {found['batch']}: units {units}", table]
    for name, ratio in found["ratios"].items():
        lines.append(f"{name}: {ratio:.2f} times as fast as the faithful loop (gate {found['gate']}, target {found['target']}): "
                     f"{SAID[found['verdicts'][name]]}; first step {found['first_step_s'][name]:.1f} s")
    return "\n".join(lines)


def passed(report: dict[str, Any]) -> bool:
    """No case of which every backend stays below the gate; a noisy one does not fail."""
    return all(any(v != "below" for v in case["verdicts"].values()) for case in report["cases"])
