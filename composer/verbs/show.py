"""`composer show`: a recipe's plans, the lines that set a value, or a primitive's card."""

from __future__ import annotations

import math
from typing import Any

from composer.errors import ComposerError
from composer.plan.cost import epoch_forwards, plan_cost
from composer.plan.explain import explain
from composer.plan.types import Cost
from composer.plan.whole import plans_of, title
from composer.registry import KINDS, REGISTRY


def plans_text(recipe: Any) -> str:
    """All plans of a recipe, a heading each, and the cost of an epoch of every stretch."""
    head = [f"{recipe.name} on {recipe.setting}: {recipe.about or 'no description'}", f"experiment {recipe.experiment_id[:16]}"]
    plans = plans_of(recipe)
    blocks = ["\n".join(head), *(explain(plan, title(segment)) for segment, plan in plans)]
    return "\n\n".join(blocks)


def plans_dict(recipe: Any) -> dict[str, Any]:
    return {"recipe": recipe.name, "setting": recipe.setting, "experiment_id": recipe.experiment_id,
            "plans": [{"first": s.first, "last": s.last, "phases": list(s.phases), "text": explain(p), "cost": cost_dict(plan_cost(p)),
                       "epoch_end": {id: "all" if many == math.inf else many for id, many in epoch_forwards(p).items()}} for s, p in plans_of(recipe)]}


def cost_dict(cost: Cost) -> dict[str, int]:
    return {"forward": cost.forward, "dgrad": cost.dgrad, "wgrad": cost.wgrad, "double": cost.double, "units": cost.units, "units_a_class": sum(cost.each[:3])}


def primitive_text(name: str) -> str | None:
    """The card of `kind/name`, or of a name that one kind knows; None where it names no primitive."""
    kind, _, rest = name.partition("/")
    if rest and kind in KINDS:
        return _card(kind, rest)
    kinds = [k for k in KINDS if REGISTRY.has(k, name)]
    if len(kinds) > 1:
        raise ComposerError(f"'{name}' is the name of several primitives", fix="say which: " + ", ".join(f"{k}/{name}" for k in kinds))
    return _card(kinds[0], name) if kinds else None


def _card(kind: str, name: str) -> str:
    from composer.verbs import describe
    from composer.verbs.text import card_lines

    return "\n".join(card_lines(describe(REGISTRY.get(kind, name))))
