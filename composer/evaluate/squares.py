"""The Square attack with a window of its own for every image; an image leaves as soon as it has fallen."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from composer.evaluate.blackbox import unpack
from composer.evaluate.draws import Draws
from composer.evaluate.pool import State, select
from composer.shapes import Tensor

SHARE = 0.8
HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)       # queries after which the share of pixels in a square is halved
BLOCK = 200             # queries whose random numbers are drawn at once


def side(query: int, size: int, least: int) -> int:
    """Side of the window at a query for images of `size` pixels; odd where the pattern has a middle (least = 3)."""
    share = SHARE / 2 ** sum(query > at for at in HALVED_AT)
    length = max(round(math.sqrt(share * size)), least)
    return length + 1 if least == 3 and length % 2 == 0 else length


def lead(z: Tensor, y: Tensor) -> Tensor:
    """[n]: label's logit less the best other; at or below 0 the image has fallen."""
    own = y[:, None]
    return (z.gather(1, own) - z.scatter(1, own, -torch.inf).amax(1, keepdim=True))[:, 0]


@dataclass
class Squares:
    """linf.

    Formula: x' = x with a window set to x_0 + eps·s, s = ±1 a channel; kept where the margin falls   [queries]
    Paper:   Andriushchenko et al., ECCV 2020
    """

    model: Callable[[Tensor], Tensor]
    eps: float
    norm: str
    draws: Draws
    path: str
    queries: int = 5000

    def run(self, x: Tensor, y: Tensor, rows: Tensor, tell: Callable[[int, int], None] = lambda *_: None) -> Tensor:
        """Adversarial images of x, unmoved where none was found; rows as in draws."""
        found = x.clone()
        s: State | None = self.begin(x, y, rows)
        s = self.settle(s, found)
        for query in range(self.queries):
            if s is None:
                break
            if query % BLOCK == 0:
                s |= self.draw(query // BLOCK, s)
                tell(query, self.queries)
            new = self.propose(s, query)
            margin = lead(self.model(new), s["y"])
            better = (margin < s["margin"]) | (margin <= 0)
            s["answer"] = torch.where(better.view(-1, 1, 1, 1), new, s["answer"])
            s["margin"] = torch.where(better, margin, s["margin"])
            s = self.settle(s, found)
        return found

    def begin(self, x: Tensor, y: Tensor, rows: Tensor) -> State:
        start = self.pattern(x, rows)
        return {"who": torch.arange(len(x)), "rows": rows, "x": x, "y": y, "answer": start, "margin": lead(self.model(start), y),
                "low": (x - self.eps).clamp_min(0), "high": (x + self.eps).clamp_max(1)}

    def settle(self, s: State, found: Tensor) -> State | None:
        hit = (s["margin"] <= 0).cpu()
        if not hit.any():
            return s
        there = hit.to(found.device)
        found[s["who"][hit].to(found.device)] = s["answer"][there]
        left = (~hit).nonzero().flatten()
        return select(s, left) if len(left) else None

    def words(self, channels: int) -> int:
        """32-bit words a query: two for two windows' corners, the rest for signs and the turn of the pattern."""
        return 2 + math.ceil((channels + 1) / 32)

    def draw(self, block: int, s: State) -> State:
        """Windows' corners as fractions [n,B,4] and signs [n,B,C+1] of the next queries."""
        channels = s["x"].shape[1]
        words = self.words(channels)
        bits = self.draws.bits(f"{self.path}/{block}", s["rows"], BLOCK * words).view(-1, BLOCK, words).to(s["x"].device)
        corner = torch.stack((bits[..., :2] & 0xFFFF, bits[..., :2] >> 16 & 0xFFFF), -1).flatten(2).float() / 65536
        return {"corner": corner, "sign": unpack(bits[..., 2:].contiguous(), channels + 1).float()}

    def pattern(self, x: Tensor, rows: Tensor) -> Tensor:
        """Vertical stripes of ±eps."""
        n, c, _, w = x.shape
        bits = self.draws.bits(f"{self.path}/start", rows, math.ceil(c * w / 32)).to(x.device)
        return (x + self.eps * unpack(bits, c * w).to(x).view(n, c, 1, w)).clamp(0, 1)

    def propose(self, s: State, query: int) -> Tensor:
        h, w = s["x"].shape[2:]
        length = min(side(query, h * w, 1), h, w)
        corner, sign = s["corner"][:, query % BLOCK], s["sign"][:, query % BLOCK, :-1]
        inside = frame(corner[:, 0], length, h)[:, None, :, None] & frame(corner[:, 1], length, w)[:, None, None, :]
        value = torch.where(sign[:, :, None, None] > 0, s["high"], s["low"])
        return torch.where(inside, value, s["answer"])


def first(corner: Tensor, length: int, size: int) -> Tensor:
    """[n] int64: where a window begins, uniform over all places. The library never draws the last one, and so leaves the last row and column to
    large windows: on small images it stays short of the best point.
    """
    return (corner * (size - length + 1)).long()


def frame(corner: Tensor, length: int, size: int) -> Tensor:
    """[n,size] bool: the pixels of the window along one side."""
    begin, at = first(corner, length, size)[:, None], torch.arange(size, device=corner.device)
    return (at >= begin) & (at < begin + length)


def hill(rows: int, columns: int, power: int, device: torch.device) -> Tensor:
    """[rows, columns]: a pyramid of 1/k^power summed over nested rectangles, of length 1 in the norm (l2 for power 2, l1 for 4)."""
    made = torch.zeros(rows, columns)
    a, b = rows // 2, columns // 2
    for k in range(max(rows // 2 + 1, columns // 2 + 1)):
        made[max(a - k, 0):min(a + k + 1, rows), max(b - k, 0):min(b + k + 1, columns)] += 1.0 / (k + 1) ** power
    return (made / (made.square().sum().sqrt() if power == 2 else made.sum()).clamp_min(1e-30)).to(device)


def pattern_of(length: int, norm: str, device: torch.device) -> Tensor:
    """[s,s]: a positive hill above a negative one, of length 1."""
    power = 2 if norm == "l2" else 4
    upper = length // 2
    made = torch.cat((hill(upper, length, power, device), -hill(length - upper, length, power, device)))
    return made / (made.square().sum().sqrt() if norm == "l2" else made.abs().sum())


@dataclass
class SquaresP(Squares):
    """l2 and l1: the budget of one window is moved into another, with a two-hilled pattern on top.

    Formula: window 1 := (pattern·s + its own direction) rescaled to the freed length, window 2 := 0; then onto the ball   [queries]
    Paper:   Andriushchenko et al., ECCV 2020; l1: Croce and Hein, ICML 2021
    """

    def length_of(self, x: Tensor) -> Tensor:
        """Over the two pixel axes."""
        return x.square().sum((-2, -1), keepdim=True).sqrt() if self.norm == "l2" else x.abs().sum((-2, -1), keepdim=True)

    def whole(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return (flat.square().sum(1).sqrt() if self.norm == "l2" else flat.abs().sum(1)).view(-1, 1, 1, 1)

    def onto(self, x: Tensor, delta: Tensor) -> Tensor:
        """A point of the full radius in the direction delta (l2), or the nearest point of the ball (l1)."""
        if self.norm == "l2":
            return (x + delta / (self.whole(delta) + 1e-12) * self.eps).clamp(0, 1)
        from pyautoattack.autopgd_base import L1_projection

        return (x + delta + L1_projection(x, delta, self.eps * (1 - 1e-6))).clamp(0, 1)

    def pattern(self, x: Tensor, rows: Tensor) -> Tensor:
        n, c, h, w = x.shape
        length = max(h // 5, 1)
        skip = (h - 5 * length) // 2 if h >= 5 else 0
        places = [(r, q) for r in range(skip, h - length + 1, length) for q in range(skip, w - length + 1, length)]
        signs = unpack(self.draws.bits(f"{self.path}/start", rows, math.ceil((c + 1) / 32) * len(places)).view(n, len(places), -1), c + 1).to(x)
        tile, delta = pattern_of(length, self.norm, x.device), torch.zeros_like(x)
        for k, (r, q) in enumerate(places):
            turned = torch.where(signs[:, k, -1].view(-1, 1, 1, 1) > 0, tile, tile.T)
            delta[:, :, r:r + length, q:q + length] = turned * signs[:, k, :-1, None, None]
        return self.onto(x, delta)

    def propose(self, s: State, query: int) -> Tensor:
        x = s["x"]
        n, c, h, w = x.shape
        length = min(side(query, h * w, 3), h, w)
        corner, sign = s["corner"][:, query % BLOCK], s["sign"][:, query % BLOCK]
        delta = s["answer"] - x
        one, two = ((frame(corner[:, k], length, h)[:, None, :, None] & frame(corner[:, k + 1], length, w)[:, None, None, :]) for k in (0, 2))
        freed, own, used = self.length_of(delta * (one | two)), self.length_of(delta * one), self.whole(delta)
        at = torch.arange(length, device=x.device)
        place = (first(corner[:, 0], length, h)[:, None, None] + at[:, None]) * w + first(corner[:, 1], length, w)[:, None, None] + at
        place = place.view(n, 1, -1).expand(n, c, -1)
        tile = pattern_of(length, self.norm, x.device)
        new = torch.where(sign[:, -1].view(-1, 1, 1, 1) > 0, tile, tile.T) * sign[:, :-1, None, None]
        new = new + (delta.flatten(2).gather(2, place) / (1e-12 + own.flatten(2))).view_as(new)
        if self.norm == "l2":
            room = ((self.eps**2 - used.square()).clamp_min(0) / c + freed.square()).sqrt()
        else:
            room = ((self.eps - used).clamp_min(0) / c + freed) * c
        new = new / (1e-12 + self.length_of(new)) * room
        delta = torch.where(two, torch.zeros_like(delta), delta).flatten(2).scatter(2, place, new.flatten(2)).view_as(delta)
        return self.onto(x, delta)
