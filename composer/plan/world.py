"""What names can mean in one phase of a recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from composer.errors import ComposerError
from composer.options import Ref, pixel_word
from composer.plan.types import Dial, Draw, Pixel, Value
from composer.recipe.paths import show
from composer.recipe.problems import Unread
from composer.recipe.types import Method, Use
from composer.registry import Primitive, Registry

ROOTS = ("x", "y", "y_soft", "i", "model", "head_scale", "head_weight")
PLAIN = ("logits", "probs", "logp", "features")
ROLES = {"a": "adv_logits", "b": "clean_logits", "target_logits": "clean_logits", "target_probs": "clean_probs", "target_logp": "clean_logp"}


class Missing(ComposerError):
    """A name that nothing makes. `path`: the key of the recipe that asks for it."""

    path = ""


class Hidden(Missing):
    """A name that a piece with a mistake of its own may make: that mistake has been told, this one is none."""


def point_of(prefix: str) -> str:
    """clean -> x, adv -> x_adv"""
    return "x" if prefix == "clean" else f"x_{prefix}"


def prefix_of(point: str) -> str:
    return "clean" if point == "x" else point.removeprefix("x_")


PLAIN_VALUES = (float, int, bool, type(None))           # neither a schedule nor a word


@cache
def units_of(primitive: Primitive) -> dict[str, str]:
    return {option.name: option.unit for option in primitive.options}


@dataclass
class World:
    """What names can mean in one phase: the points made so far, extras, parts, declared views."""

    method: Method
    registry: Registry
    points: list[str] = field(default_factory=lambda: ["x"])
    extras: dict[str, str] = field(default_factory=dict)       # tensor -> the inner that makes it
    dials: dict[str, Dial] = field(default_factory=dict)
    draws: dict[str, Draw] = field(default_factory=dict)
    coupled: list[str] = field(default_factory=list)
    part_points: dict[str, list[str]] = field(default_factory=dict)
    parts_read: set[str] = field(default_factory=set)
    share: bool = True                                         # False: a model with random layers; no pass serves two readers
    absent: dict[str, str] = field(default_factory=dict)       # points that another phase makes: name -> remark for errors
    unread: Unread = field(default_factory=Unread)             # what a recipe with mistakes left out
    where: Callable[[str], str] = str                          # path -> the place a user can open

    @property
    def default_at(self) -> str:
        return "adv" if "x_adv" in self.points else "clean"

    def hidden(self, name: str) -> bool:
        """True where a piece that could not be read may make the name."""
        if not self.unread:
            return False
        prefixes = [prefix_of(id) for id in self.unread.ids("inner")] + list(self.unread.ids("parts"))
        made = any(f"_{prefix}_" in f"_{name}" for prefix in prefixes) or name in self.unread.ids("views")
        return made or self.unread.lost or name.startswith("x_") and bool(self.unread.ids("inner"))

    def guessed(self, path: str) -> bool:
        return any(show(each) == path for each in self.unread.guessed)

    def part(self, id: str) -> tuple[Use, Primitive] | None:
        use = next((p for p in self.method.parts if p.id == id), None)
        return use and (use, self.registry.get("part", use.use))

    def value(self, path: str, value: Any, pixels: bool = False) -> Value:
        """An option as the plan holds it: schedules become dials, words of eps become factors."""
        if isinstance(value, Ref) and value.kind == "schedule":
            return self.dials.setdefault(path, Dial(path, value))
        if isinstance(value, Ref):
            return Ref(value.kind, value.use, self._values(path, self.registry.get(value.kind, value.use), value.options))
        word = pixel_word(value) if pixels and isinstance(value, str) else None
        return Pixel(word.factor, word.of) if word and word.of == "eps" else value

    def _values(self, path: str, primitive: Primitive, options: dict[str, Any]) -> dict[str, Value]:
        units = units_of(primitive)
        return {name: value if type(value) in PLAIN_VALUES else self.value(f"{path}.{name}", value, units.get(name) == "pixels")
                for name, value in options.items()}

    def options(self, path: str, use: Any, kind: str = "") -> dict[str, Value]:
        return self._values(path, self.registry.get(kind or use.kind, use.use), use.options)
