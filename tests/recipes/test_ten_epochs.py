"""Every shipped recipe learns: ten epochs on the digits, and it is clearly better than a guess, attacked too where it trains against an attack.

A recipe whose published values cannot do that on digits carries the change in its own [on.digits]. Minutes: pytest -m slow -k ten_epochs.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from composer.engine.run import run
from composer.engine.session import Settings
from composer.recipe.find import recipe_names, shipped
from composer.recipe.load import load

N, CLASSES = 200, 10
QUICK = ["train.epochs=10", "evaluate.use=cheap", f"evaluate.n={N}", f"evaluate.pgd-20.n={N}"]
RECIPES = recipe_names(shipped())


def guess(n: int = N, classes: int = CLASSES) -> float:
    """The accuracy that guessing stays below, three standard errors above its mean."""
    p = 1 / classes
    return p + 3 * math.sqrt(p * (1 - p) / n)


def attacked(recipe: object) -> bool:
    """Whether the weights of its last epochs are trained at images that an attack has moved; a search for the boundary is none."""
    from composer.registry import REGISTRY

    last = recipe.segments()[-1].recipe.method
    return any(i.id != "weights" and not REGISTRY.get("inner", i.use).flags.get("surface") for i in last.inner)


def test_no_recipe_is_left_out() -> None:
    """The list is that of the folder, and which of them meet an attack is what their names say."""
    assert len(RECIPES) == len([p for p in shipped().glob("*.toml") if p.stem not in ("papers", "protocols")]) >= 62
    clean = {name for name in RECIPES if not attacked(load(name, setting="digits"))}
    assert clean == {"standard", "emr_standard", "approx_emr_standard", "lsoftmax_standard", "elsayed", "elsayed_burnin", "elsayed_exp", "elsayed_fab",
                     "elsayed_fab_soft", "dyart"}
    assert guess() == pytest.approx(0.1636, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_it_beats_a_guess(name: str, tmp_path: Path) -> None:
    recipe = load(name, setting="digits", sets=QUICK)
    result = run(recipe, settings=Settings(out=tmp_path, track=False, quiet=True, device="cpu"))
    print(name, result["metrics"], f"{result['train_seconds']:.0f} s")
    assert result["epochs"] >= 10 and result["n"] == {"clean": N, "pgd-20": N}
    assert result["metrics"]["clean"] > guess()
    if attacked(recipe):
        assert result["metrics"]["pgd-20"] > guess()
