"""Many searches in one batch: jobs enter as room appears and leave when they end, so no forward pass is spent on an image that has fallen."""

from __future__ import annotations

from typing import Protocol

import torch

from composer.shapes import Tensor

State = dict[str, Tensor]       # every tensor has one row a job; always `who`, `answer`, `fallen`, `done`
REFILL = 4                      # new jobs enter when a quarter of the width is free


class Search(Protocol):
    """An attack as a step on the state of many jobs, none of which looks at another."""

    def start(self, x: Tensor, y: Tensor, who: Tensor, tag: Tensor) -> State:
        """The state of new jobs. who: their images' rows, tag: which restart or target."""

    def step(self, state: State) -> None:
        """One iteration of every job, in place."""

    def follow(self, state: State) -> State | None:
        """What jobs that ended without success go on with."""


def run_jobs(search: Search, x: Tensor, y: Tensor, who: Tensor, tag: Tensor, width: int, found: Tensor | None = None,
             alive: Tensor | None = None) -> Tensor:
    """Adversarial images of x, unmoved where no job succeeded.

    who, tag   [J] on the CPU, in the order in which jobs enter; once an image has fallen, its other jobs are dropped
    width      jobs at work at once
    found      what earlier jobs found, written into; alive: [N] bool on the CPU, whom they left standing, written into
    """
    found = x.clone() if found is None else found
    alive = torch.ones(len(x), dtype=torch.bool) if alive is None else alive
    state: State | None = None
    entered, total = 0, len(who)
    while True:
        room = width - (len(state["who"]) if state else 0)
        if entered < total and (state is None or room * REFILL >= width):
            ahead = torch.arange(entered, total)
            fit = ahead[alive[who[ahead]]][:room]
            entered = int(fit[-1]) + 1 if len(fit) == room else total
            if len(fit):
                state = _settle(search, join(state, search.start(x, y, who[fit], tag[fit])), found, alive)
        elif state is None:
            return found
        if state is not None:
            search.step(state)
            state = _settle(search, state, found, alive)


def _settle(search: Search, state: State, found: Tensor, alive: Tensor) -> State | None:
    """Write down the fallen, drop the ended and the now useless, let ended stages go on."""
    fallen, done = torch.stack((state["fallen"], state["done"])).cpu()
    if not (fallen | done).any():
        return state
    who = state["who"]
    hit = fallen.nonzero().flatten()
    found[who[hit].to(found.device)] = state["answer"][hit.to(found.device)]
    alive[who[hit]] = False
    ended = done & ~fallen & alive[who]
    kept = select(state, (~done & ~fallen & alive[who]).nonzero().flatten())
    if ended.any() and (more := search.follow(select(state, ended.nonzero().flatten()))) is not None:
        kept = join(kept, more)
    return kept if len(kept["who"]) else None


def select(state: State, rows: Tensor) -> State:
    """The rows (on the CPU) of every tensor of the state, each where it lies."""
    there = rows.to(state["answer"].device)
    return {name: value[rows if value.device.type == "cpu" else there] for name, value in state.items()}


def join(one: State | None, other: State) -> State:
    return {name: torch.cat((one[name], value)) for name, value in other.items()} if one else other
