"""A method that has been compiled is not compiled again: cells of a grid that differ in weights, or outside the method, share its programs.

The keys name pieces by identity: equal ones that were read from the same text are one object (`recipe.remember`), and the memory keeps them alive.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from composer.errors import ComposerError
from composer.options import Ref
from composer.plan.compile import look_at_method
from composer.plan.types import Dial, Plan, Summand
from composer.recipe.remember import keep
from composer.recipe.types import Inner, Method, Term
from composer.registry import REGISTRY

T = TypeVar("T")
Weights = tuple[tuple[float | None, ...], ...]          # of [terms], then of each inner; None where a schedule gives the weight


def compiled(recipe: Any, *, share: bool, where: Callable[[str], str], elsewhere: tuple[str, ...],
             train: dict[str, Any]) -> tuple[Plan, list[ComposerError]]:
    """As look_at_method for the recipe of one stretch. Only a plan without errors is remembered.

    It is compiled with every weight 1, which no call hangs on, and the weights are put in after. The schedules outside the method stand in no
    program, and are laid beside its plan.
    """
    method = recipe.method
    if recipe.wrong or recipe.unread:
        return look_at_method(method, share=share, where=where, elsewhere=elsewhere, train=train, unread=recipe.unread)
    bare = Method(tuple(map(_bare_inner, method.inner)), method.outer, tuple(map(_bare, method.terms)), method.views, method.parts, method.soft)
    key = ("plan", *(tuple(map(id, group)) for group in (bare.inner, bare.terms, bare.views, bare.parts)), id(bare.outer), bare.soft, share, elsewhere)
    held = REGISTRY.memory.get(key)
    if held is None:
        plan, wrong = look_at_method(bare, share=share, where=where, elsewhere=elsewhere, unread=recipe.unread)
        if wrong:
            return look_at_method(method, share=share, where=where, elsewhere=elsewhere, train=train, unread=recipe.unread)
        held = (plan, bare)
        keep(REGISTRY, key, held)
    weights: Weights = (_numbers(method.terms), *(_numbers(inner.terms) for inner in method.inner))
    return _beside(_weighed(held[0], method, weights), train), []


def _once(key: tuple[Any, ...], of: Sequence[Any], make: Callable[[], T]) -> T:
    """What was made of these objects; the memory holds them, so that nothing else gets their ids."""
    full = (*key, tuple(map(id, of)))
    held = REGISTRY.memory.get(full)
    if held is None:
        held = (make(), tuple(of))
        keep(REGISTRY, full, held)
    return held[0]                                          # type: ignore[no-any-return]


def _bare(term: Term) -> Term:
    """The term at weight 1: one object for all terms that differ in nothing else."""
    if isinstance(term.weight, Ref):
        return term

    def make() -> Term:
        made = replace(term, weight=1.0)
        return REGISTRY.memory.setdefault(("bare", repr(made)), made)      # type: ignore[no-any-return]

    return _once(("bare",), (term,), make)


def _bare_inner(inner: Inner) -> Inner:
    def make() -> Inner:
        made = replace(inner, terms=tuple(map(_bare, inner.terms)))
        return REGISTRY.memory.setdefault(("bare", repr(made)), made)      # type: ignore[no-any-return]

    return _once(("bare",), (inner,), make)


def _numbers(terms: tuple[Term, ...]) -> tuple[float | None, ...]:
    return tuple(None if isinstance(term.weight, Ref) else term.weight for term in terms)


def _weighed(plan: Plan, method: Method, weights: Weights) -> Plan:
    """The plan with the weights of the method's terms; an ascent over the weights without terms of its own climbs [terms]."""
    own = {inner.id: inner.terms or method.terms for inner in method.inner}

    def make() -> Plan:
        inner = tuple(replace(i, body=replace(i.body, terms=_put(i.body.terms, own[i.id]))) if i.body.terms else i for i in plan.inner)
        return replace(plan, inner=inner, outer=replace(plan.outer, terms=_put(plan.outer.terms, method.terms)))

    return _once(("weighed", weights), (plan,), make)


def _put(summands: tuple[Summand, ...], terms: tuple[Term, ...]) -> tuple[Summand, ...]:
    numbers = {term.id: term.weight for term in terms if not isinstance(term.weight, Ref)}
    return tuple(replace(s, weight=numbers[s.id]) if s.id in numbers else s for s in summands)


def _beside(plan: Plan, train: dict[str, Any]) -> Plan:
    """The plan with the dials of the learning rate and the optimiser before its own."""
    dials = [dial for path, value in train.items() for dial in _dials(path, value)]
    return _once(("beside", *train), (plan, *train.values()), lambda: replace(plan, dials=(*dials, *plan.dials))) if dials else plan


def _dials(path: str, value: Any) -> list[Dial]:
    if not isinstance(value, Ref):
        return []
    if value.kind == "schedule":
        return [Dial(path, value)]
    return [dial for name, item in value.options.items() for dial in _dials(f"{path}.{name}", item)]


def marked(plan: Plan, read: set[str]) -> Plan:
    """The plan with the parts in `read` marked as needed; one object for the same plan and parts."""
    needed = tuple(part.id in read for part in plan.parts)
    if needed == tuple(part.needed for part in plan.parts):
        return plan
    return _once(("marked", needed), (plan,), lambda: replace(plan, parts=tuple(replace(part, needed=part.id in read) for part in plan.parts)))
