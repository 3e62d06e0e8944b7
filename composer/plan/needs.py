"""From names to calls: each tensor of a program once, in an order in which everything exists before it is used."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from composer.errors import suggest
from composer.plan.types import Arg, Call, Draw, Pass, Read, Slot, Step, Value
from composer.plan.world import PLAIN, ROLES, ROOTS, Missing, World, point_of, prefix_of
from composer.recipe.types import Term, Use
from composer.registry import Need, Primitive


class Builder:
    """The calls of one program. `bn` is its mode; `own` the points that its inner moves."""

    def __init__(self, world: World, *, bn: str, at: str, own: tuple[str, ...] = (), joint: tuple[str, ...] = (), rows: dict[str, str] | None = None,
                 prelude: Builder | None = None):
        self.world, self.bn, self.at, self.own, self.joint, self.rows = world, bn, at, own, joint, rows or {}
        self.prelude = prelude
        self.steps: list[Step] = []
        self.memo: dict[tuple[Any, ...], str] = {}
        self.moving: set[str] = set()          # what depends on the inner's own points
        self.reader = ""                       # who asks, for a model whose passes are not shared

    # -- names ---------------------------------------------------------------------------------------------------------------------

    def tensor(self, name: str, at: str | None = None, bn: str | None = None) -> str:
        """The slot that holds `name`, for a reader at point `at` in batch-norm mode `bn`."""
        at, bn = at or self.at, bn or self.bn
        world = self.world
        if name in PLAIN:
            name = f"{at}_{name}"
        name = ROLES.get(name, name)
        if name in ROOTS:
            if name == "y_soft" and not world.method.soft:
                raise Missing("nothing makes 'y_soft'", fix="soft labels come from a soft augmentation ([augment] smooth, mixup or cutmix)")
            return name
        if name in world.points or name in world.extras:
            return name
        if name.startswith("x_"):
            raise Missing(f"nothing in this recipe makes the point '{name}'{world.absent.get(name, '')}", fix=self._points_fix(name))
        declared = next((v for v in world.method.views if v.id == name), None)
        if declared:
            return self.call(declared, f"views.{name}", bn=declared.bn or bn, out=name)
        for reader in (self._output, self._part, self._view):
            slot = reader(name, at, bn)
            if slot:
                return slot
        raise self._unknown(name)

    def _output(self, name: str, at: str, bn: str) -> str | None:
        """T_logits and T_features: a forward of the model."""
        prefix, _, what = name.rpartition("_")
        if what not in ("logits", "features") or not prefix or point_of(prefix) not in self.world.points:
            return None
        slots = self.forward(point_of(prefix), bn)
        if what == "features":
            return self._with_features(slots, prefix)
        return slots

    def _part(self, name: str, at: str, bn: str) -> str | None:
        """What a part reads out: <id>_<T>_<name> or <id>_<name>."""
        for use in self.world.method.parts:
            if not name.startswith(use.id + "_"):
                continue
            primitive = self.world.registry.get("part", use.use)
            rest, makes = name.removeprefix(use.id + "_"), getattr(primitive.fn, "makes", ())
            if not getattr(primitive.fn, "per_point", False):
                if rest in makes:
                    return self.read(use, primitive, None, bn)[rest]
                continue
            prefix, _, what = rest.rpartition("_")
            if what in makes and point_of(prefix) in self.world.points:
                return self.read(use, primitive, prefix, bn)[what]
        return None

    def _view(self, name: str, at: str, bn: str) -> str | None:
        """A registered view, by its own name or as <prefix>_<view>."""
        registry = self.world.registry
        if registry.has("view", name):
            return self.call(Use("view", name, name, defaults(registry.get("view", name))), f"views.{name}", at=at, bn=bn)
        parts = name.split("_")
        for cut in range(len(parts) - 1, 0, -1):
            prefix, what = "_".join(parts[:cut]), "_".join(parts[cut:])
            if registry.has("view", what) and self._is_prefix(prefix):
                return self.call(Use("view", what, what, defaults(registry.get("view", what)), at=prefix), f"views.{name}", bn=bn, out=name)
        return None

    def _is_prefix(self, prefix: str) -> bool:
        if point_of(prefix) in self.world.points:
            return True
        for use in self.world.method.parts:
            rest = prefix.removeprefix(use.id).removeprefix("_")
            if prefix.startswith(use.id) and (not rest or point_of(rest) in self.world.points):
                return True
        return False

    # -- calls ---------------------------------------------------------------------------------------------------------------------

    def forward(self, point: str, bn: str, leaf: bool = False) -> str:
        """A forward of the model at `point`; joined points share one, and equal forwards are one."""
        batch = bn != "eval"
        points = self.joint if point in self.joint and batch == (self.bn != "eval") else (point,)
        key = ("pass", points, batch, "" if self.world.share else self.reader)
        if key not in self.memo:
            suffix = "" if batch == (self.bn != "eval") else "@eval" if not batch else "@batch"
            suffix += "" if self.world.share else f"@{self.reader}"
            outs = tuple(f"{prefix_of(p)}_logits{suffix}" for p in points)
            rows = self.rows.get(point) if len(points) == 1 and batch else None
            rows_slot = self.tensor(rows) if rows else None
            self._add(Pass(points, outs, batch, rows=rows_slot), key, outs[0])
        found = self._step_of(self.memo[key])
        if leaf:
            self._swap(found, replace(found, leaf=True))
        return found.outs[points.index(point)]

    def _with_features(self, logits: str, prefix: str) -> str:
        found = self._step_of(logits)
        if not found.features:
            named = tuple(out.replace("_logits", "_features") for out in found.outs)
            self._swap(found, replace(found, features=named))
            self.moving.update(named if logits in self.moving else ())
            found = self._step_of(logits)
        return found.features[found.outs.index(logits)]

    def call(self, use: Use, path: str, *, at: str | None = None, bn: str | None = None, detach: tuple[str, ...] = (), out: str | None = None,
             extra: dict[str, str] | None = None) -> str:
        """One primitive applied to its needs; the slot of its result."""
        at, bn = use.at or at or self.at, use.bn or bn or self.bn
        primitive = self.world.registry.get(use.kind, use.use)
        if not self.world.share:
            self.reader = path
        args = []
        for need in primitive.needs:
            if extra and need.name in extra:
                args.append(Arg(need.name, extra[need.name]))
                continue
            try:
                args.append(Arg(need.name, self._need(need, use, path, at, bn), need.name in detach))
            except Missing as error:
                given = use.rebind.get(need.name)
                asked = f"is given {need.name} = '{given}'" if given else f"needs '{need.name}'"
                raise Missing(f"{use.kind} '{use.use}' {asked}, and {error.what}", where=error.where, why=error.why, fix=error.fix) from None
        options = self.world.options(path, use)
        key = ("call", use.kind, use.use, tuple(args), repr(sorted(options.items(), key=lambda kv: kv[0])), use.normalise)
        if key not in self.memo:
            leaf = any(n.leaf for n in primitive.needs)
            name = self._free(out or path, self.bn) if (out or path) not in self._taken() else self._free(out or path, bn)
            call = Call(path, use.kind, use.use, tuple(args), name, options, use.normalise, second_order=leaf or primitive.flags.get("second_order", False))
            self._add(call, key, name)
            if primitive.flags.get("couples") == "batch" or use.normalise:
                self.world.coupled.append(path)
        return self.memo[key]

    def _need(self, need: Need, use: Use, path: str, at: str, bn: str) -> str:
        if need.leaf:
            self.forward(point_of(at), bn, leaf=True)
            return f"{point_of(at)}@leaf" + ("" if (bn != "eval") == (self.bn != "eval") else f"@{'eval' if bn == 'eval' else 'batch'}")
        if need.shape and need.shape.point:
            return self.tensor(point_of(at), at, bn)
        if need.draw:
            name = f"{path}.{need.name}"
            self.world.draws.setdefault(name, Draw(name, need.draw))
            return name
        return self.tensor(use.rebind.get(need.name, need.name), at, bn)

    def read(self, use: Use, primitive: Primitive, prefix: str | None, bn: str) -> dict[str, str]:
        """A part's views, at one point or at none."""
        key = ("read", use.id, prefix, bn != "eval")
        if self.prelude is not None and ("read", use.id, prefix) in self.prelude.memo:
            self.memo[key] = self.prelude.memo["read", use.id, prefix]
        if key not in self.memo:
            at = prefix or self.at
            args = tuple(Arg(n.name, self._need(n, use, f"parts.{use.id}", at, bn)) for n in primitive.needs)
            base = f"{use.id}_{prefix}_" if prefix else f"{use.id}_"
            outs = tuple((name, self._free(base + name, bn)) for name in primitive.fn.makes)  # type: ignore[attr-defined]
            fixed = not getattr(primitive.fn, "live", False) and all(a.slot in ("x", "y", "y_soft", "i") for a in args)
            home = self.prelude if fixed and self.prelude is not None else self
            home._add(Read(use.id, prefix, args, outs), key if home is self else ("read", use.id, prefix), outs[0][1])
            self.memo[key] = outs[0][1]
            self.world.parts_read.add(use.id)
            seen = self.world.part_points.setdefault(use.id, [])
            if prefix and prefix not in seen:
                seen.append(prefix)
        step = next(s for b in (self, self.prelude) if b for s in b.steps if self.memo[key] in s.writes_to)
        return dict(step.outs)  # type: ignore[union-attr]

    # -- bookkeeping ---------------------------------------------------------------------------------------------------------------

    def _taken(self) -> set[str]:
        return {slot for step in self.steps for slot in step.writes_to}

    def _free(self, name: str, bn: str) -> str:
        taken = self._taken()
        suffix = "" if (bn != "eval") == (self.bn != "eval") else ("@eval" if bn == "eval" else "@batch")
        candidate, n = name + suffix, 2
        while candidate in taken:
            candidate, n = f"{name}{suffix}#{n}", n + 1
        return candidate

    def _add(self, step: Step, key: tuple[Any, ...], slot: str) -> None:
        self.steps.append(step)
        self.memo[key] = slot
        if any(arg.slot in self.moving or arg.slot.split("@")[0] in self.own for arg in step.args):
            self.moving.update(step.writes_to)

    def _step_of(self, slot: str) -> Pass:
        return next(s for s in self.steps if isinstance(s, Pass) and slot in s.writes_to)

    def _swap(self, old: Step, new: Step) -> None:
        self.steps[next(k for k, s in enumerate(self.steps) if s is old)] = new

    def _points_fix(self, name: str) -> str:
        return f"add [inner.{name}], or use one of the points {', '.join(self.world.points)}"

    def _unknown(self, name: str) -> Missing:
        world = self.world
        known = [*world.points, *world.extras, *(v.id for v in world.method.views), *world.registry.names("view"),
                 *(f"{prefix_of(p)}_{n}" for p in world.points for n in PLAIN), *ROOTS]
        prefix = name.rpartition("_")[0]
        why = ""
        if "_" in name and point_of(prefix) not in world.points and name.rpartition("_")[2] in PLAIN:
            owner = next((u for u in world.method.parts if prefix.startswith(u.id)), None)
            why = f"part '{owner.id}' does not offer it" if owner else f"there is neither a point '{point_of(prefix)}' nor a part that offers it"
        return Missing(f"nothing in this recipe makes '{name}'", why=why, fix=suggest(name, known, "tensors"))


def defaults(primitive: Primitive) -> dict[str, Any]:
    """The options of a view nobody declared: all defaults."""
    model = primitive.Options()
    return {name: getattr(model, name) for name in type(model).model_fields}


def term_call(builder: Builder, term: Term, path: str) -> tuple[str, str | None]:
    """A term's loss and gain slots."""
    out = builder.call(term, path, detach=term.detach, out=path)
    if term.gain is None:
        return out, None
    if isinstance(term.gain, str):
        return out, builder.tensor(term.gain, term.at, term.bn)
    return out, builder.call(term.gain, f"{path}.gain", at=term.at, bn=term.bn, out=f"{path}.gain")


def slot_options(builder: Builder, primitive: Primitive, options: dict[str, Value]) -> dict[str, Value]:
    """Options that name a tensor hold its slot."""
    found = {}
    for name, value in options.items():
        option = primitive.option(name)
        found[name] = Slot(builder.tensor(value)) if option and option.unit == "need" and isinstance(value, str) else value
    return found
