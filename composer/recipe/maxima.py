"""Inner maxima: `[inner.x_adv]` and the like."""

from __future__ import annotations

from typing import Any

from composer.errors import suggest
from composer.options import Ref
from composer.recipe import fixed
from composer.recipe.paths import Dotted
from composer.recipe.terms import ID, NAME, each, keep_use, piece, rebinds
from composer.recipe.types import Inner, Term, Use
from composer.recipe.uses import Components, fixed_table
from composer.recipe.write import quote
from composer.registry import Primitive

NOT_POINTS = ("x_", "x_clean")


def inner(uses: Components, id: str, given: dict[str, Any], path: Dotted) -> Inner | None:
    """One inner maximum; None where something is wrong. `weights` without terms climbs the recipe's [terms]."""
    if id != "weights" and (not id.startswith("x_") or id in NOT_POINTS):
        uses.problems.add(path, f"an inner maximum cannot be called '{id}'", why="it is named by the point it makes",
                          fix="write [inner.x_adv], or [inner.weights]")
        return None
    if "use" not in given:
        uses.problems.add(path, f"[inner.{id}] does not say what it uses", fix=f"add use = one of {', '.join(uses.registry.names('inner'))}")
        return None
    primitive = uses.primitive(("inner",), given["use"], path)
    if primitive is None:
        return None
    fields = fixed.names("inner")
    own = (*fields, "eps", "terms", "surface", "use")
    rebind, failed = rebinds(uses, primitive, given, path)
    options = uses.options(primitive, {k: v for k, v in given.items() if k not in own and k not in rebind}, path, own)
    table = fixed_table(uses, "inner", {k: v for k, v in given.items() if k in fields}, path)
    radius = eps(uses, given.get("eps", "threat"), (*path, "eps"))
    terms = _terms(uses, id, primitive, given, path)
    surface = _surface(uses, primitive, given.get("surface"), (*path, "surface"))
    if options is None or table is None or radius is None or failed:
        return None
    keep_use(uses, path, primitive, options)
    for key, value in {**rebind, **table}.items():
        uses.keep((*path, key), value)
    return Inner(id, primitive.name, uses.settle(primitive, options), radius, table["bn"], terms, surface, rebind)


def _terms(uses: Components, id: str, primitive: Primitive, given: dict[str, Any], path: Dotted) -> tuple[Term, ...]:
    table, here = given.get("terms", {}), (*path, "terms")
    if not isinstance(table, dict):
        uses.problems.add(here, f"terms = {quote(table)}", why="a table is needed", fix="write terms = { ce = {} }")
        return ()
    climbs = primitive.flags.get("surface")
    if climbs and table:
        uses.problems.add(here, f"inner '{primitive.name}' climbs a margin view, not terms",
                          fix='write surface = { use = "margin_soft" } in their place')
    if not climbs and not table and id != "weights":
        uses.problems.add(here, f"[inner.{id}] has no terms: there is nothing to climb", fix="add terms = { ce = {} }")
    return each(uses, table, here, lambda key, value, place: piece(uses, "loss", key, value, place), ID)


def _surface(uses: Components, primitive: Primitive, given: Any, path: Dotted) -> Use | None:
    if not primitive.flags.get("surface"):
        if given is not None:
            uses.problems.add(path, f"inner '{primitive.name}' climbs terms and takes no surface", fix="drop the key")
        return None
    table = {"use": given} if isinstance(given, str) else given
    if not isinstance(table, dict) or "use" not in table:
        uses.problems.add(path, f"inner '{primitive.name}' needs a surface", why="a margin view whose zero is the boundary",
                          fix='write surface = { use = "margin_soft" }')
        return None
    return piece(uses, "view", "surface", table, path)


def eps(uses: Components, given: Any, path: Dotted) -> Any:
    """Number, pixel word, schedule (Ref), radius (Use), or the name of an [N] tensor; None where it is none of them."""
    registry = uses.registry
    if isinstance(given, str) and registry.has("radius", given):
        given = {"use": given}
    if not isinstance(given, dict):
        value = _size(uses, given, path)
        if value is not None:
            uses.keep(path, given if isinstance(given, str) else value)
        return value
    use = given.get("use")
    if isinstance(use, str) and registry.has("radius", use):
        return piece(uses, "radius", "eps", given, path)
    if isinstance(use, str) and registry.has("schedule", use):
        ref = uses.ref(("schedule",), given, path)
        if not isinstance(ref, Ref):
            return None
        uses.keep(path, ref)
        return ref
    uses.problems.add((*path, "use"), f"eps = {quote(given)}", why="a table here uses a radius or a schedule",
                      fix=suggest(str(use), [*registry.names("radius"), *registry.names("schedule")], "radii and schedules"))
    return None


def _size(uses: Components, given: Any, path: Dotted) -> float | str | None:
    value = uses.number("eps", given)
    if isinstance(value, str) and NAME.fullmatch(value) and value not in ("threat", "eps", "step"):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        uses.problems.add(path, f"eps = {quote(given)}", why="a radius is a number >= 0, pixels in quotes, a table, or the name of an [N] tensor",
                          fix='write 0.03, "8/255", "threat/2", or { use = "…" }')
        return None
    return float(value)
