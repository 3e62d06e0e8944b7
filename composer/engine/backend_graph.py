"""The executor of the backend `graph`: a step from its images to its gradients, recorded once for each shape of a batch and replayed.

One recording holds the prelude, every step of every inner maximum, the outer program and its backward, gradients of gradients too, so that a step
costs the host one launch. Inputs are copied into fixed buffers first: images, labels, indices, and the noise, which is drawn outside as ever.
Everything else (weights, running statistics, what schedules move, the memory of parts) is read where it lies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from composer.engine.backend_compiled import CompiledExecutor, Ready, Say
from composer.engine.backend_program import Refused, first_line
from composer.engine.buffers import Buffers, Unchanged, shapes
from composer.engine.climb import Env
from composer.engine.step import Executor
from composer.engine.trained import networks
from composer.plan.types import Plan

WARMUP = 3          # calls on a side stream before a recording: libraries choose their algorithms and workspaces in them
Step = Callable[[], list[Tensor]]


class Recorder(Protocol):
    """Turns a step without arguments into one that is replayed: (replay, the tensors it leaves its results in)."""

    def record(self, step: Step) -> tuple[Callable[[], None], list[Tensor]]: ...


class CudaGraphs:
    """Recordings as CUDA graphs. They share one pool of memory: never two of them run at a time, and results are read before the next."""

    def __init__(self) -> None:
        self._pool: Any = None

    def record(self, step: Step) -> tuple[Callable[[], None], list[Tensor]]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARMUP):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            made = step()
        self._pool = self._pool or graph.pool()
        return graph.replay, made


class _Recorded(Executor):
    """Stands before an executor's class: what that one does in a step is recorded, and replayed from then on."""

    def __init__(self, plan: Plan, net: Any, parts: dict[str, Any], *rest: Any, recorder: Recorder | None = None, say: Say = lambda text: None,
                 keep: frozenset[str] = frozenset(), tail: int = 0, **more: Any):
        compiles = {"say": say, "keep": keep} if isinstance(self, CompiledExecutor) else {}
        super().__init__(plan, net, parts, *rest, **compiles, **more)
        self.recorder, self.say = recorder or CudaGraphs(), say
        self._asked = self._later | keep
        self._trained = [*net.parameters.values(), *(p for network in networks(parts).values() for p in network.parameters())]
        self._recordings: dict[Any, _Recording] = {}
        self._noise: dict[str, Tensor] | None = None
        self._refusal = unrecordable(plan, net)
        if self._refusal:
            say(f"steps are not recorded, they run eagerly: {self._refusal}")

    def forward(self, roots: Env, step: int) -> tuple[Tensor, Tensor, Env]:
        if self._refusal:
            return super().forward(roots, step)
        inputs = self._inputs(roots, step)
        key = shapes(inputs)
        if key not in self._recordings:
            try:
                self._recordings[key] = self._record(roots, inputs, step)
            except Refused as refusal:
                self._refusal = str(refusal)
                self.say(f"steps are not recorded, they run eagerly: {refusal}")
                return super().forward(roots, step)
        recording = self._recordings[key]
        recording.buffers.load(inputs)
        recording.replay()
        total, means, kept, grads = recording.read()
        parameters = [p for p in self._trained if p.requires_grad]
        return Ready.apply(total, grads, *parameters), means, {**roots, **kept}

    def _inputs(self, roots: Env, step: int) -> dict[str, Tensor]:
        """The step's tensors by name, its noise among them."""
        found = {name: value for name, value in roots.items() if isinstance(value, Tensor)}
        self.step = step
        for inner in self.plan.inner:
            for _, draw in inner.draws:
                for k, noise in enumerate(super()._draw(draw, roots["x"], draw.count)):
                    found[f"@draw/{draw.path}/{k}"] = noise
        return found

    def _draw(self, draw: Any, like: Tensor, count: Any) -> list[Tensor]:
        if self._noise is None:
            return super()._draw(draw, like, count)
        many = int(count) if not isinstance(count, str) else 1
        return [self._noise[f"@draw/{draw.path}/{k}"].clone() for k in range(many)]        # the callee's to consume

    def _record(self, roots: Env, inputs: dict[str, Tensor], step: int) -> _Recording:
        buffers = Buffers(inputs)
        fixed = {**roots, **{name: value for name, value in buffers.held.items() if not name.startswith("@draw/")}}
        made = _Recording(buffers)
        self._noise = buffers.held
        try:
            with Unchanged(self.net.stats):
                made.replay, made.results = self.recorder.record(lambda: self._step_of(made, fixed, step))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 (a recording fails with whatever the recorded code or the device raises)
            raise Refused(first_line(error)) from None
        finally:
            self._noise = None
        return made

    def _step_of(self, recording: _Recording, roots: Env, step: int) -> list[Tensor]:
        """The step as one function of what lies in fixed places; what its results are is written into the recording."""
        total, means, env = super().forward(dict(roots), step)
        grads = torch.autograd.grad(total, [p for p in self._trained if p.requires_grad], allow_unused=True)
        kept = {k: v.detach() for k, v in env.items() if isinstance(v, Tensor) and k not in roots and (k.startswith("stats/") or k in self._asked)}
        weights = {name: w.detach() for name, w in env.get("weights", {}).items()}
        recording.kept, recording.weights, recording.reached = list(kept), list(weights), [g is not None for g in grads]
        return [total.detach(), means, *kept.values(), *weights.values(), *(g for g in grads if g is not None)]


def recorded(base: type[Executor]) -> type[Executor]:
    """The class of executors that record what those of `base` do."""
    return type(f"Recorded{base.__name__}", (_Recorded,) if base is Executor else (_Recorded, base), {})


class _Recording:
    """A recorded step, its inputs' places, and which of its results is what."""

    def __init__(self, buffers: Buffers):
        self.buffers = buffers
        self.replay: Callable[[], None] = lambda: None
        self.results: list[Tensor] = []
        self.kept: list[str] = []
        self.weights: list[str] = []
        self.reached: list[bool] = []

    def read(self) -> tuple[Tensor, Tensor, Env, list[Tensor | None]]:
        """(total, means, tensors by name, gradients). Copies, for the next replay writes over them; weights and gradients are used up before that."""
        total, means, *rest = self.results
        kept: Env = {name: value.clone() for name, value in zip(self.kept, rest)}
        rest = rest[len(self.kept):]
        if self.weights:
            kept["weights"] = dict(zip(self.weights, rest))
        found = iter(rest[len(self.weights):])
        return total.clone(), means.clone(), kept, [next(found) if there else None for there in self.reached]


def unrecordable(plan: Plan, net: Any) -> str:
    """Why a plan's steps cannot be replayed, or ''."""
    passes = [p for program in (plan.prelude, plan.outer, *(q for i in plan.inner for q in (i.preamble, i.body))) for p in program.passes]
    if net.stochastic and any(p.batch for p in passes):
        return "the network draws in its forward"
    moving = [i.id for i in plan.inner if isinstance(i.climbs, str)]
    return f"a schedule moves the number of steps of {moving[0]}" if moving else ""
