"""What a plan cannot make, told at the key of the recipe that asks for it."""

from __future__ import annotations

from composer.errors import ComposerError, Errors, suggest
from composer.plan.world import PLAIN, ROOTS, Hidden, Missing, World, point_of, prefix_of
from composer.recipe.types import Method, Use
from composer.registry import Need, Registry


def points_fix(world: World, name: str) -> str:
    return f"add [inner.{name}], or use one of the points {', '.join(world.points)}"


def near_point(world: World, name: str) -> str:
    """A fix for a point that is not there."""
    close = suggest(name, world.points, "points")
    return close if close.startswith("did you mean") else f"points are {', '.join(world.points)}"


def offered(world: World) -> list[str]:
    """What the recipe's parts can be asked for."""
    found = []
    for use in world.method.parts:
        fn = world.registry.get("part", use.use).fn
        spots = [f"{use.id}_{prefix_of(p)}" for p in world.points] if getattr(fn, "per_point", False) else [use.id]
        found += [f"{spot}_{name}" for spot in spots for name in getattr(fn, "makes", ())]
    return found


def unknown(world: World, name: str) -> Missing:
    """A name that no point, view, part or root bears."""
    known = [*world.points, *world.extras, *(v.id for v in world.method.views), *world.registry.names("view"),
             *(f"{prefix_of(p)}_{n}" for p in world.points for n in PLAIN), *offered(world), *ROOTS]
    prefix = name.rpartition("_")[0]
    why = ""
    if "_" in name and point_of(prefix) not in world.points and name.rpartition("_")[2] in PLAIN:
        owner = next((u for u in world.method.parts if prefix.startswith(u.id)), None)
        why = f"part '{owner.id}' does not offer it" if owner else f"there is neither a point '{point_of(prefix)}' nor a part that offers it"
    return Missing(f"nothing in this recipe makes '{name}'", why=why, fix=suggest(name, set(known), "tensors"))


def asked(world: World, error: ComposerError, need: Need, use: Use, path: str) -> ComposerError:
    """What is missing, told at the key that asks for it; a default need at its component."""
    if _told(error):
        return error
    given = use.rebind.get(need.name)
    if given is None and world.guessed(path):
        return Hidden(error.what)
    declared = use.kind != "view" or not path.startswith("views.") or use in world.method.views
    if given is not None:
        return missing(f'{need.name} = "{given}"', error, f"{path}.{need.name}" if declared else "")
    if need.name in PLAIN and use.at:
        return missing(f'at = "{use.at}"', error, f"{path}.at" if declared else "")
    return missing(f"{use.kind} '{use.use}' needs '{need.name}'", error, path if declared else "")


def missing(what: str, error: ComposerError, path: str) -> ComposerError:
    """The error as the reason why `what`, which stands at `path`, cannot be made; one that was told deeper stays as it is."""
    found = [single if _told(single) else _because(what, single, path) for single in error.all]
    return found[0] if len(found) == 1 else Errors(found)


def _told(error: ComposerError) -> bool:
    return bool(error.where or getattr(error, "path", "") or isinstance(error, Hidden))


def _because(what: str, error: ComposerError, path: str) -> Missing:
    made = Missing(what, why="\n".join(filter(None, [error.what, error.why])), fix=error.fix)
    made.path = path
    return made


def clashes(method: Method, registry: Registry) -> list[tuple[str, str, str]]:
    """Points, views, parts' views and roots share one name space: (what, path, fix) of every clash."""
    taken, found = dict.fromkeys(ROOTS, "a root"), []
    owned = [(i.id, f"inner.{i.id}", "a point") for i in method.inner if i.id != "weights"] + [(v.id, f"views.{v.id}", "a view") for v in method.views]
    uses = {v.id: v.use for v in method.views}
    for id, path, what in owned:
        if id in taken or what == "a view" and registry.has("view", id) and uses[id] != id:
            found.append((f"the name '{id}' is already {taken.get(id, 'a registered view')}", path, "give it another id"))
        taken[id] = what
    return found + [(f"an inner is named by the point it makes: 'x_…', not '{i.id}'", f"inner.{i.id}", f"[inner.x_{i.id}]")
                    for i in method.inner if i.id != "weights" and not i.id.startswith("x_")]
