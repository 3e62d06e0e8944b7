"""Names for tensors and options that say shape, range and unit. Nothing here imports torch.

A primitive annotates its positional parameters (its needs) and its result with the tensor names, its keyword-only parameters (its options)
with plain Python types, `Annotated[float, Gt(0)]` for a bound, or one of the option names at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt  # re-exported: bounds of options

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any


@dataclass(frozen=True)
class Shape:
    """What stands behind a tensor's name: dimensions, range, unit; `leaf`, `point` and `draw` tell the plan how it is made."""

    name: str
    dims: str
    text: str = ""
    leaf: bool = False
    point: bool = False
    draw: Literal["", "uniform", "gaussian", "rows"] = ""


Images = Annotated[Tensor, Shape("Images", "[N,C,H,W]", "pixels in [0,1]")]
Labels = Annotated[Tensor, Shape("Labels", "[N]", "class indices, int64")]
SoftLabels = Annotated[Tensor, Shape("SoftLabels", "[N,K]", "rows sum to 1")]
Indices = Annotated[Tensor, Shape("Indices", "[N]", "row of the example in the training set, int64")]
Logits = Annotated[Tensor, Shape("Logits", "[N,K]", "float32")]
Probs = Annotated[Tensor, Shape("Probs", "[N,K]", "rows sum to 1")]
LogProbs = Annotated[Tensor, Shape("LogProbs", "[N,K]", "nats")]
Features = Annotated[Tensor, Shape("Features", "[N,D]", "input of the head")]
PerExample = Annotated[Tensor, Shape("PerExample", "[N]")]
Scalar = Annotated[Any, Shape("Scalar", "[]", "a number or a 0-dim tensor")]
Weight = Annotated[Tensor, Shape("Weight", "[K,D]", "weight of the head")]
Module = Annotated[Any, Shape("Module", "", "the classifier: images -> logits")]

Leaf = Annotated[Tensor, Shape("Leaf", "[N,C,H,W]", "the point `at`, made differentiable for this pass", leaf=True)]
Point = Annotated[Tensor, Shape("Point", "[N,C,H,W]", "the images of the point `at`", point=True)]
Uniform = Annotated[Tensor, Shape("Uniform", "[N,C,H,W]", "noise uniform in [0,1)", draw="uniform")]
Gaussian = Annotated[Tensor, Shape("Gaussian", "[N,C,H,W]", "standard normal noise", draw="gaussian")]
RowUniform = Annotated[Tensor, Shape("RowUniform", "[N,4]", "four numbers an example, uniform in [0,1)", draw="rows")]


@dataclass(frozen=True)
class Unit:
    """How the reader takes an option beyond its plain type: pixels, epochs, or a table that uses another kind."""

    name: Literal["pixels", "epochs", "nested", "need"]
    kind: str = ""
    threat: bool = False     # left out, it is taken from [threat] by its own name


Pixels = Annotated[float, Unit("pixels")]                    # 0.031, "8/255", "threat/2", "1.25*eps"
Epochs = Annotated[float, Unit("epochs")]                    # 80, or a fraction of the run: "80/110"
ThreatPixels = Annotated[float, Unit("pixels", threat=True)]     # as Pixels; left out: the threat's
ThreatSteps = Annotated[int, Unit("nested", kind="schedule", threat=True)]
Start = Annotated[Any, Unit("nested", kind="start", threat=True)]    # "uniform" or { use = "gaussian", sigma = 0.001 }
Norm = Annotated[Any, Unit("nested", kind="ball", threat=True)]      # "linf", "l2", "l1"
HeadSpec = Annotated[Any, Unit("nested", kind="head")]
LossSpec = Annotated[Any, Unit("nested", kind="loss")]       # a loss named inside an option, as measures do
NeedName = Annotated[str, Unit("need")]                      # the name of a tensor

__all__ = [
    "Epochs", "Features", "Gaussian", "Ge", "Gt", "HeadSpec", "Images", "Indices", "Labels", "Le", "Leaf", "LogProbs", "Logits", "LossSpec",
    "Lt", "Module", "NeedName", "Norm", "PerExample", "Pixels", "Point", "Probs", "RowUniform", "Scalar", "Shape", "SoftLabels", "Start", "Tensor",
    "ThreatPixels", "ThreatSteps", "Uniform", "Unit", "Weight",
]
