"""A graded number beside the flags. On few images right-or-wrong cannot resolve a small effect; the mean smallest breaking radius of the same images can.

Added to what a grid is judged by, never to what it trains: keys of training, and of evaluations that are there, are untouched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from composer.recipe.recipe import Recipe, toggle_edit
from composer.recipe.source import label
from composer.recipe.studies import Study
from composer.registry import REGISTRY

FEW = 1000                                      # images below which the primary accuracy does not stand alone, and the most that the measure sees
MEASURE = "breaking_eps"
GRADED = ("breaking_eps", "curve", "fab_margin")                  # measures that say at which radius images break
NORMS = ("linf", "l2", "l1")                    # those that the measure knows


def graded(recipe: Recipe, primary: str | None = None, toggles: Sequence[str] = (), settings: Any = None) -> tuple[Recipe, str]:
    """(the recipe with the measure in its protocol, a sentence that says so), or (the recipe as it is, "").

    It is left alone where somebody other than the setting chose the protocol, a toggle changes it, a graded measure is there, or the
    primary accuracy (`primary`, else the strongest attack) is of enough images.

    settings   where the data lies: a set whose test split has no known size is looked at; None: it counts as large
    """
    measures = recipe.evaluate.measures
    if not measures or _chosen(recipe) or _toggled(recipe, toggles) or any(m.use in GRADED for m in measures) or recipe.threat.norm.use not in NORMS:
        return recipe, ""
    main = _primary(recipe, primary)
    images = _images(recipe, main, settings)
    if images is None or images >= FEW:
        return recipe, ""
    own = {} if recipe.tables.get("evaluate", {}).get("n") else {"n": FEW}
    made = recipe.edit(put={f"evaluate.{MEASURE}": own}, name="composer ablate")
    name = recipe.evaluate.protocol
    return made, (f"{MEASURE} (the mean smallest breaking radius) is added to {f'protocol {name}' if name else 'the measures'}: {main.name} is of {images:,} images, on which "
                  f"right or wrong misses small effects" + (f"; --set evaluate.use={name} leaves it out" if name else ""))


def graded_study(study: Study, settings: Any = None) -> Study:
    """Every row that is judged, as `graded`; one sentence for all of them. A bench judges nothing."""
    if study.kind == "bench":
        return study
    rows, notes = [], []
    for row in study.rows:
        recipe, note = graded(row.recipe, study.analysis.get("primary"), settings=settings) if row.recipe is not None else (None, "")
        rows.append(replace(row, recipe=recipe))
        notes += [note] if note else []
    return replace(study, rows=tuple(rows), notes=(*study.notes, *dict.fromkeys(notes)))


def _chosen(recipe: Recipe) -> bool:
    """Whether the protocol is named by a recipe, a study, the command line or Python: by anything but the setting's files."""
    said = recipe.origins.get(("evaluate", "use"))
    settings = [label(file) for file in recipe.stack.files if file not in recipe.stack.recipes]
    return bool(said) and not any(str(said[-1][0]).startswith(f"{file}:") for file in settings)


def _toggled(recipe: Recipe, toggles: Sequence[str]) -> bool:
    known = [name for name in toggles if name in recipe.toggle]
    return any(path[0] == "evaluate" for name in known for path in toggle_edit(recipe.stack, name, []).paths())


def _primary(recipe: Recipe, named: str | None) -> Any:
    """The accuracy that claims are made on."""
    from composer.ablate.summary.gather import primary_of

    rates = {m.name: m for m in recipe.evaluate.measures if not REGISTRY.get("measure", m.use).flags.get("unit")}
    measures = {m.name: m for m in recipe.evaluate.measures}
    return measures.get(named or "") or measures[primary_of(list(rates or measures))]


def _images(recipe: Recipe, measure: Any, settings: Any) -> int | None:
    """How many images the measure sees; None where that is not known: missing data is told by whoever trains on it."""
    from composer.engine.beforehand import count_test_images

    if measure.n is not None and measure.n < FEW:
        return measure.n
    return min((size for size in (measure.n, count_test_images(recipe, settings.data_root if settings else None)) if size is not None), default=None)
