"""Contracts of losses, views, gains and radii: pure functions of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from composer._testing.report import need
from composer._testing.static import Static
from composer._testing.tensors import EPS, from_logits, head_roots, tensors, views, with_aliases
from composer._testing.values import floats, is_rows, need_of, options_of, variants
from composer.plan.needs import cut_needs, has
from composer.registry import Primitive
from composer.shapes import Shape

N, CLASSES = 8, 10
ROWS = Shape("PerExample", "[N]")
Given = dict[str, Any]


def attached(t: dict[str, Any], offsets: dict[str, Tensor] | None = None) -> tuple[dict[str, Any], list[Tensor]]:
    """The views recomputed with gradients, and what they depend on: images, weights, and the logits themselves where `offsets` sets them.

    With offsets the logits have the values asked for, and still the model's derivatives.
    """
    model = t["model"]
    x, x_adv = (t[name].clone().requires_grad_() for name in ("x", "x_adv"))
    leaves = [x, x_adv, *model.parameters()]
    t = {**t, "x": x, "x_adv": x_adv, **head_roots(model)}
    for point, image in (("clean", x), ("adv", x_adv)):
        made = views(model, image)
        if offsets:
            leaf = offsets[point].clone().requires_grad_()
            leaves.append(leaf)
            made |= from_logits(leaf + (made["logits"] - made["logits"].detach()))
        t |= {f"{point}_{name}": value for name, value in made.items()}
    return with_aliases(t), leaves


class Case:
    """One primitive with its options, ready to be called on a batch."""

    def __init__(self, primitive: Primitive, options: Given, given: Given):
        self.primitive, self.options, self.given = primitive, options, given

    def leaf(self) -> bool:
        return any(n.leaf for n in self.primitive.needs)

    def needs(self, t: dict[str, Any]) -> dict[str, Any]:
        """Needs by name. A pass of a `Leaf` runs at the point of that name, so the plain views are that point's."""
        if any(n.leaf and n.name == "x" for n in self.primitive.needs):
            t = t | {name: t[f"clean_{name}"] for name in ("logits", "probs", "logp", "features")}
        return {n.name: self.given[n.name] if n.name in self.given else need_of(n, t) for n in self.primitive.needs}

    def batch(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> dict[str, Any]:
        """Needs on the usual batch; attached where the primitive differentiates."""
        t = tensors(N, CLASSES, seed, dtype)
        return self.needs(attached(t)[0] if self.leaf() else t)

    def call(self, needs: dict[str, Any], **changed: Any) -> Tensor:
        return self.primitive.fn(*needs.values(), **(self.options | changed))

    def rows(self, needs: dict[str, Any], index: Tensor) -> dict[str, Any]:
        """The same needs for some rows; a differentiating primitive gets its pass at those rows."""
        return {n.name: needs[n.name][index] if is_rows(n, needs[n.name]) else needs[n.name] for n in self.primitive.needs}


def close(a: Tensor, b: Tensor, tolerance: float = 1e-9) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)


def per_example(case: Case) -> None:
    """One value for each example."""
    out = case.call(case.batch(torch.float32))
    need(isinstance(out, Tensor) and out.shape == (N,), f"it returns {_form(out)}, one value for each of the {N} examples is needed; never reduce")
    need(out.is_floating_point(), f"it returns {out.dtype}, a floating-point type is needed")


def a_tensor(case: Case) -> None:
    out = case.call(case.batch(torch.float32))
    need(isinstance(out, Tensor), f"it returns {_form(out)}, a tensor is needed")


def pure(case: Case) -> None:
    """Arguments stay as they are, the global random state too, and a second call gives the same."""
    needs = case.batch()
    held = {name: (v, v.detach().clone(), v._version) for name, v in needs.items() if isinstance(v, Tensor)}
    random = torch.get_rng_state()
    first = case.call(needs)
    for name, (value, before, version) in held.items():
        need(value._version == version and torch.equal(value.detach(), before), f"it writes into its argument '{name}'")
    need(torch.equal(random, torch.get_rng_state()), "it draws random numbers of its own; declare a need annotated Uniform or Gaussian instead")
    need(close(first, case.call(needs), 0.0), "a second call with the same arguments gives another result")


def extremes() -> list[dict[str, Tensor]]:
    """Logits at ±1e4 for both points: right, wrong and tied winners, in several pairings."""
    t = tensors(N, CLASSES, 0, torch.float32)
    own = torch.nn.functional.one_hot(t["y"], CLASSES).bool()
    other = own.roll(3, 1)
    big, tiny = torch.tensor(1e4), torch.tensor(-1e4)
    patterns = [torch.where(own, big, tiny), torch.where(other, big, tiny), big.expand(N, CLASSES), torch.where(own, tiny, big),
                torch.where(own | other, big, tiny), tiny.expand(N, CLASSES), torch.where(own, big, torch.zeros(())), t["clean_logits"]]
    stacked = torch.stack(patterns)                                                                 # [P,N,K]
    rows = torch.arange(N)
    shifted = [stacked[(rows + shift) % len(patterns), rows] for shift in range(8)]
    return [{"clean": shifted[shift], "adv": shifted[shift + gap]} for shift, gap in ((0, 0), (0, 1), (1, 2), (0, 4), (2, 5))]


def finite(case: Case) -> None:
    """Finite value and gradient at logits of ±1e4 in float32."""
    reached = False
    for offsets in extremes():
        t, leaves = attached(tensors(N, CLASSES, 0, torch.float32), offsets)
        needs = case.needs(t)
        free = {name: v.detach().clone().requires_grad_() for name, v in needs.items()
                if isinstance(v, Tensor) and v.is_floating_point() and not v.requires_grad}
        out = case.call(needs | free)
        need(bool(torch.isfinite(out).all()), f"its value is not finite at logits of ±1e4: {_some(out)}")
        if not out.requires_grad:
            continue
        for gradient in torch.autograd.grad(out.sum(), [*leaves, *free.values()], allow_unused=True):
            if gradient is not None:
                need(bool(torch.isfinite(gradient).all()), f"its gradient is not finite at logits of ±1e4: {_some(gradient)}")
                reached = True
    need(reached or case.primitive.kind != "loss", "no gradient reaches any input: a loss that is constant trains nothing")


def permutes(case: Case) -> None:
    """Permuting the batch permutes the result; and unless rows are coupled by design, a row does not depend on the others."""
    t = tensors(N, CLASSES, 0, torch.float64)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    whole = case.call(case.batch())
    if not whole.ndim or whole.shape[0] != N:
        return                                  # a view of the head, say: it has no rows
    need(close(case.call(_rows_of(case, t, order)), whole[order]), "permuting the batch does not permute the result")
    if not has(case.primitive.flags.get("couples"), case.options):
        half = torch.arange(N // 2)
        need(close(case.call(_rows_of(case, t, half)), whole[half]), "a row's value depends on other rows; if that is meant, say couples = \"batch\"")


def _rows_of(case: Case, t: dict[str, Any], index: Tensor) -> dict[str, Any]:
    if not case.leaf():
        return case.rows(case.needs(t), index)
    rows = case.rows(case.needs(t), index)
    part = {name: value[index] if isinstance(value, Tensor) and value.ndim and name != "head_weight" else value for name, value in t.items()}
    fresh = case.needs(attached(part)[0])
    return {name: fresh[name] if name in t else rows[name] for name in rows}


def dials(case: Case) -> None:
    """A float option and the same number as a 0-dim tensor give the same."""
    names = floats(case.primitive, case.options)
    as_dials = {name: torch.tensor(case.options[name], dtype=torch.float64) for name in names}
    need(close(case.call(case.batch()), case.call(case.batch(), **as_dials)), f"options {', '.join(names)} as 0-dim tensors change the result")


def static(case: Case) -> None:
    """No value is read in Python, no shape depends on one; dials as tensors."""
    needs = case.batch(torch.float32)
    with Static():
        case.call(needs, **{name: torch.tensor(case.options[name]) for name in floats(case.primitive, case.options)})


def traces(case: Case) -> None:
    """It traces in one graph, dials as tensors; primitives that differentiate (`Leaf`) run eager and are spared."""
    needs = case.batch(torch.float32)
    as_dials = {name: torch.tensor(case.options[name]) for name in floats(case.primitive, case.options)}
    torch._dynamo.reset()
    compiled = torch.compile(lambda *args, **dials: case.primitive.fn(*args, **(case.options | dials)), backend="eager", fullgraph=True)
    try:
        out = compiled(*needs.values(), **as_dials)
    except torch._dynamo.exc.TorchDynamoException as error:
        need(False, f"it does not trace in one graph (torch.compile, fullgraph): {str(error).strip().splitlines()[0]}")
    need(close(out, case.call(needs, **as_dials), 1e-5), "traced, it gives another result")


def neutral(case: Case) -> None:
    """A value declared neutral does nothing: a loss is zero, a gain is equal for all, a radius is the threat's, a view is its first need."""
    for option, value in case.primitive.flags["neutral"].items():
        needs = case.batch()
        out = case.call(needs, **{option: value})
        said = f"{option} = {value} is declared neutral, yet "
        if case.primitive.kind == "loss":
            need(close(out, torch.zeros_like(out)), said + f"the loss is {_some(out)}")
        elif case.primitive.kind == "gain":
            need(close(out, out.mean().expand(N)), said + f"the gain differs between examples: {_some(out)}")
        elif case.primitive.kind == "radius":
            need(close(out, torch.full_like(out, EPS)), said + f"the radius is not the threat's: {_some(out)}")
        else:
            need(close(out, next(iter(needs.values()))), said + "the view is not its first need")


def cuts(case: Case) -> None:
    """The needs that get no gradient are those that the decorator's `cuts` names: the plan's cost of a pass rests on it."""
    needs = case.batch()
    free = {name: v.detach().clone().requires_grad_() for name, v in needs.items() if isinstance(v, Tensor) and v.is_floating_point()}
    out = case.call(needs | free)
    found = torch.autograd.grad(out.sum(), list(free.values()), allow_unused=True) if out.requires_grad else [None] * len(free)
    dead, said = {name for name, g in zip(free, found) if g is None}, set(cut_needs(case.primitive, case.options))
    need(dead <= said, f"no gradient reaches {', '.join(sorted(dead - said))}: say so in the decorator, cuts = {sorted(dead)}")
    need(said <= dead, f"a gradient reaches {', '.join(sorted(said - dead))}, which its decorator calls cut")


def _form(out: object) -> str:
    return f"a tensor {list(out.shape)}" if isinstance(out, Tensor) else f"a {type(out).__name__}"


def _some(values: Tensor) -> str:
    flat = values.detach().flatten()
    bad = flat[~torch.isfinite(flat)]
    return ", ".join(f"{v:.4g}" for v in (bad if len(bad) else flat)[:4].tolist())


def checks(primitive: Primitive, given: Given, needs: Given) -> dict[str, Callable[[], None]]:
    """The contracts that apply, by name."""
    usual = Case(primitive, options_of(primitive, given), needs)
    over: dict[str, Callable[[Case], None]] = {"shape": a_tensor if primitive.kind == "view" else per_example, "pure": pure, "finite": finite,
                                               "permutation": permutes, "static": static}
    found: dict[str, Callable[[], None]] = {name: _each(check, primitive, given, needs) for name, check in over.items()}
    if floats(primitive, usual.options):
        found["dial"] = lambda: dials(usual)
    if not usual.leaf():
        found["trace"] = lambda: traces(usual)
        if primitive.kind != "radius":
            found["cuts"] = _each(cuts, primitive, given, needs)
    if primitive.flags.get("neutral"):
        found["neutral"] = lambda: neutral(usual)
    return found


def _each(check: Callable[[Case], None], primitive: Primitive, given: Given, needs: Given) -> Callable[[], None]:
    """The check over every choice of every option."""
    def run() -> None:
        for word, options in variants(primitive, given):
            try:
                check(Case(primitive, options, needs))
            except Exception as error:
                error.args = (f"{word}{error.args[0] if error.args else ''}", *error.args[1:])
                raise
    return run
