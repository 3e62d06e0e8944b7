"""Terms and options of a program, as slots."""

from __future__ import annotations

from composer.errors import ComposerError, Errors
from composer.plan.lacking import missing
from composer.plan.needs import Builder
from composer.plan.types import Slot, Value
from composer.recipe.types import Term
from composer.registry import Primitive


def term_call(builder: Builder, term: Term, path: str) -> tuple[str, str | None]:
    """A term's loss and gain slots. Errors: what both lack."""
    errors: list[ComposerError] = []
    made: list[str | None] = [None, None]
    try:
        made[0] = builder.call(term, path, detach=term.detach, out=path)
    except ComposerError as error:
        errors += error.all
    try:
        made[1] = _gain(builder, term, path)
    except ComposerError as error:
        errors += error.all
    if errors:
        raise Errors(errors)
    return made[0], made[1]  # type: ignore[return-value]


def _gain(builder: Builder, term: Term, path: str) -> str | None:
    if term.gain is None:
        return None
    if not isinstance(term.gain, str):
        return builder.call(term.gain, f"{path}.gain", at=term.at, bn=term.bn, out=f"{path}.gain")
    try:
        return builder.tensor(term.gain, term.at, term.bn)
    except ComposerError as error:
        raise missing(f'gain = "{term.gain}"', error, f"{path}.gain") from None


def slot_options(builder: Builder, primitive: Primitive, options: dict[str, Value], path: str = "") -> dict[str, Value]:
    """Options that name a tensor hold its slot. `path` of the component, for errors."""
    found = {}
    for name, value in options.items():
        option = primitive.option(name)
        if not (option and option.unit == "need" and isinstance(value, str)):
            found[name] = value
            continue
        try:
            found[name] = Slot(builder.tensor(value))
        except ComposerError as error:
            raise missing(f'{name} = "{value}"', error, f"{path}.{name}" if path else "") from None
    return found


def named(builder: Builder, key: str, name: str, path: str) -> None:
    """Errors: the tensor that a piece names is not there (asked for pieces that cannot be read themselves)."""
    try:
        builder.tensor(name)
    except ComposerError as error:
        raise missing(f'{key} = "{name}"', error, path) from None
