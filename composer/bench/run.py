"""`composer bench`: passes, time and peak memory of the engine's steps beside faithful and hand-pruned plain loops.

Time is a ratio from interleaved rounds (`timer.py`), with a verdict on the machine's noise. The engine is held to at most 1.05 times the pruned
loop's time, or processor time where other programs made the clock useless. The pruned loop lies in memory as a plain program has it (contiguous);
where the engine lays images out by channels, the same loop in that layout runs beside it, so that a gain of the layout is not taken for a gain of
the engine. Beside each stands its time over the floor (`floor.py`), which says how much any implementation could still win.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from composer.bench import pruned, reference
from composer.bench.counter import count
from composer.bench.floor import floor_of
from composer.bench.machine import machine
from composer.bench.memory import peak_memory
from composer.bench.nets import CLASSES, batch, net
from composer.bench.pruned.mart_ours import zero_average
from composer.bench.subject import DECAY, EPS, LR, MOMENTUM, STEP, STEPS, numerics, subject
from composer.bench.timer import Timing, interleave
from composer.errors import ComposerError
from composer.plan.cost import plan_cost

LIMIT = 1.05                                                                  # engine's time over the pruned loop's
PRUNED = {"standard": "standard", "at": "at", "trades": "trades", "mart": "mart", "at_rice": "rice_at", "mart_ours": "mart_ours"}
FAITHFUL = {"at": "madry_eval", "trades": "trades", "mart": "mart", "at_rice": "rice_at"}
SAME_LAYOUT = "pruned, by channels"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Case:
    """One recipe on one network; `calls` steps are timed as one, and a noisy timing is taken `again` once."""

    recipe: str
    net: str
    batch: int
    calls: int = 1
    steps: int = STEPS
    again: bool = True


GPU_BACKENDS = ("eager", "graph", "compiled-graph")
JUDGED = ("at", "trades", "mart_ours")
QUICK = tuple(Case(recipe, "cnn8", 128) for recipe in JUDGED)
FULL = (*(Case(recipe, "small_cnn", 128) for recipe in JUDGED), Case("standard", "cnn8", 128, 8), Case("mart", "cnn8", 128),
        Case("at_rice", "cnn8", 128), *(Case(recipe, "cnn28", 64) for recipe in JUDGED), *(Case(recipe, "resnet18", 8, again=False) for recipe in JUDGED))
GPU = tuple(Case(recipe, "resnet18", 128) for recipe in JUDGED)
GPU_FULL = (Case("at", "cnn28", 512), Case("at_rice", "resnet18", 128), Case("at", "resnet18", 512))


def plain_loop(library: Any, loop: str, case: Case, device: torch.device | str = "cpu", by_channels: bool = False) -> Callable[[], Any]:
    """A step of a plain loop with its own network and optimiser; it draws its noise, as a program would."""
    model, (x, y) = net(case.net).to(device), batch(case.net, case.batch, device=device)
    layout = torch.channels_last if by_channels else torch.contiguous_format
    model, x = model.to(memory_format=layout), x.contiguous(memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    options: dict[str, Any] = {} if loop == "standard" else {"eps": EPS, "step_size": STEP, "steps": case.steps}
    if library is reference and loop in reference.WITH_PROXY:
        options["proxy"] = copy.deepcopy(model)
    if loop == "mart_ours":
        options["average"] = zero_average(case.batch, CLASSES, device)
    draw = torch.rand if library.START[loop] == "uniform" else torch.randn
    generator = torch.Generator(device).manual_seed(0)

    def step() -> Any:
        noise = draw(x.shape, generator=generator, device=device).contiguous(memory_format=layout)
        return library.STEPS[loop](model, optimizer, x, y, noise, **options)

    step.model = model  # type: ignore[attr-defined]
    return step


def variants(case: Case, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The steps that are set against each other, by name; each has its network as `.model`."""
    found: dict[str, Any] = {}
    if case.recipe in FAITHFUL:
        found["reference"] = plain_loop(reference, FAITHFUL[case.recipe], case, device)
    found["pruned"] = plain_loop(pruned, PRUNED[case.recipe], case, device)
    found[SAME_LAYOUT] = plain_loop(pruned, PRUNED[case.recipe], case, device, by_channels=True)
    found["engine"] = subject(case.recipe, case.net, n=case.batch, steps=case.steps, device=device)
    return found


def measure(case: Case, *, rounds: int, device: torch.device | str = "cpu") -> tuple[dict[str, Any], str]:
    """One case: passes (on paper and made), times, the floor, peak memory above what each variant holds between steps; and the times as a table."""
    steps = variants(case, device)
    passes = {name: count(step.model, step, case.batch) for name, step in steps.items() if name != SAME_LAYOUT}
    paper = plan_cost(steps["engine"].plan)
    timing = interleave(steps, rounds=rounds, base="pruned", calls=case.calls, again=case.again)
    floor = floor_of(steps["engine"])
    memory = {name: peak_memory(step, device) for name, step in steps.items()}
    return {"recipe": case.recipe, "net": case.net, "batch": case.batch, "attack_steps": case.steps,
            "passes": {name: {**made.as_dict(), "units": made.units} for name, made in passes.items()},
            "passes_on_paper": {"forward": paper.forward, "dgrad": paper.dgrad, "wgrad": paper.wgrad, "units": paper.units},
            "timing": timing.as_dict(), "over_pruned": against(timing, "pruned", device), "over_pruned_same_layout": against(timing, SAME_LAYOUT, device),
            "limit": LIMIT, "floor": floor.as_dict(timing), "peak_bytes": memory}, floor.table(timing)


def against(timing: Timing, other: str, device: torch.device | str) -> dict[str, float | None]:
    """The engine's time over another variant's: by the clock, and (on a CPU) by processor time."""
    on_cpu = torch.device(device).type == "cpu"
    return {"time": timing.over("engine", other), "processor": timing.over("engine", other, processor=True) if on_cpu else None}


def bench(*, full: bool = False, gpu: bool = False, rounds: int = 7, threads: int = 1, cases: tuple[Case, ...] | None = None,
          say: Say = lambda line: None) -> dict[str, Any]:
    """The whole report as plain data; `say` is told it piece by piece, for reading, as it grows.

    Errors: ComposerError where a GPU is asked for and there is none, or a number is not positive.
    """
    if gpu and not torch.cuda.is_available():
        raise ComposerError("composer bench --gpu needs a CUDA device, and PyTorch finds none here.")
    if min(rounds, threads) < 1:
        raise ComposerError(f"--rounds {rounds} --threads {threads}", where="command line", why="both are at least 1")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    device = "cuda" if gpu else "cpu"
    try:
        report: dict[str, Any] = {"machine": machine(device), "rounds": rounds, "cases": []}
        say(", ".join(f"{name} {' '.join(map(str, value)) if isinstance(value, list) else value}" for name, value in report["machine"].items()))
        for case in chosen(full, gpu) if cases is None else cases:
            with numerics("fp32"):
                found, table = measure(case, rounds=rounds, device=device)
            report["cases"].append(found)
            say(case_text(found, table))
        if gpu:
            from composer.bench.gpu import epochs

            say("")
            report["epochs"] = epochs(device, whole=full, backends=GPU_BACKENDS if full else GPU_BACKENDS[:2], say=say)
            if not full:
                report["epochs"] += epochs(device, recipes=("at",), precisions=("bf16",), backends=GPU_BACKENDS[2:], say=say)
            from composer.bench.gpu_gates import measure as gates

            report["gates"] = gates(device, report["epochs"], report["cases"], say=say)
        report["machine"]["load_after"] = machine(device)["load"]
        return report
    finally:
        torch.set_num_threads(before)


def chosen(full: bool, gpu: bool) -> tuple[Case, ...]:
    first, more = (GPU, GPU_FULL) if gpu else (QUICK, FULL)
    return (*first, *more) if full else first


def case_text(case: dict[str, Any], table: str) -> str:
    units = ", ".join(f"{name} {made['units']}" for name, made in case["passes"].items())
    memory = ", ".join(f"{name} {size / 2**20:.2f}" for name, size in case["peak_bytes"].items())
    plain, same = case["over_pruned"], case["over_pruned_same_layout"]
    by_processor = plain["processor"] is not None and case["timing"]["noisy"]
    verdict = f"{'within' if plain['processor' if by_processor else 'time'] <= LIMIT else 'OVER'} the limit of {LIMIT}"
    said = [f"{r['time']:.3f}" + ("" if r["processor"] is None else f" (processor time {r['processor']:.3f})") for r in (plain, same)]
    return "\n".join([
        "", f"{case['recipe']} on {case['net']}, batch {case['batch']}, {case['attack_steps']} attack steps",
        f"passes in units: {units}; on paper {case['passes_on_paper']['units']}", table,
        f"engine's time over the pruned loop's: {said[0]}; in the same layout {said[1]}",
        f"{verdict}{', judged by processor time, as the clock was noisy' if by_processor else ''}",
        f"peak memory in MiB: {memory}"])
