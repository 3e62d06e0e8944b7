"""A recipe's phase becomes a plan: needs closed, calls ordered, what does not move hoisted, what nobody differentiates without a tape."""

from __future__ import annotations

from typing import Any

from composer.errors import ComposerError, Errors
from composer.options import Ref
from composer.plan.calls import named, slot_options, term_call
from composer.plan.gradients import climbs_of, grads, unseen
from composer.plan.lacking import clashes, missing, near_point
from composer.plan.needs import Builder
from composer.plan.types import Arg, Draw, InnerPlan, Moment, PartPlan, Pass, Plan, Program, Slot, Summand, Value
from composer.plan.world import ROOTS, Hidden, Missing, World, point_of, prefix_of
from composer.recipe.paths import show
from composer.recipe.problems import Unread
from composer.recipe.types import Inner, Method, Term, Use
from composer.registry import REGISTRY, Primitive, Registry


def compile_method(method: Method, *, registry: Registry = REGISTRY, share: bool = True, where: Any = None,
                   elsewhere: tuple[str, ...] = (), train: dict[str, Any] | None = None) -> Plan:
    """The plan of one phase. Errors: Errors with everything it lacks.

    share      False for a model with random layers: equal forwards are then different draws, and none is shared
    where      path -> the place a user can open, for errors
    elsewhere  points that other phases of the recipe make: `updates` passes them over in silence
    train      further scheduled numbers by path (train.lr, optim options)
    """
    plan, errors = look_at_method(method, registry=registry, share=share, where=where, elsewhere=elsewhere, train=train)
    if errors:
        raise Errors(errors)
    return plan


def look_at_method(method: Method, *, registry: Registry = REGISTRY, share: bool = True, where: Any = None, elsewhere: tuple[str, ...] = (),
                   train: dict[str, Any] | None = None, unread: Unread | None = None) -> tuple[Plan, list[ComposerError]]:
    """As compile_method, but errors are given back; the plan then lacks what they speak of. `unread`: what the recipe's own mistakes left out."""
    compiler = _Compiler(method, registry, share, where or (lambda path: path), elsewhere, unread or Unread())
    return compiler.plan(train or {}), compiler.errors


class _Compiler:
    def __init__(self, method: Method, registry: Registry, share: bool, where: Any, elsewhere: tuple[str, ...], unread: Unread):
        self.method, self.registry, self.where = method, registry, where
        hidden = tuple(id for id in unread.ids("inner") if id != "weights")
        self.elsewhere, self.unread = (*elsewhere, *hidden), unread
        self.world = World(method, registry, points=["x", *hidden], share=share, unread=unread)
        self.world.absent = {p: " in this phase (a phase or toggle drops what makes it)" for p in elsewhere}
        self.prelude = Builder(self.world, bn="eval", at="clean")
        self.errors: list[ComposerError] = []

    def plan(self, train: dict[str, Any]) -> Plan:
        for path, value in train.items():
            self.world.value(path, value)
        for what, path, fix in clashes(self.method, self.registry):
            self._fail(what, path, fix=fix)
        inner = [self._guard(f"inner.{i.id}", self._inner, i) for i in self._ordered() if i.id != "weights"]
        outer = self._outer_builder("train" if self.method.outer.bn == "train_frozen" else self.method.outer.bn)
        terms = self._terms(outer, self.method.terms, "terms")
        updates = self._updates(outer)
        moments, parts = self._moments(outer)
        for each in self.method.inner:
            if each.id == "weights":
                inner.append(self._guard("inner.weights", self._weights, each))
        program = grads(Program(tuple(outer.steps), terms), moving=None)
        return Plan(Program(tuple(self.prelude.steps)), tuple(i for i in inner if i), program, updates, self._after(), moments, parts,
                    tuple(self.world.draws.values()), tuple(self.world.dials.values()), tuple(dict.fromkeys(self.world.coupled)), self.method.soft)

    # -- pieces --------------------------------------------------------------------------------------------------------------------

    def _guard(self, path: str, build: Any, *args: Any) -> Any:
        """Collect the error of one piece and go on, so that the user sees all of them."""
        try:
            return build(*args)
        except ComposerError as error:
            for single in error.all:
                if not isinstance(single, Hidden):
                    where = single.where or self.where(getattr(single, "path", "") or path)
                    self.errors.append(type(single)(single.what, where=where, why=single.why, fix=single.fix))
        return None

    @property
    def whole(self) -> bool:
        """False where something has been left out: what is not there proves nothing then."""
        return not self.errors and not self.unread

    def _ordered(self) -> list[Inner]:
        """Inners by their needs: one that reads another's point comes after it."""
        waiting, done, order = [i for i in self.method.inner if i.id != "weights"], {"x"}, []
        makes = {i.id: i.id for i in waiting}
        while waiting:
            ready = next((i for i in waiting if not (self._mentions(i) & (set(makes) - done - {i.id}))), None)
            if ready is None:
                ring = ", ".join(i.id for i in waiting)
                self.errors.append(ComposerError(f"the inners {ring} need each other's points", where=self.where(f"inner.{waiting[0].id}"), fix="break the ring"))
                return order + waiting
            waiting.remove(ready)
            done.add(ready.id)
            order.append(ready)
        return order

    def _mentions(self, inner: Inner) -> set[str]:
        """Points an inner names: in options, rebinds and the terms' `at`."""
        names = {v for v in inner.options.values() if isinstance(v, str)} | set(inner.rebind.values())
        for use in (*inner.terms, *((inner.surface,) if inner.surface else ()), *((inner.eps,) if isinstance(inner.eps, Use) else ())):
            names |= set(use.rebind.values()) | ({point_of(use.at)} if use.at else set())
        if isinstance(inner.eps, str):
            names.add(inner.eps)
        return {i.id for i in self.method.inner for n in names if n == i.id or n.startswith(prefix_of(i.id) + "_")}

    def _terms(self, builder: Builder, terms: tuple[Term, ...], root: str) -> tuple[Summand, ...]:
        summands = []
        for term in terms:
            path = f"{root}.{term.id}"
            made = self._guard(path, term_call, builder, term, path)
            if made:
                weight = self.world.value(f"{path}.weight", term.weight)
                summands.append(Summand(term.id, made[0], weight, made[1], made[1] is not None and "gain" in term.detach))
        for path, name in self.unread.names:
            if show(path).rpartition(".")[0].startswith(f"{root}."):
                self._guard(show(path), named, builder, path[-1], name, show(path))
        if not terms and root == "terms" and not self.unread.below(("terms",)) and not self.unread.lost:
            self.errors.append(ComposerError("no term is left to minimise", where=self.where("terms"), fix="keep at least one entry in [terms]"))
        return tuple(summands)

    def _inner(self, inner: Inner) -> InnerPlan:
        primitive = self.registry.get("inner", inner.use)
        root = f"inner.{inner.id}"
        more = tuple(primitive.flags.get("makes", ()))
        own = (inner.id, *(m for m in more if m.startswith("x_")))
        self.world.points += [p for p in own if p not in self.world.points]
        climbed = own + (("x",) if primitive.flags.get("climbs_x") else ())
        builder = Builder(self.world, bn=inner.bn, at=prefix_of(inner.id), own=climbed, prelude=self.prelude)
        makes = ((("point", inner.id),) + tuple((m, m) for m in own[1:]) + tuple((m, f"{prefix_of(inner.id)}_{m}") for m in more if not m.startswith("x_")))
        eps = self._guard(f"{root}.eps", self._eps, builder, inner, root)
        if isinstance(eps, Slot) and eps.name in builder.moving:
            self._fail(f"inner '{inner.use}' differentiates at the clean image, which this radius reads", f"{root}.eps", fix='eps = "threat"')
        args = tuple(filter(None, (self._guard(root, self._arg, builder, inner, n.name, root) for n in primitive.needs
                                   if n.name not in ("x", "climb", "eps", "draws"))))
        options = self._guard(root, slot_options, builder, primitive, self.world.options(root, inner, "inner"), root) or {}
        terms, surface = (), None
        if primitive.flags.get("surface"):
            if inner.surface is not None:
                surface = self._guard(f"{root}.surface", lambda: builder.call(inner.surface, f"{root}.surface", out="surface"))
            elif not self.unread.below(("inner", inner.id, "surface")):
                self._fail(f"inner '{inner.use}' climbs a surface, and none is given", root, fix='surface = { use = "margin_soft" }')
        else:
            terms = self._terms(builder, inner.terms, f"{root}.terms")
            if not inner.terms and not self.unread.below(("inner", inner.id, "terms")):
                self._fail(f"inner '{inner.use}' has nothing to climb", root, fix="terms = { ce = {} }")
            self._climbable(builder, terms, root)
        moving = builder.moving
        preamble = grads(Program(tuple(s for s in builder.steps if not set(s.writes_to) & moving)), moving=set())
        body = grads(Program(tuple(s for s in builder.steps if set(s.writes_to) & moving), terms, surface), moving=moving | set(climbed))
        if self.whole and (blind := unseen(primitive, body, inner.id)):
            self._fail(f"inner '{inner.use}' looks at {', '.join(blind)} while it climbs, and its terms read no such logits", root, fix="terms = { ce = {} }")
        self.world.extras.update({slot: inner.id for key, slot in makes if not slot.startswith("x_")})
        climbs, forwards = climbs_of(primitive, options)
        return InnerPlan(inner.id, inner.use, inner.bn, inner.bn == "train", preamble, body, eps, options, args, makes,
                         self._draws(primitive, options, root), climbs, forwards)

    def _eps(self, builder: Builder, inner: Inner, root: str) -> Value:
        if isinstance(inner.eps, Use):
            return Slot(builder.call(inner.eps, f"{root}.eps", out=f"{prefix_of(inner.id)}_eps", extra={"eps": "@threat.eps"}))
        if isinstance(inner.eps, str):
            try:
                return Slot(builder.tensor(inner.eps))
            except ComposerError as error:
                raise missing(f'eps = "{inner.eps}"', error, f"{root}.eps") from None
        return self.world.value(f"{root}.eps", inner.eps)

    def _arg(self, builder: Builder, inner: Inner, need: str, root: str) -> Arg:
        """A root or tensor that the inner's primitive itself asks for."""
        given = inner.rebind.get(need)
        try:
            return Arg(need, builder.tensor(given or need))
        except ComposerError as error:
            if given is None and self.world.guessed(root):
                raise Hidden(need) from None
            raise missing(f'{need} = "{given}"' if given else f"inner '{inner.use}' needs '{need}'", error, f"{root}.{need}" if given else root) from None

    def _fail(self, what: str, path: str, why: str = "", fix: str = "") -> None:
        self.errors.append(ComposerError(what, where=self.where(path), why=why, fix=fix))

    def _climbable(self, builder: Builder, terms: tuple[Summand, ...], root: str) -> None:
        for summand in terms:
            if summand.loss not in builder.moving and not self.world.guessed(f"{root}.terms.{summand.id}"):
                self._fail(f"term '{summand.id}' does not depend on the point that climbs", f"{root}.terms.{summand.id}",
                           fix=f"drop it, or let it read a tensor at '{builder.at}'")

    def _draws(self, primitive: Primitive, options: dict[str, Value], root: str) -> tuple[tuple[str, Draw], ...]:
        found = []
        start = options.get("start")
        if isinstance(start, Ref):
            noise = next((n for n in self.registry.get("start", start.use).needs if n.draw), None)
            restarts = options.get("restarts", 1)
            if noise:
                found.append(("start", Draw(f"{root}.start", noise.draw, restarts)))
        for name, (kind, count) in primitive.flags.get("draws", {}).items():
            times = options.get(count, 1) if isinstance(count, str) else count
            found.append((name, Draw(f"{root}.{name}", kind, times if isinstance(times, int) else str(count))))
        for _, draw in found:
            self.world.draws.setdefault(draw.path, draw)
        return tuple(found)

    def _outer_builder(self, bn: str) -> Builder:
        outer = self.method.outer
        for key, points in (("joint", outer.joint), ("after", outer.after), ("rows", tuple(outer.rows))):
            for number, point in enumerate(points):
                if point not in self.world.points and point not in self.elsewhere and not self.world.hidden(point):
                    self._fail(f"{key} names the point '{point}', which no inner makes", f"outer.{key}.{point if key == 'rows' else number}",
                               fix=near_point(self.world, point))
        joint = tuple(p for p in outer.joint if p in self.world.points)
        builder = Builder(self.world, bn=bn, at=self.world.default_at, joint=joint if len(joint) > 1 else (), rows=dict(outer.rows), prelude=self.prelude)
        return builder

    def _weights(self, inner: Inner) -> InnerPlan:
        """The ascent over the weights: the outer terms (or its own) once more, batch statistics not written."""
        primitive = self.registry.get("inner", inner.use)
        builder = self._outer_builder(inner.bn if inner.bn == "eval" else "train")
        terms = self._terms(builder, inner.terms or self.method.terms, "terms" if not inner.terms else "inner.weights.terms")
        options = self._guard("inner.weights", slot_options, builder, primitive, self.world.options("inner.weights", inner, "inner"), "inner.weights") or {}
        body = grads(Program(tuple(builder.steps), terms), moving=None)
        climbs, forwards = climbs_of(primitive, options)
        return InnerPlan("weights", inner.use, inner.bn, inner.bn == "train", Program(()), body, None, options, (), (("point", "weights"),),
                         self._draws(primitive, options, "inner.weights"), climbs, forwards)

    def _updates(self, outer: Builder) -> tuple[str, ...]:
        """Which passes' statistics are written: logits slots, in order."""
        passes = [s for s in outer.steps if isinstance(s, Pass) and s.batch]
        named, method = self.method.outer.updates, self.method.outer
        if method.bn != "train":
            if named and method.bn == "eval" and not passes:
                return ()
            if method.bn == "train_frozen":
                return ()
        if named is None:
            first = sorted(passes, key=lambda p: "x" not in p.points)
            return tuple(p.outs[0] for p in first)
        slots = []
        for number, point in enumerate(named):
            if point not in self.world.points:
                if point not in self.elsewhere and not self.world.hidden(point):
                    self._fail(f"updates names the point '{point}', which no phase makes", f"outer.updates.{number}", fix=near_point(self.world, point))
                continue
            found = next((p for p in passes if point in p.points), None)
            if found:
                slots.append(found.outs[0])
        joined = [p for p in passes if len(p.points) > 1]
        for p in joined:
            if slots.count(p.outs[0]) > 1 and sum(named.count(q) for q in p.points) > len(set(named) & set(p.points)):
                self.errors.append(ComposerError("joint points share one forward, so updates may name each of them once", where=self.where("outer.updates")))
            slots = [s for k, s in enumerate(slots) if s != p.outs[0] or slots.index(s) == k]
        return tuple(slots)

    def _after(self) -> tuple[str, ...]:
        return tuple(p for p in self.method.outer.after if p in self.world.points)

    def _moments(self, outer: Builder) -> tuple[tuple[Moment, ...], tuple[PartPlan, ...]]:
        moments: list[Moment] = []
        parts: list[PartPlan] = []
        for use in self.method.parts:
            primitive = self.registry.get("part", use.use)
            points = tuple(self.world.part_points.get(use.id, ()))
            per_point = getattr(primitive.fn, "per_point", False)
            active = use.id in self.world.parts_read or getattr(primitive.fn, "writes_model", False)
            for when in ("after_step", "epoch_end", "phase_end"):
                if not hasattr(primitive.fn, when):
                    continue
                for point in (points if per_point and when == "after_step" else (None,)):
                    made = self._guard(f"parts.{use.id}", self._moment, outer, use, primitive, when, point)
                    if made:
                        moments.append(made)
            options = self.world.options(f"parts.{use.id}", use)
            parts.append(PartPlan(use.id, use.use, options, points, active, dict(use.rebind)))
        return tuple(moments), tuple(parts)

    def _moment_need(self, outer: Builder, use: Use, need: str, name: str, point: str | None) -> str:
        try:
            return outer.tensor(name, point)
        except ComposerError as error:
            told = f'{need} = "{name}"' if need in use.rebind else f"part '{use.use}' needs '{need}'"
            raise missing(told, error, f"parts.{use.id}.{need}" if need in use.rebind else f"parts.{use.id}") from None

    def _moment(self, outer: Builder, use: Use, primitive: Primitive, when: str, point: str | None) -> Moment:
        before = len(outer.steps)
        args = []
        for need in primitive.method_needs(when):
            name = use.rebind.get(need.name, need.name)
            args.append(Arg(need.name, name if name in ROOTS else self._moment_need(outer, use, need.name, name, point), True))
        if any(isinstance(s, Pass) for s in outer.steps[before:]) and not self.whole:
            raise Hidden(use.id)
        if any(isinstance(s, Pass) for s in outer.steps[before:]):
            raise Missing(f"part '{use.id}' looks at a forward in {when} that no term makes", why="a moment never adds a pass of the model",
                          fix="let a term or view of [terms] read the same point in the same mode")
        return Moment(use.id, when, point, tuple(args))
