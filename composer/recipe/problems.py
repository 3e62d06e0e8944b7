"""Problems of a recipe, collected so that the user mends them in one go, and what a mistake leaves unread."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field

from composer.errors import ComposerError
from composer.options import Option
from composer.recipe.merge import Origins
from composer.recipe.paths import Dotted, show
from composer.recipe.write import quote


@dataclass
class Unread:
    """What could not be read of a recipe. Nothing that hangs on it is accused: the mistake itself has been told.

    pieces    components left out (`("parts", "ema")`): what they would have made is unknown
    guessed   components read as the primitive of the closest name: what they need by themselves may be wrong
    names     tensors named in pieces that were left out, with the path that names them
    lost      a parent is missing: there may be anything
    """

    pieces: set[Dotted] = field(default_factory=set)
    guessed: set[Dotted] = field(default_factory=set)
    names: list[tuple[Dotted, str]] = field(default_factory=list)
    lost: bool = False

    def __bool__(self) -> bool:
        return bool(self.pieces or self.guessed or self.lost)

    def ids(self, table: str) -> tuple[str, ...]:
        return tuple(path[1] for path in sorted(self.pieces) if path[0] == table and len(path) == 2)

    def below(self, path: Dotted) -> bool:
        return any(piece[:len(path)] == path for piece in self.pieces)


class Problems:
    """What is wrong, each with its path; the place comes from the origins, which know the line that won."""

    def __init__(self, origins: Origins):
        self.origins = origins
        self.found: dict[tuple[Dotted, str], ComposerError] = {}
        self.unread = Unread()

    def add(self, path: Dotted, what: str, *, why: str = "", fix: str = "", item: int | None = None) -> None:
        """`item`: the number of the list's item that is wrong; it may stand on a line of its own."""
        shown, place = show(path), path
        if item is not None:
            shown, place = f"{shown}[{item}]", (*path, str(item))
        where = "  ".join(part for part in (self.origins.where(place) or self.origins.home, shown) if part)
        self.found.setdefault((place, what), ComposerError(what, where=where, why=why, fix=fix))

    def __len__(self) -> int:
        return len(self.found)


def closest(name: str, known: Iterable[str]) -> str | None:
    """What the user almost certainly meant, to read on with; None where that is a guess in the dark. Swapped letters of a short name count."""
    names = sorted(known)
    found = difflib.get_close_matches(name, names, n=1, cutoff=0.8)
    return found[0] if found else next((each for each in names if len(name) > 2 and sorted(each) == sorted(name)), None)


def option_text(option: Option) -> str:
    """'delta: number >= 0, default 0.9'."""
    default = "required" if option.required else "" if option.default is None else f"default {quote(option.default)}"
    text = f"{option.name}: {option.type_text}"
    if option.threat:
        default = "default the threat's"
    return f"{text}, {default}" if default else text


def told_at(error: ComposerError, label: str) -> ComposerError:
    """An error that only an edit brings about, told at the edit (`label`: place, two spaces, its name); at the very line where it wrote the value."""
    name = label.partition("  ")[2]
    place, _, path = error.where.rpartition("  ")
    if path == name or not place and error.where.endswith(name):
        return error
    where = place if place.endswith(f"  {name}") else label
    return ComposerError(error.what, where=where, why="\n".join(filter(None, [f"it leaves {path} wrong" if path else "", error.why])), fix=error.fix)
