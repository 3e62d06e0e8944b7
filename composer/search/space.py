"""The space of a sweep: what Optuna draws from, and the points of a grid."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

from composer.errors import ComposerError
from composer.recipe.paths import Dotted, inside, split
from composer.recipe.recipe import Recipe
from composer.recipe.write import quote

Space = dict[str, dict[str, Any]]


def space_of(recipe: Recipe) -> tuple[Space, dict[str, str]]:
    """(the live part of [search], path -> why it is not searched). What a toggle, a cell or the command line has set is not drawn again."""
    held = fixed(recipe)
    left = {text: f"{by} has set it" for text in recipe.search for path, by in held.items() if touches(split(text), path)}
    return {text: dict(space) for text, space in recipe.search.items() if text not in left}, left


def fixed(recipe: Recipe) -> dict[Dotted, str]:
    """Path -> who has decided it."""
    from composer.recipe.recipe import toggle_edit

    edits = [*(toggle_edit(recipe.stack, name, []) for name in recipe.off), *recipe.edits]
    return {path: "the command line" for path in recipe.stack.commanded} | {path: e.name for e in edits for path in e.paths()}


def touches(a: Dotted, b: Dotted) -> bool:
    return inside(a, b) or inside(b, a)


def check_space(space: Space, left: Mapping[str, str], recipe: Recipe) -> None:
    """Errors: ComposerError where there is nothing to draw."""
    if not space:
        why = "; ".join(f"{path}: {reason}" for path, reason in left.items()) or "it has no table [search]"
        raise ComposerError(f"there is nothing to search in {recipe.name}", where=f"recipe {recipe.name}", why=why,
                            fix='write [search] with "train.lr.value" = { low = 0.001, high = 0.1, log = true }')


def distributions(space: Space) -> dict[str, Any]:
    """Optuna's distributions. A range is one of whole numbers where all its numbers are written as such; choices go by their text."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, Any] = {}
    for path, one in space.items():
        if "choices" in one:
            found[path] = CategoricalDistribution([quote(v) for v in one["choices"]])
        elif whole(one):
            found[path] = IntDistribution(one["low"], top(one), log=one.get("log", False), step=one.get("step", 1))
        else:
            found[path] = FloatDistribution(float(one["low"]), float(top(one)), log=one.get("log", False), step=one.get("step"))
    return found


def whole(one: Mapping[str, Any]) -> bool:
    return all(isinstance(one[k], int) for k in ("low", "high", "step") if k in one)


def top(one: Mapping[str, Any]) -> Any:
    """The last value of a range with a step: `high`, where the steps meet it."""
    if "step" not in one:
        return one["high"]
    return one["low"] + one["step"] * math.floor((one["high"] - one["low"]) / one["step"] + 1e-9)


def decode(space: Space, drawn: Mapping[str, Any]) -> dict[str, Any]:
    """What Optuna drew, as values of the recipe."""
    return {path: next(v for v in space[path]["choices"] if quote(v) == each) if "choices" in space[path] else each for path, each in drawn.items()}


def encode(space: Space, values: Mapping[str, Any]) -> dict[str, Any]:
    return {path: quote(value) if "choices" in space[path] else value for path, value in values.items()}


def grid(space: Mapping[str, Mapping[str, Any]], points: int) -> list[dict[str, Any]]:
    """Every combination: all choices, all steps of a range, `points` values of a range without step (evenly apart, in its logarithm if it says so)."""
    axes = [axis(one, points) for one in space.values()]
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*axes)]


def axis(one: Mapping[str, Any], points: int) -> list[Any]:
    if "choices" in one:
        return list(one["choices"])
    low, high = one["low"], one["high"]
    if "step" in one:
        count = math.floor((high - low) / one["step"] + 1e-9) + 1
        return [low + k * one["step"] if whole(one) else tidy(low + k * one["step"]) for k in range(count)]
    shares = [k / (points - 1) for k in range(points)]
    found = [low * (high / low) ** s if one.get("log") else low + (high - low) * s for s in shares]
    return list(dict.fromkeys(round(v) for v in found)) if whole(one) else [tidy(v) for v in found]


def tidy(value: float) -> float:
    """Without the dust of binary fractions: 0.1 + 2 · 0.1 is 0.3."""
    return float(f"{value:.12g}")
