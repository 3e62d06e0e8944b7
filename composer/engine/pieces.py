"""One training step in pieces: rows of the batch go through the attack and the outer program a few at a time, and their gradients add up.

The sum of the terms is a mean over N images, so the mean over each piece, weighted by its share of the rows, has the same gradient to rounding
wherever an image's numbers depend on nothing but the image: no train-mode batch norm, no coupled term. Every draw is made for the whole batch and cut
(`streams.Rows`, `masks`), so it does not depend on the division. An inner maximum over weights sees all pieces at each of its gradients.
Batch norm takes its statistics over a piece; what is written to the running statistics, as often as without pieces, is the pieces' weighted mean.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from composer.engine.climb import Env
from composer.engine.step import Executor, Numbers
from composer.engine.streams import Rows
from composer.inner.ascent import Ascent
from composer.plan.types import InnerPlan, Pass, Plan, Program

WHOLE = frozenset({"model", "weights", "head_weight", "head_scale", "epoch"})      # no rows of the batch


def cuts(n: int, size: int) -> list[tuple[int, int]]:
    """The fewest pieces of at most `size` rows, alike to one row: a small last piece would have poor batch statistics."""
    many = -(-n // size)
    edges = [n * k // many for k in range(many + 1)]
    return list(itertools.pairwise(edges))


class Pieces(Executor):
    """An eager executor of the same plan, network, parts, streams and dials as another one, for a divided batch.

    reads   slots that the meter wants of the whole batch, beside those that moments want
    """

    def __init__(self, plan: Plan, net: Any, parts: dict[str, Any], streams: Any, *, numbers: Numbers, threat_eps: float, reads: frozenset[str]):
        super().__init__(plan, net, parts, streams, threat_eps=threat_eps)
        self.numbers, self.all_rows, self.reads = numbers, streams, reads
        self._over_weights = {i.id: self._body(i) for i in plan.inner if i.over_weights}
        self.bounds: list[tuple[int, int]] = []
        self.piece, self.handed = 0, [[]]      # which one is at work; per piece, the batch statistics that its passes handed out

    def _body(self, inner: InnerPlan) -> tuple[list[Any], list[Any]]:
        return tuple([self._op(s, writes=inner.writes and isinstance(s, Pass)) for s in p.steps] for p in (inner.preamble, inner.body))  # type: ignore[return-value]

    def run(self, roots: Env, step: int, size: int) -> tuple[Tensor, Tensor, Env]:
        """As Executor.forward with the backward behind it: the sum, the terms' means [T], and what later moments read, of the whole batch."""
        self.step = step
        self.bounds = cuts(len(roots["y"]), size)
        envs = [self._begin(roots, k) for k in range(len(self.bounds))]
        self.net.freeze(True)
        try:
            for inner, run in zip(self.plan.inner, self._inner, strict=True):
                self._climb_all(inner, run, envs)
        finally:
            self.net.freeze(False)
        total, means = 0.0, 0.0
        for k, env in enumerate(envs):
            with self._at(k) as share:
                loss, values = self._close(env)
                (share * loss).backward()
                total, means = total + share * loss.detach(), means + share * values
        return total, means, self._joined(roots, envs)  # type: ignore[return-value]

    # -- the pieces ----------------------------------------------------------------------------------------------------------------

    @contextmanager
    def _at(self, k: int) -> Iterator[float]:
        """Within, draws, masks and parts' memories are those of piece k; its share of the rows."""
        first, stop = self.bounds[k]
        whole = self.bounds[-1][1]
        placed = [part for part in self.parts.values() if hasattr(part, "offset")]
        self.piece, self.streams = k, Rows(self.all_rows, first, stop, whole)
        self.net.see((first, stop, whole))
        for part in placed:
            part.offset = first
        try:
            yield (stop - first) / whole
        finally:
            self.piece, self.streams = 0, self.all_rows
            self.net.see(None)
            for part in placed:
                part.offset = 0

    def _begin(self, roots: Env, k: int) -> Env:
        first, stop = self.bounds[k]
        env: Env = {name: value[first:stop] if isinstance(value, Tensor) and name not in WHOLE else value for name, value in roots.items()}
        env["@threat.eps"] = self.threat_eps
        if self._head:
            env.update(self.net.head_roots())
        with self._at(k), torch.no_grad():
            for op in self._prelude:
                op(env)
        return env

    def _climb_all(self, inner: InnerPlan, run: Any, envs: list[Env]) -> None:
        self.handed = [[] for _ in envs]
        if inner.over_weights:
            self._climb_weights(inner, envs)
            return
        for k, env in enumerate(envs):
            with self._at(k):
                run(env)
        self._write_handed()

    def _close(self, env: Env) -> tuple[Tensor, Tensor]:
        """The outer program of a piece: its sum, and its terms' means."""
        if self._head and "weights" in env:
            env.update(self.net.head_roots(env["weights"]))
        for op in self._outer:
            op(env)
        means = [self._mean(t, env) for t in self.plan.outer.terms]
        loss = sum((self._weigh(t.weight, mean) for t, mean in zip(self.plan.outer.terms, means)), start=0.0)
        self.forget(env, self.reads)
        return loss, torch.stack([m.detach() for m in means])  # type: ignore[return-value]

    def _joined(self, roots: Env, envs: list[Env]) -> Env:
        """Rows put together again, statistics averaged, the rest as it is."""
        env = dict(roots)
        for slot, value in envs[0].items():
            if slot.startswith("stats/"):
                env[slot] = self._averaged([each[slot] for each in envs])
            elif slot not in env:
                rows = isinstance(value, Tensor) and slot not in WHOLE and value.dim() > 0 and value.shape[0] == self.bounds[0][1]
                env[slot] = torch.cat([self._detached(each[slot]) for each in envs]) if rows else value
        return env

    # -- running statistics --------------------------------------------------------------------------------------------------------

    def _write(self, program: Program, env: Env, inner: InnerPlan) -> None:
        """Kept until every piece has handed out its own."""
        if inner.writes and self.net.stats is not None:
            self.handed[self.piece] += [env["stats/" + p.outs[0]] for p in program.passes if p.batch]

    def _write_handed(self) -> None:
        for statistics in zip(*self.handed, strict=True):
            self.net.stats.write(self._averaged(statistics))  # type: ignore[union-attr]
        self.handed = [[] for _ in self.handed]

    def _averaged(self, values: Any) -> Tensor:
        whole = self.bounds[-1][1]
        return sum((value * ((stop - first) / whole) for value, (first, stop) in zip(values, self.bounds, strict=True)), start=0.0)  # type: ignore[return-value]

    def after(self, env: Env, n: int, size: int) -> None:  # type: ignore[override]
        """As Executor.after, for a batch of n images."""
        self.bounds = cuts(n, size)
        for point in self.plan.after if self.net.stats is not None else ():
            found = []
            for k, (first, stop) in enumerate(self.bounds):
                found.append(self.net.stats.scratch())
                with self._at(k), torch.no_grad():
                    self.net(env[point][first:stop], batch=True, scratch=found[-1], name=f"after/{point}", step=self.step)
            self.net.stats.write(self._averaged(found))

    # -- over the weights ----------------------------------------------------------------------------------------------------------

    def _climb_weights(self, inner: InnerPlan, envs: list[Env]) -> None:
        """One ascent for the whole batch: each of its gradients is the sum over the pieces."""
        preamble, body = self._over_weights[inner.id]
        bases = [dict(env) for env in envs]
        for k, base in enumerate(bases):
            with self._at(k):
                for op in preamble:
                    op(base)
                self._write(inner.preamble, base, inner)
        self._write_handed()

        def climb(*, point: Any, grad: bool = True, **others: Any) -> Ascent:
            found = []
            for k, base in enumerate(bases):
                with self._at(k):
                    found.append(self._climb(inner, body, base)(point=point, grad=grad, **others))
            self._write_handed()
            grads = {"point": {name: self._averaged([each.grads["point"][name] for each in found]) for name in point}} if grad else {}
            tensors = {name: torch.cat([each.tensors[name] for each in found]) for name in found[0].tensors}
            return Ascent(self._averaged([each.objective for each in found]), grads, tensors)

        eps = self._value(inner.eps, bases[0])
        like = torch.cat([env["x"] for env in envs])
        draws = {name: self._draw(draw, like, self._value(draw.count, bases[0])) for name, draw in inner.draws}
        taken = [bases[0][a.slot] if a.slot in WHOLE else torch.cat([base[a.slot] for base in bases]) for a in inner.args]
        self.net.freeze(False)
        made = self.registry.get("inner", inner.use).fn(self.net.parameters, climb, eps, draws, *taken, **self._options(inner.options)(bases[0], eps))
        self.net.freeze(True)
        for env in envs:
            env.update({slot: made[key] for key, slot in inner.makes})


__all__ = ["Pieces", "cuts"]
