"""The Square attack with the library's windows; an image leaves as soon as it has fallen."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from composer.evaluate.luck import Luck, parts
from composer.evaluate.pool import State, select
from composer.shapes import Tensor

SHARE = 0.8
HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)       # queries after which the share of pixels in a square is halved
EDGES = 20              # one query in so many more, in the last row and column


def side(query: int, size: int, least: int) -> int:
    """Side of the window at a query for images of `size` pixels; odd where the pattern has a middle (least = 3)."""
    share = SHARE / 2 ** sum(query > at for at in HALVED_AT)
    length = max(round(math.sqrt(share * size)), least)
    return length + 1 if least == 3 and length % 2 == 0 else length


def lead(z: Tensor, y: Tensor) -> Tensor:
    """[n]: label's logit less the best other; at or below 0 the image has fallen."""
    own = y[:, None]
    return (z.gather(1, own) - z.scatter(1, own, -torch.inf).amax(1, keepdim=True))[:, 0]


def begin(draw: float, length: int, size: int) -> int:
    """Where a window begins. The library never draws the last place: the last row and column are met by windows of the image's size alone."""
    return int((size - length) * draw)


@dataclass
class Squares:
    """linf.

    edges   a twentieth more queries at the end, in the last row and column: where the library's windows never come
    width   images asked about at once

    Formula: x' = x with a window moved by 2 eps·s, s = ±1 a channel, into the ball; kept where the margin falls   [queries]
    Paper:   Andriushchenko et al., ECCV 2020
    """

    model: Callable[[Tensor], Tensor]
    eps: float
    norm: str
    seed: int
    queries: int = 5000
    edges: bool = False
    width: int = 1000
    luck: Luck = field(init=False)
    least = 1

    def run(self, x: Tensor, y: Tensor) -> Tensor:
        """Adversarial images of x, unmoved where none was found."""
        self.luck = Luck(len(x), self.seed)
        found = x.clone()
        start = self.pattern(x)
        s: State | None = {"who": torch.arange(len(x)), "x": x, "y": y, "answer": start, "margin": lead(self.ask(start), y)}
        s = self.settle(s, found)
        for query in range(self.queries + (math.ceil(self.queries / EDGES) if self.edges else 0)):
            if s is None:
                break
            self.step(s, query)
            s = self.settle(s, found)
        return found

    def ask(self, points: Tensor) -> Tensor:
        return torch.cat([self.model(some) for some in points.split(self.width)])

    def settle(self, s: State, found: Tensor) -> State | None:
        hit = (s["margin"] <= 0).cpu()
        if hit.any():
            found[s["who"][hit].to(found.device)] = s["answer"][hit.to(found.device)]
            left = (~hit).nonzero().flatten()
            if not len(left):
                return None
            s = select(s, left)
        elif "low" in s:
            return s
        self.parts = list(parts(s["who"]))
        return s | {"low": (s["x"] - self.eps).clamp_min(0), "high": (s["x"] + self.eps).clamp_max(1)}

    def better(self, s: State, new: Tensor) -> Tensor:
        """[n,1,1,1] bool: the new points are kept."""
        margin = lead(self.ask(new), s["y"])
        better = (margin < s["margin"]) | (margin <= 0)
        s["margin"] = torch.where(better, margin, s["margin"])
        return better.view(-1, 1, 1, 1)

    def place(self, draws: Tensor, length: int, rows: int, columns: int, query: int) -> tuple[slice, slice]:
        """The window of two draws in [0,1)."""
        down, right = draws.tolist()
        row, column = begin(down, length, rows), begin(right, length, columns)
        if query >= self.queries:          # along one of the two edges, uniformly over its places
            last, at = int(2 * down), 2 * down % 1
            row = rows - length if last == 0 else int((rows - length + 1) * at)
            column = columns - length if last == 1 else int((columns - length + 1) * right)
        return slice(row, row + length), slice(column, column + length)

    def pattern(self, x: Tensor) -> Tensor:
        """Vertical stripes of ±eps."""
        _, c, _, w = x.shape
        drawn = [self.luck.rand(group, part.stop - part.start, c, 1, w) for group, part in parts(torch.arange(len(x)))]
        return (x + self.eps * (2 * torch.cat(drawn).to(x) - 1).sign()).clamp(0, 1)

    def step(self, s: State, query: int) -> None:
        """The windows alone are written, and put back where the margin did not fall."""
        point = s["answer"]
        c, h, w = point.shape[1:]
        length = min(side(min(query, self.queries - 1), h * w, self.least), h, w)
        before = []
        for group, part in self.parts:
            drawn = self.luck.rand(group, 2 + c)
            window = (part, slice(None), *self.place(drawn[:2], length, h, w, query))
            move = 2 * self.eps * (2 * drawn[2:] - 1).sign().to(point).view(-1, 1, 1)
            before.append((window, point[window].clone()))
            point[window] = (point[window] + move).clamp(s["low"][window], s["high"][window])
        better = self.better(s, point)
        for window, old in before:
            point[window] = torch.where(better[window[0]], point[window], old)


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

    least = 3

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

    def tiles(self, length: int, drawn: Tensor, like: Tensor) -> Tensor:
        """[n,C,s,s]: the pattern, turned or not by the first draw, with a sign a channel of an image by the others."""
        tile = pattern_of(length, self.norm, like.device)
        return (tile.T if drawn[0] > 0.5 else tile) * (2 * drawn[1:] - 1).sign().to(like).view(-1, like.shape[1], 1, 1)

    def pattern(self, x: Tensor) -> Tensor:
        _, c, h, w = x.shape
        length = max(h // 5, 1)
        skip = (h - 5 * length) // 2 if h >= 5 else 0
        places = [(skip + r * length, skip + q * length) for r in range(h // length) for q in range(w // length)]
        delta = torch.zeros_like(x)
        for group, part in parts(torch.arange(len(x))):
            for r, q in places:
                tiles = self.tiles(length, self.luck.rand(group, 1 + (part.stop - part.start) * c), x)      # drawn also where it does not fit
                if r + length <= h and q + length <= w:
                    delta[part, :, r:r + length, q:q + length] = tiles
        return self.onto(x, delta)

    def step(self, s: State, query: int) -> None:
        new = torch.cat([self.propose(s["x"][part], s["answer"][part], group, query) for group, part in self.parts])
        s["answer"] = torch.where(self.better(s, new), new, s["answer"])

    def propose(self, x: Tensor, point: Tensor, group: int, query: int) -> Tensor:
        n, c, h, w = x.shape
        length = min(side(min(query, self.queries - 1), h * w, self.least), h, w)
        drawn = self.luck.rand(group, 5 + n * c)
        one, two = ((slice(None), slice(None), *self.place(draws, length, h, w, query)) for draws in (drawn[:2], drawn[2:4]))
        delta = point - x
        either = torch.zeros_like(delta)
        either[one], either[two] = 1, 1
        freed, used = self.length_of(delta * either), self.whole(delta)
        new = self.tiles(length, drawn[4:], x) + delta[one] / (1e-12 + self.length_of(delta[one]))
        if self.norm == "l2":
            room = ((self.eps**2 - used.square()).clamp_min(0) / c + freed.square()).sqrt()
        else:
            room = ((self.eps - used).clamp_min(0) / c + freed) * c
        new = new / (1e-12 + self.length_of(new)) * room
        delta[two] = 0
        delta[one] = new
        return self.onto(x, delta)
