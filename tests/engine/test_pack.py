"""Runs trained together equal the same runs trained alone: in float64 to rounding, part by part, whatever the method.

A `Subject` (composer.bench.subject) is one run on one batch. Some make their own steps; equal ones make theirs in a pack.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from composer.bench.nets import batch
from composer.bench.subject import Subject, load_like_plain
from composer.engine import pack_layers
from composer.engine.feed import Batch
from composer.engine.pack import Lockstep, clip_each, why_not
from composer.engine.pack_layers import Unpackable, grouped, one_by_one, stack
from composer.engine.pack_net import PackedNet, Seats
from composer.models.build import build_model
from composer.options import Ref
from composer.recipe.load import catalogue, load
from composer.recipe.types import ModelSpec

SHAPE, N = (1, 8, 8), 8
MLP = ModelSpec("mlp", {"widths": (24, 16)}, Ref("head", "linear"))
CNN = ModelSpec("small_cnn", {"channels": (4, 8, 8)}, Ref("head", "linear"))
COUPLED = ("approx_emr_at", "approx_emr_standard", "emr_lbgat", "emr_mail_at", "emr_mail_trades", "emr_mart", "emr_trades", "emr_trades_clean")
UNPACKED = {**dict.fromkeys(COUPLED, "couples the rows"), "lbgat": "a network of its own"}
KINDS = ("at_rice", "alp", "awp_trades", "he_trades", "seat", "wat", "mwpb_mart", "fat", "emr_at", "mma", "igr_at", "elsayed_fab", "piat_nmse")
RECIPES = sorted(p.stem for p in (Path(__file__).parents[2] / "recipes").glob("*.toml") if p.stem not in ("papers", "protocols"))


def subjects(recipe: str, spec: ModelSpec, count: int = 3, *, double: bool = True, clip: float | None = None, sets: tuple[str, ...] = (),
             device: str = "cpu") -> list[Subject]:
    """Runs that differ in seed, weights and images."""
    catalogue()
    made = load_like_plain(recipe, steps=3, lr=0.005, sets=sets)
    if clip:
        made = load(recipe, setting="digits", sets=["threat.steps=3", "train.lr=0.05", f"optim.clip={clip}"])
    found = []
    for seed in range(count):
        x, y = batch("cnn8", N, seed=seed, device=device)
        model = build_model(spec, SHAPE, 10, seed).to(device)
        subject = Subject(made, model.double() if double else model, x.double() if double else x, y, seed=seed)
        if double:
            for part in subject.parts.values():
                for held in (v for v in vars(part).values() if isinstance(v, dict)):
                    held.update({k: v.double() for k, v in held.items() if isinstance(v, Tensor) and v.is_floating_point()})
        found.append(subject)
    return found


def together(members: list[Subject], seats: Seats | None = None) -> Any:
    """One call makes a step of all of them."""
    seats = seats or Seats(tuple(range(len(members))), len(members))
    pack = Lockstep([s.trainer for s in members], PackedNet([s.session.net for s in members], SHAPE, seats))
    given = seats.spread([s.batch for s in members])
    soft = None if given[0].y_soft is None else torch.cat([b.y_soft for b in given])
    whole = Batch(torch.cat([b.x for b in given]), torch.cat([b.y for b in given]), torch.cat([b.i for b in given]), soft)

    def step() -> None:
        pack._step(whole, members[0].epoch)
        for s in members:
            s.trainer.progress.batch = 0

    step.pack = pack  # type: ignore[attr-defined]
    return step


def apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest difference of two states of the same names."""
    assert a.keys() == b.keys()
    return max(float((a[k].double() - b[k].double()).abs().max()) for k in a if a[k].numel())


def state(subject: Subject) -> dict[str, Tensor]:
    """Everything that a checkpoint of the run would hold of tensors: weights, statistics, momentum, parts, meter."""
    return {k: v.detach().clone() for k, v in subject.trainer.state().tensors.items()}


@pytest.mark.parametrize("spec", [MLP, CNN], ids=["mlp", "batch_norm"])
@pytest.mark.parametrize("recipe", ["at", "trades", "mart_ours"])
def test_twenty_steps_equal_those_of_each_run_alone(recipe, spec):
    alone, packed = subjects(recipe, spec), subjects(recipe, spec)
    before = [state(s)["model/head.weight"] for s in alone]
    step = together(packed)
    for _ in range(20):
        for s in alone:
            s()
        step()
    for k, (a, b) in enumerate(zip(alone, packed)):
        step.pack.update.hand_back(b.trainer, k)
        assert apart(state(a), state(b)) < 1e-9
        assert float((state(b)["model/head.weight"] - before[k]).abs().max()) > 1e-3, "nothing was learnt"
    assert apart(packed[0].model.state_dict(), packed[1].model.state_dict()) > 1e-2, "the members are one run"


@pytest.mark.parametrize("recipe", KINDS)
def test_methods_of_every_kind_equal_themselves_alone(recipe):
    """Train-mode attacks, passes that are joined, perturbed weights, a head that is read, averages, memories, radii, slopes, searches."""
    check(recipe, CNN, 2)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_shipped_recipe_packs_or_says_why_not(recipe):
    if recipe in UNPACKED:
        s = subjects(recipe, CNN, 1)[0]
        assert UNPACKED[recipe] in why_not(s.plan, s.parts)
        return
    for spec in (MLP, CNN):
        check(recipe, spec, 4)


@pytest.mark.gpu
@pytest.mark.parametrize("spec", [MLP, CNN], ids=["mlp", "grouped_convolutions"])
@pytest.mark.parametrize("recipe", ["at", "trades", "mart_ours", "awp_trades"])
def test_on_a_gpu(recipe, spec):
    check(recipe, spec, 3, "cuda")


def check(recipe: str, spec: ModelSpec, steps: int, device: str = "cpu") -> None:
    alone, packed = subjects(recipe, spec, device=device), subjects(recipe, spec, device=device)
    assert why_not(packed[0].plan, packed[0].parts) == ""
    step = together(packed)
    for _ in range(steps):
        for s in alone:
            s()
        step()
    for k, (a, b) in enumerate(zip(alone, packed)):
        step.pack.update.hand_back(b.trainer, k)
        found, wanted = state(b), state(a)
        radii = {name for name in wanted if name in ("meter/low", "meter/high", "meter/sums")}          # some are float32
        assert apart({k: v for k, v in wanted.items() if k not in radii}, {k: v for k, v in found.items() if k not in radii}) < 1e-9
        assert apart({k: wanted[k].nan_to_num(posinf=0, neginf=0) for k in radii}, {k: found[k].nan_to_num(posinf=0, neginf=0) for k in radii}) < 1e-5


def test_gradients_are_clipped_run_by_run():
    torch.manual_seed(0)
    plain = [[nn.Parameter(torch.zeros(3, 2)), nn.Parameter(torch.zeros(4))] for _ in range(3)]
    for scale, parameters in zip((0.01, 1.0, 50.0), plain):
        for p in parameters:
            p.grad = scale * torch.randn_like(p)
    packed = [nn.Parameter(torch.zeros(3, 3, 2)), nn.Parameter(torch.zeros(3, 4))]
    for k, p in enumerate(packed):
        p.grad = torch.stack([own[k].grad for own in plain])
    clip_each(packed, 1.0)
    for m, own in enumerate(plain):
        torch.nn.utils.clip_grad_norm_(own, 1.0)
        for k, p in enumerate(own):
            torch.testing.assert_close(packed[k].grad[m], p.grad)


def test_clipping_in_a_run():
    alone, packed = subjects("at", MLP, clip=0.05), subjects("at", MLP, clip=0.05)
    step = together(packed)
    for _ in range(3):
        for s in alone:
            s()
        step()
    assert alone[0].session.recipe.optim.clip == 0.05
    assert max(apart(a.model.state_dict(), b.model.state_dict()) for a, b in zip(alone, packed)) < 1e-12


def test_a_run_that_diverges_leaves_the_others_as_they_are():
    alone, packed = subjects("at", CNN), subjects("at", CNN)
    with torch.no_grad():
        packed[1].model.head.weight.fill_(float("inf"))
    step = together(packed)
    for _ in range(3):
        step()
        alone[0](), alone[2]()
    lost = step.pack.lost
    assert set(lost) == {1} and lost[1].exit_code == 3 and "diverged" in lost[1].what
    assert [t.progress.step for t in step.pack.members] == [3, 0, 3]
    for k in (0, 2):
        assert apart(alone[k].model.state_dict(), packed[k].model.state_dict()) < 1e-12


def test_free_seats_change_nothing_for_those_who_sit():
    """Bit for bit: who goes on after others have finished or diverged computes what it would have computed beside them."""
    full, part = subjects("mart_ours", CNN, double=False), subjects("mart_ours", CNN, double=False)[1:]
    a, b = together(full), together(part, Seats((1, 2), 3))
    for _ in range(3):
        a(), b()
    for one, other in zip(full[1:], part):
        assert all(torch.equal(v, w) for v, w in zip(state(one).values(), state(other).values()))


# -- networks ----------------------------------------------------------------------------------------------------------------------------------------


class Foreign(nn.Module):
    """Layers that packs know nothing of: group norm, a bias of its own, a one-dimensional batch norm."""

    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(6))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.gain

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, padding=1, groups=1), nn.GroupNorm(2, 4)
        self.wide, self.flat, self.scale, self.head = nn.Linear(256, 6, bias=False), nn.BatchNorm1d(6), self.Scale(), nn.Linear(6, 10)

    def embed(self, x: Tensor) -> Tensor:
        return self.scale(self.flat(self.wide(self.norm(self.conv(x)).flatten(1))))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x))


def nets(make: Any, count: int = 3) -> list[Any]:
    from composer.engine.net import Net

    found = []
    for seed in range(count):
        torch.manual_seed(seed)
        model = make().double()
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.3)
        found.append(Net(model, torch.device("cpu"), seed=seed))
    return found


@pytest.mark.parametrize("batch", [False, True], ids=["eval", "train"])
def test_layers_of_other_kinds_are_called_run_by_run(batch):
    members = nets(Foreign)
    x = torch.rand(3 * 5, 1, 8, 8, dtype=torch.float64)
    scratch = [m.stats.scratch() for m in members]
    wanted = torch.cat([m(rows, batch=batch, scratch=s if batch else None)[0].detach() for m, rows, s in zip(members, x.chunk(3), scratch)])
    packed = PackedNet(members, SHAPE)
    both = packed.stats.scratch()
    logits, features = packed(x, batch=batch, scratch=both if batch else None, features=True)
    torch.testing.assert_close(logits, wanted, rtol=1e-10, atol=1e-10)
    assert features.shape == (15, 6)
    torch.testing.assert_close(both, torch.stack(scratch), rtol=1e-10, atol=1e-12)


def test_members_live_in_the_stacked_tensors():
    members = nets(Foreign)
    held = [{k: v.clone() for k, v in m.model.state_dict().items()} for m in members]
    packed = PackedNet(members, SHAPE)
    for m, before in zip(members, held):
        assert all(torch.equal(v, before[k]) for k, v in m.model.state_dict().items())
    with torch.no_grad():
        packed.parameters["head.weight"][1] += 1
        packed.stats.flat[2] += 1
    assert torch.equal(members[1].model.head.weight, held[1]["head.weight"] + 1) and torch.equal(members[0].model.head.weight, held[0]["head.weight"])
    assert torch.equal(members[2].model.flat.running_mean, held[2]["flat.running_mean"] + 1)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_grouped_convolution_is_the_members_own(groups):
    """The form for CUDA, whose launches it saves."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=groups).double() for _ in range(3)]
    packed = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=groups).double()
    packed.weight, packed.bias = (nn.Parameter(stack([getattr(c, name).detach() for c in layers])) for name in ("weight", "bias"))
    packed.__dict__["members"] = 3
    x = torch.rand(6, 4, 8, 8, dtype=torch.float64)
    wanted = torch.cat([c(rows) for c, rows in zip(layers, x.chunk(3))])
    for form in (grouped, one_by_one):
        torch.testing.assert_close(form(packed, x), wanted)


def test_whole_steps_with_grouped_convolutions(monkeypatch):
    monkeypatch.setattr(pack_layers._Conv, "forward", grouped)
    check("trades", CNN, 2)


def test_what_cannot_be_packed_says_why():
    class Nosy(Foreign):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + nn.functional.linear(x.flatten(1)[:, :6], self.head.weight)

    class Rootless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.head = nn.Parameter(torch.zeros(64)), nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.flatten(1) * self.weight)

    class Mixes(Foreign):
        def forward(self, x: Tensor) -> Tensor:
            z = super().forward(x)
            return z - z.mean(0)

    class Drops(Foreign):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

    reasons = {Nosy: "does not run with stacked weights", Rootless: "weights outside its layers", Mixes: "something else", Drops: "random layers"}
    for make, reason in reasons.items():
        with pytest.raises(Unpackable, match=reason):
            PackedNet(nets(make), SHAPE)
