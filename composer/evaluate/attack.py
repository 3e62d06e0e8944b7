"""An attack of a measure: the registered inner maximisation, climbing one registered loss, image by image, against a model that stands still."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch

from composer.errors import ComposerError
from composer.evaluate.draws import Draws
from composer.evaluate.guard import Judge
from composer.evaluate.memory import Fit
from composer.evaluate.results import Measured
from composer.options import Ref
from composer.registry import REGISTRY
from composer.shapes import Tensor

CLEAN = ("clean_logits", "clean_probs", "clean_logp", "target_logits", "target_probs", "target_logp", "b")
MADE = ("logits", "probs", "logp", "a", "y", "x", "model", *CLEAN)


@dataclass(frozen=True)
class Attack:
    """One inner maximisation in full.

    inner, options   name of the inner and its options besides norm and start
    loss             what it climbs; norm, start: the ball and the first iterate
    keep             "last": an image is broken if its final point is misclassified. "any": if any visited point is
    """

    inner: str
    loss: Ref
    eps: float
    norm: Ref
    start: Ref
    options: dict[str, Any] = field(default_factory=dict)
    restarts: int = 1
    keep: str = "last"


class Climb:
    """The objective of a batch and its gradient with respect to the images; watches what passes through it.

    missed     [N] bool, any point seen so far was misclassified
    zero_grad  [N] bool, the gradient at the first point was exactly zero
    """

    def __init__(self, judge: Judge, x: Tensor, y: Tensor, loss: Ref):
        self.judge, self.x, self.y = judge, x, y
        primitive = REGISTRY.get("loss", loss.use)
        self.needs = [need.name for need in primitive.needs]
        foreign = [need.name for need in primitive.needs if need.name not in MADE or need.leaf]
        if foreign:
            raise ComposerError(f"loss '{loss.use}' needs '{foreign[0]}', which an evaluation cannot make", where=primitive.origin,
                                fix=f"attack with a loss that reads only {', '.join(MADE[:4])}, y and clean_… tensors")
        self.fn, self.options = primitive.fn, loss.options
        self.clean = judge(x) if set(self.needs) & set(CLEAN) else None
        self.missed = torch.zeros_like(y, dtype=torch.bool)
        self.zero_grad: Tensor | None = None

    def __call__(self, point: Tensor, grad: bool = True, **others: Tensor) -> SimpleNamespace:
        point = point.detach().requires_grad_(grad)
        with torch.set_grad_enabled(grad):
            logits = self.judge(point)
            objective = self.fn(*(self._tensor(name, logits) for name in self.needs), **self.options)
        shown = logits.detach()
        self.missed |= (shown.argmax(1) != self.y) | ~shown.isfinite().all(1)
        grads = {"point": self._gradient(objective, point)} if grad else {}
        return SimpleNamespace(objective=objective.detach(), grads=grads, tensors={"logits": shown})

    def _gradient(self, objective: Tensor, point: Tensor) -> Tensor:
        """A model that cuts the graph (rounding, argmax) has gradient zero: the trust check then says so."""
        found = torch.autograd.grad(objective.sum(), point, allow_unused=True)[0] if objective.requires_grad else None
        gradient = torch.zeros_like(point) if found is None else found
        if self.zero_grad is None:
            self.zero_grad = gradient.flatten(1).abs().amax(1) == 0
        return gradient

    def _tensor(self, name: str, logits: Tensor) -> Any:
        if name in ("y", "x"):
            return getattr(self, name)
        if name == "model":
            return self.judge
        z = self.clean if name in CLEAN else logits
        assert z is not None
        view = name.rsplit("_", 1)[-1]
        return z.softmax(1) if view == "probs" else z.log_softmax(1) if view == "logp" else z


def correct_flags(judge: Judge, x: Tensor, y: Tensor, batch_size: int) -> Tensor:
    """[n] bool on the CPU: correct as they stand. Copied once, at the end."""
    flags = Fit(batch_size).slices(len(y), lambda i, j: judge.correct(*_to(judge, x[i:j], y[i:j])))
    return torch.cat(flags).cpu() if flags else torch.zeros(0, dtype=torch.bool)


def run_attack(attack: Attack, judge: Judge, x: Tensor, y: Tensor, draws: Draws, batch_size: int, report: Callable[..., None]) -> Measured:
    """Robust flags: correct at the start and, in every restart, classified correctly at the attack's final point (`keep`).

    Only images still standing are attacked; each image's noise is its own, so neither this nor the batch size changes what it meets.
    """
    clean = correct_flags(judge, x, y, batch_size)
    robust, zero = clean.clone(), torch.zeros_like(clean)
    fit = Fit(batch_size)
    for restart in range(attack.restarts):
        standing = robust.nonzero().flatten()

        def one(begin: int, end: int, standing: Tensor = standing, restart: int = restart) -> tuple[Tensor, Tensor]:
            verdict = _batch(attack, judge, x, y, standing[begin:end], draws, restart)
            report(end, len(standing), f"restart {restart + 1}" if attack.restarts > 1 else "")
            return verdict

        if verdicts := fit.slices(len(standing), one):
            held, flat = (torch.cat(column).cpu() for column in zip(*verdicts, strict=True))
            robust[standing] = held
            zero[standing] |= flat
    halved = {"batch_halved": fit.refused} if fit.refused else {}
    return Measured(robust, {"clean": clean, "zero_grad": zero}, {"attacked": int(clean.sum()), "zero_gradients": int(zero.sum()), **halved})


def _batch(attack: Attack, judge: Judge, x: Tensor, y: Tensor, rows: Tensor, draws: Draws, restart: int) -> tuple[Tensor, Tensor]:
    xb, yb = _to(judge, x[rows.to(x.device)], y[rows.to(y.device)])
    climb = Climb(judge, xb, yb, attack.loss)
    held = judge.correct(attack_points(attack, judge, xb, yb, rows, draws, restart, climb), yb)
    if attack.keep == "any":
        held &= ~climb.missed
    return held, climb.zero_grad if climb.zero_grad is not None else torch.zeros_like(held)


def attack_points(attack: Attack, judge: Judge, xb: Tensor, yb: Tensor, rows: Tensor, draws: Draws, restart: int = 0, climb: Climb | None = None) -> Tensor:
    """The attack's end points for the images xb, which are the images `rows` of the whole: their noise is drawn by that place."""
    climb = climb or Climb(judge, xb, yb, attack.loss)
    primitive = REGISTRY.get("inner", attack.inner)
    kind, start = _start(attack.start)
    noise = {"start": [draws.rows(kind, str(restart), rows, xb) if kind else None]}
    for name, (sort, count) in primitive.flags.get("draws", {}).items():
        count = attack.options[count] if isinstance(count, str) else count
        noise[name] = [draws.rows(sort, f"{restart}/{name}/{k}", rows, xb) for k in range(count)]
    roots = {need.name: climb._tensor(need.name, xb) for need in primitive.needs if need.name in ("y", "model")}
    made = primitive.fn(xb, climb, attack.eps, noise, **roots, **attack.options, norm=_ball(attack.norm), start=start)
    return made["point"].detach()


def _ball(ref: Ref) -> Callable[[Tensor, Any], Any]:
    make = REGISTRY.get("ball", ref.use).fn
    return lambda x, eps: make(x, eps, **ref.options)


def _start(ref: Ref) -> tuple[str, Callable[[Tensor, Any, Tensor | None], Tensor]]:
    """The kind of noise a start asks for ("" for none), and the start with its options bound."""
    primitive = REGISTRY.get("start", ref.use)
    need = next((need for need in primitive.needs if need.name == "noise"), None)
    if need is None:
        return "", lambda x, ball, noise=None: primitive.fn(x, ball, **ref.options)
    return need.draw, lambda x, ball, noise: primitive.fn(x, ball, noise, **ref.options)


def _to(judge: Judge, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if judge.device is None or judge.device == x.device:
        return x, y.to(x.device)
    return x.to(judge.device, non_blocking=True), y.to(judge.device, non_blocking=True)
