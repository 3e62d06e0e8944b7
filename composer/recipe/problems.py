"""Problems of a recipe, collected so that the user mends them in one go."""

from __future__ import annotations

from composer.errors import ComposerError
from composer.options import Option
from composer.recipe.merge import Origins
from composer.recipe.paths import Dotted, show
from composer.recipe.write import quote


class Problems:
    """What is wrong, each with its path; the place comes from the origins, which know the line that won."""

    def __init__(self, origins: Origins):
        self.origins = origins
        self.found: dict[tuple[Dotted, str], ComposerError] = {}

    def add(self, path: Dotted, what: str, *, why: str = "", fix: str = "") -> None:
        where = "  ".join(part for part in (self.origins.where(path), show(path)) if part)
        self.found.setdefault((path, what), ComposerError(what, where=where, why=why, fix=fix))

    def __len__(self) -> int:
        return len(self.found)


def option_text(option: Option) -> str:
    """'delta: number >= 0, default 0.9'."""
    default = "required" if option.required else "" if option.default is None else f"default {quote(option.default)}"
    text = f"{option.name}: {option.type_text}"
    if option.threat:
        default = "default the threat's"
    return f"{text}, {default}" if default else text
