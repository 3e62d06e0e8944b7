"""Plans that are one up to numbers, as one plan that holds each member's own: cells of a grid trained together.

The order of calls, what they read and what is differentiated must be the same. What may differ: options of losses, views, gains, radii and parts,
terms' weights, an inner maximum's radius and its options in pixels, and the schedules of all of these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from composer.engine.pack_layers import Unpackable
from composer.options import Ref
from composer.plan.types import Call, Dial, InnerPlan, PartPlan, Pass, Plan, Program, Read, Slot, Step, Summand, Value
from composer.registry import REGISTRY


@dataclass(frozen=True)
class Each:
    """A value of every member's own, by slot."""

    values: tuple[Value, ...]


@dataclass(frozen=True)
class OwnDial(Dial):
    """A dial of the member in a slot; `plain` is its path in that member's plan."""

    slot: int = 0
    plain: str = ""


def own(value: Any, slot: int) -> Any:
    """The value of the member in a slot."""
    return value.values[slot] if isinstance(value, Each) else value


def own_options(options: Mapping[str, Value], slot: int) -> dict[str, Value]:
    return {name: own(value, slot) for name, value in options.items()}


def differing(options: Mapping[str, Value]) -> list[str]:
    """Names of options that are each member's own."""
    return [name for name, value in options.items() if isinstance(value, Each)]


def stretches(options: Mapping[str, Value], count: int) -> list[tuple[int, int]]:
    """Slots that stand side by side and have the same options, as (first, behind the last)."""
    starts = [m for m in range(count) if not m or own_options(options, m) != own_options(options, m - 1)]
    return list(zip(starts, [*starts[1:], count], strict=True))


def merged(plans: Sequence[Plan], values: Sequence[Mapping[str, Any]]) -> Plan:
    """One plan, the first one's where all are equal. Errors: Unpackable with what differs beyond numbers.

    values  of each: what schedules may follow, by path
    """
    like = [next(k for k in range(slot + 1) if plans[k] == plans[slot] and values[k] == values[slot]) for slot in range(len(plans))]
    return _Merge(plans, apart(values), like).plan()


def apart(values: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """Paths whose value differs among the members, and those of schedules that follow such a path."""
    found = {path for each in values for path in each if any(path not in other or other[path] != each[path] for other in values)}
    grown = True
    while grown:
        more = {path for each in values for path, value in each.items() if isinstance(value, Ref) and value.options.get("path") in found} - found
        grown, found = bool(more), found | more
    return frozenset(found)


class _Merge:
    """apart: paths whose dials stand for other numbers in different members, though they may read the same; like: by slot the first one whose numbers
    are all the same."""

    def __init__(self, plans: Sequence[Plan], apart: frozenset[str], like: Sequence[int]):
        self.plans, self.apart, self.like = plans, apart, like
        self.dials: dict[str, OwnDial] = {}

    def plan(self) -> Plan:
        plans, lead = self.plans, self.plans[0]
        if not self.apart and all(p == lead for p in plans[1:]):
            return lead
        prelude = self._program([p.prelude for p in plans])
        self._alike([[i.id for i in p.inner] for p in plans], "inner maxima")
        inner = tuple(self._inner(each) for each in zip(*(p.inner for p in plans), strict=True))
        outer = self._program([p.outer for p in plans])
        self._alike([[p.id for p in plan.parts] for plan in plans], "parts")
        parts = tuple(self._part(each) for each in zip(*(p.parts for p in plans), strict=True))
        for name in ("updates", "after", "moments", "draws", "soft"):
            if any(getattr(p, name) != getattr(lead, name) for p in plans[1:]):
                raise Unpackable({"updates": "outer.updates differs among the runs", "after": "outer.after differs among the runs",
                                  "moments": "their parts act at other moments", "draws": "they draw other noise",
                                  "soft": "only some of the runs have soft labels"}[name])
        common = tuple(d for d in lead.dials if d.path not in self.apart and all(d in p.dials for p in plans[1:]))
        return replace(lead, prelude=prelude, inner=inner, outer=outer, parts=parts, dials=(*common, *self.dials.values()))

    # -- structure: the same for all -----------------------------------------------------------------------------------------------

    def _alike(self, names: Sequence[Sequence[str]], what: str) -> None:
        other = next((each for each in names[1:] if list(each) != list(names[0])), None)
        if other is not None:
            raise Unpackable(f"one run has the {what} {_listed(names[0])}, another {_listed(other)}")

    def _same(self, pieces: Sequence[Any], free: tuple[str, ...], said: Callable[[Any], str]) -> None:
        """All fields but the free ones."""
        for piece in pieces[1:]:
            if type(piece) is not type(pieces[0]) or any(getattr(piece, f.name) != getattr(pieces[0], f.name) for f in fields(piece) if f.name not in free):
                one, other = said(pieces[0]), said(piece)
                raise Unpackable(f"{one} is put together differently in different runs" if one == other else f"one run has {one} where another has {other}")

    def _program(self, programs: Sequence[Program]) -> Program:
        lead = programs[0]
        for program in programs[1:]:
            strange = next((k for k, (a, b) in enumerate(zip(lead.steps, program.steps)) if _said(a) != _said(b)), min(len(lead.steps), len(program.steps)))
            if strange < max(len(lead.steps), len(program.steps)):
                one, other = (_said(p.steps[strange]) if strange < len(p.steps) else "nothing" for p in (lead, program))
                raise Unpackable(f"one run has {one} where another has {other}")
        self._alike([[t.id for t in p.terms] for p in programs], "terms")
        if any(p.surface != lead.surface for p in programs):
            raise Unpackable("an inner maximum climbs another surface in another run")
        steps = tuple(self._step(each) for each in zip(*(p.steps for p in programs), strict=True))
        return Program(steps, tuple(self._summand(each) for each in zip(*(p.terms for p in programs), strict=True)), lead.surface)

    def _step(self, steps: Sequence[Step]) -> Step:
        lead: Any = steps[0]
        self._same(steps, ("options", "backward") if isinstance(lead, Call) else (), _said)
        if not isinstance(lead, Call):
            return lead
        options = self._options([s.options for s in steps])  # type: ignore[union-attr]
        if lead.second_order and (names := differing(options)):
            raise Unpackable(f"{lead.path} differentiates the network, and its {_listed(names)} differs among the runs")
        return replace(lead, options=options)

    def _summand(self, terms: Sequence[Summand]) -> Summand:
        self._same(terms, ("weight",), lambda t: f"the term '{t.id}'")
        return replace(terms[0], weight=self._value([t.weight for t in terms]))

    def _inner(self, inners: Sequence[InnerPlan]) -> InnerPlan:
        lead = inners[0]
        preamble, body = self._program([i.preamble for i in inners]), self._program([i.body for i in inners])
        options, eps = self._options([i.options for i in inners]), self._value([i.eps for i in inners])
        primitive = REGISTRY.get("inner", lead.use)
        for name in differing(options) if not lead.over_weights else ():
            option = primitive.option(name)
            if option is None or option.unit != "pixels":
                raise Unpackable(f"inner.{lead.id}.{name} differs among the runs, and all images climb in the same steps")
        if isinstance(eps, Each) and any(isinstance(v, Slot) for v in eps.values):
            raise Unpackable(f"inner.{lead.id}.eps is a number in one run and found by each image in another")
        self._same(inners, ("preamble", "body", "options", "eps"), lambda i: f"inner.{i.id} ({i.use})")
        return replace(lead, preamble=preamble, body=body, options=options, eps=eps)

    def _part(self, parts: Sequence[PartPlan]) -> PartPlan:
        self._same(parts, ("options",), lambda p: f"part '{p.id}' ({p.use})")
        return replace(parts[0], options=self._options([p.options for p in parts]))

    # -- numbers: each member's own ------------------------------------------------------------------------------------------------

    def _options(self, options: Sequence[Mapping[str, Value]]) -> dict[str, Value]:
        return {name: self._value([each[name] for each in options]) for name in options[0]}

    def _value(self, values: Sequence[Value]) -> Value:
        if all(v == values[0] for v in values[1:]) and not self._moves_apart(values[0]):
            return values[0]
        return Each(tuple(self._owned(value, self.like[slot]) for slot, value in enumerate(values)))

    def _moves_apart(self, value: Value) -> bool:
        if isinstance(value, Ref):
            return any(self._moves_apart(v) for v in value.options.values())
        return isinstance(value, Dial) and value.path in self.apart

    def _owned(self, value: Value, slot: int) -> Value:
        if isinstance(value, Ref):
            return replace(value, options={name: self._owned(v, slot) for name, v in value.options.items()})
        if not isinstance(value, Dial):
            return value
        made = OwnDial(f"{value.path} of {slot}", value.ref, slot, value.path)
        return self.dials.setdefault(made.path, made)


def _said(step: Step) -> str:
    if isinstance(step, Pass):
        return f"a forward of {_listed(step.points)} in {'train' if step.batch else 'eval'} mode"
    return f"the part '{step.part}'" if isinstance(step, Read) else f"{step.path} ({step.use})"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
