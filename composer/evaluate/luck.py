"""The random numbers the attack library draws, for the fast mode: so its answers are the library's, up to rounding.

The library seeds one generator for every batch of an attack and draws from it in the order in which it works. Here 250 images, its default batch, are a
group with a generator of its own, however many images are at work at once: the batch size changes nothing, and neither do images of later groups.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from composer.shapes import Tensor

GROUP = 250


class Luck:
    """The generators of n images, in groups by their place in the call, which begins at a multiple of `GROUP`."""

    def __init__(self, n: int, seed: int):
        self.generators = [torch.Generator().manual_seed(seed) for _ in range(0, n, GROUP)]

    def rand(self, group: int, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generators[group])

    def noise(self, kind: str, alive: Tensor, like: Tensor, idle: int = 0) -> Tensor:
        """[n,...] noise of a round: drawn for the images that stand (alive, [n] on the CPU), zero elsewhere; `idle` draws more go unused."""
        made = torch.zeros(like.shape)
        draw = {"uniform": torch.rand, "gaussian": torch.randn}[kind]
        for group, part in parts(alive.nonzero().flatten()):
            rows = alive.nonzero().flatten()[part]
            drawn = [draw(len(rows), *like.shape[1:], generator=self.generators[group]) for _ in range(1 + idle)]
            made[rows] = drawn[0]
        return made.to(like)


def parts(who: Tensor) -> Iterator[tuple[int, slice]]:
    """(group, its stretch) of ascending places."""
    groups, counts = torch.unique_consecutive(who // GROUP, return_counts=True)
    begin = 0
    for group, count in zip(groups.tolist(), counts.tolist(), strict=True):
        yield group, slice(begin, begin + count)
        begin += count
