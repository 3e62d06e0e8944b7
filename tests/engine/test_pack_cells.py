"""Cells of a grid trained together: runs that differ in numbers equal themselves alone in float64; what differs beyond numbers is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from composer.bench.nets import batch
from composer.bench.subject import Subject, load_like_plain
from composer.engine import pack_optim
from composer.engine.feed import Batch
from composer.engine.pack import Absent, Lockstep
from composer.engine.pack_layers import Unpackable
from composer.engine.pack_net import PackedNet, Seats
from composer.engine.pack_optim import Own, Stacked
from composer.engine.pack_plans import Each, apart, merged, stretches
from composer.models.build import build_model
from composer.options import Ref
from composer.plan.types import Dial
from composer.recipe.load import catalogue, load
from composer.recipe.types import ModelSpec

SHAPE, N = (1, 8, 8), 8
MLP = ModelSpec("mlp", {"widths": (24, 16)}, Ref("head", "linear"))
CNN = ModelSpec("small_cnn", {"channels": (4, 8, 8)}, Ref("head", "linear"))
RAMP = '{ use = "ramp", first = %s, last = %s, until = 4 }'


def cells(recipe: str, sets: list[list[str]], spec: ModelSpec = MLP, *, double: bool = True, clip: list[float] | None = None,
          device: str = "cpu") -> list[Subject]:
    """One run a list of settings; each has its own seed, weights and images."""
    catalogue()
    found = []
    for seed, own in enumerate(sets):
        made = load_like_plain(recipe, steps=3, lr=0.005, sets=own)
        if clip:
            made = load(recipe, setting="digits", sets=["threat.steps=3", "train.lr=0.05", f"optim.clip={clip[seed]}"])
        x, y = batch("cnn8", N, seed=seed, device=device)
        model = build_model(spec, SHAPE, 10, seed).to(device)
        subject = Subject(made, model.double() if double else model, x.double() if double else x, y, seed=seed)
        for part in subject.parts.values() if double else ():
            for held in (v for v in vars(part).values() if isinstance(v, dict)):
                held.update({k: v.double() for k, v in held.items() if isinstance(v, Tensor) and v.is_floating_point()})
        found.append(subject)
    return found


def pack(members: list[Subject], seats: Seats | None = None, absent: Any = None) -> Any:
    seats = seats or Seats(tuple(range(len(members))), len(members))
    made = Lockstep([s.trainer for s in members], PackedNet([s.session.net for s in members], SHAPE, seats), absent)
    given = seats.spread([s.batch for s in members])
    soft = None if given[0].y_soft is None else torch.cat([b.y_soft for b in given])
    whole = Batch(*(torch.cat([getattr(b, name) for b in given]) for name in ("x", "y", "i")), soft)

    def step(epoch: int = 0) -> None:
        made._step(whole, epoch or members[0].epoch)
        for s in members:
            s.trainer.progress.batch = 0

    step.pack = made  # type: ignore[attr-defined]
    return step


def state(subject: Subject) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in subject.trainer.state().tensors.items()}


def check(recipe: str, sets: list[list[str]], spec: ModelSpec = MLP, steps: int = 6, **more: Any) -> Lockstep:
    """Steps in a pack against steps alone: weights, statistics, momentum, parts and meters."""
    alone, packed = cells(recipe, sets, spec, **more), cells(recipe, sets, spec, **more)
    step = pack(packed)
    for k in range(steps):
        epoch = packed[0].epoch + k                         # so that schedules move
        for s in alone:
            s.trainer._step(s.batch, epoch)
            s.trainer.progress.batch = 0
        step(epoch)
    for slot, (a, b) in enumerate(zip(alone, packed, strict=True)):
        step.pack.update.hand_back(b.trainer, slot)
        one, other = state(a), state(b)
        assert one.keys() == other.keys()
        for name, value in one.items():
            loose = name in ("meter/low", "meter/high", "meter/sums")                 # radii are float32
            torch.testing.assert_close(other[name].double(), value.double(), rtol=0, atol=1e-5 if loose else 1e-9)
    return step.pack


def each_of(plan: Any) -> set[str]:
    """Where the merged plan holds numbers of each member's own."""
    calls = [s for p in (plan.prelude, plan.outer, *(q for i in plan.inner for q in (i.preamble, i.body))) for s in p.steps]
    found = {f"{s.path}.{k}" for s in calls for k, v in getattr(s, "options", {}).items() if isinstance(v, Each)}
    found |= {f"inner.{i.id}.{k}" for i in plan.inner for k, v in {**i.options, "eps": i.eps}.items() if isinstance(v, Each)}
    found |= {f"terms.{t.id}.weight" for t in plan.outer.terms if isinstance(t.weight, Each)}
    return found | {f"parts.{p.id}.{k}" for p in plan.parts for k, v in p.options.items() if isinstance(v, Each)}


GRID = [[], ["terms.margin.delta=0.4", "inner.x_adv.terms.margin.delta=0.4"], ["terms.align.weight=30.0", "parts.ema.decay=0.0"],
        ["inner.x_adv.eps=0.02", "inner.x_adv.step=0.004", "terms.align.alpha=1.345", "parts.ema.decay=0.7"]]


@pytest.mark.parametrize("spec", [MLP, CNN], ids=["mlp", "batch_norm"])
def test_a_grid_of_numbers_equals_its_cells_alone(spec):
    """A loss's option in the attack and outside it, a term's weight, a part's decay, radius and step of the attack."""
    found = check("at_ours", GRID, spec)
    assert each_of(found.plan) == {"terms.margin.delta", "inner.x_adv.terms.margin.delta", "terms.align.weight", "terms.align.alpha", "parts.ema.decay",
                                   "inner.x_adv.eps", "inner.x_adv.step"}
    assert isinstance(found.update, Stacked)


@pytest.mark.parametrize(("recipe", "sets"), [
    ("mwpb_at", [["inner.x_adv.eps.alpha=0.0"], ["inner.x_adv.eps.alpha=0.58"], ["inner.x_adv.eps.alpha=0.9"]]),
    ("mwpb_mart", [["threat.eps=0.02"], ["threat.eps=0.03"]]),
    ("awp_trades", [["inner.weights.gamma=0.01"], ["inner.weights.gamma=0.003"]]),
    ("trades", [["terms.kl.weight=1.0"], ["terms.kl.weight=6.0"], ["inner.x_adv.terms.kl.weight=2.0"]]),
    ("fast_at", [["threat.eps=0.02"], ["threat.eps=0.03"]]),
    ("mart", [["terms.kl.weight=1.0"], ["terms.boosted_ce.constants=exact"]]),
    ("wat", [[], ["terms.ce.weight=0.5"]]),
    ("trades_ema", [["parts.avg.decay.cap=0.5"], ["parts.avg.decay=0.99"]]),
], ids=lambda v: v if isinstance(v, str) else "")
def test_numbers_of_every_kind(recipe, sets):
    """A radius' option, the threat it starts from, the step over the weights, weights in an attack, a word, an average of weights."""
    check(recipe, sets, CNN, 3)


MIXED = [("at", [[], ["inner.x_adv.step=0.004"]]),
         ("trades", [["terms.kl.weight=2.0"], [f"terms.kl.weight={RAMP % (1, 5)}"], [f"inner.x_adv.eps={RAMP % (0.01, 0.03)}"]])]


@pytest.mark.parametrize(("recipe", "sets"), MIXED, ids=[recipe for recipe, _ in MIXED])
def test_constants_beside_schedules_are_made_once(recipe, sets, monkeypatch):
    """On a CUDA device the host waits each time it hands over a number."""
    made = []
    step = pack(cells(recipe, sets, double=False))
    step()
    for name in ("tensor", "as_tensor", "scalar_tensor"):
        plain = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda value, *more, plain=plain, **given: (isinstance(value, Tensor) or made.append(value), plain(value, *more, **given))[1])
    for epoch in (1, 2):
        step(epoch)
    assert made == []


@pytest.mark.gpu
@pytest.mark.parametrize(("recipe", "sets"), MIXED, ids=[recipe for recipe, _ in MIXED])
def test_no_step_of_a_pack_waits_for_a_gpu(recipe, sets):
    step = pack(cells(recipe, sets, double=False, device="cuda"))
    for epoch in (1, 2):
        step(epoch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(3)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_schedules_are_each_members_own():
    ramps = [[f"terms.align.weight={RAMP % (0, w)}", f"parts.ema.decay={RAMP % (0, 0.1 * w)}"] for w in (3, 7)]
    followed = [f"inner.x_adv.eps={RAMP % (0.01, 0.03)}", 'terms.margin.weight={ use = "follow", path = "inner.x_adv.eps", value = 2.0 }']
    other = [followed[0].replace("0.03", "0.02"), followed[1]]
    found = check("at_ours", [ramps[0], ramps[1], [*ramps[0], "terms.margin.delta=0.5"]])
    assert sum(isinstance(d, Dial) for d in found.plan.dials) == 6
    found = check("at_ours", [ramps[0], ramps[0], ramps[1]])
    assert sum(isinstance(d, Dial) for d in found.plan.dials) == 4, "seeds of one cell share a dial"
    found = check("at_ours", [followed, other, [followed[0], "terms.margin.weight=1.5"]])
    assert {"inner.x_adv.eps", "terms.margin.weight"} <= each_of(found.plan), "what follows another number is another number"


@pytest.mark.parametrize("sets", [["train.lr=0.01"], ["optim.weight_decay=0.01"], ["optim.momentum=0.5"], ["optim.nesterov=true"],
                                  [f"train.lr={RAMP % (0, 0.02)}"]], ids=str)
def test_members_whose_update_differs_make_their_own(sets):
    assert isinstance(check("at", [[], sets], CNN, 5).update, Own)


@pytest.mark.parametrize("sets", [[], ["optim.momentum=0.5"]], ids=["stacked", "own"])
def test_a_scheduled_decay_at_perturbed_weights_is_that_of_the_step(sets):
    """awp_trades decays at the perturbed weights, so its gradient holds the decay as it stands at this step."""
    decay = f"optim.weight_decay={RAMP % (0, 0.1)}"
    found = check("awp_trades", [[decay], [decay, *sets]], MLP, 5)
    assert found.recipe.optim.decay_at == "perturbed" and isinstance(found.update, Own if sets else Stacked)


def test_an_optimiser_that_looks_across_a_tensor_sees_each_members_own(monkeypatch):
    monkeypatch.setattr(pack_optim, "ROWWISE", ())
    assert isinstance(check("at", [[], []], CNN, 3).update, Own)


def test_each_gradient_is_clipped_at_its_own_norm():
    found = check("at", [[], [], []], clip=[0.01, 0.5, 1e9])
    assert found.clip.tolist() == [0.01, 0.5, 1e9]


def test_members_side_by_side_with_the_same_options_are_called_together():
    options = {"a": Each((1.0, 1.0, 2.0, 1.0)), "b": 5.0}
    assert stretches(options, 4) == [(0, 2), (2, 3), (3, 4)] and stretches({"b": 5.0}, 4) == [(0, 4)]


def test_equal_plans_stay_as_they_are():
    members = cells("at_ours", [[], []])
    plans = [s.trainer.plan for s in members]
    assert merged(plans, [s.trainer.values for s in members]) is plans[0]


def test_what_follows_a_path_that_differs_differs():
    follow = Ref("schedule", "follow", {"path": "a", "value": 1.0, "early": 0})
    chain = Ref("schedule", "follow", {"path": "b", "value": 1.0, "early": 0})
    assert apart([{"a": 1.0, "b": follow, "c": chain, "d": 2.0}, {"a": 2.0, "b": follow, "c": chain, "d": 2.0}]) == {"a", "b", "c"}
    assert apart([{"a": 1.0}, {"a": 1.0, "e": 3.0}]) == {"e"} and apart([{"a": 1.0}] * 3) == frozenset()


@pytest.mark.parametrize(("recipe", "sets", "why"), [
    ("at", ["inner.x_adv.steps=2"], "inner.x_adv.steps differs"),
    ("at", ["inner.x_adv.start=zero"], "inner.x_adv.start differs"),
    ("at", ["terms.ce.use=boosted_ce"], r"terms.ce \(ce\) where another has terms.ce \(boosted_ce\)"),
    ("at", ["inner.x_adv.bn=train"], "eval mode where another has a forward of x_adv in train mode"),
    ("at_ours", ["terms.align.a=adv_logits"], "the part 'ema'|put together differently|where another has"),
    ("mwpb_at", ["inner.x_adv.eps=0.02"], "where another has|a number in one run"),
    ("mma", ["terms.ce.weight=2.0"], ""),
    ("approx_emr_at", ["terms.emr.t=2.0"], "terms.emr differentiates the network, and its t differs"),
    ("at_ours", ["inner.x_adv.terms.margin.weight=2.0"], ""),
])
def test_what_differs_beyond_numbers_is_said(recipe, sets, why):
    members = cells(recipe, [[], sets], CNN)
    if not why:
        merged([s.trainer.plan for s in members], [s.trainer.values for s in members])
        return
    with pytest.raises(Unpackable, match=why):
        merged([s.trainer.plan for s in members], [s.trainer.values for s in members])


def test_a_member_that_has_gone_is_still_counted_with():
    """Bit for bit: the seat that is free decides which calls are made member by member."""
    full, part = cells("at_ours", GRID[:3], double=False), cells("at_ours", GRID[:3], double=False)
    gone = part[1]
    a = pack(full)
    b = pack([part[0], part[2]], Seats((0, 2), 3), {1: Absent.of(gone.trainer.node, gone.trainer.clock)})
    assert each_of(b.pack.plan) == each_of(a.pack.plan)
    for _ in range(3):
        a(), b()
    for one, other in ((full[0], part[0]), (full[2], part[2])):
        assert all(torch.equal(v, w) for v, w in zip(state(one).values(), state(other).values(), strict=True))
