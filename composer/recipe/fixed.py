"""The tables whose keys are fixed. Written as options, so that types, bounds and messages are those of primitives."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel

from composer.options import Option, options_model, read_option
from composer.shapes import Epochs, Ge, Gt, Norm, Pixels, Start, Unit

Bn = Literal["train", "eval", "train_frozen"]
Measure = Annotated[Any, Unit("nested", kind="measure")]
Count = Annotated[int, Ge(1)]

FIELDS: dict[str, dict[str, tuple[Any, Any, str]]] = {
    "train": {
        "epochs": (Count, ..., "passes over the training set"),
        "batch_size": (Count, 128, "images a step"),
        "lr": (Annotated[float, Ge(0)], 0.1, "learning rate, a number or a schedule"),
        "init": (str | None, None, "a run or a checkpoint to start from"),
        "last": (Literal["keep", "drop"], "keep", "the partial last batch"),
    },
    "threat": {
        "norm": (Norm, "linf", "norm of the perturbation"),
        "eps": (Annotated[float, Gt(0), Unit("pixels")], 8 / 255, "radius"),
        "step": (Pixels, "eps/4", "step of iterative attacks"),
        "steps": (Annotated[int, Ge(0)], 10, "number of steps"),
        "start": (Start, "uniform", "where attacks start"),
    },
    "outer": {
        "bn": (Bn, "train", "batch-norm mode of the outer passes"),
        "updates": (list[str] | None, None, "points whose passes write the running statistics, in this order; default every point read, x first"),
        "joint": (list[str], [], "points that go through the model in one forward"),
        "after": (list[str], [], "points passed once more, at the updated weights, for the running statistics"),
        "rows": (dict[str, str], {}, "point -> [N] tensor: batch norm over these rows only"),
    },
    "select": {
        "held_out": (Annotated[int, Ge(0)], 0, "training images kept apart for selection"),
        "stratified": (bool, False, "the held-out images have the class frequencies of the training set"),
        "n": (Count | None, None, "held-out images attacked; default all"),
        "attack": (Measure, None, "the measure that selects; default pgd-10 climbing the margin (cw), an image counted at its worst step"),
        "weights": (str, "live", "which weights are judged: live, or a part"),
        "from": (Count | Literal["last_phase"], 1, "first epoch that may be selected, or last_phase"),
        "report": (Literal["best", "last", "both"], "last", "which weights are reported"),
    },
    "trace": {
        "every": (Annotated[int, Ge(0)], 0, "epochs between two traces; 0: none"),
        "on": (Literal["val", "test"], "val", "split; test curves are closed to selection and search"),
    },
    "evaluate": {
        "use": (str, "", "a protocol of recipes/protocols.toml"),
        "n": (Count | None, None, "images, default of all measures"),
        "weights": (str, "live", "which weights are judged: live, or a part"),
        "logits": (Literal["scaled", "cosine"], "scaled", "what a head with a scale hands to the measures"),
    },
    "analysis": {
        "primary": (str | None, None, "the measure that claims are made on"),
        "family": (list[str] | None, None, "contrasts that are tested together; default all of the primary measure"),
        "equivalence": (Annotated[float, Ge(0)] | None, None, "difference that counts as none, a fraction"),
        "thresholds": (dict[str, Any], {}, "named limits, numbers: when a run counts as collapsed"),
    },
    "model": {
        "head": (Annotated[Any, Unit("nested", kind="head")], "linear", "the last layer"),
        "mean": (list[float] | None, None, "normalisation inside the model, a number a channel"),
        "std": (list[Annotated[float, Gt(0)]] | None, None, "normalisation inside the model, a number a channel"),
    },
    "optim": {
        "clip": (Annotated[float, Gt(0)] | None, None, "largest norm of the gradient"),
        "decay_exclude": (list[str], [], "parameters whose name holds one of these are spared weight decay"),
        "decay_at": (Literal["live", "perturbed"], "live", "weights whose decay is added to the gradient"),
    },
    "phase": {
        "from": (Epochs, 0.0, "epochs completed before it starts"),
        "until": (Annotated[float, Gt(0), Unit("epochs")] | None, None, "last epoch of it; default the end"),
        "add": (bool, False, "put it before the run's epochs"),
        "epochs": (Annotated[float, Gt(0), Unit("epochs")] | None, None, "length of an added phase"),
        "then": (Literal["fresh"] | None, None, "optimiser and schedules restart after it"),
    },
    "measure": {"n": (Count | None, None, "images")},
    "term": {
        "weight": (float, 1.0, "factor of the term, a number or a schedule"),
        "gain": (Annotated[Any, Unit("need")], None, "factor of each example: a gain, or the name of an [N] tensor"),
        "at": (str | None, None, "the point that logits, probs, logp, features follow"),
        "bn": (Bn | None, None, "batch-norm mode of its passes"),
        "detach": (list[str], [], "needs (or gain) that carry no gradient"),
        "begin": (Annotated[float, Gt(0), Unit("epochs")] | None, None, "epochs completed before it starts"),
    },
    "view": {
        "at": (str | None, None, "the point that logits, probs, logp, features follow"),
        "bn": (Bn | None, None, "batch-norm mode of its passes"),
        "begin": (Annotated[float, Gt(0), Unit("epochs")] | None, None, "epochs completed before it starts"),
    },
    "gain": {
        "at": (str | None, None, "the point that logits, probs, logp, features follow"),
        "bn": (Bn | None, None, "batch-norm mode of its passes"),
        "normalise": (bool, False, "divide by the mean over the batch"),
        "begin": (Annotated[float, Gt(0), Unit("epochs")] | None, None, "epochs completed before it starts"),
    },
    "part": {"begin": (Annotated[float, Gt(0), Unit("epochs")] | None, None, "epochs completed before it starts")},
    "inner": {
        "bn": (Bn, ..., "batch-norm mode of its passes"),
        "begin": (Annotated[float, Gt(0), Unit("epochs")] | None, None, "epochs completed before it starts"),
    },
}
FIELDS["radius"] = {key: FIELDS["view"][key] for key in ("at", "bn")}
SCHEDULED = {("train", "lr"), ("term", "weight")}
TEXTS = {(table, name): text for table, fields in FIELDS.items() for name, (_, _, text) in fields.items()}

OPTIONS: dict[str, tuple[Option, ...]] = {
    table: tuple(read_option(name, annotation, default, (table, name) in SCHEDULED) for name, (annotation, default, _) in fields.items())
    for table, fields in FIELDS.items()
}


@cache
def model(table: str) -> type[BaseModel]:
    """The Pydantic model of a table, made on first use."""
    return options_model(f"table_{table}", OPTIONS[table])


def option(table: str, name: str) -> Option | None:
    return next((o for o in OPTIONS[table] if o.name == name), None)


def names(table: str) -> list[str]:
    return [o.name for o in OPTIONS[table]]
