"""What runs a plan's steps: `eager`, the truth, and the faster ones that `composer bench --backends` holds against it.

    eager            PyTorch, call by call
    folded           on a CPU: attacks in eval mode climb a prepared network (`models/packed.py`); nothing is compiled
    compiled         programs with their backward as graphs that torch.compile's compiler lowers; on a CPU folded attacks besides
    graph            on a CUDA device: a whole step recorded as one CUDA graph
    compiled-graph   both: compiled programs within the recording
    auto             one of them, by device, length of the run and cost of compiling; `resolve` has the rule
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from composer.errors import ComposerError, suggest
from composer.plan.types import Cost, Plan

NAMES = ("eager", "folded", "compiled", "graph", "compiled-graph")
LEGAL = ("auto", *NAMES)
FLOPS_PER_SECOND = 1.2e11        # of one core in training, for the rule of `auto`
SECONDS_PER_PROGRAM, SECONDS_PER_PASS = 8.0, 0.07      # of compiling, measured on such a core
GAIN = 0.03                      # what compiling saves of the arithmetic it compiles, on a CPU


@dataclass(frozen=True)
class Choice:
    """A backend, and why it was chosen ('' where the user did)."""

    name: str
    why: str = ""


@dataclass(frozen=True)
class Work:
    """What is known of a run before it begins: what a compiler would make of it.

    flops       arithmetic of the run within compiled programs; attacks that are folded instead are not in it
    programs    how many of them
    passes      layers with weights that these go through, forwards and both kinds of gradients counted one by one
    """

    flops: float
    programs: int
    passes: float
    convolves: bool
    attacks: bool               # some inner maximum over images
    recordable: str = ""        # why steps cannot be recorded, or ''


@dataclass
class Backend:
    """Makes the executors of one run. `notes` is what was chosen and why, and what runs eagerly although it was asked otherwise, with the reason."""

    name: str = "eager"
    notes: list[str] = field(default_factory=list)
    say: Callable[[str], None] | None = None
    lower: Any = None                 # in place of the compiler
    recorder: Any = None              # in place of CUDA graphs

    def tell(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
            if self.say:
                self.say(text)

    def speak(self, say: Callable[[str], None]) -> None:
        """Say what there is to say so far, and from now on at once."""
        self.say = say
        for text in self.notes:
            say(text)

    def executor(self, plan: Plan, net: Any, parts: dict[str, Any], streams: Any, *, keep: frozenset[str] = frozenset(), tail: int = 0,
                 **more: Any) -> Any:
        """keep: tensors that are read after a step, beside those of the plan's moments. tail: rows of an epoch's smaller last batch, or 0."""
        from composer.engine.step import Executor

        if self.name == "eager":
            return Executor(plan, net, parts, streams, **more)
        from composer.engine.backend_compiled import CompiledExecutor, FoldedExecutor

        if self.name == "folded":
            return FoldedExecutor(plan, net, parts, streams, say=self.tell, **more)
        lowered = {"lower": self.lower} if self.lower is not None else {}
        if self.name == "compiled":
            return CompiledExecutor(plan, net, parts, streams, say=self.tell, keep=keep, tail=tail, **lowered, **more)
        from composer.engine.backend_graph import recorded

        if self.name == "graph":
            return recorded(Executor)(plan, net, parts, streams, say=self.tell, keep=keep, recorder=self.recorder, **more)
        return recorded(CompiledExecutor)(plan, net, parts, streams, say=self.tell, keep=keep, recorder=self.recorder, **lowered, **more)


def backend_of(asked: str, device: torch.device, work: Callable[[], Work]) -> Backend:
    """The backend of a run, with a word on why where it chose itself."""
    choice = resolve(asked, device, work)
    made = Backend(choice.name)
    if choice.why:
        made.tell(f"backend {choice.name}: {choice.why}")
    return made


def resolve(asked: str, device: torch.device, work: Callable[[], Work], where: str = "--backend") -> Choice:
    """The backend that is meant. The rule of `auto`, which looks at nothing that a second sitting of the same run might find otherwise:

    CUDA   graph, where steps can be recorded; else eager
    CPU    compiled, where 3 % of the arithmetic in its programs at 120 GFLOP/s is more than compiling takes (8 s a program and 0.07 s for each
           pass of a layer in it); else folded, where an attack meets convolutions; else eager

    Errors: ComposerError where the name is none, or the machine lacks what it needs.
    """
    if asked not in LEGAL:
        raise ComposerError(f"unknown backend '{asked}'", where=where, why=f"legal are {', '.join(LEGAL)}", fix=suggest(asked, LEGAL, "values"))
    if asked == "auto":
        return _auto(device, work())
    if "graph" in asked and device.type != "cuda":
        raise ComposerError(f"backend '{asked}' records CUDA graphs, and this run is on {device.type}", where=where,
                            fix="--backend auto, folded or compiled")
    if asked == "folded" and device.type != "cpu":
        raise ComposerError(f"backend 'folded' prepares the network for a CPU, and this run is on {device.type}", where=where,
                            fix="--backend auto or graph")
    if "compiled" in asked and not compiler(device):
        raise ComposerError(f"backend '{asked}' needs a C++ compiler, and none is on the path", where=where,
                            fix="install g++, or --backend folded or eager")
    return Choice(asked)


def _auto(device: torch.device, work: Work) -> Choice:
    if device.type == "cuda":
        if work.recordable:
            return Choice("eager", f"steps cannot be recorded: {work.recordable}")
        return Choice("graph", "one launch a step, where eager has hundreds")
    if device.type != "cpu":
        return Choice("eager", f"the others know nothing of {device.type}")
    seconds, cost = work.flops / FLOPS_PER_SECOND, work.programs * SECONDS_PER_PROGRAM + work.passes * SECONDS_PER_PASS
    said = f"about {cost:.0f} s of compiling against {GAIN:.0%} of some {seconds:.0f} s of arithmetic in what it compiles"
    if GAIN * seconds > cost and compiler(device):
        return Choice("compiled", said)
    lacks = "" if compiler(device) else " and no C++ compiler is here"
    if work.attacks and work.convolves:
        return Choice("folded", said + lacks)
    return Choice("eager", f"{said}{lacks}; no attack on convolutions to prepare for")


def compiler(device: torch.device) -> bool:
    """Whether programs can be compiled: on a CPU that takes a C++ compiler."""
    return device.type != "cpu" or any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++", "c++") if name)


def work_of(plans: list[tuple[Plan, int]], net: Any, shape: tuple[int, int, int], classes: int, batch: int) -> Work:
    """What a run's stretches amount to; each plan with its number of steps."""
    from composer.engine.backend_graph import unrecordable

    convolves = any(isinstance(m, nn.Conv2d) for m in net.model.modules())
    layers = sum(isinstance(m, (nn.Conv2d, nn.Linear, nn.modules.batchnorm._BatchNorm)) for m in net.model.modules())
    found = [(once.at(classes).units, run.at(classes).units * steps) for plan, steps in plans for once, run in compilable(plan, net, convolves)]
    return Work(flops=float(sum(run for _, run in found)) * batch * products(net, shape), programs=len(found),
                passes=float(layers * sum(once for once, _ in found)), convolves=convolves,
                attacks=any(not i.over_weights for plan, _ in plans for i in plan.inner),
                recordable=next(filter(None, (unrecordable(plan, net) for plan, _ in plans)), ""))


def compilable(plan: Plan, net: Any, convolves: bool) -> list[tuple[Cost, Cost]]:
    """For each program that `compiled` would compile of a plan: the cost of one run of it, and of what a step makes of it."""
    from composer.engine.backend_compiled import unpackable
    from composer.plan.cost import inner_cost, program_cost

    outer = program_cost(plan.outer, weights=True)
    found = [(plan.outer, outer, outer)]
    found += [(i.body, program_cost(i.body, weights=i.over_weights), inner_cost(i)) for i in plan.inner if unpackable(i, net) or not convolves]
    return [(once, run) for program, once, run in found if not (net.stochastic and any(p.batch for p in program.passes))]


def products(net: Any, shape: tuple[int, int, int]) -> int:
    """Floating-point operations of one image's forward in convolutions and linear layers, two a multiply-add."""
    total = 0

    def hook(module: nn.Module, _: Any, output: torch.Tensor) -> None:
        nonlocal total
        total += 2 * output.numel() * (module.weight[0].numel())  # type: ignore[union-attr,operator,index]

    handles = [m.register_forward_hook(hook) for m in net.model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    try:
        with torch.no_grad():
            net(torch.zeros(1, *shape, device=net.device, dtype=net.dtype), batch=False)
    finally:
        for handle in handles:
            handle.remove()
    return total


def sources(name: str) -> dict[str, str]:
    """The files outside the engine that a backend's bits depend on, by digest: they are in a run's key."""
    from pathlib import Path

    from composer import models
    from composer.engine.keys import file_digest

    files = [] if name in ("eager", "graph") else sorted(Path(models.__path__[0]).glob("packed*.py"))
    return {file.name: file_digest(file) for file in files}


def tail_of(feed: Any) -> int:
    """Rows of the smaller last batch of an epoch, or 0."""
    own, rows = getattr(feed, "own", 0), getattr(feed, "rows", ())
    rest = len(rows) - (feed.steps - 1) * own
    return rest + feed.from_extra if own and 0 < rest < own else 0
