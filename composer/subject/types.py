"""What is asked for, and the model that was found for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from composer.data.sets import DataSet
from composer.engine.session import Settings
from composer.recipe.types import ModelSpec


@dataclass(frozen=True)
class Asked:
    """`composer evaluate` as the command line says it; empty values were not said."""

    target: str
    model: str = ""                         # network of a state-dict file: a name, wrn-34-10, torchvision:NAME, or a table
    normalise: str = ""                     # inside, none, a data set's name, mean=..,std=..
    data: str = ""
    setting: str | None = None
    sets: tuple[str, ...] = ()
    protocol: str = ""
    eps: str = ""
    norm: str = ""
    n: int | None = None
    seed: int | None = None
    batch_size: int | None = None
    probe: bool = True
    settings: Settings = field(default_factory=Settings)


@dataclass
class Bench:
    """What it is judged on: images in [0,1] on the CPU, and the recipe that holds threat, measures and the judged output."""

    recipe: Any
    dataset: DataSet
    x: Tensor
    y: Tensor


@dataclass
class Subject:
    """A model ready to be judged: images in [0,1] -> logits, float32, contiguous, eager, in eval mode.

    digest          the folder of its results below evaluations/
    weights         by name, on the CPU; spec: how build_model makes the network for them (None: not one of composer's)
    normalisation   in words; mean and std where they are known
    run             what a measure may ask of the run (None: a bare model); seed: of the evaluation
    notes           what was found and done to make it fit, one line each; doubts mark its numbers
    """

    name: str
    kind: str
    model: Callable[[Tensor], Tensor]
    digest: str
    weights: dict[str, Tensor]
    normalisation: str = "none"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    spec: ModelSpec | None = None
    run: Any = None
    seed: int = 0
    notes: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    source: Path | None = None
    built: str = ""                                          # what makes the network where spec is None: module:function, torchvision:NAME, timm:NAME
    facts: dict[str, Any] = field(default_factory=dict)      # recipe, setting, run of one of ours
