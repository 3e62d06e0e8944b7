"""Prints the plans of all shipped recipes and of those in `paper` beside this file as one JSON object; run as a process of its own, so that it can
tell that torch was never needed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from composer.plan.explain import explain
from composer.plan.whole import plans_of, title
from composer.plugins import load_all
from composer.recipe.find import recipe_names, shipped
from composer.recipe.load import load

HERE = Path(__file__).resolve().parent
load_all()


def text(recipe: str | Path) -> str:
    return "\n\n".join(explain(plan, title(segment)) for segment, plan in plans_of(load(recipe, setting="digits")))


plans = {name: text(name) for name in recipe_names(shipped())}
plans |= {f"paper_{file.stem}": text(file) for file in sorted((HERE / "paper").glob("*.toml"))}
assert "torch" not in sys.modules, "plans are made on paper"
json.dump(plans, sys.stdout)
