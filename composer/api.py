"""The Python door: the same verbs as the command line, on recipes as values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from composer.errors import ComposerError, Errors


def load(path: str | Path, *, setting: str | None = None, sets: Sequence[str] = (), drops: Sequence[str] = ()) -> Any:
    """A recipe by file or shipped name, checked: `composer.load("recipes/mart_ours.toml", setting="digits")`."""
    from composer.recipe.load import load as read

    return read(path, setting=setting, sets=sets, drops=drops)


def check(recipe: Any) -> None:
    """Compile every plan of a recipe (a Recipe, a file or a name), and of each of its toggles. Errors: Errors with everything that is wrong."""
    from composer.verbs.checking import load_whole, wrong_with

    errors = [] if isinstance(recipe, (str, Path)) and load_whole(recipe) else wrong_with(recipe)
    if errors:
        raise Errors(errors)


def show(recipe: Any) -> str:
    """The plans of a recipe as text."""
    from composer.verbs.show import plans_text

    return plans_text(load(recipe) if isinstance(recipe, (str, Path)) else recipe)


def build(kind: str, name: str, **options: Any) -> Callable[..., Any]:
    """A primitive with its options bound: a plain callable of its needs, in order. A part, ball or class is built.

    `composer.build("loss", "modified_huber", alpha=1.345)(a, b)`
    """
    import inspect

    from pydantic import ValidationError

    from composer.recipe.load import catalogue
    from composer.registry import REGISTRY

    catalogue()
    primitive = REGISTRY.get(kind, name)
    try:
        checked = primitive.Options(**options)
    except ValidationError as error:
        legal = ", ".join(f"{o.name}: {o.type_text}" for o in primitive.options) or "none"
        first = error.errors()[0]
        what = f"{kind} '{name}': {'.'.join(str(p) for p in first['loc'][:1])} = {first.get('input')!r}"
        raise ComposerError(what, why=first["msg"], fix=f"options are {legal}") from None
    values = {field: getattr(checked, field) for field in type(checked).model_fields}
    return primitive.fn(**values) if inspect.isclass(primitive.fn) and kind == "part" else partial(primitive.fn, **values)


def run(recipe: Any, *, seed: int = 0, out: str | Path = "runs", seeds: Sequence[int] | None = None, pack: str = "off", **settings: Any) -> dict[str, Any]:
    """Train, evaluate and record a recipe (a Recipe, a file or a name); the result as a dict. Called again, it resumes or answers at once.

    seeds    several runs, small networks trained together as `pack` says ("auto", a number, "off"): {"runs": their results, "failed", "packs", "note"}
    settings: data_root, download, device, precision, backend, deterministic, fresh, adopt, quiet, track, workers (composer.engine.session.Settings)
    """
    from composer.engine.run import run as execute
    from composer.engine.session import Settings

    made = Settings(out=Path(out), **{k: Path(v) if k == "data_root" else v for k, v in settings.items()})
    recipe = load(recipe) if isinstance(recipe, (str, Path)) else recipe
    if seeds is not None:
        from composer.engine.pack_seeds import run_seeds

        return run_seeds(recipe, seeds, pack=pack, settings=made)
    return execute(recipe, seed=seed, settings=made)
