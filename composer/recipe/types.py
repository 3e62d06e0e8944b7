"""What a recipe says, as data. No torch, no code: opening a stranger's recipe is safe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from composer.options import Ref

Bn = Literal["train", "eval", "train_frozen"]


@dataclass(frozen=True)
class Use:
    """A primitive put to work: its options, and where its needs come from.

    at      the point (without `x_`; `clean` for x) that the plain needs logits, probs, logp, features follow; None: the default
    bn      batch-norm mode of its passes; None: the program's
    rebind  need -> name of the tensor it is given instead
    """

    kind: str
    id: str
    use: str
    options: dict[str, Any] = field(default_factory=dict)      # name -> checked value; numbers may be a schedule's Ref
    rebind: dict[str, str] = field(default_factory=dict)
    at: str | None = None
    bn: Bn | None = None
    normalise: bool = False                                    # gains: divide by the mean over the batch


@dataclass(frozen=True)
class Term(Use):
    """One summand: weight · mean_i(gain_i · loss_i)."""

    weight: float | Ref = 1.0
    gain: Use | str | None = None                              # a gain, or the name of any [N] tensor
    detach: tuple[str, ...] = ()                               # needs (or "gain") that carry no gradient


@dataclass(frozen=True)
class Inner:
    """An inner maximum, named by the point it makes (`x_adv`), or `weights`."""

    id: str
    use: str
    options: dict[str, Any]                                    # threat's values filled in where left out, except eps
    eps: float | str | Ref | Use                               # number, pixel word, name of an [N] tensor, schedule, or a radius (Use)
    bn: Bn
    terms: tuple[Term, ...]
    surface: Use | None = None
    rebind: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outer:
    bn: Bn = "train"
    updates: tuple[str, ...] | None = None
    joint: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    rows: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """What one phase minimises: everything a plan is compiled from, besides the threat."""

    inner: tuple[Inner, ...]       # in order of declaration
    outer: Outer
    terms: tuple[Term, ...]
    views: tuple[Use, ...]
    parts: tuple[Use, ...]         # kind "part"
    soft: bool = False             # an augmentation makes y_soft


@dataclass(frozen=True)
class Threat:
    norm: Ref
    eps: float
    step: float
    steps: int
    start: Ref


@dataclass(frozen=True)
class Train:
    epochs: int
    batch_size: int
    lr: float | Ref
    init: str | None = None                        # a run or a file to start from
    last: Literal["keep", "drop"] = "keep"         # the partial last batch


@dataclass(frozen=True)
class ModelSpec:
    use: str
    options: dict[str, Any]
    head: Ref
    mean: tuple[float, ...] | None = None          # normalisation inside the model, per channel
    std: tuple[float, ...] | None = None


@dataclass(frozen=True)
class OptimSpec:
    use: str
    options: dict[str, Any]
    clip: float | None = None                      # largest norm of the gradient
    decay_exclude: tuple[str, ...] = ()            # parameters whose name holds one of these, and "bias", "norm", are spared weight decay
    decay_at: Literal["live", "perturbed"] = "live"


@dataclass(frozen=True)
class MeasureSpec:
    """One measure by its printed name."""

    name: str
    use: str
    options: dict[str, Any]
    n: int | None = None


@dataclass(frozen=True)
class Select:
    held_out: int = 0
    stratified: bool = False
    n: int | None = None                            # images attacked; None: all held out
    attack: MeasureSpec | None = None
    weights: str = "live"
    from_: int | str = 1                            # first epoch that may be selected; "last_phase"
    report: Literal["best", "last", "both"] = "last"


@dataclass(frozen=True)
class Trace:
    every: int = 0                                  # epochs between two traces; 0: none
    on: Literal["val", "test"] = "val"
    measures: tuple[MeasureSpec, ...] = ()


@dataclass(frozen=True)
class Evaluate:
    protocol: str = ""                              # the name in protocols.toml it came from
    measures: tuple[MeasureSpec, ...] = ()
    weights: str = "live"
    logits: Literal["scaled", "cosine"] = "scaled"


@dataclass(frozen=True)
class Segment:
    """A stretch of epochs with one plan. Epochs are 1-based and inclusive, counted over the whole run, added phases included."""

    first: int
    last: int
    recipe: Any                                     # the Recipe with this stretch's edits applied
    phases: tuple[str, ...] = ()
    clock: int = 0                                  # epoch e of the run is epoch e - clock of its schedules
    epochs: int = 0                                 # length of the schedules' run
    fresh: bool = False                             # optimiser restarts where this stretch begins
