"""Values to try a primitive with: its options from their annotations, its needs from their names and shapes."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal, get_args, get_origin

import torch

from composer._testing.report import Broken
from composer._testing.tensors import EPS
from composer.options import FRACTION, Option, bounds, fraction, pixel_word, split
from composer.registry import REGISTRY, Need, Primitive


def options_of(primitive: Primitive, given: dict[str, Any] | None = None) -> dict[str, Any]:
    """A value for every option: the given one, the decorator's `example`, the default, or one made from the annotation."""
    given = {**primitive.flags.get("example", {}), **(given or {})}
    return {o.name: _callable(o, given[o.name]) if o.name in given else sample(o) for o in primitive.options}


def variants(primitive: Primitive, given: dict[str, Any] | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """The usual options, then every other choice of each Literal and bool, one at a time, with a word that names the change."""
    usual = options_of(primitive, given)
    yield "", usual
    for option in primitive.options:
        base = split(option.annotation)[0]
        choices = get_args(base) if get_origin(base) is Literal else (True, False) if base is bool else ()
        for choice in choices:
            if choice != usual[option.name] and option.name not in (given or {}):
                yield f"{option.name} = {choice!r}: ", usual | {option.name: choice}


def floats(primitive: Primitive, options: dict[str, Any]) -> list[str]:
    """Names of the options that may be dials."""
    return [o.name for o in primitive.options if "schedule" in o.accepts and isinstance(options[o.name], float) and split(o.annotation)[0] is float]


def sample(option: Option) -> Any:
    if not option.required:
        return _number(option, _callable(option, option.default))
    return _callable(option, _made(option.annotation, option.name))


def _number(option: Option, value: Any) -> Any:
    """Pixel words and fractions as the numbers they are under the usual threat; whole defaults of floats as floats."""
    if option.unit == "pixels" and isinstance(value, str):
        word = pixel_word(value)
        return word.factor * EPS * (0.25 if word.of == "step" else 1.0) if word else fraction(value)
    if isinstance(value, int) and not isinstance(value, bool) and split(option.annotation)[0] is float:
        return float(value)
    return fraction(value) if isinstance(value, str) and option.unit == "" and FRACTION.match(value) else value


def _callable(option: Option, value: Any) -> Any:
    """A nested primitive as the callable it arrives as."""
    kind = option.accepts[0] if option.unit == "nested" and option.accepts else ""
    if kind in ("start", "ball", "loss", "head", "model") and isinstance(value, (str, dict)):
        use, rest = (value, {}) if isinstance(value, str) else (value["use"], {k: v for k, v in value.items() if k != "use"})
        primitive = REGISTRY.get(kind, use)
        return primitive.fn if kind == "ball" else partial(primitive.fn, **options_of(primitive, rest))
    return value


def _made(annotation: Any, name: str) -> Any:
    base, metadata = split(annotation)
    unit = next((m for m in metadata if hasattr(m, "kind") and hasattr(m, "threat")), None)
    if unit is not None and unit.name == "nested":
        return {"start": "uniform", "ball": "linf", "loss": "ce", "head": "linear", "model": "mlp", "schedule": 10}[unit.kind]
    if unit is not None and unit.name in ("pixels", "epochs"):
        return EPS / 4 if unit.name == "pixels" else 3.0
    if get_origin(base) is Literal:
        return get_args(base)[0]
    if get_origin(base) in (list, tuple):
        items = get_args(base)
        fixed = get_origin(base) is tuple and ... not in items
        return [_made(item, name) for item in items] if fixed else [_made(items[0], name)]
    if base in (float, int):
        return base(_inside(dict(bounds(metadata)), whole=base is int))
    if base in (bool, str):
        return False if base is bool else name
    raise Broken(f"no value can be made up for the option '{name}'; give one: contracts(..., options={{'{name}': …}}) or @kind(example={{…}})")


def _inside(limits: dict[str, float], whole: bool) -> float:
    """A number well inside its bounds."""
    low, high = limits.get(">", limits.get(">=")), limits.get("<", limits.get("<="))
    if low is not None and high is not None:
        return round((low + high) / 2) if whole else (low + high) / 2
    if low is not None:
        return low + (2 if whole else 0.5)
    return high - 1 if high is not None else (2 if whole else 0.5)


def is_rows(n: Need, value: Any) -> bool:
    """Whether the need holds one row for each example."""
    if not isinstance(value, torch.Tensor) or value.ndim == 0:
        return False
    return n.shape.dims.startswith("[N") if n.shape else n.name not in ("head_weight",)


def need_of(n: Need, t: dict[str, Any]) -> Any:
    """A need by its name, else made from the shape it is annotated with."""
    if n.name in t:
        return t[n.name]
    if n.default is not ...:
        return n.default
    if n.shape is None:
        raise Broken(f"nothing is known of the need '{n.name}': annotate it with a name of composer.shapes")
    generator = torch.Generator().manual_seed(zlib.crc32(n.name.encode()))
    x, logits = t["x"], t["clean_logits"]
    rows, classes = logits.shape
    made = torch.randn(rows, classes, generator=generator, dtype=torch.float64).to(x.dtype)
    uniform = torch.rand(x.shape, generator=generator, dtype=torch.float64).to(x.dtype)
    return {"Images": 0.2 + 0.6 * uniform, "Leaf": x, "Uniform": uniform, "Gaussian": torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6)),
            "RowUniform": torch.rand(rows, 4, generator=generator).to(x.dtype), "Logits": made, "Probs": made.softmax(1),
            "LogProbs": made.log_softmax(1), "SoftLabels": made.softmax(1), "Features": t["clean_features"], "PerExample": made[:, 0],
            "Labels": t["y"], "Indices": t["i"], "Weight": t["head_weight"], "Scalar": 0.5, "Module": t["model"]}[n.shape.name]
