"""Winners, and the recipe files that hold them."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from composer import atomic
from composer.errors import ComposerError
from composer.recipe.find import shipped
from composer.recipe.paths import MISSING, Dotted, assign, get, show, split, touched
from composer.recipe.recipe import Recipe
from composer.recipe.write import quote, toml_text
from composer.search.store import Store, Trial


def winners(trials: Sequence[Trial], selectors: Sequence[str], keys: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Selector -> the finished trial with the highest value on held-out images; of equal ones the first."""
    found = {}
    for selector in selectors:
        done = [(t.score(keys[selector]), -t.number, t) for t in trials if t.status == "done" and t.score(keys[selector]) is not None]
        if done:
            score, _, trial = max(done, key=lambda each: each[:2])
            found[selector] = {"trial": trial.number, "values": trial.values, "score": score, "metrics": trial.metrics,
                               "selected_epoch": trial.selected_epoch}
    return found


def write_bests(recipe: Recipe, store: Store, result: Mapping[str, Any]) -> dict[str, Path]:
    """best.toml, the winner by the metric (or by the one selector); best-<selector>.toml for each of several. Returns selector -> file."""
    found, files = result["winners"], {}
    for selector, won in found.items():
        path = store.folder / ("best.toml" if len(found) == 1 else f"best-{selector}.toml")
        files[selector] = write_best(recipe, won["values"], path, header(recipe, store, result, selector, won))
    main = next(iter([s for s in found if s == result["metric"]] or reversed(list(found))), None)
    if main and len(found) > 1:
        write_best(recipe, found[main]["values"], store.folder / "best.toml", header(recipe, store, result, main, found[main]))
    return files


def header(recipe: Recipe, store: Store, result: Mapping[str, Any], selector: str, won: Mapping[str, Any]) -> list[str]:
    trials = result["trials"]
    counted = ", ".join(f"{sum(t['status'] == s for t in trials)} {s}" for s in dict.fromkeys(t["status"] for t in trials))
    how = "a grid" if result["sampler"] == "grid" else f"Optuna {installed('optuna')} (TPE, seed {result['seed']}), climbing {result['metric']}"
    rungs = f", ASHA at epochs {', '.join(map(str, result['rungs']))}" if result["rungs"] else ""
    images = recipe.select.n or recipe.select.held_out
    return [f"The winner of the sweep {store.name} by {selector} on held-out images: trial {won['trial']}.",
            f"{selector} {100 * won['score']:.2f} % on {images} held-out images, epoch {won['selected_epoch']}; "
            + ", ".join(f"{k} {100 * v:.2f} %" for k, v in won["metrics"].items() if k != selector) + ".",
            f"{len(trials)} trials ({counted}) by {how}{rungs}; all with seed {result['seed']}. The highest of several noisy numbers is too high:",
            "a claim about this recipe needs fresh seeds and the test split."]


def installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def write_best(recipe: Recipe, values: Mapping[str, Any], path: Path, lines: Sequence[str]) -> Path:
    """A recipe that extends the original by the values. It is read back: where layers above it (a setting's [for], [on]) would win over its
    values, they stand in an [on] of its own, and where that does not do either, the whole recipe is written out."""
    wanted = recipe.edit(set=dict(values), name="best") if values else recipe
    comment = "".join(f"# {line}\n" for line in lines)
    head = {"about": f"{recipe.about or recipe.name}: winner of a sweep", "extends": parent(recipe, path), "setting": recipe.setting}
    said, drops = changes(recipe, values)
    layers = [plain(head, said, drops), above(head, said, drops, recipe.setting), whole(wanted)]
    for text in layers:
        atomic.write_text(path, comment + "\n" + text)
        if reads_as(path) == wanted.experiment_id:
            return path
    raise ComposerError(f"the winner cannot be written as a recipe of its own: {path} reads differently", fix="report this recipe")


def parent(recipe: Recipe, path: Path) -> str:
    """What `extends` says: a shipped recipe by its name, another one by its way from here."""
    file = recipe.stack.recipes[-1].resolve()
    root = shipped().resolve()
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else os.path.relpath(file, path.resolve().parent)


def changes(recipe: Recipe, values: Mapping[str, Any]) -> tuple[dict[Dotted, Any], list[str]]:
    """(path -> value, paths dropped) beyond the recipe's file: the command line, toggles and edits, and the winner's values."""
    from composer.recipe.recipe import toggle_edit

    edits = [*(toggle_edit(recipe.stack, name, []) for name in recipe.off), *recipe.edits]
    mine = {split(text): value for text, value in values.items()}
    paths = dict.fromkeys([*sorted(recipe.stack.commanded), *(p for e in edits for p in e.paths())])
    said = {p: get(recipe.tables, p) for p in paths if not touched(p, mine)}
    return {p: v for p, v in said.items() if v is not MISSING} | mine, [show(p) for p, v in said.items() if v is MISSING]


def plain(head: dict[str, Any], said: Mapping[Dotted, Any], drops: list[str]) -> str:
    tables: dict[str, Any] = {}
    for path, value in said.items():
        assign(tables, path, value)
    return toml_text(head | ({"drop": drops} if drops else {}) | tables)


def above(head: dict[str, Any], said: Mapping[Dotted, Any], drops: list[str], setting: str) -> str:
    """The same as an edit that acts after the layers."""
    lines = [f"{quote(show(path))} = {quote(value)}" for path, value in said.items()]
    return (toml_text(head | ({"drop": drops} if drops else {})) + f"\n[on.{quote(setting)}.set]\n" + "\n".join(lines) + "\n")


def whole(recipe: Recipe) -> str:
    """The recipe with every value written out; without toggles, one of which may be void in it, and without a space to search."""
    tables = tomllib.loads(recipe.filled())
    return toml_text({key: value for key, value in tables.items() if key not in ("toggle", "search")})


def reads_as(path: Path) -> str:
    from composer.recipe.load import load

    try:
        return load(path).experiment_id
    except ComposerError:
        return ""
