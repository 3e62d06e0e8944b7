"""The plan: one phase of a recipe as straight lines of calls. Data only, printable, hashable; no torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from composer.options import Ref


@dataclass(frozen=True)
class Dial:
    """A number that a schedule moves; it enters a step as an input."""

    path: str
    ref: Ref


@dataclass(frozen=True)
class Pixel:
    """factor · eps of the inner it belongs to (per example where eps is)."""

    factor: float
    of: str = "eps"


@dataclass(frozen=True)
class Slot:
    """A tensor of the plan, by name."""

    name: str


Value = Any      # a constant, or Dial, Pixel, Slot, or a Ref (start, ball) whose options are Values


@dataclass(frozen=True)
class Arg:
    """One argument of a call: the tensor and whether its gradient is cut."""

    need: str
    slot: str
    detach: bool = False


@dataclass(frozen=True)
class Pass:
    """One forward of the model.

    points  the images it sees; several when the recipe joins them in one forward
    outs    per point, the name of its logits
    batch   batch statistics in batch norm (else running ones)
    leaves  per point that a loss or view differentiates w.r.t.: the point, and the tensor that is its differentiable copy for this pass
    grad    whether the sum's gradient runs through it, to weights or points
    tape    a later call differentiates it, whether or not the sum's gradient runs through it
    rows    name of an [N] mask: batch norm over these rows alone
    """

    points: tuple[str, ...]
    outs: tuple[str, ...]
    batch: bool
    features: tuple[str, ...] = ()
    leaves: tuple[tuple[str, str], ...] = ()
    grad: bool = True
    rows: str | None = None
    tape: bool = False

    @property
    def writes_to(self) -> tuple[str, ...]:
        return self.outs + self.features

    @property
    def args(self) -> tuple[Arg, ...]:
        return tuple(Arg(p, p) for p in self.points) + ((Arg("rows", self.rows, True),) if self.rows else ())


@dataclass(frozen=True)
class Call:
    """One primitive applied: out = use(args, options).

    backward  passes inside the call: input gradients it takes itself, and double backwards that follow from them; "classes": one for every class
    tape      as a Pass has it
    """

    path: str
    kind: str
    use: str
    args: tuple[Arg, ...]
    out: str
    options: dict[str, Value] = field(default_factory=dict)
    normalise: bool = False
    grad: bool = True
    second_order: bool = False      # differentiates w.r.t. a Leaf
    backward: tuple[int | str, int | str] = (0, 0)
    tape: bool = False

    @property
    def writes_to(self) -> tuple[str, ...]:
        return (self.out,)


@dataclass(frozen=True)
class Read:
    """A part's state combined with current tensors."""

    part: str
    point: str | None
    args: tuple[Arg, ...]
    outs: tuple[tuple[str, str], ...]      # (name the part gives it, tensor of the plan)
    grad: bool = True
    tape: bool = False

    @property
    def writes_to(self) -> tuple[str, ...]:
        return tuple(slot for _, slot in self.outs)


Step = Pass | Call | Read


@dataclass(frozen=True)
class Summand:
    """weight · mean_i(gain_i · loss_i)"""

    id: str
    loss: str
    weight: Value
    gain: str | None = None
    detach_gain: bool = False


@dataclass(frozen=True)
class Program:
    """Calls in order, and the sum they end in."""

    steps: tuple[Step, ...]
    terms: tuple[Summand, ...] = ()
    surface: str | None = None             # an inner that climbs a margin view instead of terms

    @property
    def passes(self) -> tuple[Pass, ...]:
        return tuple(s for s in self.steps if isinstance(s, Pass))


@dataclass(frozen=True)
class Draw:
    """A random input of the step, named by its path."""

    path: str
    kind: str
    count: int | str = 1                   # how many a step; a name: a scheduled option decides


@dataclass(frozen=True)
class InnerPlan:
    """An inner maximum: what runs once, what runs at every climb, and what it makes."""

    id: str
    use: str
    bn: str
    writes: bool                           # its passes write running statistics
    preamble: Program
    body: Program
    eps: Value
    options: dict[str, Value]
    args: tuple[Arg, ...]                  # roots the primitive asks for itself
    makes: tuple[tuple[str, str], ...]     # (key of its result, tensor of the plan)
    draws: tuple[tuple[str, Draw], ...]    # (name the primitive knows, draw)
    climbs: int | str                      # gradients it asks for; a name: a dial decides
    forwards: int = 0                      # forwards without gradient besides

    @property
    def over_weights(self) -> bool:
        return self.id == "weights"


@dataclass(frozen=True)
class Moment:
    """A part acts: after the optimiser's step, at an epoch's or the phase's end."""

    part: str
    when: str
    point: str | None
    args: tuple[Arg, ...]


@dataclass(frozen=True)
class Cost:
    """Passes of one step, in batches, as PyTorch runs them.

    double    double backwards: each runs the network's products forward once more and (towards weights) one weight gradient; both are among
              `forward` and `wgrad`
    each      what comes on top for every class: (forward, dgrad, wgrad, double)
    variable  inners whose number of steps a schedule decides (counted at its first value)
    """

    forward: int = 0
    dgrad: int = 0
    wgrad: int = 0
    double: int = 0
    variable: tuple[str, ...] = ()
    each: tuple[int, int, int, int] = (0, 0, 0, 0)

    def __add__(self, other: Cost) -> Cost:
        each = tuple(a + b for a, b in zip(self.each, other.each))
        return Cost(self.forward + other.forward, self.dgrad + other.dgrad, self.wgrad + other.wgrad, self.double + other.double,
                    self.variable + other.variable, each)  # type: ignore[arg-type]

    def __mul__(self, times: int) -> Cost:
        each = tuple(n * times for n in self.each)
        return Cost(self.forward * times, self.dgrad * times, self.wgrad * times, self.double * times, self.variable, each)  # type: ignore[arg-type]

    def at(self, classes: int) -> Cost:
        """The cost with that many classes."""
        return replace(self, each=(0, 0, 0, 0)) + Cost(*(n * classes for n in self.each))

    @property
    def units(self) -> int:
        return self.forward + self.dgrad + self.wgrad


@dataclass(frozen=True)
class PartPlan:
    """A part as the plan uses it."""

    id: str
    use: str
    options: dict[str, Value]
    points: tuple[str, ...]                # points whose views of it are read
    active: bool                           # read by this phase, or writes the model
    rebind: dict[str, str] = field(default_factory=dict)
    needed: bool = False                   # active here, or read by a later phase, or judged


@dataclass(frozen=True)
class Plan:
    """One phase, compiled."""

    prelude: Program
    inner: tuple[InnerPlan, ...]
    outer: Program
    updates: tuple[str, ...]               # logits whose passes' statistics are written, in order (repeats replay)
    after: tuple[str, ...]                 # points forwarded once more at the updated weights, without a tape
    moments: tuple[Moment, ...]
    parts: tuple[PartPlan, ...]
    draws: tuple[Draw, ...]
    dials: tuple[Dial, ...]
    coupled: tuple[str, ...]               # terms and gains that couple the rows of a batch
    soft: bool = False

    @property
    def second_order(self) -> bool:
        return any(isinstance(s, Call) and s.second_order for p in (self.outer, *(i.body for i in self.inner)) for s in p.steps)

    @property
    def takes(self) -> frozenset[str]:
        """Every tensor that some call of the plan takes, by name."""
        programs = (self.prelude, self.outer, *(p for i in self.inner for p in (i.preamble, i.body)))
        calls = (*(s for p in programs for s in p.steps), *self.inner, *self.moments)
        return frozenset(a.slot for call in calls for a in call.args)
