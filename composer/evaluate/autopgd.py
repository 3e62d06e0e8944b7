"""AutoPGD as a step on many jobs at once, in linf, l2 and l1: the library's rules, from the starting points handed in."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from composer.evaluate.pool import State, join, select
from composer.shapes import Tensor

RHO, MOMENTUM, TINY = 0.75, 0.75, 1e-12
STAGES = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))       # of l1: radius in eps, share of the iterations


def over(x: Tensor, like: Tensor) -> Tensor:
    """[n] -> [n,1,1,1]"""
    return x.view(-1, *[1] * (like.ndim - 1))


def ce(z: Tensor, y: Tensor, target: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(z, y, reduction="none")


def dlr(z: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """-(z_y - max_{k != y} z_k) / (z_(1) - z_(3) + 1e-12)"""
    top, where = z.topk(3, dim=1)
    best_other = torch.where(where[:, 0] == y, top[:, 1], top[:, 0])
    return -(z.gather(1, y[:, None])[:, 0] - best_other) / (top[:, 0] - top[:, 2] + TINY)


def dlr_targeted(z: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2 + 1e-12)"""
    top = z.topk(4, dim=1).values
    gap = z.gather(1, y[:, None]) - z.gather(1, target[:, None])
    return -gap[:, 0] / (top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]) + TINY)


def window(steps: int) -> list[int]:
    """[steps]: at a checkpoint the number of steps since the one before, else 0. Windows shrink from 22 % to 6 % of the steps by 3 %."""
    length, least, less = max(int(0.22 * steps), 1), max(int(0.06 * steps), 1), max(int(0.03 * steps), 1)
    plan, since = [0] * steps, 0
    for i in range(steps):
        since += 1
        if since == length:
            plan[i], since, length = length, 0, max(length - less, least)
    return plan


@dataclass
class AutoPGD:
    """linf and l2.

    Formula: x' = P(x + momentum·(P(x + step·steepest(g)) - x) + (1-momentum)·(x - x_before)); at a checkpoint with too few rises, or
             without a new best since the last halving was spared, step := step/2 and back to the best point
    Paper:   Croce and Hein, ICML 2020
    """

    model: Callable[[Tensor], Tensor]
    loss: Callable[[Tensor, Tensor, Tensor], Tensor]
    eps: float
    norm: str
    targets: Tensor | None = None           # [N,K] classes by clean logit, ascending; a job's tag counts from the end
    steps: int = 100

    def __post_init__(self) -> None:
        self.plan = torch.tensor(window(self.steps))
        self.noise = torch.empty(0)         # [N,...] of every image, drawn anew for every round

    @property
    def kind(self) -> str:
        return "uniform" if self.norm == "linf" else "gaussian"

    @property
    def idle(self) -> int:
        """Further draws of a round that the library makes and does not use."""
        return 0

    def start(self, x: Tensor, y: Tensor, who: Tensor, tag: Tensor) -> State:
        there = who.to(x.device)
        x, y = x[there], y[there]
        target = y if self.targets is None else self.targets[there, -tag.to(x.device)]
        return self.enter(x, y, target, self.first(x, self.noise[there]), who, tag)

    def enter(self, x: Tensor, y: Tensor, target: Tensor, point: Tensor, who: Tensor, tag: Tensor) -> State:
        z, loss, grad = self.climb(point, y, target)
        new = {"who": who, "tag": tag, "i": torch.zeros_like(who), "x": x, "y": y, "target": target, "point": point, "answer": point, "older": point, "grad": grad,
               "best": point, "best_grad": grad, "best_loss": loss, "checked": loss, "before": torch.zeros_like(loss), "rises": torch.zeros_like(loss),
               "spared": torch.zeros_like(loss, dtype=torch.bool), "step": torch.full_like(loss, 2 * self.eps),
               "fallen": z.argmax(1) != y, "done": torch.zeros_like(y, dtype=torch.bool)}
        return {name: value.clone() for name, value in new.items()}

    def first(self, x: Tensor, noise: Tensor) -> Tensor:
        """On the sphere, in a random direction."""
        away = 2 * noise - 1 if self.norm == "linf" else noise
        return (x + self.eps * away / (self._size(away) + TINY)).clamp(0, 1)

    def _size(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return over(flat.abs().amax(1) if self.norm == "linf" else flat.square().sum(1).sqrt(), x)

    def climb(self, point: Tensor, y: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(logits, loss, gradient) at the points."""
        with torch.enable_grad():
            leaf = point.detach().requires_grad_()
            z = self.model(leaf)
            loss = self.loss(z, y, target)
            found = torch.autograd.grad(loss.sum(), leaf, allow_unused=True)[0] if loss.requires_grad else None
        return z.detach(), loss.detach(), torch.zeros_like(point) if found is None else found

    def step(self, s: State) -> None:
        with torch.no_grad():
            new = self.move(s)
        z, loss, grad = self.climb(new, s["y"], s["target"])
        s["older"], s["point"], s["answer"], s["grad"] = s["point"], new, new, grad
        s["fallen"] = z.argmax(1) != s["y"]
        rise = loss > s["best_loss"]
        s["best"], s["best_grad"] = torch.where(over(rise, new), new, s["best"]), torch.where(over(rise, new), grad, s["best_grad"])
        s["best_loss"] = torch.where(rise, loss, s["best_loss"])
        s["rises"] += loss > s["before"]
        s["before"] = loss
        self.check(s)
        s["i"] += 1
        s["done"] = self.ended(s).to(s["done"].device)

    def ended(self, s: State) -> Tensor:
        return s["i"] >= self.steps

    def move(self, s: State) -> Tensor:
        x, old = s["x"], s["point"]
        share = over(torch.where(s["i"] > 0, MOMENTUM, 1.0).to(old), old)
        away = s["grad"].sign() if self.norm == "linf" else s["grad"] / (self._size(s["grad"]) + TINY)
        there = self.project(x, old + over(s["step"], x) * away)
        return self.project(x, old + (there - old) * share + (old - s["older"]) * (1 - share))

    def project(self, x: Tensor, point: Tensor) -> Tensor:
        if self.norm == "linf":
            return torch.minimum(torch.maximum(point, x - self.eps), x + self.eps).clamp(0, 1)
        away = point - x
        size = self._size(away)
        return (x + away / (size + TINY) * size.clamp_max(self.eps)).clamp(0, 1)

    def check(self, s: State) -> None:
        """Halve the step where the last window rose too rarely or brought nothing new."""
        since = self.plan[s["i"]]
        if not since.any():
            return
        due, since = (since > 0).to(s["point"].device), since.to(s["point"].device)
        halve = due & ((s["rises"] <= since * RHO) | s["spared"] & (s["checked"] >= s["best_loss"]))
        s["spared"] = torch.where(due, ~halve, s["spared"])
        s["checked"] = torch.where(due, s["best_loss"], s["checked"])
        s["rises"] = torch.where(due, torch.zeros_like(s["rises"]), s["rises"])
        s["step"] = torch.where(halve, s["step"] / 2, s["step"])
        self.back(s, halve)

    def back(self, s: State, to_best: Tensor) -> None:
        where = over(to_best, s["point"])
        s["point"], s["grad"] = torch.where(where, s["best"], s["point"]), torch.where(where, s["best_grad"], s["grad"])

    def follow(self, s: State) -> State | None:
        return None


@dataclass
class AutoPGD1(AutoPGD):
    """l1: sparse steps along the largest slopes, their number following the best point's; with stages, from 3 eps over 2 eps to eps.

    Formula: x' = P(x + step·sign(g_top)/#top); every few steps step := eps where the best point grew sparser by 5 %, else step/1.5
    Paper:   Croce and Hein, ICML 2021 (Mind the box)
    """

    staged: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = STAGES if self.staged else ((1.0, 1.0),)
        lengths = [math.ceil(share * self.steps) for _, share in shares]
        lengths[-1] = self.steps - sum(lengths[:-1])
        self.lengths = torch.tensor(lengths)
        self.every = (self.lengths * 0.04).long().clamp_min(1)
        self.radii = [radius * self.eps for radius, _ in shares]

    @property
    def idle(self) -> int:
        return len(self.radii) if self.staged else 0

    def into(self, x: Tensor, delta: Tensor, radius: Tensor) -> Tensor:
        """What brings x + delta into the ball and the box."""
        from pyautoattack.autopgd_base import L1_projection

        return L1_projection(x, delta, radius)

    def start(self, x: Tensor, y: Tensor, who: Tensor, tag: Tensor) -> State:
        there = who.to(x.device)
        noise = self.noise[there]
        x, y = x[there], y[there]
        target = y if self.targets is None else self.targets[there, -tag.to(x.device)]
        point = x + noise
        radius = torch.full((len(x),), self.radii[0], device=x.device)
        for _ in range(2 if self.staged else 1):
            point = point + self.into(x, point - x if self.staged else noise, radius)
        return self.stage(x, y, target, point, who, tag, 0, fresh=not self.staged)

    def stage(self, x: Tensor, y: Tensor, target: Tensor, point: Tensor, who: Tensor, tag: Tensor, number: int, fresh: bool = False) -> State:
        radius = torch.full((len(x),), self.radii[number], device=x.device)
        if number > 0:
            point = point + self.into(x, point - x, radius)
        point = point.clamp(0, 1)
        size = x[0].numel()
        used = (point != x).flatten(1).sum(1).to(x)
        s = self.enter(x, y, target, point, who, tag)
        s |= {"stage": torch.full_like(who, number), "radius": radius, "step": radius.clone(),
              "top": torch.full_like(radius, 0.2) if fresh else used / size / 1.5, "sparse": torch.full_like(radius, size) if fresh else used}
        return self._last_counts(s)

    def _last_counts(self, s: State) -> State:
        """Only within eps is a misclassified point a success."""
        s["fallen"] = s["fallen"] & (s["stage"] == len(self.radii) - 1).to(s["fallen"].device)
        return s

    def step(self, s: State) -> None:
        super().step(s)
        self._last_counts(s)

    def ended(self, s: State) -> Tensor:
        return s["i"] >= self.lengths[s["stage"]]

    def move(self, s: State) -> Tensor:
        slope = s["grad"].flatten(1).abs()
        size = slope.shape[1]
        rank = ((1 - s["top"]) * size).clamp(0, size - 1).long()
        least = slope.sort(1).values.gather(1, rank[:, None])
        sign = (s["grad"].flatten(1) * (slope >= least)).sign()
        x = s["x"]
        # the library's order of operations: which pixels lie exactly still decides how many move next
        delta = s["point"] + (s["step"][:, None] * sign / (sign.abs().sum(1, keepdim=True) + 1e-10)).view_as(x) - x
        return x + delta + self.into(x, delta, s["radius"])

    def check(self, s: State) -> None:
        due = (s["i"] + 1) % self.every[s["stage"]] == 0
        if not due.any():
            return
        due = due.to(s["point"].device)
        used = (s["best"] != s["x"]).flatten(1).sum(1).to(s["point"])
        sparser = used / s["sparse"] < 0.95
        step = torch.where(sparser, s["radius"], s["step"] / 1.5).clamp(min=s["radius"] / 10, max=s["radius"])
        s["step"] = torch.where(due, step, s["step"])
        s["top"], s["sparse"] = torch.where(due, used / s["x"][0].numel() / 1.5, s["top"]), torch.where(due, used, s["sparse"])
        self.back(s, due & sparser)

    def follow(self, s: State) -> State | None:
        joined: State | None = None
        for number in s["stage"].unique().tolist():
            if number + 1 < len(self.radii):
                one = select(s, (s["stage"] == number).nonzero().flatten())
                more = self.stage(one["x"], one["y"], one["target"], one["best"], one["who"], one["tag"], number + 1)
                joined = join(joined, more)
        return joined
