"""FAB as a step on many jobs at once: towards the nearest linearised boundary, a job ending as soon as it stands within eps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from composer.evaluate.autopgd import over
from composer.evaluate.draws import Draws
from composer.evaluate.pool import State
from composer.shapes import Tensor

FAR, ALPHA, OVERSHOOT, BACK = 1e10, 0.1, 1.05, 0.9


def size(x: Tensor, norm: str) -> Tensor:
    """[n,...] -> [n]"""
    flat = x.flatten(1)
    return flat.abs().amax(1) if norm == "linf" else flat.square().sum(1).sqrt() if norm == "l2" else flat.abs().sum(1)


def dual(x: Tensor, norm: str) -> Tensor:
    """[n,k,...] -> [n,k], in the dual norm."""
    flat = x.flatten(2)
    return flat.abs().sum(2) if norm == "linf" else flat.square().sum(2).sqrt() if norm == "l2" else flat.abs().amax(2)


def onto_linf(t: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """[n,D] d of the least |d|_inf with w·(t + d) = b and t + d in [0,1]; as far that way as the box lets where it does not reach.

    Every number moves by min(r, room) the way that helps, so sum_i |w_i| min(r, room_i) = |w·t - b| is to be solved for r. The left side is concave and
    piecewise linear in r: Newton's steps from 0 never pass the root, and are done when no further number has used up its room. A handful of steps, where
    the library sorts all rooms.
    """
    lack = b - (w * t).sum(1)
    way = torch.where(lack < 0, -1.0, 1.0).to(t).unsqueeze(1) * w.sign()
    room = torch.where(way > 0, 1 - t, t)
    pull = w.abs()
    lack, reach = lack.abs(), (pull * room).sum(1)
    r, slope = torch.zeros_like(lack), torch.full_like(lack, torch.inf)
    for _ in range(t.shape[1]):
        free = pull * (room > r.unsqueeze(1))
        last, slope = slope, free.sum(1)
        if not (slope < last).any():
            break
        short = lack - (pull * room.minimum(r.unsqueeze(1))).sum(1)
        r = r + torch.where(slope > 0, short / slope.clamp_min(1e-38), 0).clamp_min(0)
    return way * room.minimum(torch.where(lack < reach, r, 1.0).unsqueeze(1))


@dataclass
class Boundary:
    """FAB; with `targets` the targeted one, a job's tag naming the class by clean logit from the end, else a restart.

    Formula: x' = (1-a)(x + 1.05 d) + a(x_0 + 1.05 d_0), d and d_0 the projections of x and the image x_0 onto the linearised boundary,
             a = min(|d|/(|d|+|d_0|), 0.1); behind the boundary x := x_0 + 0.9 (x - x_0)
    Paper:   Croce and Hein, ICML 2020 (FAB); the projections in l2 and l1 are the library's
    """

    model: Callable[[Tensor], Tensor]
    eps: float
    norm: str
    draws: Draws
    rows: Tensor
    path: str
    targets: Tensor | None = None
    steps: int = 100

    def __post_init__(self) -> None:
        from pyautoattack import fab_projections

        self.onto: Callable[..., Any] = onto_linf if self.norm == "linf" else getattr(fab_projections, f"projection_{self.norm}")

    def start(self, x: Tensor, y: Tensor, who: Tensor, tag: Tensor) -> State:
        there = who.to(x.device)
        x, y = x[there], y[there]
        target = y if self.targets is None else self.targets[there, -tag.to(x.device)]
        point = x.clone() if self.targets is not None else self._restart(x, who, tag)
        none = torch.zeros_like(y, dtype=torch.bool)
        return {"who": who, "i": torch.zeros_like(who), "x": x, "y": y, "target": target, "point": point, "answer": x.clone(), "fallen": none, "done": none.clone()}

    def _restart(self, x: Tensor, who: Tensor, tag: Tensor) -> Tensor:
        """The first run begins at the image, later ones half of eps away in a random direction."""
        point = x.clone()
        for one in [t for t in tag.unique().tolist() if t > 0]:
            mine = (tag == one).nonzero().flatten()
            mine = mine[who[mine].argsort()]
            there = mine.to(x.device)
            noise = self.draws.rows("uniform" if self.norm == "linf" else "gaussian", f"{self.path}/{one}", self.rows[who[mine]], x)
            noise = 2 * noise - 1 if self.norm == "linf" else noise
            point[there] = (x[there] + 0.5 * self.eps * noise / over(size(noise, self.norm), noise)).clamp(0, 1)
        return point

    def step(self, s: State) -> None:
        gap, slope = self.linear(s["point"], s["y"], s["target"])
        with torch.no_grad():
            point = self.move(s["point"], s["x"], gap, slope)
            behind = self.model(point).argmax(1) != s["y"]
            s["fallen"] = behind & (size(point - s["x"], self.norm) <= self.eps)
            s["answer"] = point
            s["point"] = torch.where(over(behind, point), s["x"] + (point - s["x"]) * BACK, point)
        s["i"] += 1
        s["done"] = (s["i"] >= self.steps).to(s["done"].device)

    def move(self, point: Tensor, x: Tensor, gap: Tensor, slope: Tensor) -> Tensor:
        n = len(x)
        nearest = (gap.abs() / (1e-12 + dual(slope, self.norm))).argmin(1)
        row = torch.arange(n, device=x.device)
        w = slope[row, nearest].flatten(1)
        b = (w * point.flatten(1)).sum(1) - gap[row, nearest]
        away = self.onto(torch.cat((point.flatten(1), x.flatten(1))), torch.cat((w, w)), torch.cat((b, b)))
        lengths = size(away, self.norm).clamp_min(1e-8)
        alpha = over((lengths[:n] / (lengths[:n] + lengths[n:])).clamp(0, ALPHA), x)
        here, there = away[:n].view_as(x), away[n:].view_as(x)
        return ((point + OVERSHOOT * here) * (1 - alpha) + (x + OVERSHOOT * there) * alpha).clamp(0, 1)

    def linear(self, point: Tensor, y: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """([n,k] logit differences to the label, [n,k,...] their gradients): k = 1 with a target, else all classes."""
        with torch.enable_grad():
            leaf = point.detach().requires_grad_()
            z = self.model(leaf)
            own = z.gather(1, y[:, None])
            gap = z.gather(1, target[:, None]) - own if self.targets is not None else z - own
            count = gap.shape[1]
            slopes = [self._slope(gap[:, k], leaf, k + 1 < count) for k in range(count)]
        gap = gap.detach()
        if self.targets is None:
            gap = gap.scatter(1, y[:, None], FAR)
        return gap, torch.stack(slopes, 1)

    def _slope(self, value: Tensor, leaf: Tensor, again: bool) -> Tensor:
        found = torch.autograd.grad(value.sum(), leaf, retain_graph=again, allow_unused=True)[0] if value.requires_grad else None
        return torch.zeros_like(leaf) if found is None else found

    def follow(self, s: State) -> State | None:
        return None
