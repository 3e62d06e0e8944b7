"""Options of a primitive: from annotations to checked values. Declared once, in the signature; no schema class is ever written by hand."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model

from composer.shapes import Unit

PIXEL_WORD = re.compile(r"^\s*(?:(?P<k>\d+(?:\.\d+)?)\s*\*\s*)?(?P<of>threat|eps|step)\s*(?:/\s*(?P<m>\d+(?:\.\d+)?))?\s*$")
FRACTION = re.compile(r"^\s*\d+(?:\.\d+)?\s*/\s*\d+(?:\.\d+)?\s*$")


@dataclass(frozen=True)
class Ref:
    """A table that names a primitive: kind, name, checked options (defaults filled in)."""

    kind: str
    use: str
    options: dict[str, Any] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        return {"use": self.use, **{key: plain(value) for key, value in self.options.items()}}


def plain(value: Any) -> Any:
    """The value as TOML would say it."""
    if isinstance(value, Ref):
        return value.plain()
    if isinstance(value, BaseModel):
        return {key: plain(getattr(value, key)) for key in type(value).model_fields}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


@dataclass(frozen=True)
class PixelWord:
    """'1.25*eps', 'threat/2': factor times a name."""

    factor: float
    of: str


def pixel_word(text: str) -> PixelWord | None:
    match = PIXEL_WORD.match(text)
    return match and PixelWord(float(match["k"] or 1) / float(match["m"] or 1), match["of"])  # type: ignore[return-value]


@cache
def fraction(text: str) -> float:
    return float(Fraction(text.split("/")[0].strip()) / Fraction(text.split("/")[1].strip()))


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is needed, not true or false")
    if isinstance(value, str):
        if not FRACTION.match(value):
            raise ValueError('a number is needed (or a fraction in quotes, "8/255")')
        if float(value.split("/")[1]) == 0:
            raise ValueError("the fraction divides by zero")
        return fraction(value)
    return float(value) if isinstance(value, int) else value


def _pixels(value: Any) -> Any:
    if isinstance(value, str) and pixel_word(value):
        return value.replace(" ", "")
    return value if isinstance(value, str) and not FRACTION.match(value) else _number(value)


def _epochs(value: Any) -> Any:
    """Epochs stay as written when they are a fraction: the length of the run makes them whole later."""
    if isinstance(value, str) and FRACTION.match(value):
        return value.replace(" ", "")
    return _number(value)


def _whole(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, Ref)):
        raise ValueError("a whole number is needed")
    return value


def whole_epochs(value: float | str, epochs: int) -> int:
    """A count of epochs from a number or a fraction of the run, rounded to nearest; a positive one is at least one epoch."""
    count = fraction(value) * epochs if isinstance(value, str) else float(value)
    return max(1, math.floor(count + 0.5)) if count > 0 else 0


@dataclass(frozen=True)
class Option:
    """One option of a primitive: its name, annotation, default, and the kinds of tables that may stand for it."""

    name: str
    annotation: Any
    default: Any
    accepts: tuple[str, ...] = ()      # kinds whose `{ use = … }` table may stand here
    unit: str = ""                     # pixels | epochs | nested | need | ""
    threat: bool = False               # left out, [threat] has it
    element: bool = False              # `accepts` holds for the items of a list

    @property
    def required(self) -> bool:
        return self.default is ...

    @property
    def type_text(self) -> str:
        """The type as a user reads it: 'number > 0', 'mart | exact'."""
        return describe(self.annotation, self.accepts)


BOUNDS = {Gt: (">", "gt"), Ge: (">=", "ge"), Lt: ("<", "lt"), Le: ("<=", "le")}


def bounds(metadata: tuple[Any, ...]) -> list[tuple[str, float]]:
    return [(BOUNDS[type(m)][0], getattr(m, BOUNDS[type(m)][1])) for m in metadata if type(m) in BOUNDS]


def describe(annotation: Any, accepts: tuple[str, ...] = ()) -> str:
    base, metadata = split(annotation)
    unit = next((m.name for m in metadata if isinstance(m, Unit)), "")
    if unit == "pixels":
        text = 'pixels (0.03, "8/255", "threat/2")'
    elif unit == "epochs":
        text = 'epochs (80 or "80/110")'
    elif unit == "nested" and base is Any:
        return "a " + " or ".join(accepts) + ': its name, or { use = "name", … }'
    elif get_origin(base) is Literal:
        text = " | ".join(f'"{a}"' if isinstance(a, str) else str(a).lower() for a in get_args(base))
    elif get_origin(base) in (list, tuple):
        text = "list of " + describe(next(iter(a for a in get_args(base) if a is not ...), Any))
    elif get_origin(base) is Union or str(get_origin(base)) == "<class 'types.UnionType'>":
        text = " or ".join(describe(a) for a in get_args(base) if a is not type(None))
    else:
        text = {float: "number", int: "whole number", str: "string", bool: "true | false", dict: "table"}.get(base, getattr(base, "__name__", str(base)))
    text += "".join(f" {sign} {value:g}" for sign, value in bounds(metadata))
    return text + (" or a schedule" if "schedule" in accepts else "")


def split(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """Annotated[T, …] -> T and the rest."""
    if get_origin(annotation) is Annotated:
        base, *metadata = get_args(annotation)
        return base, tuple(metadata)
    return annotation, ()


def read_option(name: str, annotation: Any, default: Any, schedules: bool) -> Option:
    """An option as declared. `schedules`: a float of this kind of primitive may be a schedule."""
    base, metadata = split(annotation)
    unit = next((m for m in metadata if isinstance(m, Unit)), None)
    accepts: tuple[str, ...] = ()
    if unit and unit.name == "nested":
        accepts = (unit.kind,)
    elif base is float and schedules and not (unit and unit.name == "epochs"):
        accepts = ("schedule",)
    return Option(name, annotation, default, accepts, unit.name if unit else "", bool(unit and unit.threat))


def field_type(option: Option) -> Any:
    """The Pydantic type that checks one option's value; nested tables arrive here as a Ref, checked before."""
    return _field(option.annotation, bool(option.accepts))


def _field(annotation: Any, ref: bool = False) -> Any:
    base, metadata = split(annotation)
    unit = next((m.name for m in metadata if isinstance(m, Unit)), "")
    limits = [m for m in metadata if type(m) in BOUNDS]
    finite = Field(allow_inf_nan=False)
    if base is float:
        before = {"pixels": _pixels, "epochs": _epochs}.get(unit, _number)
        number: Any = Annotated[(float, *limits, finite)]
        if unit == "pixels":
            number = Union[number, Annotated[str, Field(pattern=PIXEL_WORD.pattern)]]
        if unit == "epochs":
            number = Union[number, Annotated[str, Field(pattern=FRACTION.pattern)]]
        return Annotated[Union[number, Ref] if ref else number, BeforeValidator(_unless_ref(before))]
    if base is int:
        whole: Any = Annotated[(int, Field(strict=True), *limits)]
        return Annotated[Union[whole, Ref] if ref else whole, BeforeValidator(_whole)]
    if base is str or base is bool:
        return Annotated[(base, Field(strict=True), *limits)]
    origin = get_origin(base)
    if origin is Union or str(origin) == "<class 'types.UnionType'>":
        return Union[tuple(a if a is type(None) else _field(a, ref) for a in get_args(base))]
    if origin in (list, tuple):
        items = [a for a in get_args(base) if a is not ...]
        if origin is tuple and len(items) == len(get_args(base)):
            return tuple[tuple(_field(a) for a in items)]  # type: ignore[misc]
        return tuple[_field(items[0]), ...]  # type: ignore[misc]
    return annotation if unit == "" else Any


def _unless_ref(check: Any) -> Any:
    return lambda value: value if isinstance(value, Ref) else check(value)


def options_model(name: str, options: tuple[Option, ...]) -> type[BaseModel]:
    fields: dict[str, Any] = {o.name: (field_type(o), o.default) for o in options}
    return create_model(name, __config__=ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, protected_namespaces=()), **fields)
