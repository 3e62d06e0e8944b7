"""A measure's options made concrete: what was left out comes from the threat, pixel words become numbers. No torch."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from composer.errors import ComposerError, suggest
from composer.options import FRACTION, Option, Ref, fraction, pixel_word
from composer.recipe.types import MeasureSpec, Threat
from composer.registry import REGISTRY


def resolve_options(spec: MeasureSpec, threat: Threat, selects: bool = False) -> dict[str, Any]:
    """Every option of the measure with its value: numbers for pixels, a Ref for a nested primitive.

    `eps` is settled first and `step` next, since other options may be words of them ("eps/4", "1.25*eps"); "threat" is the threat's
    eps, for `step` the threat's step.

    selects   the best epoch is chosen by it: under a threat without steps that is clean accuracy, as it should be

    Errors: ComposerError for an unknown option, a missing one, and for an attack that could not move an image.
    """
    primitive = REGISTRY.get("measure", spec.use)
    unknown = sorted(set(spec.options) - {o.name for o in primitive.options})
    if unknown:
        raise ComposerError(f"measure '{spec.name}' ({spec.use}) has no option '{unknown[0]}'", where=f"evaluate.{spec.name}",
                            fix=suggest(unknown[0], [o.name for o in primitive.options], "options"))
    scale = {"threat": float(threat.eps), "eps": float(threat.eps), "step": float(threat.step)}
    settled: dict[str, Any] = {}
    for option in sorted(primitive.options, key=lambda o: {"eps": 0, "step": 1}.get(o.name, 2)):
        words = scale | {"threat": float(threat.step)} if option.name == "step" else scale      # as everywhere in a recipe
        settled[option.name] = _settle(option, _given(option, spec, threat), words, spec)
        if option.name in ("eps", "step"):
            scale[option.name] = settled[option.name]
    if primitive.flags.get("attack"):
        _check_effort(settled, spec, spec.options if selects else ("eps", "step", "steps"))
    return {option.name: settled[option.name] for option in primitive.options}


def _check_effort(settled: dict[str, Any], spec: MeasureSpec, names: Collection[str]) -> None:
    """An attack without a radius, a step or steps would print the clean accuracy under its own name."""
    for name in (name for name in ("eps", "step", "steps") if name in names):
        value = settled.get(name)
        if isinstance(value, (int, float)) and value <= 0:
            origin = "" if name in spec.options else f" (the threat's {name})"
            raise ComposerError(f"measure '{spec.name}' ({spec.use}): {name} = {value:g}{origin}", where=f"evaluate.{spec.name}",
                                why="such an attack moves no image: clean accuracy would stand under its name", fix=f"give {name} a value above 0, or measure clean")


def _given(option: Option, spec: MeasureSpec, threat: Threat) -> Any:
    value = spec.options.get(option.name, option.default)
    if option.threat and (value is ... or value is None):
        value = getattr(threat, option.name)
    if value is ...:
        raise ComposerError(f"measure '{spec.name}' ({spec.use}) needs the option '{option.name}'", where=f"evaluate.{spec.name}",
                            fix=f"{spec.name} = {{ use = \"{spec.use}\", {option.name} = … }}")
    return value


def _settle(option: Option, value: Any, scale: dict[str, float], spec: MeasureSpec) -> Any:
    if option.unit == "pixels":
        return _pixels(option, value, scale, spec)
    if option.accepts and option.accepts != ("schedule",):
        return _settle_ref(as_ref(option.accepts[0], value), scale, spec)
    if isinstance(value, Ref):
        raise ComposerError(f"measure '{spec.name}': {option.name} is a schedule", where=f"evaluate.{spec.name}",
                            why="an evaluation has no epochs", fix=f"give {option.name} a number")
    return value


def _pixels(option: Option, value: Any, scale: dict[str, float], spec: MeasureSpec) -> float:
    if isinstance(value, str):
        word = pixel_word(value)
        if word is None and not FRACTION.match(value):
            raise ComposerError(f"measure '{spec.name}': {option.name} = \"{value}\" is no size in pixels", where=f"evaluate.{spec.name}",
                                fix='write a number, "8/255", "threat/2" or "eps/4"')
        value = word.factor * scale[word.of] if word else fraction(value)
    if isinstance(value, Ref):
        raise ComposerError(f"measure '{spec.name}': {option.name} is a schedule", where=f"evaluate.{spec.name}",
                            why="an evaluation has no epochs", fix=f"give {option.name} a number")
    return float(value)


def _settle_ref(ref: Ref, scale: dict[str, float], spec: MeasureSpec) -> Ref:
    """Sizes in pixels inside a nested primitive (a start's sigma) are words of the same eps."""
    inside = {o.name: o for o in REGISTRY.get(ref.kind, ref.use).options if o.unit == "pixels"}
    return Ref(ref.kind, ref.use, {key: _pixels(inside[key], value, scale, spec) if key in inside else value for key, value in ref.options.items()})


def as_ref(kind: str, value: Any) -> Ref:
    """A nested primitive as a Ref; a bare name means its defaults."""
    return value if isinstance(value, Ref) else Ref(kind, str(value))
