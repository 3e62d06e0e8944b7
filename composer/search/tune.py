"""`ablate --tune T`: every cell of an ablation gets the same number of trials before it is compared, over what is left of its search space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from composer.errors import ComposerError
from composer.recipe.edit import read_edit
from composer.recipe.paths import Dotted, get, split, touched
from composer.recipe.recipe import Recipe, realise
from composer.search.options import SweepOptions
from composer.search.space import Space, fixed, space_of
from composer.search.sweep import sweep

APART = 1000                   # the seed of tuning lies so far behind the grid's


@dataclass(frozen=True)
class Tuned:
    """A cell after its tuning. `recipe`: with the winner's values; `seed`: what it was tuned with, none of the grid's."""

    recipe: Recipe
    values: dict[str, Any]
    score: float
    metric: str
    trials: int
    epochs: int
    seed: int
    space: Space
    result: dict[str, Any]


def tune(recipe: Recipe, options: SweepOptions, *, seeds: Sequence[int], epochs: int | None = None) -> Tuned:
    """The recipe at the best of `options.trials` trials, by accuracy on held-out images under the attack of [select].

    seeds   the ablation's: tuning has another one, so that no cell is compared on the draw that chose its values
    epochs  of a tuning run; default the recipe's own. Schedules and phases in fractions of the run shrink with it

    The space is the recipe's live [search], its learning rate and its weight decay. What a toggle of the cell has set is not searched.
    All cells have the same trials: no trial is stopped early, and the draws come from the same seed.
    """
    seed = max([*seeds, 0]) + APART
    space = tuning_space(recipe)
    work = shortened(recipe, epochs) if epochs else recipe
    done = sweep(work, replace(options, seed=seed, asha=False, grid=False, select=()), space=space)
    if done["stopped"]:
        raise ComposerError(f"the tuning of {recipe.name} is not finished: {done['stopped']}", where=done["out"],
                            why="cells are compared after equal numbers of trials", fix="run the same command again to go on, with a longer --time-budget")
    won = done["winners"][done["metric"]]
    tuned = unguarded(recipe, won["values"], "tune")
    return Tuned(tuned, won["values"], won["score"], done["metric"], len(done["trials"]), work.segments()[-1].last, seed, space, done)


def tuning_space(recipe: Recipe) -> Space:
    """The live search paths, and the two numbers that any change of the loss moves: learning rate (a fifth to five times) and weight decay
    (a tenth to ten times), in the logarithm."""
    space, _ = space_of(recipe)
    held = [path for path in fixed(recipe)]
    for path, factor in ((number_at(recipe, ("train", "lr")), 5.0), (number_at(recipe, ("optim", "weight_decay")), 10.0)):
        if path is None or touched(path, held) or any(touched(path, [split(text)]) for text in space):
            continue
        value = float(get(recipe.full, path))
        space[".".join(path)] = {"low": value / factor, "high": value * factor, "log": True} if value > 0 else {"low": 0.0, "high": 1e-3}
    return space


def number_at(recipe: Recipe, path: Dotted) -> Dotted | None:
    """The path of a number, or of the value of the schedule in its place; None where there is neither."""
    for each in (path, (*path, "value")):
        value = get(recipe.full, each)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return each
    return None


def shortened(recipe: Recipe, epochs: int) -> Recipe:
    return unguarded(recipe, {"train.epochs": epochs}, "tune")


def unguarded(recipe: Recipe, values: dict[str, Any], name: str) -> Recipe:
    """The recipe with the values, also where the command line had set them: what it said is in the tables already."""
    errors: list[ComposerError] = []
    edit = read_edit(name, {"set": values}, name, lambda _: name, errors)
    made, found = realise(replace(recipe.stack, commanded=frozenset()), recipe.off, (*recipe.edits, edit))
    if errors or found:
        from composer.errors import Errors

        raise Errors([*errors, *found])
    return made
