"""An attack of a measure: the registered inner maximisation, climbing one registered loss, image by image, against a model that stands still."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
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
STRETCH = 2         # steps of pgd with keep = "any" between two looks at who has fallen
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
    margin     [N] the smallest lead of the label over the other classes so far (`watch`), norm its point's distance
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
        self.watch, self.margin, self.norm = "", torch.full((len(y),), torch.inf, device=x.device), torch.zeros(len(y), device=x.device)

    def __call__(self, point: Tensor, grad: bool = True, **others: Tensor) -> SimpleNamespace:
        point = point.detach().requires_grad_(grad)
        with torch.set_grad_enabled(grad):
            logits = self.judge(point)
            objective = self.fn(*(self._tensor(name, logits) for name in self.needs), **self.options)
        shown = logits.detach()
        self.missed |= (shown.argmax(1) != self.y) | ~shown.isfinite().all(1)
        if self.watch:
            self.note(point.detach(), shown)
        grads = {"point": self._gradient(objective, point)} if grad else {}
        return SimpleNamespace(objective=objective.detach(), grads=grads, tensors={"logits": shown})

    def note(self, point: Tensor, logits: Tensor) -> None:
        """Keep the margin and the distance of the worst point."""
        margin = lead(logits, self.y)
        worse = margin < self.margin
        self.margin = torch.where(worse, margin, self.margin)
        self.norm = torch.where(worse, length(point - self.x, self.watch), self.norm)

    def only(self, rows: Tensor) -> Climb:
        """The same of some images."""
        made = copy.copy(self)
        made.x, made.y, made.missed, made.margin, made.norm = self.x[rows], self.y[rows], self.missed[rows], self.margin[rows], self.norm[rows]
        made.clean = None if self.clean is None else self.clean[rows]
        return made

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


def lead(logits: Tensor, y: Tensor) -> Tensor:
    """[N]: the label's logit less the largest other; -inf where a logit is not finite."""
    own = y.unsqueeze(1)
    margin = (logits.gather(1, own) - logits.scatter(1, own, -torch.inf).amax(1, keepdim=True)).squeeze(1)
    return margin.where(logits.isfinite().all(1), -torch.inf)


def length(delta: Tensor, norm: str) -> Tensor:
    """[N] of a perturbation in the norm; in linf where it is none of ours."""
    flat = delta.flatten(1)
    return flat.abs().sum(1) if norm == "l1" else flat.norm(dim=1) if norm == "l2" else flat.abs().amax(1)


def correct_flags(judge: Judge, x: Tensor, y: Tensor, batch_size: int) -> Tensor:
    """[n] bool on the CPU: correct as they stand. Copied once, at the end."""
    flags = Fit(batch_size).slices(len(y), lambda i, j: judge.correct(*_to(judge, x[i:j], y[i:j])))
    return torch.cat(flags).cpu() if flags else torch.zeros(0, dtype=torch.bool)


def run_attack(attack: Attack, judge: Judge, x: Tensor, y: Tensor, draws: Draws, batch_size: int, report: Callable[..., None]) -> Measured:
    """Robust flags: correct at the start and, in every restart, classified correctly at the attack's final point (`keep`).

    Only images still standing are attacked; each image's noise is its own, so neither this nor the batch size changes what it meets.
    `margin` and `norm` in `extra`: lead of the label at the worst point, and its distance; NaN where an image was not attacked.
    """
    clean = correct_flags(judge, x, y, batch_size)
    robust, zero = clean.clone(), torch.zeros_like(clean)
    margin, norm = torch.full((len(y),), torch.nan), torch.full((len(y),), torch.nan)
    fit = Fit(batch_size)
    for restart in range(attack.restarts):
        standing = robust.nonzero().flatten()

        def one(begin: int, end: int, standing: Tensor = standing, restart: int = restart) -> tuple[Tensor, ...]:
            verdict = _batch(attack, judge, x, y, standing[begin:end], draws, restart)
            report(end, len(standing), f"restart {restart + 1}" if attack.restarts > 1 else "")
            return verdict

        if verdicts := fit.slices(len(standing), one):
            held, flat, reached, away = (torch.cat(column).cpu() for column in zip(*verdicts, strict=True))
            robust[standing] = held
            zero[standing] |= flat
            worse = ~(reached >= margin[standing])                # also where there was none
            margin[standing[worse]], norm[standing[worse]] = reached[worse], away[worse]
    halved = {"batch_halved": fit.refused} if fit.refused else {}
    return Measured(robust, {"clean": clean, "zero_grad": zero, "margin": margin, "norm": norm}, {"attacked": int(clean.sum()), "zero_gradients": int(zero.sum()), **halved})


def _batch(attack: Attack, judge: Judge, x: Tensor, y: Tensor, rows: Tensor, draws: Draws, restart: int) -> tuple[Tensor, ...]:
    """Of the images `rows`: who holds, whose first gradient was zero, margin and distance of the end point (of the worst one with keep = "any")."""
    xb, yb = _to(judge, x[rows.to(x.device)], y[rows.to(y.device)])
    climb = Climb(judge, xb, yb, attack.loss)
    climb.watch = attack.norm.use if attack.keep == "any" else ""
    if attack.keep == "any" and attack.inner == "pgd":
        _until_fallen(attack, judge, climb, rows, draws, restart)
    else:
        point = attack_points(attack, judge, xb, yb, rows, draws, restart, climb)
        with torch.no_grad():
            logits = judge.verdict(point)
        climb.note(point, logits) if climb.watch else _end(climb, point, logits, attack.norm.use)
        wrong = (logits.argmax(1) != yb) | ~logits.isfinite().all(1)
        climb.missed = climb.missed | wrong if attack.keep == "any" else wrong
    zero = climb.zero_grad if climb.zero_grad is not None else torch.zeros_like(climb.missed)
    return ~climb.missed, zero, climb.margin, climb.norm


def _end(climb: Climb, point: Tensor, logits: Tensor, norm: str) -> None:
    climb.margin, climb.norm = lead(logits, climb.y), length(point - climb.x, norm)


def _until_fallen(attack: Attack, judge: Judge, climb: Climb, rows: Tensor, draws: Draws, restart: int) -> None:
    """pgd a few steps at a time: an image that has been misclassified needs no more of them. A step looks at nothing but its point, so stretches join."""
    standing, point, left = torch.arange(len(rows)), climb.x, attack.options["steps"]
    while len(standing):
        there = standing.to(climb.x.device)
        part, begun = climb.only(there), left < attack.options["steps"]
        some = replace(attack, options={**attack.options, "steps": min(left, STRETCH)})
        point = attack_points(some, judge, part.x, part.y, rows[standing], draws, restart, part, at=point if begun else None)
        left -= min(left, STRETCH)
        if left == 0:
            part(point=point, grad=False)
        climb.zero_grad = part.zero_grad if climb.zero_grad is None else climb.zero_grad
        for name in ("missed", "margin", "norm"):
            getattr(climb, name)[there] = getattr(part, name)
        if left == 0:
            return
        stands = ~part.missed
        standing, point = standing[stands.cpu()], point[stands]


def attack_points(attack: Attack, judge: Judge, xb: Tensor, yb: Tensor, rows: Tensor, draws: Draws, restart: int = 0, climb: Climb | None = None,
                  at: Tensor | None = None) -> Tensor:
    """The attack's end points for the images xb, which are the images `rows` of the whole: their noise is drawn by that place. at: where it stands already."""
    climb = climb or Climb(judge, xb, yb, attack.loss)
    primitive = REGISTRY.get("inner", attack.inner)
    kind, start = _start(attack.start) if at is None else ("", lambda x, ball, noise=None: at)
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
