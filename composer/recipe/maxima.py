"""Inner maxima: `[inner.x_adv]` and the like."""

from __future__ import annotations

from typing import Any

from composer.errors import suggest
from composer.recipe import fixed
from composer.recipe.paths import Dotted
from composer.recipe.problems import closest
from composer.recipe.remember import remembered
from composer.recipe.terms import ID, NAME, each, keep_use, piece, rebindable_names, rebinds
from composer.recipe.types import Inner, Term, Use
from composer.recipe.uses import Components, fixed_table
from composer.recipe.write import quote
from composer.registry import Primitive

NOT_POINTS = ("x_", "x_clean")


def inner(uses: Components, id: str, given: dict[str, Any], path: Dotted) -> Inner | None:
    """One inner maximum; None where nobody knows what it uses. `weights` without terms climbs the recipe's [terms]."""
    return remembered(uses, "inner", given, path, lambda: _inner(uses, id, given, path))


def _inner(uses: Components, id: str, given: dict[str, Any], path: Dotted) -> Inner | None:
    unread = uses.problems.unread
    if id != "weights" and (not id.startswith("x_") or id in NOT_POINTS):
        uses.problems.add(path, f"an inner maximum cannot be called '{id}'", why="it is named by the point it makes",
                          fix="write [inner.x_adv], or [inner.weights]")
        unread.pieces.add(("inner", f"x_{id}"))
    if "use" in given:
        primitive = uses.primitive(("inner",), given["use"], path)
    else:
        primitive = None
        unread.pieces.add(path)
        if not unread.lost:
            uses.problems.add(path, f"[inner.{id}] does not say what it uses", fix=f"add use = one of {', '.join(uses.registry.names('inner'))}")
    fields = fixed.names("inner")
    table = fixed_table(uses, "inner", {k: v for k, v in given.items() if k in fields}, path)
    radius = eps(uses, given.get("eps", "threat"), (*path, "eps")) if id != "weights" else uses.number("eps", "threat")
    terms = _terms(uses, id, primitive, given, path)
    surface = _surface(uses, primitive, given.get("surface"), (*path, "surface"))
    if primitive is None:
        unread.names += [((*path, "eps"), radius)] if isinstance(radius, str) and NAME.fullmatch(radius) and radius != "threat" else []
        return None
    if not _moves(uses, id, primitive, given, path):
        unread.pieces.add(path)
        return None
    own = (*fields, "eps", "terms", "surface", "use")
    rebind = rebinds(uses, primitive, given, path)
    spare = (*own, *rebindable_names(primitive))
    options = uses.options(primitive, {k: v for k, v in given.items() if k not in spare}, path, own)
    if path in unread.pieces or ("inner", f"x_{id}") in unread.pieces:
        return None
    keep_use(uses, path, primitive, options)
    for key, value in {**rebind, **table}.items():
        uses.keep((*path, key), value)
    return Inner(id, primitive.name, uses.settle(primitive, options), radius, table["bn"], terms, surface, rebind)


def _moves(uses: Components, id: str, primitive: Primitive, given: dict[str, Any], path: Dotted) -> bool:
    """Whether the inner moves what it is asked to: the weights in [inner.weights], images elsewhere."""
    over = primitive.flags.get("over") == "weights"
    if over != (id == "weights"):
        kinds = [p.name for p in uses.registry.all("inner") if (p.flags.get("over") == "weights") == (id == "weights")]
        uses.problems.add((*path, "use"), f"inner '{primitive.name}' moves {'the weights' if over else 'images'}",
                          why=f"[inner.{id}] makes {'perturbed weights' if id == 'weights' else 'a point'}",
                          fix=f"write [inner.weights], or use one of {', '.join(kinds)}" if over else f"use one of {', '.join(kinds)}")
        return False
    if over and "eps" in given:
        uses.problems.add((*path, "eps"), "the weights take no eps", why="a radius is of images", fix=f"drop the key; '{primitive.name}' has its own size")
        return False
    return True


def _terms(uses: Components, id: str, primitive: Primitive | None, given: dict[str, Any], path: Dotted) -> tuple[Term, ...]:
    table, here = given.get("terms", {}), (*path, "terms")
    if not isinstance(table, dict):
        uses.problems.add(here, f"terms = {quote(table)}", why="a table is needed", fix="write terms = { ce = {} }")
        return ()
    climbs = primitive is not None and primitive.flags.get("surface")
    if climbs and table:
        uses.problems.add(here, f"inner '{primitive.name}' climbs a margin view, not terms",
                          fix='write surface = { use = "margin_soft" } in their place')
    if primitive and not climbs and not table and id != "weights" and not uses.guessed(path) and not uses.problems.unread.lost:
        uses.problems.add(here, f"[inner.{id}] has no terms: there is nothing to climb", fix="add terms = { ce = {} }")
    return each(uses, table, here, lambda key, value, place: piece(uses, "loss", key, value, place), ID)


def _surface(uses: Components, primitive: Primitive | None, given: Any, path: Dotted) -> Use | None:
    if primitive is None:
        return None
    if not primitive.flags.get("surface"):
        if given is not None and not uses.guessed(path[:-1]):
            uses.problems.add(path, f"inner '{primitive.name}' climbs terms and takes no surface", fix="drop the key")
        return None
    table = {"use": given} if isinstance(given, str) else given
    if not isinstance(table, dict) or "use" not in table:
        uses.problems.unread.pieces.add(path)
        uses.problems.add(path, f"inner '{primitive.name}' needs a surface", why="a margin view whose zero is the boundary",
                          fix='write surface = { use = "margin_soft" }')
        return None
    return piece(uses, "view", "surface", table, path)


def eps(uses: Components, given: Any, path: Dotted) -> Any:
    """Number, pixel word, schedule (Ref), radius (Use), or the name of an [N] tensor; the threat's where it is none of them."""
    registry = uses.registry
    if isinstance(given, str) and registry.has("radius", given):
        given = {"use": given}
    if not isinstance(given, dict):
        value = _size(uses, given, path)
        if value is None:
            return uses.number("eps", "threat")
        uses.keep(path, given if isinstance(given, str) else value)
        return value
    use = given.get("use")
    if isinstance(use, str) and registry.has("schedule", use):
        ref = uses.ref(("schedule",), given, path)
        uses.keep(path, ref)
        return ref
    if isinstance(use, str) and (registry.has("radius", use) or closest(use, registry.names("radius"))):
        return piece(uses, "radius", "eps", given, path)
    uses.problems.add((*path, "use"), f"eps = {quote(given)}", why="a table here uses a radius or a schedule",
                      fix=suggest(str(use), [*registry.names("radius"), *registry.names("schedule")], "radii and schedules"))
    uses.problems.unread.pieces.add(path)
    return uses.number("eps", "threat")


def _size(uses: Components, given: Any, path: Dotted) -> float | str | None:
    value = uses.number("eps", given)
    if isinstance(value, str) and NAME.fullmatch(value) and value not in ("threat", "eps", "step"):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        uses.problems.add(path, f"eps = {quote(given)}", why="a radius is a number >= 0, pixels in quotes, a table, or the name of an [N] tensor",
                          fix='write 0.03, "8/255", "threat/2", or { use = "…" }')
        return None
    return float(value)
