"""Values that are right each alone and that a primitive cannot work with: told where the recipe is read, not when the first batch meets them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from composer.options import Ref, plain
from composer.recipe.paths import Dotted
from composer.recipe.write import quote
from composer.registry import Primitive

if TYPE_CHECKING:
    from composer.recipe.uses import Components

EVALUATED = ("logits", "probs", "logp", "a", "y", "x", "model", "clean_logits", "clean_probs", "clean_logp", "target_logits", "target_probs",
             "target_logp", "b")                              # what an attack of [evaluate] can hand to its loss


def refused(uses: Components, primitive: Primitive, options: dict[str, Any], path: Dotted) -> None:
    """What the decorator's `refuses` says of the options, the threat's values filled in: (option, why, fix), or None."""
    refuses = primitive.flags.get("refuses")
    told = refuses(options) if refuses else None
    if told:
        option, why, fix = told
        uses.problems.add((*path, option), f"{option} = {quote(plain(options.get(option)))}", why=why, fix=fix)
    if primitive.kind == "measure":
        attackable(uses, primitive, options, path)


def attackable(uses: Components, primitive: Primitive, options: dict[str, Any], path: Dotted) -> None:
    """A measure attacks with a loss that reads what an evaluation can make: the logits at the moving point and at the image."""
    for option in primitive.options:
        ref = options.get(option.name)
        if option.accepts != ("loss",) or not isinstance(ref, Ref):
            continue
        foreign = [n.name for n in uses.registry.get("loss", ref.use).needs if n.name not in EVALUATED or n.leaf]
        if foreign:
            uses.problems.add((*path, option.name), f"loss '{ref.use}' needs '{foreign[0]}', which an evaluation cannot make",
                              fix=f"attack with a loss that reads only {', '.join(EVALUATED[:4])}, y and clean_… tensors")
