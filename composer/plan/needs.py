"""From names to calls: each tensor of a program once, in an order in which everything exists before it is used."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from composer.errors import ComposerError, Errors
from composer.plan.lacking import asked, missing, points_fix, unknown
from composer.plan.types import Arg, Call, Draw, Pass, Read, Step, Value
from composer.plan.world import PLAIN, ROLES, ROOTS, Hidden, Missing, World, point_of, prefix_of
from composer.recipe.types import Use
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
        self.differentiating = False           # what is asked now is for a call that differentiates: it and its needs read one pass

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
            if world.hidden(name):
                raise Hidden(name)
            raise Missing(f"nothing in this recipe makes the point '{name}'{world.absent.get(name, '')}", fix=points_fix(world, name))
        declared = next((v for v in world.method.views if v.id == name), None)
        if declared:
            return self.call(declared, f"views.{name}", bn=declared.bn or bn, out=name)
        for reader in (self._output, self._part, self._view):
            slot = reader(name, at, bn)
            if slot:
                return slot
        raise Hidden(name) if world.hidden(name) else unknown(world, name)

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
            rows_slot = self._rows(point, rows) if rows else None
            self._add(Pass(points, outs, batch, rows=rows_slot), key, outs[0])
        found = self._step_of(self.memo[key])
        if leaf and point not in dict(found.leaves):
            mode = found.outs[points.index(point)].partition("@")
            self._swap(found, replace(found, leaves=(*found.leaves, (point, f"{point}@leaf{mode[1]}{mode[2]}"))))
        return found.outs[points.index(point)]

    def _rows(self, point: str, name: str) -> str:
        try:
            return self.tensor(name)
        except ComposerError as error:
            raise missing(f'{point} = "{name}"', error, f"outer.rows.{point}") from None

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
        second = any(n.leaf for n in primitive.needs) or primitive.flags.get("second_order", False)
        if not self.world.share and not self.differentiating:
            self.reader = path
        outer, self.differentiating = self.differentiating, self.differentiating or second
        try:
            args = self._args(primitive, use, path, at, bn, detach, extra or {})
        finally:
            self.differentiating = outer
        options = self.world.options(path, use)
        cuts = cut_needs(primitive, options)
        args = tuple(replace(a, detach=True) if a.need in cuts and not a.detach else a for a in args)
        key = ("call", use.kind, use.use, args, repr(sorted(options.items(), key=lambda kv: kv[0])), use.normalise)
        if key not in self.memo:
            name = self._free(out or path, self.bn) if (out or path) not in self._taken() else self._free(out or path, bn)
            backward = primitive.flags.get("backward", (1, 1) if second else (0, 0))
            call = Call(path, use.kind, use.use, args, name, options, use.normalise, second_order=second,
                        backward=backward(options) if callable(backward) else backward)
            self._add(call, key, name)
            if has(primitive.flags.get("couples"), options) or use.normalise:
                self.world.coupled.append(path)
        return self.memo[key]

    def _args(self, primitive: Primitive, use: Use, path: str, at: str, bn: str, detach: tuple[str, ...], extra: dict[str, str]) -> tuple[Arg, ...]:
        args, errors = [], []
        for need in primitive.needs:
            if need.name in extra:
                args.append(Arg(need.name, extra[need.name]))
                continue
            try:
                args.append(Arg(need.name, self._need(need, use, path, at, bn), need.name in detach))
            except ComposerError as error:
                errors += [asked(self.world, single, need, use, path) for single in error.all]
        if errors:
            raise Errors(errors)
        return tuple(args)

    def _need(self, need: Need, use: Use, path: str, at: str, bn: str) -> str:
        if need.leaf:
            return dict(self._step_of(self.forward(point_of(at), bn, leaf=True)).leaves)[point_of(at)]
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
            live = getattr(primitive.fn, "live", False)
            fixed = not (live(use.options) if callable(live) else live) and all(a.slot in ("x", "y", "y_soft", "i") for a in args)
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

def defaults(primitive: Primitive) -> dict[str, Any]:
    """The options of a view nobody declared: all defaults. Errors: Missing for a view that cannot do without one."""
    needed = [o.name for o in primitive.options if o.required]
    if needed:
        raise Missing(f"view '{primitive.name}' needs the option '{needed[0]}'", fix=f'declare it: [views] name = {{ use = "{primitive.name}", … }}')
    return {o.name: o.default for o in primitive.options}


def has(flag: Any, options: dict[str, Value]) -> bool:
    """Whether a flag of a decorator holds: "batch", True, or {option: value} for the calls that have it."""
    return any(options.get(name) == value for name, value in flag.items()) if isinstance(flag, dict) else bool(flag)


def cut_needs(primitive: Primitive, options: dict[str, Value]) -> tuple[str, ...]:
    """The needs that a call with these options sends no gradient to: the decorator's `cuts`, names or a function of the options."""
    cuts = primitive.flags.get("cuts", ())
    return tuple(cuts(options) if callable(cuts) else cuts)
